"""Blocks are found, computed again in the backward, and give the same gradients in less memory."""

import pytest
import torch
from strategies import bits, make, randn, same_bits
from torch import Tensor, nn

from trilora.attach import attached
from trilora.checkpointing import blocks, checkpointed
from trilora.layers import TriLoRALayer


class Block(nn.Module):
    """Its result depends on its number, which the network writes into a dict that all blocks share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, options: dict, scale: Tensor | None = None) -> Tensor:
        options["written"] = True
        return x + (1 + options["block"]) * self.down(self.up(x).tanh()) * (1 if scale is None else scale)


class Network(nn.Module):
    """A list of blocks; a list of lists of blocks, as UNets have them; a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(16))
        self.stages = nn.ModuleList([nn.Sequential(Block(width), nn.Tanh()), nn.Sequential(Block(width))])
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        options = {"block": 0}
        for number, block in enumerate([*self.blocks, self.stages[0][0], self.stages[1][0]]):
            options["block"] = number
            x = block(x, options, scale=x.mean()) if number % 2 else block(x, options=options)
        return self.head(x)


def network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def gradients(root: nn.Module, layers: dict[str, nn.Module]) -> tuple[list[Tensor], int]:
    """The adapters' gradients, and the bytes that the graph held."""
    held: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with attached(root, layers):
        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda t: t):
            loss = root(randn(0, 64, 8)).square().mean()
        parameters = [p for layer in layers.values() for p in layer.parameters()]
        return list(torch.autograd.grad(loss, parameters)), sum(held.values())


def test_gradients_are_the_same_bits_in_less_memory():
    root = network()
    layers = {f"blocks.{i}.{name}": TriLoRALayer(make(*shape, 2)) for i in range(16) for name, shape in SHAPES.items()}
    want, whole = gradients(root, layers)
    with checkpointed(root) as count:
        assert count == 18
        got, less = gradients(root, layers)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert less < whole / 2


SHAPES = {"up": (32, 8), "down": (8, 32)}


def test_every_block_of_a_list_is_found_and_no_part_of_one():
    root = network()
    assert {type(block) for block in blocks(root)} == {Block}
    assert len(blocks(root)) == 18


def test_a_block_that_is_most_of_the_network_is_divided():
    nested = nn.ModuleList([nn.Sequential(*[Network() for _ in range(2)])])
    assert len(blocks(nested)) == 36


@pytest.mark.parametrize("failing", [False, True], ids=["used", "after an exception"])
def test_nothing_is_left_on_the_network(failing):
    root = network()
    before, marks = bits(root), [sorted(vars(m)) for m in root.modules()]
    try:
        with checkpointed(root):
            assert [sorted(vars(m)) for m in root.modules()] != marks
            if failing:
                raise RuntimeError("out of memory")
    except RuntimeError:
        assert failing
    assert same_bits(before, bits(root))
    assert [sorted(vars(m)) for m in root.modules()] == marks


class Adding(nn.Module):
    """Adds to its input in place, as Flux's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x += self.b(self.a(x).tanh())
        return x


def test_an_input_that_a_block_changes_in_place_is_remembered_as_it_was():
    torch.manual_seed(0)
    root = nn.Sequential(*[Adding() for _ in range(3)]).requires_grad_(False)

    def gradient() -> Tensor:
        x = randn(0, 4, 8).requires_grad_()
        with attached(root, {f"{i}.a": TriLoRALayer(make(8, 8, 2)) for i in range(3)}):
            return torch.autograd.grad(root(1 * x).square().sum(), x)[0]

    for block in root:
        block.a.register_forward_pre_hook(lambda _module, inputs: (inputs[0].clone(),))
    want = gradient()
    with checkpointed(root) as count:
        assert count == 3
        assert torch.equal(gradient(), want)


def test_without_gradients_a_block_runs_as_ever():
    root = network()
    with torch.no_grad():
        want = root(randn(0, 4, 8))
        with checkpointed(root):
            assert torch.equal(root(randn(0, 4, 8)), want)
