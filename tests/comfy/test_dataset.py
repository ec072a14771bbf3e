"""TriLoRA Dataset as a node: folders, connected pictures and encodings, and what it shows."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import execute
from PIL import Image

pytestmark = pytest.mark.comfy

STYLE = {"folder": ["demo: stained_glass"], "trigger": ["zorvex"], "resolution": [128], "bucket_step": [0]}


@pytest.fixture
def build(run_node: Callable[..., Any]) -> Callable[..., Any]:
    """The data set of the node; any input can be set, not wrapped in a list."""

    def run(**inputs: Any) -> Any:
        given = {name: value if isinstance(value, list) else [value] for name, value in inputs.items()}
        (data,) = run_node("TriLoRADataset", **{**STYLE, **given})
        return data

    return run


@pytest.fixture
def folder(comfy_base: Path) -> Path:
    """A folder under input/ with two pictures, one of them without a caption."""
    path = Path(tempfile.mkdtemp(dir=comfy_base / "input"))
    for i, size in enumerate([(200, 200), (100, 200)]):
        Image.new("RGBA", size, (90 * i, 0, 0, 255)).save(path / f"{i}.png")
    (path / "0.txt").write_text("a, b, c, d")
    return path


def test_a_newcomer_sees_folder_trigger_and_resolution(pack: dict[str, Any]) -> None:
    inputs = pack["TriLoRADataset"].GET_SCHEMA().inputs
    assert [i.id for i in inputs if hasattr(i, "default") and not i.advanced and not i.force_input] == [
        "folder", "trigger", "resolution",
    ]  # fmt: skip


def test_what_is_left_out_means_the_default_that_the_page_shows(pack: dict[str, Any], build: Callable) -> None:
    inputs = pack["TriLoRADataset"].GET_SCHEMA().inputs
    rare = {i.id: i.default for i in inputs if i.optional and hasattr(i, "default") and i.advanced}
    assert len(rare) == 9
    assert build().identity() == build(**rare).identity()


@pytest.mark.parametrize(
    ("name", "value"),
    [("fit", "pad"), ("mirror", True), ("repeats", 3), ("tag_orders", 4), ("kept_tags", 1), ("caption_dropout", 0.1)],
)
def test_a_rare_setting_reaches_the_data_set(build: Callable, name: str, value: Any) -> None:
    assert getattr(build(**{name: value}), name) == value


def test_captions_subfolders_and_transparency_decide_what_is_read(build: Callable, folder: Path) -> None:
    (folder / "more").mkdir()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(folder / "more" / "2.png")
    data = build(folder=folder.name)
    assert [(p.name, p.caption) for p in data.pictures] == [("0.png", "a, b, c, d"), ("1.png", "")]
    data = build(folder=folder.name, caption_source="folder's name", subfolders=True)
    assert [p.name for p in data.pictures] == ["0.png", "1.png", "more/2.png"]
    assert data.pictures[2].caption == "more"
    with pytest.raises(Exception, match="mask of more/2.png is black"):
        build(folder=folder.name, subfolders=True, transparency="mask")


def test_a_linked_folder_that_the_list_offers_is_read(
    build: Callable, pack: dict[str, Any], folder: Path, comfy_base: Path, tmp_path: Path
) -> None:
    link = comfy_base / "input" / "linked"
    folder.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    try:
        assert "linked" in pack["TriLoRADataset"].define_schema().inputs[0].options
        assert [p.name for p in build(folder="linked").pictures] == ["0.png", "1.png"]
    finally:
        link.unlink()
    for outside in ("../models", "demo: ../base", str(tmp_path)):
        with pytest.raises(Exception, match="does not lie under"):
            build(folder=outside)


def test_a_folder_that_can_not_be_read_is_not_offered_and_hides_no_other(
    pack: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lost+found, where input/ is a disk of its own."""
    closed, listed = folder.parent / "lost+found", Path.iterdir
    closed.mkdir()

    def refuse(path: Path) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    offered = pack["TriLoRADataset"].define_schema().inputs[0].options
    closed.rmdir()
    assert folder.name in offered
    assert closed.name not in offered


def test_each_text_of_a_list_is_a_caption_and_so_is_each_line_of_one_text(build: Callable) -> None:
    """Nodes that write captions write several lines, or nothing."""

    def captions(*texts: str) -> list[str]:
        return [p.caption for p in build(images=[torch.rand(3, 64, 64, 3)], captions=list(texts)).pictures]

    assert captions("a", "", "b") == ["a", "", "b"]
    assert captions("a\nlong one\n", "", "b") == ["a long one", "", "b"]
    assert captions("a\n\nb") == ["a", "", "b"]
    with pytest.raises(Exception, match="3 pictures came with 2 captions"):
        captions("a", "b")


def test_masks_go_with_pictures_in_order_of_name(build: Callable, folder: Path) -> None:
    masks = torch.ones(2, 50, 50)
    masks[1, :, :25] = 0
    data = build(folder=folder.name, masks=[masks])
    assert data.weights_of(data.pictures[0]) is None, "white all over"
    assert data.weights_of(data.pictures[1])[:, :60].max() == 0
    with pytest.raises(Exception, match="2 pictures came with 1 masks"):
        build(folder=folder.name, masks=[masks[:1]])


def test_a_changed_caption_or_picture_runs_the_node_again(pack: dict[str, Any], folder: Path) -> None:
    def name(**inputs: Any) -> Any:
        return pack["TriLoRADataset"].fingerprint_inputs(**{**STYLE, "folder": [folder.name]}, **inputs)

    (folder / "more").mkdir()
    (folder / "more" / "2.txt").write_text("deep")
    before, deep = name(), name(subfolders=[True])
    assert before == name() != deep
    (folder / "1.txt").write_text("now")
    assert before != name()
    (folder / "more" / "2.txt").write_text("deeper")
    assert deep != name(subfolders=[True])
    assert name(images=(None,)) == name(images=(None,), subfolders=[True]), "the folder is not read then"


def test_the_node_shows_a_sheet_and_says_what_is_amiss(pack: dict[str, Any], folder: Path, comfy_base: Path) -> None:
    with torch.inference_mode():
        clone = pack["TriLoRADataset"].PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}})
        ui = clone.execute(**{**STYLE, "folder": [folder.name], "bucket_step": [64]}).ui
    (text,) = ui["text"]
    assert "! 1 no caption: 1.png" in text.splitlines()
    (panel,) = ui["trilora"]
    assert panel["lines"] == text.splitlines()
    assert sum(count for _, count in panel["buckets"]) == panel["total"] == len(panel["pictures"])
    sheet = Image.open(comfy_base / "temp" / panel["sheet"]["filename"])
    assert sheet.size == panel["size"]
    for picture in panel["pictures"]:
        left, top, width, height = picture["place"]
        assert left + width <= sheet.width
        assert top + height <= sheet.height
    assert [picture["caption"] for picture in panel["pictures"] if picture["name"] == "1.png"] == [""]


@pytest.fixture(scope="module")
def made(core_nodes: dict[str, Any], run_node: Callable[..., Any], demo: Any) -> Any:
    """Four pictures of a style, and core's encoding of them: a list of LATENT and one of CONDITIONING."""
    (data,) = run_node("TriLoRADataset", **STYLE)
    captions = [picture.caption for picture in data.pictures[:4]]
    images = [picture.pixels((128, 128))[None] for picture in data.pictures[:3]]
    images.append(data.pictures[3].pixels((64, 128))[None])
    encoded = execute(
        core_nodes["MakeTrainingDataset"], images=images, vae=[demo.vae], clip=[demo.clip], texts=captions
    )
    return images, captions, *encoded


def test_cores_training_data_trains_as_the_pictures_do(
    made: Any, build: Callable, train: Callable, core_nodes: dict[str, Any]
) -> None:
    images, captions, latents, conditioning = made
    ours = build(images=images[:3], captions=captions[:3], trigger="")
    cores = build(latents=latents[:3], conditioning=conditioning[:3])
    bucketed = execute(core_nodes["ResolutionBucket"], latents=latents, conditioning=conditioning)
    assert [len(latent["samples"]) for latent in bucketed[0]] == [3, 1]
    grouped = build(latents=bucketed[0], conditioning=bucketed[1])
    assert [p.size for p in grouped.pictures] == [
        p.size for p in build(latents=latents, conditioning=conditioning).pictures
    ]
    losses = [train(dataset=data, steps=2, preserve=0.3).loss_map["loss"] for data in (ours, cores)]
    assert [float(a) for a in losses[0]] == pytest.approx([float(a) for a in losses[1]], rel=1e-4)
    assert train(dataset=grouped, steps=1).trilora.layers


def test_latents_without_as_many_conditionings_are_refused(made: Any, build: Callable) -> None:
    _, _, latents, conditioning = made
    assert len(build(latents=latents, conditioning=conditioning[:1]).pictures) == 4
    for wrong in (conditioning[:2], []):
        with pytest.raises(Exception, match=f"4 pictures came with {len(wrong)} conditionings"):
            build(latents=latents, conditioning=wrong)


def test_videos_pass_through_and_video_with_sound_is_refused(build: Callable, made: Any) -> None:
    from comfy.nested_tensor import NestedTensor

    video = torch.randn(2, 16, 5, 8, 12)
    data = build(latents=[{"samples": video}], conditioning=made[3][:2])
    assert all(torch.equal(p.source.latent, v) for p, v in zip(data.pictures, video, strict=True))
    with pytest.raises(Exception, match="several things at once"):
        build(latents=[{"samples": NestedTensor([video, video])}], conditioning=made[3][:1])
