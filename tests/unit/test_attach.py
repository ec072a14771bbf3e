"""Adapters onto a module tree and off again."""

import pytest
import torch
from strategies import DTYPES, bits, far, make, randn, same_bits
from torch import nn

from trilora.attach import attached, standing_in
from trilora.errors import TargetError
from trilora.factors import delta
from trilora.layers import LoRALayer, TriLoRALayer


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 5))).to(dtype)


def adapters() -> dict[str, nn.Module]:
    return {"0": TriLoRALayer(make(8, 6, 3)), "2.0": TriLoRALayer(make(5, 8, 2, seed=5, core="full"))}


def traces(root: nn.Module) -> list[tuple[str, dict, list[str], bool]]:
    """Everything that an adapter could leave behind on a module."""
    return [
        (path, {k: dict(v) for k, v in vars(m).items() if "hooks" in k}, sorted(vars(m)), m.training)
        for path, m in root.named_modules()
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_output_is_that_of_the_merged_weights(dtype):
    root, layers, x = model(dtype), adapters(), randn(1, 4, 6).to(dtype)
    with torch.no_grad():
        with attached(root, layers):
            got = root(x)
        merged = model(dtype).double()
        for path, layer in layers.items():
            merged.get_submodule(path).weight += delta(layer.factors()).double()
        want = merged(x.double())
    assert got.dtype == dtype
    assert far(got, want) <= 16 * torch.finfo(dtype).eps * float(want.norm())


@pytest.mark.parametrize("failing", [False, True], ids=["used", "after an exception"])
def test_nothing_is_left_on_the_model(failing):
    root, x = model(), randn(0, 2, 6)
    before, marks, output = bits(root), traces(root), root(x)
    try:
        with attached(root, adapters()):
            assert traces(root) != marks
            root(x)
            if failing:
                raise RuntimeError("out of memory")
    except RuntimeError:
        assert failing
    assert same_bits(before, bits(root))
    assert traces(root) == marks
    assert torch.equal(root(x), output)


def test_hooks_of_others_stay_where_they_were():
    root = model()
    seen = []
    root[0].register_forward_hook(lambda *_: seen.append(1))
    marks = traces(root)
    with attached(root, adapters()):
        root(randn(0, 1, 6))
    assert traces(root) == marks
    root(randn(0, 1, 6))
    assert seen == [1, 1]


def test_the_switch_gives_the_bare_base_and_turns_back_on():
    root, x = model(), randn(0, 2, 6)
    bare = root(x)
    with attached(root, adapters()) as switch:
        adapted = root(x)
        with switch.off():
            assert torch.equal(root(x), bare)
            with switch.off():
                assert torch.equal(root(x), bare)
            assert torch.equal(root(x), bare)
        assert torch.equal(root(x), adapted)
    assert not torch.equal(adapted, bare)


def test_the_switch_turns_back_on_after_an_exception():
    with attached(model(), adapters()) as switch:
        with pytest.raises(KeyError), switch.off():
            raise KeyError
        assert switch.on


@pytest.mark.parametrize("unknown", ["9", "0.q", "2.0.weight", "attn"])
def test_an_unknown_layer_is_refused_and_leaves_no_hook(unknown):
    root = model()
    marks = traces(root)
    layers = adapters() | {unknown: TriLoRALayer(make(5, 8, 2))}
    with (
        pytest.raises(TargetError, match=rf"no layer '{unknown}'.*base model that it was trained on"),
        attached(root, layers),
    ):
        pytest.fail("the block was entered")
    assert traces(root) == marks


def test_two_sets_of_adapters_add_up():
    root, x = model()[0], randn(0, 3, 6)
    first, second = TriLoRALayer(make(8, 6, 2)), LoRALayer(randn(1, 8, 2), randn(2, 2, 6), 0.5)
    wrapped = nn.ModuleDict({"q": root})
    with attached(wrapped, {"q": first}), attached(wrapped, {"q": second}):
        both = root(x)
    torch.testing.assert_close(both, root(x) + first(x) + second(x))


def test_gradients_reach_the_adapters_through_the_frozen_model():
    root, layers = model().requires_grad_(False), adapters()
    with attached(root, layers):
        root(randn(0, 2, 6)).square().sum().backward()
    assert all(p.grad.any() for layer in layers.values() for p in layer.parameters())
    assert all(p.grad is None for p in root.parameters())


def test_a_layer_called_by_keyword_is_adapted_too():
    root, layer, x = nn.Sequential(nn.Linear(6, 8)), TriLoRALayer(make(8, 6, 3)), randn(0, 2, 6)
    with attached(root, {"0": layer}):
        by_position, by_keyword = root[0](x), root[0](input=x)
    assert torch.equal(by_position, by_keyword)


def test_layers_that_stand_in_act_in_place_of_the_others_and_only_where_they_are_shown():
    root, layers, x = model(), adapters(), randn(1, 4, 6)
    others = {"0": TriLoRALayer(make(8, 6, 2, seed=9))}
    with torch.no_grad():
        with attached(root, others):
            want = root(x)
        with attached(root, layers) as switch:
            alone = root(x)
            with standing_in(root, others, switch) as shown:
                assert torch.equal(root(x), alone)
                with shown():
                    assert torch.equal(root(x), want)
                assert torch.equal(root(x), alone)
            assert len(root[0]._forward_hooks) == 1
