"""What is random about a step, and what of the adapter sits out."""

import pytest
import torch
from strategies import CONDITION, LATENT, Toy, bits, randn, same_bits
from torch import nn

from trilora.attach import attached
from trilora.draws import Draws, sitting_out
from trilora.errors import TrainingError
from trilora.factors import Factors, canonical, delta
from trilora.objective import Example
from trilora.settings import Settings
from trilora.targets import linear_layers
from trilora.training import Training, create_layers


def pictures(count: int = 4, variants: int = 1) -> list[tuple[Example, ...]]:
    """Latents that say which picture and which variant they are of."""
    captions = (torch.tensor([1.0]), torch.tensor([2.0]))
    return [
        tuple(Example(torch.full(LATENT, float(10 * i + j)), *captions, blank=torch.zeros(1)) for j in range(variants))
        for i in range(count)
    ]


def shown(settings: Settings, data, steps: int = 50) -> list:
    draws = Draws(data, settings)
    return [item for number in range(1, steps + 1) for item in draws.at(number)]


def test_two_passes_of_half_a_batch_are_the_whole_batch():
    whole = Draws(pictures(), Settings(batch=4))
    halves = Draws(pictures(), Settings(batch=2, accumulate=2))
    for number in (1, 2, 9):
        together = halves.at(number, 0) + halves.at(number, 1)
        for a, b in zip(whole.at(number), together, strict=True):
            assert torch.equal(a.noise, b.noise)
            assert (a.quantile, a.preserved) == (b.quantile, b.preserved)
            assert torch.equal(a.example.latent, b.example.latent)


def test_every_variant_of_a_picture_is_shown():
    seen = {float(item.example.latent[0, 0, 0]) for item in shown(Settings(), pictures(3, 2), 100)}
    assert seen == {0.0, 1.0, 10.0, 11.0, 20.0, 21.0}


def test_captions_are_dropped_at_the_rate_asked_for():
    items = shown(Settings(caption_dropout=0.25), pictures(), 800)
    assert sum(not item.example.condition.any() for item in items) / 800 == pytest.approx(0.25, abs=0.04)
    assert all(item.example.plain.any() for item in items)


def test_dropping_captions_needs_the_empty_caption():
    toy, settings = Toy(), Settings(rank=4, caption_dropout=0.1)
    layers = create_layers(linear_layers(toy.net), settings)
    data = [(Example(randn(0, *LATENT), randn(1, CONDITION)),)]
    with attached(toy.net, layers) as switch, pytest.raises(TrainingError, match="empty caption was not encoded"):
        Training(toy, layers, switch, data, settings)


def test_noise_offset_is_constant_over_each_channel():
    plain, offset = shown(Settings(), pictures(), 1)[0], shown(Settings(noise_offset=0.5), pictures(), 1)[0]
    difference = offset.noise - plain.noise
    assert difference.abs().max() > 0
    assert torch.allclose(difference, difference[:, :1, :1].expand_as(difference), atol=1e-6)
    assert not torch.allclose(difference[0], difference[1])


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_base_is_compared_at_every_so_many_th_picture(every, batch):
    items = shown(Settings(batch=batch, preserve_every=every), pictures(), 24)
    assert sum(item.preserved for item in items) == -(-24 * batch // every)


def test_rank_and_layer_dropout_keep_the_mean():
    settings = Settings(rank=4, rank_dropout=0.3, layer_dropout=0.2)
    layers = create_layers({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}, settings)
    totals = torch.zeros(4)
    silent = 0
    for number in range(1, 601):
        with sitting_out(layers, settings, number, 0):
            gains = layers["a"].gains
            assert all(gain == 0 or gain == pytest.approx(1 / 0.7 / 0.8) for gain in gains.tolist())
            silent += not gains.any()
            totals += gains
        assert layers["a"].gains is None
    assert (totals / 600).tolist() == pytest.approx([1.0] * 4, abs=0.12)
    assert silent / 600 == pytest.approx(0.2 + 0.8 * 0.3**4, abs=0.05)


def test_what_sits_out_adds_nothing_and_learns_nothing():
    layer = create_layers({"a": nn.Linear(8, 8)}, Settings(rank=4))["a"]
    with torch.no_grad():
        layer.u.copy_(randn(0, 8, 4))
    layer.gains = torch.tensor([1.0, 0.0, 1.0, 0.0])
    layer(randn(1, 5, 8)).sum().backward()
    assert not layer.sigma.grad[[1, 3]].any()
    assert layer.sigma.grad[[0, 2]].all()


def start(modules) -> dict[str, Factors]:
    return {
        path: canonical(Factors(randn(1, m.out_features, 3), randn(2, 3).abs(), randn(3, 3, m.in_features)))
        for path, m in modules.items()
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"initialisation": "orthogonal"}, {"method": "lora"}, {"learn": "sigma"}],
    ids=["trilora", "orthogonal", "lora", "sigma"],
)
def test_a_start_has_the_delta_of_its_adapter(options):
    modules = linear_layers(Toy().net)
    begun = start(modules)
    layers = create_layers(modules, Settings(rank=8, alpha=2.0, **options), begun)
    for path, layer in layers.items():
        torch.testing.assert_close(delta(layer.factors()).detach(), delta(begun[path]), rtol=1e-4, atol=1e-5)
        if not options:
            assert float(layer.sigma.detach().square().mean().sqrt()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("initialisation", ["balanced", "orthogonal"])
def test_a_full_core_is_learned_from_an_adapter_too(initialisation):
    modules = linear_layers(Toy().net)
    begun = start(modules)
    layers = create_layers(modules, Settings(core="full", initialisation=initialisation), begun)
    for path, layer in layers.items():
        assert layer.sigma.shape == (3, 3)
        assert layer.orthonormal == (initialisation == "orthogonal")
        torch.testing.assert_close(delta(layer.factors()).detach(), delta(begun[path]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9])
@pytest.mark.parametrize(
    "options",
    [{}, {"initialisation": "orthogonal"}, {"method": "lora"}, {"learn": "sigma"}],
    ids=["trilora", "orthogonal", "lora", "sigma"],
)
def test_a_layer_that_adds_nothing_yet_learns_on_as_others_do(options, size):
    """As files have them whose other blocks were trained, or merged."""
    toy = Toy()
    modules = {"last": toy.net.last}
    begun = {path: f._replace(sigma=torch.full_like(f.sigma, size)) for path, f in start(modules).items()}
    settings = Settings(rank=3, steps=10, learning_rate=1e-2, **options)
    layers = create_layers(modules, settings, begun)
    torch.testing.assert_close(delta(layers["last"].factors()).detach(), delta(begun["last"]))
    with attached(toy.net, layers) as switch:
        list(Training(toy, layers, switch, [(Example(randn(0, *LATENT), randn(9, CONDITION)),)], settings))
    assert float(delta(layers["last"].factors()).detach().norm()) > 1e-3


@pytest.mark.parametrize("preserve", [0.0, 0.5])
def test_sigma_alone_learns_and_u_and_v_stay_as_they_were(preserve):
    toy = Toy()
    modules = linear_layers(toy.net)
    settings = Settings(rank=8, learn="sigma", steps=30, learning_rate=1e-2, preserve=preserve)
    layers = create_layers(modules, settings, start(modules))
    data = [(Example(randn(i, *LATENT), randn(i + 9, CONDITION), randn(i + 20, CONDITION)),) for i in range(4)]
    before = {path: bits(layer) for path, layer in layers.items()}
    with attached(toy.net, layers) as switch:
        training = Training(toy, layers, switch, data, settings)
        assert sum(p.numel() for p in training.parameters.values()) == 2 * 3
        list(training)
    for path, layer in layers.items():
        after = bits(layer)
        assert same_bits({k: after[k] for k in ("u", "vh")}, {k: before[path][k] for k in ("u", "vh")})
        assert not torch.equal(after["sigma"], before[path]["sigma"])


def test_regularisation_pictures_are_learned_at_their_weight():
    toy = Toy()
    data = [(Example(randn(i, *LATENT), randn(i + 9, CONDITION)),) for i in range(4)]
    others = [(Example(randn(i + 50, *LATENT), randn(i + 60, CONDITION)),) for i in range(4)]

    def final(prior, weight):
        settings = Settings(rank=4, steps=3, prior=weight, learning_rate=1e-2)
        layers = create_layers(linear_layers(toy.net), settings)
        with attached(toy.net, layers) as switch:
            steps = list(Training(toy, layers, switch, data, settings, prior))
        return {name: p for path in layers for name, p in bits(layers[path]).items()}, steps

    without, steps = final((), 1.0)
    assert steps[0].prior is None
    unweighted, steps = final(others, 0.0)
    assert same_bits(without, unweighted)
    assert steps[0].prior > 0
    assert not same_bits(without, final(others, 1.0)[0])


def test_a_teacher_takes_the_pictures_place():
    """Where the teacher is the model itself there is nothing to learn, whatever the pictures show."""
    import contextlib

    toy, settings = Toy(), Settings(rank=4, steps=2)
    layers = create_layers(linear_layers(toy.net), settings)
    data = [(Example(randn(0, *LATENT), randn(9, CONDITION)),)]
    with attached(toy.net, layers) as switch:
        steps = list(Training(toy, layers, switch, data, settings, teacher=contextlib.nullcontext))
        assert steps[0].loss == 0
