"""TriLoRA Dataset: pictures with captions, from a folder or from other nodes."""

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..trilora.buckets import FITS
from ..trilora.captions import SOURCES, one_line
from ..trilora.dataset import Dataset
from ..trilora.errors import DataError
from ..trilora.overview import buckets, overview
from ..trilora.pictures import Picture, from_encodings, from_tensors, picture_files, read_folder, with_masks
from ..trilora.plot import tiles, to_tensor
from .sockets import CATEGORY, TriLoRADataset

STYLES = Path(__file__).parent.parent / "demo" / "styles"
DEMO = "demo: "
SHOWN = 60  # pictures on the contact sheet


def folders() -> list[str]:
    """The folders under input/ that hold pictures, and the styles shipped with the pack."""
    root = Path(folder_paths.get_input_directory())
    inside = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if _holds_pictures(path)]
    return inside + [DEMO + path.name for path in sorted(STYLES.glob("*")) if _holds_pictures(path)]


def folder_named(name: str) -> Path:
    """The folder behind an entry of the list; it may not lie outside its root."""
    root = STYLES if name.startswith(DEMO) else Path(folder_paths.get_input_directory())
    root = Path(os.path.abspath(root))  # not resolved: a linked folder below it is the user's own wish
    path = Path(os.path.abspath(root / name.removeprefix(DEMO)))
    if not path.is_relative_to(root):
        raise DataError(f"The folder {name!r} does not lie under {root}. Choose one from the list.")
    return path


def _holds_pictures(path: Path) -> bool:
    try:
        return path.is_dir() and next(picture_files(path), None) is not None
    except OSError:  # not ours to read: lost+found, say
        return False


class TriLoRADatasetNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRADataset",
            display_name="TriLoRA Dataset",
            category=CATEGORY,
            description="Pictures with captions to train on: 10 to 100 that share a style or a subject. A second one, "
            "of the same kind of thing in general and without a trigger word, serves as regularisation pictures.",
            is_input_list=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folders(),
                    tooltip="A folder under input/. Each picture's caption is the text file of the same name beside it "
                    "(name.txt or name.caption), or its line in metadata.jsonl. Not read when pictures or latents are "
                    "connected.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="A word that calls the style in prompts, put before every caption that does not say it. "
                    "Choose letters that mean nothing yet, such as 'zorvex'. With a trigger, prompts without it stay "
                    "as they were. Leave it empty for regularisation pictures.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=2048, step=8,
                    tooltip="Side in pixels of the square whose area every picture is scaled to. 512 for SD1.5, 1024 "
                    "for SDXL and Flux, 128 for the demo model. Twice the side costs at least four times the time.",
                ),
                io.Int.Input(
                    "bucket_step", default=64, min=0, max=256, step=8, advanced=True,
                    tooltip="Pictures keep their shape: they are sorted into sizes whose sides are multiples of this "
                    "many pixels. 0 makes every picture square.",
                ),
                io.Image.Input(
                    "images", optional=True,
                    tooltip="Pictures from other nodes instead of the folder: a batch or a list.",
                ),
                io.String.Input(
                    "captions", optional=True, force_input=True,
                    tooltip="One caption for each connected picture, in the same order: a list, or one text with a "
                    "line for each.",
                ),
                io.Latent.Input(
                    "latents", optional=True,
                    tooltip="Encoded pictures or videos instead of the folder, such as core's Make Training Dataset "
                    "gives: a list, or batches. Needs conditioning. Resolution, fit, mirroring and tags don't act.",
                ),
                io.Conditioning.Input(
                    "conditioning", optional=True,
                    tooltip="One conditioning for each connected latent, in the same order, or one for them all. "
                    "Being encoded already, it has no caption without the trigger, so the base is not preserved.",
                ),
                io.Mask.Input(
                    "masks", optional=True,
                    tooltip="One mask for each picture, in the same order (for a folder: by name). White is learned, "
                    "black is not, grey is in between. Load Image's mask of transparency has to be inverted.",
                ),
                *rare_inputs(),
            ],
            outputs=[TriLoRADataset.Output("dataset", tooltip="For the dataset input of Train TriLoRA.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder, images=None, latents=None, subfolders=(False,), **_):
        if images or latents:
            return 0
        root = folder_named(folder[0])
        files = (path for path in (root.rglob("*") if subfolders[0] else root.glob("*")) if path.is_file())
        return sorted((path.as_posix(), path.stat().st_mtime_ns, path.stat().st_size) for path in files)

    @classmethod
    def execute(
        cls, folder, trigger, resolution, bucket_step, images=None, captions=None, latents=None, conditioning=None,
        masks=None, **rare,
    ) -> io.NodeOutput:  # fmt: skip
        chosen = {each.id: rare.get(each.id, [each.default])[0] for each in rare_inputs()}
        alpha = chosen.pop("transparency") == "mask"
        reading = (chosen.pop("caption_source"), chosen.pop("subfolders"), alpha)
        if latents:
            pictures = connected_latents(latents, conditioning or [])
        elif images:
            singles = [picture for batch in images for picture in batch]
            pictures = from_tensors(singles, connected_captions(captions or [], len(singles)), alpha)
        else:
            pictures = read_folder(folder_named(folder[0]), *reading)
        if masks:
            pictures = with_masks(pictures, [mask for batch in masks for mask in batch])
        dataset = Dataset(pictures, trigger[0].strip(), resolution[0], bucket_step[0], **chosen)
        return io.NodeOutput(dataset, ui=shown(dataset))


def rare_inputs() -> list:
    """What a newcomer leaves alone; whoever queues a prompt by hand may leave it out."""
    return [
        io.Combo.Input(
            "caption_source", options=list(SOURCES), default="automatic", optional=True, advanced=True,
            tooltip="Where a folder's captions come from. 'automatic' takes, for each picture, the first there is of "
            "name.txt, name.caption and its line in metadata.jsonl (file_name, text). The folder's name is never "
            "taken unasked.",
        ),
        io.Boolean.Input(
            "subfolders", default=False, optional=True, advanced=True,
            tooltip="Whether pictures in folders inside the folder count too.",
        ),
        io.Combo.Input(
            "fit", options=list(FITS), default="crop", optional=True, advanced=True,
            tooltip="'crop' fills the size and cuts what sticks out at the sides, a few per cent; 'pad' shows the "
            "whole picture, and nothing is learned from the border.",
        ),
        io.Boolean.Input(
            "mirror", default=False, optional=True, advanced=True,
            tooltip="Whether each picture is shown mirrored too. It helps with few pictures; not for writing, faces "
            "with a parting, or captions that say left and right.",
        ),
        io.Int.Input(
            "repeats", default=1, min=1, max=1000, optional=True, advanced=True,
            tooltip="How often each picture comes in an epoch; it weighs this data set against another one.",
        ),
        io.Int.Input(
            "tag_orders", default=1, min=1, max=64, optional=True, advanced=True,
            tooltip="In how many orders of its comma-separated tags each caption is shown, so that order comes to "
            "mean nothing. 1 leaves captions as they are written; each order is encoded once.",
        ),
        io.Int.Input(
            "kept_tags", default=0, min=0, max=64, optional=True, advanced=True,
            tooltip="How many tags stay in front in every order. The trigger word always does.",
        ),
        io.Float.Input(
            "caption_dropout", default=0.0, min=0.0, max=1.0, step=0.05, optional=True, advanced=True,
            tooltip="Share of the steps, 0 to 1, in which a picture is shown with the empty caption. 0.05 to 0.1 lets "
            "the style into unprompted pictures too and keeps guidance (CFG) working.",
        ),
        io.Combo.Input(
            "transparency", options=["white", "mask"], default="white", optional=True, advanced=True,
            tooltip="What see-through parts of a picture become: white, or white and left out of the loss ('mask'), "
            "so that only the thing itself is learned.",
        ),
    ]  # fmt: skip


def connected_captions(texts: list[str], pictures: int) -> list[str]:
    """As many texts as pictures are a caption each, empty ones and those of several lines too; else a line is one."""
    if len(texts) == pictures:
        return [one_line(text) for text in texts]
    return [line for text in texts for line in text.splitlines()]


def connected_latents(latents: list, conditioning: list) -> tuple[Picture, ...]:
    """Latents one by one, however they are batched, each with its conditioning."""
    samples = [latent["samples"] for latent in latents]
    if any(not isinstance(batch, Tensor) for batch in samples):
        raise DataError("These latents hold several things at once (video with sound), which can't be trained on.")
    singles = [[entry] for entries in conditioning for entry in entries]
    return from_encodings([latent for batch in samples for latent in batch], singles)


def shown(dataset: Dataset) -> dict:
    """What the node's panel shows: words, buckets, and the first pictures with their captions."""
    seen = () if dataset.encoded else dataset.pictures[:SHOWN]
    sheet, places = tiles([thumbnail(dataset, picture) for picture in seen])
    pictures = [
        {"name": picture.name, "caption": dataset.prompt_of(picture) if picture.caption else "", "place": place}
        for picture, place in zip(seen, places, strict=True)
    ]
    lines = overview(dataset)
    panel = {
        "lines": lines,
        "buckets": buckets(dataset),
        "pictures": pictures,
        "total": len(dataset.pictures),
        "sheet": ui.PreviewImage(to_tensor(sheet)).as_dict()["images"][0] if seen else None,
        "size": sheet.size,
    }
    return {"text": ("\n".join(lines),), "trilora": (panel,)}


def thumbnail(dataset: Dataset, picture: Picture) -> Tensor:
    """A picture as it is trained on; what its mask leaves out is pale."""
    pixels, weights = dataset.pixels_of(picture), dataset.weights_of(picture)
    return pixels if weights is None else 1 - (1 - pixels) * (0.2 + 0.8 * weights[..., None])
