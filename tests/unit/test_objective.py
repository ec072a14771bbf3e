"""The loss, in the space that the model itself predicts in."""

import pytest
import torch
from strategies import CONDITION, LATENT, Toy, randn, wide

from trilora.objective import Example, distances, errors, gaps, level_weights, score
from trilora.objective import quantiles as quantiles_of
from trilora.settings import Settings

KINDS = ("eps", "v", "flow")


def batch(count: int = 5):
    """Latents, noise, quantiles and a condition for each."""
    quantiles = torch.linspace(0, 0.99, count)
    return randn(0, count, *LATENT), randn(1, count, *LATENT), quantiles, list(randn(2, count, CONDITION))


def target(kind: str, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What a network of this kind should have put out, from the textbook."""
    return {"eps": noise, "v": t.cos() * noise - t.sin() * latents, "flow": noise - latents}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_the_mean_square_between_output_and_target(kind):
    toy = Toy(kind)
    latents, noise, quantiles, conditions = batch()
    levels = toy.levels(quantiles)
    output = toy.net(toy.noised(latents, noise, levels), levels, torch.stack(conditions))
    want = (output - target(kind, latents, noise, wide(levels))).square().mean(dim=(1, 2, 3))
    got = errors(toy, latents, noise, quantiles, conditions)
    assert got.shape == (5,)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_model_has_no_error(kind):
    latents, noise, quantiles, conditions = batch()
    toy = Toy(kind)
    toy.net = lambda _noisy, levels, _conditions: target(kind, latents, noise, wide(levels))
    assert float(errors(toy, latents, noise, quantiles, conditions).max()) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_measured_between_outputs(kind):
    toy, other = Toy(kind), Toy(kind)
    other.net = lambda noisy, levels, conditions: toy.net(noisy, levels, conditions) + 0.5
    latents, noise, quantiles, conditions = batch()
    levels = toy.levels(quantiles)
    noisy = toy.noised(latents, noise, levels)
    moved = other.denoised(noisy, levels, conditions)
    torch.testing.assert_close(
        distances(toy, noisy, levels, conditions, moved), torch.full((5,), 0.25), rtol=1e-3, atol=0
    )
    assert not distances(other, noisy, levels, conditions, moved).any()


def test_an_example_costs_the_same_alone_as_in_a_batch():
    toy = Toy()
    latents, noise, quantiles, conditions = batch()
    together = errors(toy, latents, noise, quantiles, conditions)
    for i in range(5):
        alone = errors(toy, latents[i : i + 1], noise[i : i + 1], quantiles[i : i + 1], conditions[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


def test_each_picture_is_judged_under_its_own_caption():
    toy = Toy()
    latents, noise, quantiles, conditions = batch()
    straight = errors(toy, latents, noise, quantiles, conditions)
    turned = errors(toy, latents.flip(0), noise.flip(0), quantiles.flip(0), conditions[::-1])
    torch.testing.assert_close(turned.flip(0), straight)
    assert not torch.allclose(errors(toy, latents, noise, quantiles, conditions[::-1]), straight)


def test_errors_carry_gradients():
    toy = Toy()
    toy.net.requires_grad_(True)
    errors(toy, *batch()).sum().backward()
    assert toy.net.first.weight.grad.any()


def test_the_score_is_the_mean_over_pictures_and_noise_levels():
    toy = Toy()
    latents, noise, _, conditions = batch(3)
    examples = [Example(latent, condition) for latent, condition in zip(latents, conditions, strict=True)]
    quantiles = (0.1, 0.5, 0.9)
    want = torch.stack([errors(toy, latents, noise, torch.full((3,), q), conditions) for q in quantiles]).mean()
    got = score(toy, examples, list(noise), quantiles)
    assert isinstance(got, float)
    assert got == pytest.approx(float(want), rel=1e-5)
    assert got == score(toy, examples, list(noise), quantiles)


def test_the_score_needs_noise_for_each_picture():
    with pytest.raises(ValueError, match="shorter"):
        score(Toy(), [Example(randn(0, *LATENT), randn(1, CONDITION))] * 2, [randn(2, *LATENT)], [0.5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_the_textbook(kind, gamma):
    """Of errors in eps min(SNR, γ) / SNR, in v min(SNR, γ) / (SNR + 1), in flow min(SNR, γ) · t²."""
    toy, levels = Toy(kind), torch.linspace(0.05, 0.95, 9)
    snr = {
        "eps": (1 / (3 * levels)).square(),
        "v": (levels.cos() / levels.sin()).square(),
        "flow": ((1 - levels) / levels).square(),
    }[kind]
    capped = snr.clamp_max(gamma)
    want = {"eps": capped / snr, "v": capped / (snr + 1), "flow": capped * levels.square()}[kind]
    torch.testing.assert_close(level_weights(toy, levels, gamma), want, rtol=1e-4, atol=1e-6)
    assert (level_weights(toy, levels, 0.0) == 1).all()


def test_huber_is_the_square_where_errors_are_small_and_a_line_where_they_are_large():
    toy, other = Toy("flow"), Toy("flow")
    latents, noise, quantiles, conditions = batch()
    levels = toy.levels(quantiles)
    noisy = toy.noised(latents, noise, levels)
    for error, want in ((1e-3, 1e-6), (10.0, 2 * 0.1 * (10.0 - 0.1))):
        other.net = lambda *a, error=error: toy.net(*a) + error
        moved = other.denoised(noisy, levels, conditions)
        got = gaps(toy, toy.denoised(noisy, levels, conditions), moved, levels, huber=0.1)
        torch.testing.assert_close(got, torch.full((5,), want), rtol=2e-2, atol=1e-8)


def test_a_mask_weighs_the_error_of_each_place():
    toy = Toy("flow")
    latents, noise, quantiles, conditions = batch(2)
    levels = toy.levels(quantiles)
    noisy = toy.noised(latents, noise, levels)
    left = torch.zeros(LATENT[1:])
    left[:, :2] = 1
    spoilt = latents.clone()
    spoilt[0, :, :, 2:] += 100
    estimate = toy.denoised(noisy, levels, conditions)
    clean = gaps(toy, estimate, latents, levels, [left, None])
    torch.testing.assert_close(gaps(toy, estimate, spoilt, levels, [left, None]), clean)
    whole = gaps(toy, estimate, latents, levels)
    assert gaps(toy, estimate, spoilt, levels)[0] > 100 * clean[0]
    assert clean[1] == whole[1]
    same = gaps(toy, estimate, latents, levels, [torch.full(LATENT[1:], 0.3)] * 2)
    torch.testing.assert_close(same, whole)


@pytest.mark.parametrize(
    ("options", "median", "spread"),
    [
        ({}, 0.5, 0.5),
        ({"levels": "logit-normal"}, 0.5, 0.3245),
        ({"levels": "logit-normal", "levels_mean": 1.0, "levels_std": 0.5}, 0.7311, 0.125),
        ({"levels": "shifted", "levels_shift": 3.0}, 0.75, 0.4),
    ],
)
def test_noise_levels_are_distributed_as_the_settings_say(options, median, spread):
    """Median and distance between the quartiles, from the distributions' own formulas."""
    drawn = quantiles_of(torch.linspace(0, 1, 10_001)[:-1], Settings(**options))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    quarter, middle, three = torch.quantile(drawn, torch.tensor([0.25, 0.5, 0.75]))
    assert float(middle) == pytest.approx(median, abs=2e-3)
    assert float(three - quarter) == pytest.approx(spread, abs=2e-2)
