"""Training on a toy model: what learns, what stays, and what is said when it goes wrong."""

import contextlib
import copy
import warnings
from dataclasses import replace

import pytest
import torch
from strategies import CONDITION, LATENT, Toy, ToyNet, bits, far, off_identity, randn, same_bits
from torch import nn

from trilora.attach import attached, standing_in
from trilora.dataset import Batches
from trilora.errors import RankError, TrainingError
from trilora.factors import delta
from trilora.objective import Example, score
from trilora.seeds import generator
from trilora.settings import Settings
from trilora.targets import linear_layers
from trilora.training import Training, create_layers, frozen, learned, train

FAST = {"rank": 4, "alpha": 4.0, "steps": 60, "batch": 2, "learning_rate": 1e-2}
WAYS = {
    "trilora": {},
    "full core": {"core": "full"},
    "paper": {"initialisation": "paper"},
    "orthogonal": {"initialisation": "orthogonal"},
    "lora": {"method": "lora"},
}


def examples(count: int = 6, shape: tuple[int, ...] = LATENT) -> list[tuple[Example]]:
    """Pictures of one style, whose plain captions differ from their captions."""
    style = randn(99, *shape)
    return [
        (Example(style + randn(i, *shape) / 5, randn(20 + i, CONDITION), randn(40 + i, CONDITION)),)
        for i in range(count)
    ]


class Run:
    """A training that can be looked at: the toy, its layers and every step."""

    def __init__(
        self, stop: int | None = None, toy: Toy | None = None, data: list[tuple[Example]] | None = None, **settings
    ):
        self.settings = Settings(**(FAST | settings))
        self.toy = toy or Toy()
        self.data = examples() if data is None else data
        self.layers = create_layers(linear_layers(self.toy.net), self.settings)
        self.steps = []
        with attached(self.toy.net, self.layers) as self.switch:
            self.before = self.score()
            steps = train(self.toy, self.layers, self.switch, self.data, self.settings)
            with contextlib.closing(steps):
                for step in steps:
                    self.steps.append(step)
                    if step.number == stop:
                        break
            self.after = self.score()

    def score(self) -> float:
        noise = [randn(60 + i, *LATENT) for i in range(3)]
        return score(self.toy, [example for (example,) in self.data[:3]], noise, (0.2, 0.6))

    def bits(self) -> dict[str, torch.Tensor]:
        return {f"{path}.{key}": t for path, layer in self.layers.items() for key, t in bits(layer).items()}


def finite(layers: dict[str, nn.Module]) -> bool:
    return all(bool(p.isfinite().all()) for layer in layers.values() for p in layer.parameters())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_the_loss_falls(way, kind):
    run = Run(toy=Toy(kind), **WAYS[way])
    assert run.after < 0.9 * run.before
    assert [step.number for step in run.steps] == list(range(1, 61))
    assert {step.total for step in run.steps} == {60}
    assert sum(step.loss for step in run.steps[-10:]) < sum(step.loss for step in run.steps[:10])


@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(way):
    torch.manual_seed(1)
    first = Run(steps=5, preserve=0.5, seed=3, **WAYS[way])
    torch.manual_seed(2)
    again = Run(steps=5, preserve=0.5, seed=3, **WAYS[way])
    other = Run(steps=5, preserve=0.5, seed=4, **WAYS[way])
    assert same_bits(first.bits(), again.bits())
    assert first.steps == again.steps
    assert not same_bits(first.bits(), other.bits())


def test_the_global_random_state_is_left_alone():
    toy, before = Toy(), torch.get_rng_state()
    Run(toy=toy, steps=3, preserve=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_loss_is_that_of_the_base():
    """Delta is exactly zero at step 0, so whatever the method, the first step sees the base."""
    losses = {way: Run(stop=1, clip=0.0, **options).steps[0].loss for way, options in WAYS.items()}
    assert len(set(losses.values())) == 1


@pytest.mark.parametrize("grad", [False, True], ids=["frozen", "with gradients switched on"])
def test_the_model_is_left_bit_for_bit_as_it_was(grad):
    toy = Toy(net=ToyNet().requires_grad_(grad))
    before, hooks = bits(toy.net), [dict(m._forward_hooks) for m in toy.net.modules()]
    Run(toy=toy, steps=4, preserve=1.0)
    assert same_bits(before, bits(toy.net))
    assert [dict(m._forward_hooks) for m in toy.net.modules()] == hooks
    assert [p.requires_grad for p in toy.net.parameters()] == [grad] * 4
    assert all(p.grad is None for p in toy.net.parameters())


def test_training_warns_of_nothing():
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch says most things once a process only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Run(steps=2, preserve=1.0)
    finally:
        torch.set_warn_always(before)


@pytest.mark.parametrize("stop", [1, 2, 7])
def test_a_run_stopped_early_holds_what_it_had_then(stop):
    stopped, whole = Run(stop=stop, steps=8), Run(steps=8)
    assert [step.number for step in stopped.steps] == list(range(1, stop + 1))
    assert stopped.steps == whole.steps[:stop]
    assert finite(stopped.layers)
    assert not same_bits(stopped.bits(), whole.bits())


def test_a_run_that_is_never_started_does_nothing():
    toy = Toy()
    layers = create_layers(linear_layers(toy.net), Settings(**FAST))
    before = {path: bits(layer) for path, layer in layers.items()}
    with attached(toy.net, layers) as switch:
        train(toy, layers, switch, examples(), Settings(**FAST)).close()
    assert all(same_bits(before[path], bits(layer)) for path, layer in layers.items())


def forgetting(run: Run) -> float:
    """Mean square distance of the adapted model from the base under the plain captions."""
    noisy, levels = randn(70, 6, *LATENT), torch.linspace(0.1, 0.9, 6)
    plain = torch.stack([example.plain for (example,) in run.data])
    with torch.no_grad():
        with attached(run.toy.net, run.layers):
            adapted = run.toy.net(noisy, levels, plain)
        return float((adapted - run.toy.net(noisy, levels, plain)).square().mean())


@pytest.mark.parametrize("method", ["trilora", "lora"])
def test_preservation_keeps_the_base_where_the_trigger_is_not(method):
    bare, kept = Run(method=method, steps=150), Run(method=method, steps=150, preserve=2.0)
    assert forgetting(kept) < 0.6 * forgetting(bare)
    assert kept.after < kept.before
    assert {step.preservation for step in bare.steps} == {None}
    assert kept.steps[0].preservation < 1e-10
    assert all(step.preservation > 0 for step in kept.steps[1:])  # of every second picture, so of one in each batch


class Watched(Toy):
    """Notes each caption that it predicts under, the picture it was given with, and whether adapters were on."""

    def __init__(self):
        super().__init__()
        self.latents, self.seen = None, []

    def noised(self, latents, noise, levels):
        self.latents = latents
        return super().noised(latents, noise, levels)

    def denoised(self, noisy, levels, conditions):
        given = [int(latent.mean().round()) for latent in self.latents]
        self.seen.append((given, [int(c[0]) for c in conditions], self.switch.on, torch.is_grad_enabled()))
        return super().denoised(noisy, levels, conditions)


def test_each_picture_keeps_its_own_captions_and_the_base_is_asked_without_adapters():
    toy = Watched()
    data = [
        (
            Example(
                torch.full(LATENT, float(i)), torch.full((CONDITION,), float(i)), torch.full((CONDITION,), 100.0 + i)
            ),
        )
        for i in range(7)
    ]
    settings = Settings(**(FAST | {"steps": 9, "batch": 3, "preserve": 1.0, "preserve_every": 1}))
    layers = create_layers(linear_layers(toy.net), settings)
    with attached(toy.net, layers) as toy.switch:
        list(train(toy, layers, toy.switch, data, settings))
        assert toy.switch.on
    order = Batches((LATENT,) * 7, 3, settings.seed)
    for step in range(9):
        picked = order.at(step)
        plain = [100 + i for i in picked]
        assert toy.seen[2 * step] == (picked, plain, False, False)
        assert toy.seen[2 * step + 1] == (picked, picked + plain, True, True)


def test_pictures_of_different_sizes_are_never_in_one_batch():
    class Sized(Toy):
        def denoised(self, noisy, levels, conditions):
            sizes.add(tuple(noisy.shape))
            return noisy - wide_first(self.net, noisy)

    def wide_first(net, noisy):
        pooled = noisy.flatten(1)[:, : net.first.in_features]
        return net.first(pooled).mean(1)[:, None, None, None] * torch.ones_like(noisy)

    sizes = set()
    toy, settings = Sized(), Settings(**(FAST | {"steps": 6}))
    data = examples(3, (2, 4, 8)) + examples(4, (2, 8, 4))
    layers = create_layers({"first": toy.net.first}, settings)
    with attached(toy.net, layers) as switch:
        assert len(list(train(toy, layers, switch, data, settings))) == 6
    assert sizes == {(2, 2, 4, 8), (2, 2, 8, 4)}


class Failing(Toy):
    """From a given call on, something is wrong with the prediction or with its gradient."""

    def __init__(self, call: int, wrong: str):
        super().__init__()
        self.left, self.wrong = call, wrong

    def denoised(self, noisy, levels, conditions):
        result = super().denoised(noisy, levels, conditions)
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left <= 0 and self.wrong == "loss":
                return result * float("nan")
            if self.left <= 0:
                result.register_hook(lambda gradient: gradient * float("inf"))
        return result


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
@pytest.mark.parametrize("clip", [1.0, 0.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("step", [1, 4])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_and_keeps_the_last_good_step(wrong, clip, step):
    toy, settings = Failing(step, wrong), Settings(**(FAST | {"clip": clip}))
    layers = create_layers(linear_layers(toy.net), settings)
    with attached(toy.net, layers) as switch:
        steps = train(toy, layers, switch, examples(), settings)
        for _ in range(step - 1):
            next(steps)
        good = {path: bits(layer) for path, layer in layers.items()}
        with pytest.raises(
            TrainingError, match=rf"no longer a number at step {step}.* \(learning rate 0\.01\).*Lower the"
        ):
            next(steps)
    assert all(same_bits(good[path], bits(layer)) for path, layer in layers.items())


def test_a_gradient_that_is_no_number_is_told_by_the_layer_that_has_it():
    toy, settings = Toy(), Settings(**FAST)
    layers = create_layers(linear_layers(toy.net), settings)
    guilty = list(layers)[-1]
    next(iter(layers[guilty].parameters())).register_hook(lambda gradient: gradient * float("nan"))
    with attached(toy.net, layers) as switch, pytest.raises(TrainingError, match=f"first at the layer {guilty}"):
        next(train(toy, layers, switch, examples(), settings))


def test_an_error_of_the_model_passes_through_with_the_adapters_back_on():
    class Broken(Toy):
        def denoised(self, noisy, levels, conditions):
            if not torch.is_grad_enabled():
                raise RuntimeError("out of memory")
            return super().denoised(noisy, levels, conditions)

    toy, settings = Broken(), Settings(**(FAST | {"preserve": 1.0}))
    before = bits(toy.net)
    layers = create_layers(linear_layers(toy.net), settings)
    with attached(toy.net, layers) as switch:
        with pytest.raises(RuntimeError, match="out of memory"):
            next(train(toy, layers, switch, examples(), settings))
        assert switch.on
    assert same_bits(before, bits(toy.net))


def test_training_on_nothing_is_refused():
    toy, settings = Toy(), Settings(**FAST)
    layers = create_layers(linear_layers(toy.net), settings)
    with attached(toy.net, layers) as switch, pytest.raises(TrainingError, match="no picture to train on"):
        next(train(toy, layers, switch, [], settings))


def test_training_nothing_is_refused():
    toy = Toy()
    with attached(toy.net, {}) as switch, pytest.raises(TrainingError, match="layer"):
        next(train(toy, {}, switch, examples(), Settings(**FAST)))


class Still(Toy):
    """A model on whose output nothing depends: every gradient is zero."""

    def denoised(self, noisy, levels, conditions):
        return 0 * super().denoised(noisy, levels, conditions)


@pytest.mark.parametrize("shrink", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("steps", "rate"), [(7, 1e-2), (40, 1e-4)])
def test_shrink_is_the_share_taken_from_what_is_not_renewed(shrink, steps, rate):
    settings = Settings(**(FAST | {"shrink": shrink, "steps": steps, "learning_rate": rate}))
    toy = Still()
    layers = create_layers(linear_layers(toy.net), settings)
    with torch.no_grad():
        for i, parameter in enumerate(p for layer in layers.values() for p in layer.parameters()):
            parameter.copy_(randn(i, *parameter.shape))
    before = {path: bits(layer) for path, layer in layers.items()}
    with attached(toy.net, layers) as switch:
        list(train(toy, layers, switch, examples(), settings))
    for path, layer in layers.items():
        for key, tensor in bits(layer).items():
            torch.testing.assert_close(tensor, (1 - shrink) * before[path][key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("core", ["diagonal", "full"])
def test_an_orthogonal_run_stays_orthonormal(core):
    run = Run(initialisation="orthogonal", core=core, shrink=0.1)
    for layer in run.layers.values():
        assert off_identity(layer.u.detach()) <= 1e-5
        assert off_identity(layer.vh.detach().T) <= 1e-5
        assert layer.sigma.detach().any()


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize(("preserve", "every"), [(0.0, 1), (0.7, 1), (0.7, 2), (0.7, 3)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_equals_a_loop_written_by_hand(clip, preserve, every, accumulate):
    """Batches of 2: whole, or in two passes of 1, which is the same."""
    settings = Settings(
        **{"method": "lora", "rank": 3, "alpha": 6.0, "steps": 6, "learning_rate": 5e-3, "clip": clip, "seed": 11},
        **{"batch": 2 // accumulate, "accumulate": accumulate, "preserve": preserve, "preserve_every": every},
    )
    toy, data = Toy(), examples()
    layers = create_layers(linear_layers(toy.net), settings)
    pairs = {path: [layer.up.detach().clone(), layer.down.detach().clone()] for path, layer in layers.items()}
    leaves = [tensor.requires_grad_() for pair in pairs.values() for tensor in pair]
    optimizer = torch.optim.AdamW(leaves, lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    base = toy.net

    def net(noisy, levels, conditions, gain):
        x = torch.cat([noisy.flatten(1), levels[:, None], torch.stack(conditions)], dim=1)
        (up1, down1), (up2, down2) = pairs["first"], pairs["last"]
        hidden = (x @ (base.first.weight + gain * up1 @ down1).T + base.first.bias).tanh()
        return (hidden @ (base.last.weight + gain * up2 @ down2).T + base.last.bias).view(noisy.shape)

    losses = []
    for number in range(1, 7):
        picked = [data[i][0] for i in Batches((LATENT,) * len(data), 2, 11).at(number - 1)]
        latents = torch.stack([example.latent for example in picked])
        noise, uniform = [], []
        for place in range(2):
            draw = generator(11, "noise", number, place)
            noise.append(torch.randn(LATENT, generator=draw))
            uniform.append(torch.rand(3, generator=draw)[0])
        noise, levels = torch.stack(noise), 0.05 + 0.9 * torch.stack(uniform)
        noisy = latents + 3 * levels[:, None, None, None] * noise
        loss = (net(noisy, levels, [e.condition for e in picked], 2.0) - noise).square().mean()
        losses.append(float(loss.detach()))
        plain = [e.plain for e in picked]
        away = (net(noisy, levels, plain, 2.0) - net(noisy, levels, plain, 0.0).detach()).square().mean((1, 2, 3))
        taken = torch.tensor([float((2 * (number - 1) + place) % every == 0) for place in range(2)])
        optimizer.zero_grad()
        (loss + preserve * every * (taken * away).mean()).backward()
        norm = torch.stack([leaf.grad.square().sum() for leaf in leaves]).sum().sqrt()
        for leaf in leaves:
            leaf.grad *= min(1.0, clip / float(norm)) if clip else 1.0
        optimizer.step()

    with attached(toy.net, layers) as switch:
        steps = list(train(toy, layers, switch, data, settings))
    assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-4)
    for path, layer in layers.items():
        torch.testing.assert_close(layer.up.detach(), pairs[path][0].detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.down.detach(), pairs[path][1].detach(), rtol=1e-4, atol=1e-6)


def test_what_is_learned_is_canonical_and_apart_from_what_goes_on_learning():
    run = Run(steps=5, alpha=2.0)
    factors = learned(run.layers)
    assert list(factors) == list(run.layers)
    for path, layer in run.layers.items():
        assert far(delta(factors[path]), delta(layer.factors()).detach()) < 1e-5
        assert off_identity(factors[path].u) < 1e-5
        assert not any(tensor.requires_grad for tensor in factors[path])
    kept = {path: [tensor.clone() for tensor in each] for path, each in factors.items()}
    with torch.no_grad():
        for layer in run.layers.values():
            for parameter in layer.parameters():
                parameter.fill_(7)
    assert all(torch.equal(a, b) for path in kept for a, b in zip(kept[path], factors[path], strict=True))


@pytest.mark.parametrize("method", ["trilora", "lora"])
def test_one_more_target_changes_no_other_layers_start(method):
    layers, settings = linear_layers(ToyNet()), Settings(**(FAST | {"method": method}))
    both, alone = create_layers(layers, settings), create_layers({"last": layers["last"]}, settings)
    assert same_bits(bits(both["last"]), bits(alone["last"]))
    twins = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}
    a, b = create_layers(twins, settings).values()
    assert not torch.equal(list(a.parameters())[-1], list(b.parameters())[-1])


def test_the_gain_of_a_layer_is_alpha_over_rank():
    for alpha in (2.0, 8.0):
        (layer,) = create_layers({"a": nn.Linear(8, 8)}, Settings(rank=4, alpha=alpha)).values()
        torch.testing.assert_close(layer.factors().sigma, layer.sigma * alpha / 4)


def test_a_layer_too_small_for_the_rank_is_named():
    with pytest.raises(RankError, match=r"Rank 9 .*blocks\.0\.q is 8 x 20"):
        create_layers({"blocks.0.q": nn.Linear(20, 8)}, Settings(rank=9))


@pytest.mark.parametrize(
    ("field", "value", "want"),
    [
        ("method", "dora", "one of trilora, lora"),
        ("core", "tucker", "one of diagonal, full"),
        ("initialisation", "xavier", "one of balanced, paper, orthogonal"),
        *((field, value, "at least 1") for field in ("rank", "steps", "batch") for value in (0, -3)),
        *(
            (f, v, "a number above 0")
            for f in ("learning_rate", "alpha")
            for v in (0.0, -1.0, float("nan"), float("inf"))
        ),
        *((f, v, "0 or more") for f in ("clip", "preserve") for v in (-0.1, float("nan"), float("inf"))),
        *(("shrink", value, "from 0 up to") for value in (-0.1, 1.0, 2.0, float("nan"))),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_with_its_value_and_its_range(field, value, want):
    with pytest.raises(TrainingError) as caught:
        Settings(**{field: value})
    assert f"setting {field} is {value!r}" in str(caught.value)
    assert want in str(caught.value)


def test_settings_cannot_change_under_a_run():
    with pytest.raises(AttributeError):
        Settings().rank = 3


def test_sigma_alone_learns_a_few_numbers_of_an_adapter_and_keeps_its_u_and_v():
    first = Run()
    start = learned(first.layers)
    settings = replace(first.settings, learn="sigma", steps=20)
    layers = create_layers(linear_layers(first.toy.net), settings, start)
    with attached(first.toy.net, layers) as switch:
        steps = list(train(first.toy, layers, switch, first.data, settings))
    assert sum(p.numel() for layer in layers.values() for p in layer.parameters() if p.requires_grad) == 2 * 4
    assert steps[0].loss == pytest.approx(loss_of(first.toy, start, first.data, settings), rel=1e-4)
    for path, layer in layers.items():
        assert torch.equal(layer.u, start[path].u)
        assert torch.equal(layer.vh, start[path].vh)
        assert not torch.allclose(layer.factors().sigma, start[path].sigma, rtol=1e-3)


def loss_of(toy: Toy, factors: dict, data: list[tuple[Example]], settings: Settings) -> float:
    """The first step's loss with an adapter on the model."""
    merged = Toy(toy.kind, copy.deepcopy(toy.net))
    with torch.no_grad():
        for path, module in linear_layers(merged.net).items():
            module.weight += delta(factors[path])
    fresh = replace(settings, learn="all", initialisation="balanced")
    layers = create_layers(linear_layers(merged.net), fresh)
    with attached(merged.net, layers) as switch:
        return next(train(merged, layers, switch, data, fresh)).loss


def test_sigma_alone_needs_an_adapter_to_start_from():
    with pytest.raises(TrainingError, match="no adapter whose U and V it belongs to. Connect one to start_from"):
        create_layers(linear_layers(ToyNet()), Settings(learn="sigma"))


def test_a_run_that_imitates_an_adapter_starts_without_a_loss_and_forgets_less_than_it():
    first = Run(steps=80)
    start = learned(first.layers)
    settings = replace(first.settings, preserve=1.0, steps=40, learning_rate=3e-3)
    modules = linear_layers(first.toy.net)
    layers = create_layers(modules, settings, start)
    with attached(first.toy.net, layers) as switch, standing_in(first.toy.net, frozen(modules, start), switch) as shown:
        training = Training(first.toy, layers, switch, first.data, settings, teacher=shown)
        steps = list(training)
    assert steps[0].loss < 1e-8 < steps[-1].loss
    assert sum(s.preservation for s in steps[-10:]) < 0.7 * sum(s.preservation for s in steps[:10])
