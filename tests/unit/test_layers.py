"""The trainable layers: shapes, dtypes, gain, and what a step of training does to them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, dense, far, make, off_identity, randn, seeded, seeds, sides
from torch import nn

from trilora.errors import RankError, TriLoRAError
from trilora.factors import Factors, canonical, delta
from trilora.layers import AdapterLayer, LoRALayer, TriLoRALayer, create, resume, resume_sigma, window_of

KINDS = pytest.mark.parametrize(
    ("method", "core"), [("trilora", "diagonal"), ("trilora", "full"), ("lora", "diagonal")]
)


def moved(layer: nn.Module) -> nn.Module:
    """The layer with every parameter away from its start, so that delta is not zero."""
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter += randn(i, *parameter.shape)
    return layer


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_new_layer_adds_nothing_and_learns_in_float32(method, core, dtype):
    layer = create(method, randn(0, 12, 8).to(dtype), 3, 0.5, seeded(0), core)
    x = randn(1, 2, 5, 8).to(dtype)
    assert not layer(x).any()
    assert layer(x).shape == (2, 5, 12)
    assert layer(x).dtype == dtype
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}
    assert isinstance(layer, AdapterLayer)


@given(sides, sides, seeds, st.sampled_from(["trilora", "lora"]), st.sampled_from(["diagonal", "full"]), st.data())
def test_a_layers_output_is_that_of_its_factors(out, inner, seed, method, core, data):
    rank = data.draw(st.integers(1, min(out, inner)))
    layer = moved(create(method, randn(seed, out, inner), rank, 0.7, seeded(seed), core))
    x = randn(seed + 1, 3, inner)
    want = x.double() @ dense(Factors(*(t.detach() for t in layer.factors()))).T
    assert far(layer(x).detach(), want) <= 1e-5 * (float(want.norm()) + rank * inner**0.5)


@KINDS
def test_the_gain_is_folded_into_sigma(method, core):
    one, half = (moved(create(method, randn(0, 9, 8), 4, gain, seeded(0), core)) for gain in (1.0, 0.5))
    torch.testing.assert_close(delta(half.factors()), delta(one.factors()) / 2)
    torch.testing.assert_close(half(torch.eye(8)), delta(half.factors()).T)


@KINDS
def test_gradients_reach_every_parameter_through_the_factors(method, core):
    layer = moved(create(method, randn(0, 9, 8), 4, 1.0, seeded(0), core))
    delta(layer.factors()).square().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_the_full_core_starts_as_the_diagonal_one():
    weight = randn(0, 9, 8)
    full, diagonal = (create("trilora", weight, 4, 1.0, seeded(0), core) for core in ("full", "diagonal"))
    assert torch.equal(full.sigma, torch.diag(diagonal.sigma))
    assert full.sigma.shape == (4, 4)


def test_only_the_orthogonal_start_is_kept_orthonormal():
    weight = randn(0, 9, 8)
    kept = create("trilora", weight, 4, 1.0, seeded(0), initialisation="orthogonal")
    assert kept.orthonormal
    assert off_identity(kept.u.detach()) < 1e-5
    assert not create("trilora", weight, 4, 1.0, seeded(0), initialisation="balanced").orthonormal


@pytest.mark.parametrize(("initialisation", "std"), [("balanced", 0.02), ("paper", 1 / 8)])
def test_loras_down_factor_has_the_std_of_its_initialisation(initialisation, std):
    layer = create("lora", randn(0, 16, 4000), 8, 1.0, seeded(0), initialisation=initialisation)
    assert isinstance(layer, LoRALayer)
    assert float(layer.down.detach().std()) == pytest.approx(std, rel=0.02)
    assert not layer.up.any()


@pytest.mark.parametrize("method", ["trilora", "lora"])
def test_a_rank_too_large_names_the_layer(method):
    with pytest.raises(RankError, match=r"Rank 9 .*blocks\.0\.to_q is 16 x 8"):
        create(method, randn(0, 16, 8), 9, 1.0, seeded(0), layer="blocks.0.to_q")


def test_an_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(TriLoRAError, match="'dora' is unknown; choose trilora or lora"):
        create("dora", randn(0, 8, 8), 2, 1.0, seeded(0))


def trained_sigma(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigma before and after a few steps at lr 1e-4 on a bf16 base, with the factors held in `dtype`."""
    layer = create("trilora", randn(0, 16, 16).bfloat16(), 4, 1.0, seeded(0))
    layer.sigma.data.fill_(1.0)
    layer.to(dtype)
    before = layer.sigma.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-4, weight_decay=0)
    x, target = randn(1, 32, 16).bfloat16(), randn(2, 32, 16).bfloat16()
    for _ in range(4):
        optimizer.zero_grad()
        (layer(x) - target).float().square().mean().backward()
        optimizer.step()
    return before, layer.sigma.detach()


def test_sigma_moves_from_one_at_usual_rates_over_a_bf16_base():
    before, after = trained_sigma(torch.float32)
    assert after.dtype == torch.float32
    assert (after != before).all()
    assert float((after - before).abs().max()) < 1e-3


def test_sigma_in_bf16_would_never_have_moved():
    before, after = trained_sigma(torch.bfloat16)
    assert torch.equal(before, after)


@pytest.mark.parametrize("build", [TriLoRALayer, lambda f: LoRALayer(f.u, f.vh)], ids=["trilora", "lora"])
def test_learning_leaves_the_factors_it_started_from_alone(build):
    start = make(6, 5, 2)
    kept = [tensor.clone() for tensor in start]
    moved(build(start))
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))


@pytest.mark.parametrize("build", [TriLoRALayer, lambda f: LoRALayer(f.u, f.vh)], ids=["trilora", "lora"])
def test_a_layer_that_starts_from_half_precision_factors_learns_in_float32(build):
    layer = build(make(6, 5, 2).to(torch.bfloat16))
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}


def test_a_layer_can_learn_from_factors_made_in_inference_mode():
    with torch.inference_mode():
        start = make(6, 5, 2)
    layer = TriLoRALayer(start)
    layer(randn(0, 3, 5)).sum().backward()
    assert layer.sigma.grad.any()


CONVOLUTIONS = [
    (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    (nn.Conv2d, {"kernel_size": (1, 3), "stride": 2, "padding": (0, 2), "dilation": (1, 2)}),
    (nn.Conv2d, {"kernel_size": 3, "padding": "same", "padding_mode": "circular"}),
    (nn.Conv2d, {"kernel_size": 1}),
    (nn.Conv1d, {"kernel_size": 3, "stride": 2}),
    (nn.Conv3d, {"kernel_size": (3, 1, 2), "padding": (1, 0, 0)}),
]


@pytest.mark.parametrize(("kind", "shape"), CONVOLUTIONS)
@pytest.mark.parametrize("method", ["trilora", "lora", "sigma"])
def test_an_adapted_convolution_is_the_convolution_with_the_merged_weight(kind, shape, method):
    module = kind(6, 10, **shape, bias=False)
    start = canonical(make(10, 6, 3, kernel=tuple(module.weight.shape[2:])))
    layer = resume_sigma(start) if method == "sigma" else resume(method, start, 0.5)
    layer.window = window_of(module)
    x = randn(1, 2, 6, *[7] * (module.weight.ndim - 2))
    with torch.no_grad():
        got = module(x) + layer(x)
        module.weight += delta(start)
        torch.testing.assert_close(got, module(x), rtol=1e-4, atol=1e-4)


def test_a_convolution_in_groups_is_refused():
    with pytest.raises(TriLoRAError, match="in 2 groups can't learn"):
        window_of(nn.Conv2d(4, 4, 3, groups=2))


def test_learning_sigma_alone_keeps_u_and_v_bit_for_bit():
    start = canonical(make(12, 8, 3))
    layer = resume_sigma(start)
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    layer(randn(1, 4, 8)).square().mean().backward()
    optimizer.step()
    assert torch.equal(layer.u, start.u)
    assert torch.equal(layer.vh, start.vh)
    assert not torch.allclose(layer.factors().sigma, start.sigma, rtol=0.01)
