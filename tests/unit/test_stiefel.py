"""Steps on the manifold of orthonormal matrices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make, off_identity, randn, seeded, seeds, sides
from torch import nn

from trilora.factors import canonical, delta, orthonormal_rows
from trilora.layers import TriLoRALayer, create, window_of
from trilora.stiefel import Stiefel, polar, tangent


@st.composite
def points(draw):
    """An orthonormal (n, r) matrix and a direction of the same shape."""
    n, seed = draw(sides), draw(seeds)
    r = draw(st.integers(1, n))
    return orthonormal_rows(r, n, seeded(seed)).T, randn(seed + 1, n, r)


def skew_part(x: torch.Tensor, direction: torch.Tensor) -> float:
    inner = x.T @ direction
    return float((inner + inner.T).abs().max())


@given(points())
def test_a_tangent_keeps_columns_orthonormal_to_first_order(point):
    x, direction = point
    assert skew_part(x, tangent(x, direction)) <= 1e-4


@given(points())
def test_the_tangent_projection_is_done_after_once_and_orthogonal(point):
    x, direction = point
    once = tangent(x, direction)
    torch.testing.assert_close(tangent(x, once), once, rtol=1e-4, atol=1e-4)
    assert abs(float(((direction - once) * once).sum())) <= 1e-4 * float(direction.square().sum())


@given(points())
def test_directions_away_from_the_columns_and_rotations_of_them_are_tangent(point):
    x, direction = point
    away = direction - x @ (x.T @ direction)
    inner = x.T @ direction
    rotation = x @ (inner - inner.T)
    torch.testing.assert_close(tangent(x, away), away, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tangent(x, rotation), rotation, rtol=1e-4, atol=1e-4)


@given(points(), st.floats(0, 0.3))
def test_the_polar_factor_is_orthonormal_and_the_nearest(point, length):
    x, direction = point
    moved = x + length * tangent(x, direction / direction.norm())
    got = polar(moved)
    u, _, vh = torch.linalg.svd(moved, full_matrices=False)
    assert off_identity(got) <= 1e-5
    torch.testing.assert_close(got, u @ vh, rtol=1e-4, atol=1e-4)


@given(points())
def test_an_orthonormal_matrix_is_its_own_polar_factor(point):
    torch.testing.assert_close(polar(point[0]), point[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("core", ["diagonal", "full"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_factors_stay_orthonormal_while_a_loss_falls(core, decay):
    layer = create("trilora", randn(0, 20, 14), 4, 1.0, seeded(0), core, "orthogonal")
    target = randn(1, 20, 3) @ randn(2, 3, 14)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.03, weight_decay=decay)
    manifold = Stiefel([layer])
    losses = []
    for _ in range(250):
        optimizer.zero_grad()
        loss = (delta(layer.factors()) - target).square().mean()
        loss.backward()
        manifold.prepare()
        optimizer.step()
        manifold.retract()
        losses.append(loss.item())
        assert off_identity(layer.u.detach()) <= 1e-5
        assert off_identity(layer.vh.detach().T) <= 1e-5
    assert losses[-1] < 0.5 * losses[0]


def test_gradients_are_projected_before_the_step():
    layer = create("trilora", randn(0, 9, 7), 3, 1.0, seeded(0), initialisation="orthogonal")
    layer.u.grad, layer.vh.grad = randn(1, 9, 3), randn(2, 3, 7)
    want = tangent(layer.u.detach(), layer.u.grad), tangent(layer.vh.detach().T, layer.vh.grad.T).T
    Stiefel([layer]).prepare()
    torch.testing.assert_close(layer.u.grad, want[0])
    torch.testing.assert_close(layer.vh.grad, want[1])


@pytest.mark.parametrize(("method", "initialisation"), [("trilora", "balanced"), ("lora", "orthogonal")])
def test_other_layers_are_left_to_the_optimizer(method, initialisation):
    layer = create(method, randn(0, 9, 7), 3, 1.0, seeded(0), initialisation=initialisation)
    for parameter in layer.parameters():
        parameter.grad = randn(1, *parameter.shape)
    manifold = Stiefel([layer])
    before = [(p.detach().clone(), p.grad.clone()) for p in layer.parameters()]
    manifold.prepare()
    manifold.retract()
    assert all(
        torch.equal(p, was) and torch.equal(p.grad, grad)
        for p, (was, grad) in zip(layer.parameters(), before, strict=True)
    )


def test_sigma_is_free():
    layer = create("trilora", randn(0, 9, 7), 3, 1.0, seeded(0), initialisation="orthogonal")
    manifold = Stiefel([layer])
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    manifold.prepare()
    layer.sigma.data += 5
    manifold.retract()
    assert (layer.sigma == 5).all()
    assert (layer.sigma.grad == 1).all()


def test_a_convolutions_factors_stay_orthonormal_too():
    layer = TriLoRALayer(canonical(make(10, 6, 3, kernel=(3, 3))), orthonormal=True)
    layer.window = window_of(nn.Conv2d(6, 10, 3))
    optimizer, manifold = torch.optim.AdamW(layer.parameters(), lr=0.1), Stiefel([layer])
    layer(randn(1, 2, 6, 5, 5)).square().mean().backward()
    manifold.prepare()
    optimizer.step()
    manifold.retract()
    assert off_identity(layer.u.detach()) < 1e-5
    assert off_identity(layer.vh.detach().flatten(1).T) < 1e-5
