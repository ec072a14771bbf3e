"""TriLoRA Dataset: pictures with captions, from a folder or from other nodes."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..trilora.dataset import PICTURES, Dataset, from_tensors, read_folder
from ..trilora.errors import DataError
from ..trilora.plot import contact_sheet, to_tensor
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
    path = (root / name.removeprefix(DEMO)).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"The folder {name!r} does not lie under {root}. Choose one from the list.")
    return path


def _holds_pictures(path: Path) -> bool:
    return path.is_dir() and any(file.suffix.lower() in PICTURES for file in path.iterdir())


class TriLoRADatasetNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TriLoRADataset",
            display_name="TriLoRA Dataset",
            category=CATEGORY,
            description="Pictures with captions to train on: 10 to 100 that share a style or a subject.",
            is_input_list=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folders(),
                    tooltip="A folder under input/. Each picture's caption is the text file of the same name beside it "
                    "(name.txt or name.caption). Not read when pictures are connected.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="A word that calls the style in prompts, put before every caption. Choose letters that "
                    "mean nothing yet, such as 'zorvex'. With a trigger, prompts without it stay as they were.",
                ),
                io.Int.Input(
                    "resolution", default=512, min=64, max=2048, step=8,
                    tooltip="Side in pixels of the square whose area every picture is scaled to. 512 for SD1.5, 1024 "
                    "for SDXL and Flux, 128 for the demo model. Twice the side costs at least four times the time.",
                ),
                io.Int.Input(
                    "bucket_step", default=64, min=0, max=256, step=8, advanced=True,
                    tooltip="Pictures keep their shape: they are sorted into sizes whose sides are multiples of this "
                    "many pixels. 0 crops every picture to the square.",
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
            ],
            outputs=[TriLoRADataset.Output("dataset", tooltip="For the dataset input of Train TriLoRA.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder, trigger, resolution, bucket_step, images=None, captions=None):
        if images:
            return 0
        path = folder_named(folder[0])
        return sorted((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in path.iterdir()) if path.is_dir() else []

    @classmethod
    def execute(cls, folder, trigger, resolution, bucket_step, images=None, captions=None) -> io.NodeOutput:
        if images:
            lines = [line for text in captions or [] for line in text.splitlines()]
            pictures = from_tensors([picture for batch in images for picture in batch], lines)
        else:
            pictures = read_folder(folder_named(folder[0]))
        dataset = Dataset(pictures, trigger[0].strip(), resolution[0], bucket_step[0])
        shown = dataset.pictures[:SHOWN]
        sheet = contact_sheet([p.pixels(dataset.size_of(p)) for p in shown], [dataset.prompt_of(p) for p in shown])
        return io.NodeOutput(dataset, ui=ui.PreviewImage(to_tensor(sheet), cls=cls))
