"""Frozen layers hold no weight in the graph, and their gradient is that of ordinary autograd."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from strategies import randn
from torch import Tensor, nn

from trilora.frozen import frozen, lying

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 8), (2, 3, 6)),
    "linear without bias, on one vector": (lambda: nn.Linear(6, 8, bias=False), (6,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "strided, dilated, grouped conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, 2, dilation=2, groups=2), (2, 4, 8, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 2), stride=(1, 2, 2)), (1, 2, 3, 4, 6)),
}


class Stream:
    """One buffer through which every weight passes, and in which it is unreadable after use.

    Writes to `.data` go unseen by autograd, as those of a copy engine do.
    """

    def __init__(self) -> None:
        self.buffer, self.fetches = torch.zeros(4096), 0

    @contextmanager
    def fetch(self, layer: nn.Module, like: Tensor) -> Iterator[Tensor]:
        self.fetches += 1
        weight = self.buffer.data[: layer.weight.numel()].view(layer.weight.shape)
        yield weight.copy_(layer.weight.detach()).to(like.dtype)
        self.buffer.fill_(torch.nan)

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        with self.fetch(layer, x) as weight:
            return torch.func.functional_call(layer, {"weight": weight}, x)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_are_gone_after_use_give_the_gradients_of_ordinary_autograd(name):
    make, shape = LAYERS[name]
    layers, stream = [make().requires_grad_(False), make().requires_grad_(False)], Stream()
    if name.startswith("linear"):
        layers[1] = nn.Linear(8, 5).requires_grad_(False)
    else:
        layers.pop()
    x = randn(0, *shape)
    want_in, got_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    want, got = want_in, got_in
    for layer in layers:
        want = layer(want)
        got = frozen(layer, got, lambda x, layer=layer: stream.run(layer, x), stream.fetch)
    assert torch.equal(got, want)
    upward = randn(1, *want.shape)
    want.backward(upward)
    got.backward(upward)
    torch.testing.assert_close(got_in.grad, want_in.grad, rtol=1e-6, atol=1e-6)
    assert stream.fetches == 2 * len(layers)


def test_plain_autograd_through_such_weights_is_wrong():
    """The stream of these tests does take the weights away: without `frozen` the gradient is not a number."""
    layer, stream, x = nn.Linear(6, 8).requires_grad_(False), Stream(), randn(0, 2, 6).requires_grad_()
    stream.run(layer, x).sum().backward()
    assert x.grad.isnan().all()


def test_the_graph_saves_nothing():
    layer, stream, x = nn.Linear(6, 8).requires_grad_(False), Stream(), randn(0, 2, 6).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
        assert saved
        saved.clear()
        frozen(layer, x, lambda x: stream.run(layer, x), stream.fetch)
    assert not saved


def test_the_gradient_comes_in_the_inputs_own_precision():
    layer, stream = nn.Linear(6, 8).requires_grad_(False), Stream()
    x = randn(0, 2, 6).requires_grad_()
    y = frozen(layer, x, lambda x: stream.run(layer.bfloat16(), x.bfloat16()), stream.fetch)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, layer.weight.float().sum(0).expand(2, 6), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in LAYERS if "conv" in name])
@pytest.mark.parametrize("half", [False, True])
def test_a_convolution_whose_weight_stays_has_the_gradient_of_autograd_and_nothing_is_saved(name, half):
    make, shape = LAYERS[name]
    layer, x, saved = make().requires_grad_(False), randn(0, *shape), []
    want_in, got_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        want = layer(want_in)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            got = lying(layer, got_in, layer)
    assert not saved
    assert torch.equal(got, want)
    upward = randn(1, *want.shape).to(want.dtype)
    want.backward(upward)
    got.backward(upward)
    assert got_in.grad.dtype == torch.float32
    assert torch.equal(got_in.grad, want_in.grad)
