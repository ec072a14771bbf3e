"""Pictures and captions are encoded once, kept on disk, and told to the network as it expects them."""

import importlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfy


@pytest.fixture(scope="module")
def encoding(pack: dict[str, Any]) -> Any:
    """The pack's own encoding module, as ComfyUI loaded it."""
    return importlib.import_module(pack["TriLoRADataset"].__module__.rpartition(".")[0] + ".encoding")


@pytest.fixture
def folder(comfy_base: Path) -> Path:
    """A folder with a wide and a square picture, each with a caption of two tags."""
    path = Path(tempfile.mkdtemp(dir=comfy_base / "input"))
    for name, size in (("a", (300, 150)), ("b", (160, 160))):
        picture = Image.linear_gradient("L").resize(size)
        Image.merge("RGB", [picture, picture.rotate(90), picture.rotate(180)]).save(path / f"{name}.png")
        (path / f"{name}.txt").write_text(f"{name}, red")
    return path


@pytest.fixture
def build(run_node: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The data set of that folder; any input can be set."""

    def run(**changed: Any) -> Any:
        inputs = {"folder": folder.name, "trigger": "zxk", "resolution": 128, "bucket_step": 32, **changed}
        (data,) = run_node("TriLoRADataset", **{name: [value] for name, value in inputs.items()})
        return data

    return run


@pytest.fixture
def encode(encoding: Any, demo: Any, tmp_path: Path) -> Callable[..., Any]:
    """Encode as a run does, with a cache of the test's own: gives what was encoded, and how often VAE and CLIP ran."""

    def run(data: Any, plain: bool = True, clip: Any = demo.clip, vae: Any = demo.vae) -> tuple[Any, int, int]:
        told.clear()
        with torch.inference_mode(), Count(vae, "encode") as pictures, Count(clip, "encode_from_tokens") as texts:
            made = encoding.encode(data, clip, vae, plain, lambda *what: told.append(what), encoding.Cache(tmp_path))
        return made, pictures.calls, texts.calls

    told: list[tuple[str, int, int]] = []
    run.told = told
    return run


class Count:
    """How often a method of an object is called within the block."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name, self.calls = owner, name, 0

    def __enter__(self) -> "Count":
        method = getattr(self.owner, self.name)

        def counted(*args: Any, **options: Any) -> Any:
            self.calls += 1
            return method(*args, **options)

        setattr(self.owner, self.name, counted)
        return self

    def __exit__(self, *_: object) -> None:
        delattr(self.owner, self.name)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


def test_a_second_run_encodes_nothing_and_gets_the_same_bits(build: Callable, encode: Callable) -> None:
    first, pictures, texts = encode(build())
    assert (pictures, texts) == (2, 4)
    again, *calls = encode(build())
    assert calls == [0, 0]
    assert equal(first.latents, again.latents)
    assert equal(first.captions, again.captions)
    assert first.identity == again.identity
    assert set(first.captions) == {"zxk, a, red", "zxk, b, red", "a, red", "b, red"}


def test_the_bar_counts_every_picture_and_text_and_may_cancel(
    build: Callable, encode: Callable, encoding: Any, demo: Any
) -> None:
    encode(build())
    assert [(done, total) for _, done, total in encode.told] == [(i, 6) for i in range(1, 7)]
    assert encode.told[0][0] == "encoding a.png"

    def cancel(text: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        encoding.encode(build(), demo.clip, demo.vae, True, cancel)


def test_only_what_changed_is_encoded_again(build: Callable, encode: Callable, folder: Path) -> None:
    first, *_ = encode(build())
    Image.new("RGB", (160, 160), (9, 9, 9)).save(folder / "b.png")
    second, *calls = encode(build())
    assert calls == [1, 0]
    (folder / "a.txt").write_text("something else")
    third, *calls = encode(build())
    assert calls == [0, 2]
    (folder / "a.png").rename(folder / "c.png")
    (folder / "a.txt").rename(folder / "c.txt")
    _, *calls = encode(build())
    assert calls == [0, 0], "a name is nothing that is encoded"
    assert len({first.identity, second.identity, third.identity}) == 3


@pytest.mark.parametrize(
    ("change", "again"),  # the square picture's bucket is the same without buckets
    [({"resolution": 64}, 2), ({"bucket_step": 0}, 1), ({"fit": "pad"}, 2), ({"mirror": True}, 4)],
)
def test_another_size_fit_or_mirroring_encodes_the_pictures_again_and_no_text(
    build: Callable, encode: Callable, change: dict[str, Any], again: int
) -> None:
    encode(build())
    assert encode(build(**change))[1:] == (again, 0)


def test_other_weights_encode_again(build: Callable, encode: Callable, demo: Any) -> None:
    """A LoRA on the CLIP, another layer of it, and a VAE that differs in one tensor."""
    plain, *_ = encode(build())
    key = next(k for k, w in demo.clip.patcher.model.state_dict().items() if w.ndim == 2)
    weight = demo.clip.patcher.model.state_dict()[key]
    patched = {}
    for strength in (0.5, 1.0):
        clip = demo.clip.clone()
        clip.add_patches({key: ("diff", (torch.ones_like(weight),))}, strength)
        patched[strength], pictures, texts = encode(build(), clip=clip)
        assert (pictures, texts) == (0, 4)
        assert encode(build(), clip=clip)[1:] == (0, 0), "also while the patches are on the weights in place"
    layer = demo.clip.clone()
    layer.clip_layer(-2)
    skipped, _, texts = encode(build(), clip=layer)
    assert texts == 4
    assert encode(build())[1:] == (0, 0)
    name, bias = next((n, p) for n, p in demo.vae.first_stage_model.named_parameters() if p.ndim == 1)
    with torch.inference_mode():
        bias += 1
        try:
            other, pictures, texts = encode(build())
        finally:
            bias -= 1
    assert (pictures, texts) == (2, 0), name
    assert len({e.identity for e in (plain, *patched.values(), skipped, other)}) == 5


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8], ids=str
)
def test_a_fingerprint_sees_type_shape_and_numbers_of_weights(encoding: Any, dtype: torch.dtype) -> None:
    from comfy.model_patcher import ModelPatcher

    def name(weight: torch.Tensor) -> str:
        module = torch.nn.Module()
        module.register_parameter("weight", torch.nn.Parameter(weight.to(dtype), requires_grad=False))
        return encoding.fingerprint.of_weights(ModelPatcher(module, torch.device("cpu"), torch.device("cpu")))

    weight = torch.randn(100, 200, generator=torch.Generator().manual_seed(0)) * 10
    assert name(weight) == name(weight.clone())
    assert len({name(w) for w in (weight, weight + 3, weight.T, weight[:99], weight.view(-1))}) == 5
    assert name(torch.zeros(0)) != name(torch.zeros(1))


def test_hooks_and_embeddings_are_not_kept(build: Callable, encode: Callable, demo: Any, folder: Path) -> None:
    from comfy.hooks import HookGroup

    clip = demo.clip.clone()
    clip.apply_hooks_to_conds = HookGroup()
    for _ in range(2):
        assert encode(build(), clip=clip)[2] == 4
    (folder / "a.txt").write_text("embedding:nothing_there")
    encode(build())
    assert encode(build())[1:] == (0, 2), "the file behind the word may have changed"


def test_a_mirrored_picture_is_encoded_from_mirrored_pixels_with_a_mirrored_mask(
    build: Callable, encode: Callable, encoding: Any, demo: Any
) -> None:
    data = build(mirror=True, tag_orders=2)
    mask = torch.zeros(150, 300)
    mask[:, :150] = 1
    data = replace(data, pictures=(replace(data.pictures[0], mask=mask), data.pictures[1]))
    made, pictures, _ = encode(data)
    assert pictures == 4
    pixels = data.pixels_of(data.pictures[0])
    with torch.inference_mode():
        assert torch.equal(made.latents[0][1], demo.vae.encode(pixels.flip(1)[None])[0].float())
    whole, mirrored = made.masks[0]
    assert whole.shape == made.latents[0][0].shape[-2:]
    assert whole[:, :2].min() == 1
    assert whole[:, -2:].max() == 0
    assert torch.equal(whole, mirrored.flip(-1))
    assert made.masks[1] == (None, None)


def test_a_mask_is_the_mean_over_each_cell_of_the_latent(build: Callable, encode: Callable) -> None:
    data = build(bucket_step=0)
    noise = torch.rand(160, 160, generator=torch.Generator().manual_seed(0))
    data = replace(data, pictures=(replace(data.pictures[1], mask=noise),))
    made, *_ = encode(data)
    cells = data.weights_of(data.pictures[0]).unfold(0, 8, 8).unfold(1, 8, 8).mean((-1, -2))
    assert made.masks[0][0].shape == (16, 16)
    assert torch.allclose(made.masks[0][0], cells, atol=1e-6)


def test_a_padded_border_has_no_weight(build: Callable, encode: Callable) -> None:
    made, *_ = encode(build(fit="pad", bucket_step=0))
    mask = made.masks[0][0]
    assert mask.shape == (16, 16)
    assert (mask[4:12] == 1).all()
    assert not mask[:4].any()
    assert not mask[12:].any()
    assert made.masks[1] == (None,), "a square picture has no border"


@pytest.fixture
def shown(encoding: Any, encode: Callable, demo: Any, pack: dict[str, Any]) -> Callable[..., Any]:
    """The examples that a data set gives on the demo model."""
    denoiser, lending = (
        importlib.import_module(encoding.__name__.replace(".encoding", name)) for name in (".denoiser", ".lending")
    )

    def run(data: Any, plain: bool = True) -> Any:
        made, *_ = encode(data, plain)
        with torch.inference_mode(), lending.lent(demo.model) as patcher:
            return encoding.examples(denoiser.ComfyDenoiser(patcher), made), made

    return run


def test_examples_are_every_way_a_picture_is_shown(build: Callable, shown: Callable, demo: Any) -> None:
    data, made = shown(build(mirror=True, tag_orders=2, repeats=3, caption_dropout=0.1))
    assert len(data) == 6
    assert data[0] is data[2] is data[4]
    assert len(data[0]) == 4, "as it is and mirrored, in two orders of its tags"
    first, reordered, mirrored, _ = data[0]
    assert torch.equal(first.latent, demo.model.model.process_latent_in(made.latents[0][0]))
    assert torch.equal(first.latent, reordered.latent)
    assert not torch.equal(first.latent, mirrored.latent)
    words = {name: made.captions[name][0][0] for name in made.captions}
    for example, order in ((first, "a, red"), (reordered, "red, a"), (mirrored, "a, red")):
        assert torch.equal(example.condition["c_crossattn"].cond, words[f"zxk, {order}"])
        assert torch.equal(example.plain["c_crossattn"].cond, words[order])
        assert torch.equal(example.blank["c_crossattn"].cond, words[""])
    assert not first.latent.is_inference()
    assert not first.condition["c_crossattn"].cond.is_inference()


def test_what_is_not_asked_for_is_not_encoded(build: Callable, shown: Callable) -> None:
    data, made = shown(build(), plain=False)
    assert set(made.captions) == {"zxk, a, red", "zxk, b, red"}
    assert all(example.plain is example.blank is example.mask is None for ways in data for example in ways)
    assert not made.plain
    assert not shown(build(trigger=""))[1].plain


def test_what_exceeds_the_budget_of_ram_is_read_from_a_file_with_the_same_bits(
    build: Callable, shown: Callable, encoding: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, ours = Path("/proc/self/maps"), re.compile(rf"{tmp_path}/\S+\.part")
    in_ram, _ = shown(build())
    assert not ours.search(maps.read_text())
    monkeypatch.setattr(importlib.import_module(encoding.Cache.__module__.replace(".cache", ".shelf")), "BUDGET", 0)
    in_a_file, _ = shown(build())
    assert ours.search(maps.read_text())
    for mine, theirs in zip(sum(in_ram, ()), sum(in_a_file, ()), strict=True):
        assert torch.equal(mine.latent, theirs.latent)
        for one, other in ((mine.condition, theirs.condition), (mine.plain, theirs.plain)):
            assert torch.equal(one["c_crossattn"].cond, other["c_crossattn"].cond)


def test_masks_are_ordinary_tensors_that_autograd_may_keep(build: Callable, shown: Callable) -> None:
    data, _ = shown(build(fit="pad", bucket_step=0))
    error = torch.ones(16, 16, requires_grad=True)
    (data[0][0].mask * error).sum().backward()
    assert torch.equal(error.grad, data[0][0].mask)


def test_sdxl_is_told_each_pictures_size_crop_and_bucket(
    build: Callable, encode: Callable, encoding: Any, tiny_sdxl: Any
) -> None:
    denoiser, lending = (
        importlib.import_module(encoding.__name__.replace(".encoding", name)) for name in (".denoiser", ".lending")
    )
    data = build(caption_dropout=0.1, bucket_step=0)
    made, *_ = encode(data)
    words = {p: [[torch.randn(1, 77, 16), {"pooled_output": torch.full((1, 1280), i)}]] for i, p in
             enumerate(made.captions, start=1)}  # fmt: skip
    with torch.inference_mode(), lending.lent(tiny_sdxl) as patcher:
        (wide,), (square,) = encoding.examples(denoiser.ComfyDenoiser(patcher), replace(made, captions=words))
    embed = tiny_sdxl.model.embedder

    def told(*sizes: int) -> torch.Tensor:
        return torch.cat([embed(torch.tensor([float(size)])).flatten() for size in sizes])

    for condition in (wide.condition, wide.plain, wide.blank):  # height, width, top, left, height, width
        assert torch.equal(condition["y"].cond[0, 1280:], told(150, 300, 0, 64, 128, 128))
    assert torch.equal(square.condition["y"].cond[0, 1280:], told(160, 160, 0, 0, 128, 128))
    assert wide.condition["y"].cond[0, 0] == 1
    assert wide.plain["y"].cond[0, 0] != wide.condition["y"].cond[0, 0]


def test_sdxl_is_told_nothing_was_cut_from_a_padded_picture(
    build: Callable, encode: Callable, encoding: Any, tiny_sdxl: Any
) -> None:
    denoiser, lending = (
        importlib.import_module(encoding.__name__.replace(".encoding", name)) for name in (".denoiser", ".lending")
    )
    made, *_ = encode(build(bucket_step=0, fit="pad"))
    words = {p: [[torch.randn(1, 77, 16), {"pooled_output": torch.zeros(1, 1280)}]] for p in made.captions}
    with torch.inference_mode(), lending.lent(tiny_sdxl) as patcher:
        (wide,), _ = encoding.examples(denoiser.ComfyDenoiser(patcher), replace(made, captions=words))
    embed = tiny_sdxl.model.embedder
    want = [embed(torch.tensor([float(size)])).flatten() for size in (150, 300, 0, 0, 128, 128)]
    assert torch.equal(wide.condition["y"].cond[0, 1280:], torch.cat(want))


@pytest.fixture(scope="module")
def tiny_sdxl(comfy: Any) -> Any:
    """ComfyUI's own SDXL class around a small network with random weights."""
    import comfy.model_patcher
    import comfy.supported_models

    unet = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2],
        "num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_middle": 1,
        "transformer_depth_output": [0, 0, 1, 1], "context_dim": 16, "use_spatial_transformer": True,
        "use_linear_in_transformer": True, "adm_in_channels": 2816, "num_classes": "sequential",
        "use_temporal_attention": False, "legacy": False, "num_head_channels": 16,
    }  # fmt: skip
    config = comfy.supported_models.SDXL(unet)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({"model.diffusion_model.out.0.weight": torch.zeros(1)}, "model.diffusion_model.")
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
