"""Everything that a headless training is asked for: one frozen dataclass, from flags or TOML, kept in the file."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..dataset import Dataset
from ..errors import TriLoRAError
from ..files import DTYPES
from ..film import Preview
from ..pictures import read_folder
from ..run import Watch
from ..settings import Settings
from .options import Values, build

PREFIXES = {"preview": "preview-"}  # tables whose flags would else be those of another
LEAST = {  # what a widget of the nodes would not let through; `Settings` looks after its own
    "data": {"resolution": 16, "bucket_step": 0, "repeats": 1, "tag_orders": 1, "kept_tags": 0},
    "watch": {"score_every": 1, "patience": 0, "checkpoint_every": 0, "checkpoints": 1},
    "preview": {"every": 0, "steps": 1},
}
PRESERVE = 0.3  # where there is a trigger word and nothing else was said


@dataclass(frozen=True)
class Data:
    """Pictures and captions.

    Attributes:
        pictures: folder of pictures, each with its caption in a text file of the same name.
        trigger: word put before every caption that does not say it; choose letters that mean nothing yet.
        captions: where captions come from: automatic, name.txt, name.caption, metadata.jsonl or folder's name.
        subfolders: whether folders inside count too.
        resolution: side in pixels of the square whose area every bucket keeps; 512 for SD1.5, 1024 for SDXL.
        bucket_step: sides of buckets are multiples of this; 0 makes every picture square.
        fit: crop fills the bucket, pad shows all and leaves the border out of the loss.
        mirror: whether each picture is shown mirrored too.
        repeats: how often each picture comes in an epoch.
        tag_orders: in how many orders of its tags each caption is shown; 1 for as written.
        kept_tags: how many tags stay in front in every order.
        transparency: whether transparency becomes the loss mask.
    """

    pictures: str = ""
    trigger: str = ""
    captions: str = "automatic"
    subfolders: bool = False
    resolution: int = 512
    bucket_step: int = 64
    fit: str = "crop"
    mirror: bool = False
    repeats: int = 1
    tag_orders: int = 1
    kept_tags: int = 0
    transparency: bool = False

    def read(self, folder: str, trigger: str, caption_dropout: float = 0.0) -> Dataset:
        """The data set of a folder, shown as these settings say.

        Raises:
            DataError: no folder, no picture in it, or one that can't be read.
        """
        return Dataset(
            read_folder(Path(folder), self.captions, self.subfolders, self.transparency), trigger, self.resolution,
            self.bucket_step, self.fit, self.mirror, self.repeats, self.tag_orders, self.kept_tags, caption_dropout,
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A training: what to adapt, on which pictures, how, and where the result goes.

    Attributes:
        base: the model: a folder in diffusers' layout, or a single .safetensors file.
        base_config: for a single file, a folder in diffusers' layout with configuration and tokenizer of its kind.
        dtype: of the base's weights in memory: float32, float16 or bfloat16.
        device: such as cuda:1 or cpu; the GPU where there is one, when empty.
        checkpointing: compute each block a second time instead of remembering it: slower, in much less memory.
        start_from: a LoRA or TriLoRA file to go on with; its layers learn, at its own ranks.
        held_out: folder of pictures that are scored but never learned.
        held_out_share: share of ten pictures or more that is held out where no folder is.
        regularisation: folder of pictures of the same kind of thing without the trigger word (DreamBooth).
        preserve_captions: text file, a caption a line, on which the base is preserved in place of the pictures' own.
        output: the adapter's .safetensors file.
        output_dtype: of the numbers in it: float32, float16 or bfloat16.
        runs: folder for states, previews and encoded pictures; `runs` beside the output when empty.
        log_dir: folder for TensorBoard; no log when empty.
    """

    base: str = ""
    base_config: str = ""
    dtype: str = "float32"
    device: str = ""
    checkpointing: bool = False
    start_from: str = ""
    held_out: str = ""
    held_out_share: float = 0.1
    regularisation: str = ""
    preserve_captions: str = ""
    output: str = "trilora.safetensors"
    output_dtype: str = "float32"
    runs: str = ""
    log_dir: str = ""
    data: Data = field(default_factory=Data)
    training: Settings = field(default_factory=Settings)
    watch: Watch = field(default_factory=Watch)
    preview: Preview = field(default_factory=Preview)

    @property
    def root(self) -> Path:
        """Where states, previews and encoded pictures go."""
        return Path(self.runs) if self.runs else Path(self.output).parent / "runs"


def plan_of(values: Values) -> Plan:
    """The plan of nested values; the base is preserved as in the node, where there is something to tell it by.

    Raises:
        TriLoRAError: a setting that there is not, that can't be, or that is missing.
    """
    plan = build(Plan, values)
    told_apart = plan.data.trigger or plan.preserve_captions
    if told_apart and "preserve" not in values.get("training", {}):
        plan = replace(plan, training=replace(plan.training, preserve=PRESERVE))
    for what, value in (("base", plan.base), ("pictures", plan.data.pictures)):
        if not value:
            raise TriLoRAError(f"No {what} was given: use --{what}, or a TOML file that names it.")
    for what, value in (("dtype", plan.dtype), ("output_dtype", plan.output_dtype)):
        if value not in DTYPES:
            raise TriLoRAError(f"The setting {what} is {value!r}, but has to be one of {', '.join(DTYPES)}.")
    if not plan.output.endswith(".safetensors"):
        raise TriLoRAError(f"The output {plan.output!r} has to end in .safetensors.")
    for table, numbers in LEAST.items():
        for name, least in numbers.items():
            if (number := getattr(getattr(plan, table), name)) < least:
                raise TriLoRAError(f"The setting {table}.{name} is {number}, but has to be at least {least}.")
    return plan
