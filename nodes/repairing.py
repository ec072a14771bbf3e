"""A repair from the graph's wires to an adapter: paint, hold out, train against the adapter itself, measure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ..trilora import report
from ..trilora.captions import without
from ..trilora.dataset import Dataset
from ..trilora.errors import DataError
from ..trilora.files import Adapter
from ..trilora.film import Preview
from ..trilora.pictures import from_tensors
from ..trilora.plot import contact_sheet
from ..trilora.run import Watch
from ..trilora.settings import Settings
from .progress import Progress
from .running import Outcome, Task, run_training
from .worn import Yardstick, paint

ENOUGH = 30  # captions; fewer show the repair too little of what the base can do
SHARE = 0.15  # of the captions held out, to measure with
FEWEST = 10  # captions from which some are held out
SHOWN = 3  # rows of pictures before and after
PAINTING = Preview(steps=12, cfg=3.5)  # pictures to learn on need not be finished ones


@dataclass(frozen=True)
class Repair:
    """Everything that a repair is asked for; with a dataset its pictures are the target, else the adapter's output."""

    model: ModelPatcher
    clip: object
    vae: object
    adapter: Adapter
    trigger: str
    captions: str
    resolution: int
    settings: Settings
    dataset: Dataset | None = None
    watch: dict | None = None

    @property
    def wires(self) -> tuple:
        return self.model, self.clip, self.vae


@dataclass(frozen=True)
class Repaired:
    """What a repair has come to."""

    outcome: Outcome
    adapter: Adapter
    pictures: Image.Image
    said: list[str]


def run_repair(repair: Repair, progress: Progress) -> Repaired:
    """Repair the adapter. The MODEL is as it was afterwards, whatever happens.

    Raises:
        DataError: no trigger word, or too few captions.
    """
    captions = checked(repair)
    data = _pictures(repair, captions, progress)
    train, held = data.split(SHARE, repair.settings.seed) if len(data.pictures) >= FEWEST else (data, None)
    unseen = held or train
    yardstick = Yardstick(repair.wires, unseen, repair.settings.seed, progress.count)
    progress.say("measuring the adapter as it is")
    before = yardstick.measure(repair.adapter)
    outcome = run_training(_task(repair, train, held, captions), progress)
    adapter = outcome.adapter()
    progress.say("measuring the repaired adapter")
    losses = report.repaired(before, yardstick.measure(adapter), len(unseen.pictures), held is not None)
    sheet = _before_and_after(repair, adapter, unseen, progress)
    return Repaired(outcome, adapter, sheet, [*_warnings(data), *outcome.said, *losses])


def checked(repair: Repair) -> list[str]:
    """The captions, one a line, without the trigger word.

    Raises:
        DataError: no trigger word, too few captions, or a dataset without any.
    """
    if not repair.trigger:
        said = repair.adapter.metadata.get("modelspec.trigger_phrase", "")
        hint = f" Its file names “{said}”." if said else ""
        raise DataError(
            "A repair needs the adapter's trigger word: with it the style stays, without it the base comes back. Type "
            f"it into trigger.{hint} A LoRA that was trained without one can't be told from the base by words; use "
            "TriLoRA Strength on it."
        )
    if repair.dataset is not None and repair.dataset.encoded:
        raise DataError(
            "This dataset came as latents with conditioning, which can't be said without the trigger word, as a repair "
            "has to. Connect one of pictures with captions, or none."
        )
    lines = [without(repair.trigger, line).strip() for line in repair.captions.splitlines()]
    captions = list(dict.fromkeys(line for line in lines if line))
    if len(captions) < 2 and repair.dataset is None:
        raise DataError(
            f"{len(captions)} captions are too few for a repair. Type {ENOUGH} or more into captions, one a line: "
            "prompts of all kinds, as you use them with this base; or connect a dataset."
        )
    return captions


def _pictures(repair: Repair, captions: Sequence[str], progress: Progress) -> Dataset:
    """The dataset's pictures; without one, a picture a caption: by the adapter and by the base, turn and turn about.

    The style has to hold where the adapter paints, and the base to come back where the base paints.
    """
    if repair.dataset is not None:
        return replace(repair.dataset, trigger=repair.trigger)
    by_adapter, by_base = captions[::2], captions[1::2]
    styled = [f"{repair.trigger}, {caption}" for caption in by_adapter]
    painted = _painted(repair, "adapter", styled, progress) + _painted(repair, "base", by_base, progress)
    pictures = from_tensors(painted, [*by_adapter, *by_base])
    return Dataset(pictures, repair.trigger, repair.resolution, 0)


def _painted(repair: Repair, painter: str, prompts: Sequence[str], progress: Progress) -> list[Tensor]:
    def tick(number: int) -> None:
        progress.bar.update_absolute(number, len(prompts))
        progress.say(f"the {painter} paints picture {number + 1} of {len(prompts)}")

    sizes = [(repair.resolution, repair.resolution)] * len(prompts)
    how = replace(PAINTING, seed=repair.settings.seed)
    return paint(repair.wires, repair.adapter, prompts, sizes, how, tick, on=painter == "adapter")


def _task(repair: Repair, train: Dataset, held: Dataset | None, captions: Sequence[str]) -> Task:
    watched, own = repair.watch or {}, repair.dataset is None
    # the held-out loss knows the style alone, so that its best step would be one of the first
    watch = replace(watched.get("watch", Watch()), keep_best=False, patience=0)
    # the empty caption is the other side of guidance: pictures turn pale where it drifts
    seen = [picture.caption for picture in train.pictures] if own else captions
    return Task(
        *repair.wires, train, repair.settings, watch, watched.get("preview", Preview(every=0)), share=0.0,
        held_out=held, start=repair.adapter, imitate=own, plain=(*seen, "") if seen else (),
    )  # fmt: skip


def _before_and_after(repair: Repair, adapter: Adapter, data: Dataset, progress: Progress) -> Image.Image:
    """The base, and both adapters without the trigger word and with it: a row a caption."""
    shown = data.pictures[:SHOWN]
    sizes = [data.size_of(picture) for picture in shown]
    plain, styled = [p.caption for p in shown], [data.prompt_of(p) for p in shown]
    how = Preview(seed=repair.settings.seed, cfg=PAINTING.cfg)
    columns: dict[str, list[Tensor]] = {}
    for title, by, prompts, on in (
        ("base", adapter, plain, False),
        (f"before, without {data.trigger}", repair.adapter, plain, True),
        (f"repaired, without {data.trigger}", adapter, plain, True),
        (f"before, with {data.trigger}", repair.adapter, styled, True),
        (f"repaired, with {data.trigger}", adapter, styled, True),
    ):
        progress.say(f"painting: {title}", at_once=True)
        columns[title] = paint(repair.wires, by, prompts, sizes, how, lambda _: progress.say("painting"), on)
    cells = [(pictures[i], f"{title}: {plain[i]}") for i in range(len(shown)) for title, pictures in columns.items()]
    return contact_sheet([picture for picture, _ in cells], [words for _, words in cells], columns=len(columns))


def _warnings(data: Dataset) -> list[str]:
    count = len(data.pictures)
    if count >= ENOUGH:
        return []
    return [f"only {count} captions: with fewer than {ENOUGH} the base may come back less well on other prompts"]
