"""TriLoRA Strength on what other loaders loaded: Σ by curve, count, energy, layer and adapter."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import CONVOLUTIONS, LINEAR, LoraFile, layer_name, write
from safetensors.torch import save_file
from strategies import randn

pytestmark = pytest.mark.comfy

ALL = {"keep": "all"}
FALLING = {"points": [[0.0, 0.5], [1.0, 0.0]], "interpolation": "linear"}
RISING = {"points": [[0.0, 0.0], [0.6, 0.9], [1.0, 0.5]], "interpolation": "monotone_cubic"}
FORMS = [  # rank, dtype, alpha
    (1, torch.float32, None), (4, torch.float16, 2.0), (7, torch.bfloat16, 7.0), (16, torch.float16, None),
    (32, torch.float32, 1.0),
]  # fmt: skip
FILES = [
    pytest.param(naming, layers, *form, False, id=f"{naming}-{kind}-rank{form[0]}")
    for naming in ("kohya", "diffusers", "PEFT")
    for kind, layers in (("linear", LINEAR), ("convolution", CONVOLUTIONS))
    for form in FORMS
] + [pytest.param("kohya", CONVOLUTIONS[::3], *form, True, id=f"kohya-tucker-rank{form[0]}") for form in FORMS[:3]]


@pytest.fixture
def saved(comfy_base: Path) -> Iterator[Callable[[dict[str, torch.Tensor]], str]]:
    """Put tensors into models/loras: `saved(tensors)` gives the file's name."""
    folder, made = comfy_base / "models" / "loras", []
    folder.mkdir(exist_ok=True)

    def save(tensors: dict[str, torch.Tensor]) -> str:
        made.append(folder / f"made_{len(made)}.safetensors")
        save_file(tensors, made[-1])
        return made[-1].name

    yield save
    for path in made:
        path.unlink()


@pytest.fixture
def core(core_nodes: dict[str, Any], saved: Callable, demo: Any) -> Callable[..., Any]:
    """Load a file with ComfyUI's own loader: `core(tensors, strength, model)`."""

    def load(tensors: dict[str, torch.Tensor], strength: float = 1.0, model: Any = demo.model) -> Any:
        with torch.inference_mode():
            return core_nodes["LoraLoaderModelOnly"]().load_lora_model_only(model, saved(tensors), strength)[0]

    return load


@pytest.fixture
def strength(pack: Any) -> Callable[..., Any]:
    """Run the node: `strength(model, ...)` gives the MODEL, `strength.ui` what the node showed last."""

    def run(model: Any, strength: float = 1.0, keep: dict[str, Any] = ALL, **inputs: Any) -> Any:
        with torch.inference_mode():
            node = pack["TriLoRAStrength"].PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}})
            output = node.execute(model=model, strength=strength, keep=keep, **inputs)
        run.ui = output.ui
        return output.result[0]

    return run


def change(model: Any, key: str) -> torch.Tensor:
    """What the MODEL's patches add to a weight of zeros, as ComfyUI calculates it."""
    import comfy.lora

    weight = model.model.state_dict()[key]
    with torch.inference_mode():
        return comfy.lora.calculate_weight(model.patches[key], torch.zeros(weight.shape), key)


def weights(model: Any) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return {key: model.patch_weight_to_device(key, return_weight=True).clone() for key in model.patches}


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of entries, relative to the largest entry of `b`."""
    return float((a.double() - b.double()).abs().max() / b.abs().max().clamp_min(1e-30))


def same(a: Any, b: Any) -> bool:
    """Whether two MODELs sample with the same weights, bit for bit."""
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def shaped(change: torch.Tensor, gains: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The dense SVD of a change with each singular value times its gain."""
    u, sigma, vh = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
    return ((u * (sigma * gains(sigma))) @ vh).view(change.shape)


def first(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda sigma: (torch.arange(len(sigma)) < count).double()


@pytest.mark.parametrize(("naming", "layers", "rank", "dtype", "alpha", "mid"), FILES)
def test_any_lora_file_loads_as_core_loads_it_and_top_k_is_the_truncated_svd(
    demo: Any, core: Callable, saved: Callable, run_node: Callable, strength: Callable,
    naming: str, layers: tuple[str, ...], rank: int, dtype: torch.dtype, alpha: float | None, mid: bool,
) -> None:  # fmt: skip
    file = write(demo.model, naming, layers, rank, dtype, alpha, mid)
    ours = run_node("TriLoRALoad", model=demo.model, file=saved(file.tensors), strength=0.7)[0]
    theirs, whole = core(file.tensors, 0.7), core(file.tensors)
    assert ours.patches.keys() == theirs.patches.keys() == file.changes.keys()
    expected = weights(theirs)
    for model in (ours, strength(whole, 0.7), strength(theirs, curve=flat(0.5))):
        got = weights(model)
        assert max(far(got[key], expected[key]) for key in expected) < 1e-6
    k = max(1, rank // 3)
    for model in (strength(whole, keep=top(k)), strength(ours, 1 / 0.7, keep=top(k))):
        for key, exact in file.changes.items():
            assert far(change(model, key), shaped(exact, first(k))) < 5e-6


def top(k: int) -> dict[str, Any]:
    return {"keep": "top k", "k": k}


def flat(height: float) -> dict[str, Any]:
    return {"points": [[0.0, height], [0.3, height], [1.0, height]], "interpolation": "monotone_cubic"}


@pytest.fixture
def file(demo: Any) -> LoraFile:
    return write(demo.model, layers=LINEAR + CONVOLUTIONS, rank=8, alpha=4.0)


def test_a_curve_at_the_middle_changes_nothing_bit_for_bit(file: LoraFile, core: Callable, strength: Callable) -> None:
    model = core(file.tensors, 0.8)
    for curve in (None, flat(0.5)):
        for keep in (ALL, top(8), {"keep": "top k of all layers", "k": 64}, {"keep": "energy", "share": 1.0}):
            assert same(strength(model, keep=keep, curve=curve), model)


def test_a_flat_curve_is_a_strength_of_twice_its_height(file: LoraFile, core: Callable, strength: Callable) -> None:
    model = strength(core(file.tensors), curve=flat(0.35))
    for key, exact in file.changes.items():
        assert far(change(model, key), 0.7 * exact) < 5e-6


def test_a_curve_scales_each_singular_value_by_its_place(file: LoraFile, core: Callable, strength: Callable) -> None:
    model = strength(core(file.tensors), curve=FALLING)
    for key, exact in file.changes.items():

        def gains(sigma: torch.Tensor) -> torch.Tensor:
            padding = torch.zeros(len(sigma) - 8)
            return torch.cat([torch.linspace(1, 0, 8), padding])

        assert far(change(model, key), shaped(exact, gains)) < 5e-6


def test_nodes_in_a_row_multiply_in_any_order(file: LoraFile, core: Callable, strength: Callable) -> None:
    """Also where the first changes the order of the singular values."""
    model = core(file.tensors)
    one = strength(strength(model, 0.5, curve=RISING), 0.4, keep=top(5), curve=FALLING)
    other = strength(strength(model, 0.4, keep=top(5), curve=FALLING), 0.5, curve=RISING)
    squared = strength(strength(model, curve=FALLING), curve=FALLING)
    for key, exact in file.changes.items():
        assert far(change(one, key), change(other, key)) < 5e-6
        gains = torch.linspace(1, 0, 8) ** 2
        expected = shaped(exact, lambda sigma, g=gains: torch.cat([g, torch.zeros(len(sigma) - 8)]))
        assert far(change(squared, key), expected) < 5e-6


def test_top_k_of_all_layers_keeps_the_largest_wherever_they_are(
    file: LoraFile, core: Callable, strength: Callable
) -> None:
    model = strength(core(file.tensors), keep={"keep": "top k of all layers", "k": 20})
    spectra = {key: torch.linalg.svdvals(exact.flatten(1))[:8] for key, exact in file.changes.items()}
    floor = torch.cat(list(spectra.values())).sort(descending=True).values[19] * (1 - 1e-9)
    counts = {key: int((spectrum >= floor).sum()) for key, spectrum in spectra.items()}
    assert sum(counts.values()) == 20
    assert min(counts.values()) == 0 < max(counts.values())
    for key, exact in file.changes.items():
        assert far(change(model, key), shaped(exact, first(counts[key]))) < 5e-6 or not counts[key]
        assert counts[key] or not change(model, key).any()


def test_energy_keeps_the_fewest_values_that_hold_the_share(file: LoraFile, core: Callable, strength: Callable) -> None:
    model = strength(core(file.tensors), keep={"keep": "energy", "share": 0.6})
    for key, exact in file.changes.items():
        squares = torch.linalg.svdvals(exact.flatten(1)).square()
        share = squares.cumsum(0) / squares.sum()
        count = int((share < 0.6).sum()) + 1
        assert 1 < count < 8
        assert far(change(model, key), shaped(exact, first(count))) < 5e-6


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ({"layers": "self-attention"}, {LINEAR[0], LINEAR[3]}),
        ({"layers": "cross-attention"}, {LINEAR[1]}),
        ({"layers": "pattern", "pattern": "middle_block.*"}, {LINEAR[1], LINEAR[2], CONVOLUTIONS[1]}),
        ({"layers": "pattern", "pattern": "output_blocks.[01].*, *.attn2.to_k"}, {CONVOLUTIONS[2], LINEAR[1]}),
        ({"layers": "all", "blocks": "middle, output 0-1"}, {LINEAR[1], LINEAR[2], *CONVOLUTIONS[1:3]}),
        ({"layers": "cross-attention", "blocks": "middle"}, {LINEAR[1]}),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_only_the_chosen_layers_are_scaled(
    demo: Any, file: LoraFile, core: Callable, strength: Callable, layers: dict[str, str], chosen: set[str]
) -> None:
    model = core(file.tensors)
    blocks = layers.get("blocks", "")
    before, after = weights(model), weights(strength(model, 0.5, curve=FALLING, layers=layers, blocks=blocks))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for outer in chosen for key in write(demo.model, layers=(outer,)).changes}


def test_layers_that_do_not_exist_are_told(file: LoraFile, core: Callable, strength: Callable) -> None:
    with pytest.raises(Exception, match=r"None of \d+ layers of UNetModel matches 'blocks\.9'.*middle_block"):
        strength(core(file.tensors), layers={"layers": "pattern", "pattern": "blocks.9"})
    with pytest.raises(Exception, match=r"blocks 'output 99' are not in this model.*middle_block"):
        strength(core(file.tensors), blocks="output 99")


def test_one_adapter_of_several_is_chosen_by_the_order_of_loading(
    demo: Any, core: Callable, saved: Callable, run_node: Callable, strength: Callable
) -> None:
    """The first weight alone does not tell it: the second adapter is not on it."""
    files = [
        write(demo.model, layers=layers, seed=seed) for seed, layers in enumerate((LINEAR[:2], LINEAR[1:], LINEAR))
    ]
    model = core(files[0].tensors)
    model = run_node("TriLoRALoad", model=model, file=saved(files[1].tensors), strength=0.5)[0]
    model = core(files[2].tensors, 0.25, model)
    for number in (1, 2, 3):
        shares = [1.0, 0.5, 0.25]
        shares[number - 1] = 0.0
        silenced = strength(model, 0.0, adapter=number)
        for key in files[2].changes:
            parts = [
                share * file.changes[key] for share, file in zip(shares, files, strict=True) if key in file.changes
            ]
            assert (change(silenced, key) - sum(parts)).abs().max() < 1e-6
    assert "made_1.safetensors" in strength_text(strength, model, 2)
    with pytest.raises(Exception, match="Adapter 4 was asked for, but only 3"):
        strength(model, adapter=4)


def strength_text(strength: Callable, model: Any, adapter: int = 0) -> str:
    strength(model, adapter=adapter)
    return strength.ui["text"][0]


def others(demo: Any) -> dict[str, dict[str, torch.Tensor]]:
    """One layer of each kind that has no U Σ Vᵀ, by the word that the node calls it."""
    lora = write(demo.model, layers=LINEAR[:1])
    name = layer_name("kohya", LINEAR[0], "")
    sides = {"a": (64, 2), "b": (2, 64)}
    loha = {f"hada_w{i}_{side}": randn(i, *shape) / 8 for i in (1, 2) for side, shape in sides.items()}
    rest = {
        "LoHa": loha,
        "LoKr": {"lokr_w1": randn(1, 8, 8) / 8, "lokr_w2": randn(2, 8, 8) / 8},
        "OFT": {"oft_blocks": randn(1, 4, 16, 16) / 8},
        "full difference": {"diff": randn(1, 64, 64) / 8},
    }
    named = {kind: {f"{name}.{part}": tensor for part, tensor in parts.items()} for kind, parts in rest.items()}
    weight = demo.model.model.state_dict()[next(iter(lora.changes))]
    alpha = {name + ".alpha": torch.tensor(4.0)}
    return named | {"DoRA": lora.tensors | alpha | {name + ".dora_scale": weight.norm(dim=1, keepdim=True) * 1.1}}


@pytest.mark.parametrize("kind", ["DoRA", "LoHa", "LoKr", "OFT", "full difference"])
def test_what_has_no_sigma_takes_the_strength_alone_and_is_named(
    demo: Any, core: Callable, strength: Callable, kind: str
) -> None:
    plain = write(demo.model, layers=LINEAR[1:2])
    tensors = plain.tensors | others(demo)[kind]
    model = strength(core(tensors), 0.5, curve=FALLING)
    expected, got = weights(core(tensors, 0.5)), weights(model)
    key, shaped_key = next(iter(write(demo.model, layers=LINEAR[:1]).changes)), next(iter(plain.changes))
    assert torch.equal(got[key], expected[key])
    assert not torch.equal(got[key], demo.model.model.state_dict()[key])
    assert not torch.equal(got[shaped_key], expected[shaped_key])
    path = key.removeprefix("diffusion_model.").removesuffix(".weight")
    assert f"the strength alone, in 1 layers: {path} ({kind})" in strength.ui["text"][0]
    assert "\n2." not in strength.ui["text"][0]  # it belongs to the same adapter
    assert same(strength(core(tensors)), core(tensors))


def test_a_lora_that_holds_nan_is_refused_in_words(demo: Any, core: Callable, strength: Callable) -> None:
    """ComfyUI's own loader takes it."""
    tensors = write(demo.model, layers=LINEAR[:1]).tensors
    next(iter(tensors.values()))[0, 0] = float("nan")
    with pytest.raises(Exception, match="64 x 64 holds NaN or inf.*load an earlier save"):
        strength(core(tensors), 0.5)


def test_all_of_cores_loaders_and_a_merge_are_seen(
    demo: Any, core: Callable, core_nodes: dict[str, Any], saved: Callable, strength: Callable
) -> None:
    file = write(demo.model)
    with torch.inference_mode():
        both, _ = core_nodes["LoraLoader"]().load_lora(demo.model, demo.clip, saved(file.tensors), 0.5, 0.0)
        by_wire = core_nodes["LoraModelLoader"].execute(demo.model, file.tensors, 0.5).result[0]
        (merged,) = core_nodes["ModelMergeSimple"]().merge(core(file.tensors), demo.model, 0.5)
    for model in (both, by_wire):
        kept = strength(model, keep=top(2))
        for key, exact in file.changes.items():
            assert far(change(kept, key), 0.5 * shaped(exact, first(2))) < 5e-6
    base = demo.model.model.state_dict()
    got = weights(strength(merged, keep=top(2)))
    for key, exact in file.changes.items():
        assert far(got[key] - base[key], 0.5 * shaped(exact, first(2))) < 1e-4


def test_the_node_tells_at_which_strength_each_adapter_came_in(
    demo: Any, core: Callable, core_nodes: dict[str, Any], strength: Callable
) -> None:
    """Merges included: what they keep of a model's adapters, and what they take from the other's."""
    merge = core_nodes["ModelMergeSimple"]().merge
    one, other = core(write(demo.model).tensors, 0.8), core(write(demo.model, layers=CONVOLUTIONS).tensors, 0.5)
    with torch.inference_mode():
        (merged,) = merge(core(write(demo.model, seed=1).tensors, 0.4, one), other, 0.25)
    told = strength_text(strength, strength(merged, 0.5)).splitlines()
    amounts = (0.8 * 0.25 * 0.5, 0.4 * 0.25 * 0.5, 0.5 * 0.75 * 0.5)
    assert told == [f"{i}. adapter (at {amount:.3g}): 4 x LoRA" for i, amount in enumerate(amounts, start=1)]


def test_an_adapter_from_a_bypass_loader_is_told(
    demo: Any, core: Callable, core_nodes: dict[str, Any], saved: Callable, strength: Callable
) -> None:
    file = write(demo.model)
    loader = core_nodes["LoraLoaderBypassModelOnly"]()
    with torch.inference_mode():
        (alone,) = loader.load_lora_model_only(demo.model, saved(file.tensors), 1.0)
        (beside,) = loader.load_lora_model_only(core(file.tensors), saved(file.tensors), 1.0)
    with pytest.raises(Exception, match="bypass loader.*Load TriLoRA or Load LoRA"):
        strength(alone)
    assert "bypass loader" in strength_text(strength, beside)
    assert "bypass" not in strength_text(strength, core(file.tensors))


def test_the_spectrum_is_drawn_behind_the_curve(demo: Any, core: Callable, strength: Callable) -> None:
    file = write(demo.model, rank=4)
    strength(core(file.tensors))
    bins = strength.ui["histogram"]
    mean = torch.stack([torch.linalg.svdvals(exact.flatten(1))[:4].square() for exact in file.changes.values()]).mean(0)
    assert len(bins) == 256
    assert all(isinstance(height, int) and height >= 0 for height in bins)
    for place, height in enumerate(bins):
        assert height == pytest.approx(float(mean[round(3 * place / 255)] / mean[0]) * 1e6, rel=1e-4)


def test_sigma_is_found_once_while_the_curve_is_played_with_and_goes_with_the_model(
    file: LoraFile, core: Callable, strength: Callable
) -> None:
    model = core(file.tensors)
    one, two = strength(model, curve=FALLING), strength(model, 0.5, keep=top(2), curve=RISING)
    for key in file.changes:
        u, _, vh, _ = one.patches[key][0][1].weights
        assert two.patches[key][0][1].weights[0] is u
        assert two.patches[key][0][1].weights[2] is vh
    patch, factor = weakref.ref(model.patches[key][0][1]), weakref.ref(u)
    del model, one, two, u, vh
    gc.collect()
    assert patch() is None
    assert factor() is None


def test_sigma_of_a_file_is_found_once_while_the_loaders_strength_is_played_with(
    demo: Any, file: LoraFile, saved: Callable, run_node: Callable, strength: Callable
) -> None:
    name = saved(file.tensors)
    loaded = [run_node("TriLoRALoad", model=demo.model, file=name, strength=amount)[0] for amount in (1.0, 0.5)]
    one, two = (strength(model, keep=top(2)) for model in loaded)
    for key in file.changes:
        assert one.patches[key][0][1].weights[0] is two.patches[key][0][1].weights[0]


def test_factors_that_are_canonical_already_are_not_kept_twice(
    demo: Any, file: LoraFile, saved: Callable, run_node: Callable, strength: Callable
) -> None:
    model, trilora, _ = run_node("TriLoRALoad", model=demo.model, file=saved(file.tensors), strength=1.0)
    kept = strength(model, keep=top(2))
    used = {id(tensor) for factors in trilora.layers.values() for tensor in factors}
    assert all({id(tensor) for tensor in kept.patches[key][0][1].weights[:3]} <= used for key in file.changes)


def test_factors_that_are_not_canonical_are_made_so(
    demo: Any, file: LoraFile, saved: Callable, run_node: Callable, strength: Callable
) -> None:
    """Adapters on a wire may come from anywhere: here the same change with other bases."""
    import dataclasses

    _, trilora, _ = run_node("TriLoRALoad", model=demo.model, file=saved(file.tensors), strength=1.0)
    mixed = {name: mix(factors) for name, factors in trilora.layers.items()}
    (model,) = run_node(
        "TriLoRAApply", model=demo.model, trilora=dataclasses.replace(trilora, layers=mixed), strength=1.0
    )
    kept = strength(model, keep=top(3))
    for key, exact in file.changes.items():
        assert far(change(kept, key), shaped(exact, first(3))) < 5e-6


def mix(factors: Any) -> Any:
    """u·diag(2, 1, ..) and sigma halved to match, in reversed order: neither orthonormal nor descending."""
    u, sigma, vh = factors
    sizes = torch.linspace(2, 1, len(sigma))
    return factors._replace(u=(u * sizes).flip(1), sigma=(sigma / sizes).flip(0), vh=vh.flip(0))


def test_a_shaped_patch_survives_being_rebuilt_as_streamed_weights_are(
    file: LoraFile, core: Callable, strength: Callable
) -> None:
    """ComfyUI rebuilds a patch from (loaded_keys, weights) alone."""
    import comfy.lora

    model = strength(core(file.tensors), curve=FALLING)
    for key in file.changes:
        before = change(model, key)
        model.patches[key] = comfy.lora.prefetch_prepared_value(model.patches[key], [0], None, None, False)
        assert torch.equal(change(model, key), before)
