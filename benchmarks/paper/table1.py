"""Table 1's protocol: the base, LoRA and TriLoRA on two data sets, NFID and CLIP score."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch

from benchmarks.paper.bench import CREATURES, GARMENTS, Bench
from benchmarks.paper.jobs import Job, Store
from benchmarks.paper.methods import begin, settings_of
from benchmarks.paper.paint import measured
from trilora.attach import Switch, attached
from trilora.dataset import Dataset
from trilora.disk import write

WORDS = {"creatures": CREATURES, "garments": GARMENTS}
BASE_WORDS = {"creatures": "pokemon", "garments": "armani"}  # what the paper asks the base for in the trigger's place


def table1(bench: Bench, job: Job, store: Store) -> dict[str, Any]:
    """One row on one data set."""
    begun, name = time.process_time(), job.how
    data, sheet = bench.dataset(name, WORDS[name]), store.folder / "pictures" / job.name
    if job.method == "base":
        found = measured(bench, name, _captions(data), BASE_WORDS[name], sheet)
    elif name == "garments":
        with specialised(bench, store):
            found = _trained(bench, job, data, sheet)
    else:
        found = _trained(bench, job, data, sheet)
    return found | {"seconds": round(time.process_time() - begun, 1)}


def _trained(bench: Bench, job: Job, data: Dataset, sheet: Path) -> dict[str, Any]:
    scale = bench.scale
    drawn = min(scale.paper_pictures, len(data.pictures)) if job.how == "creatures" else 0
    epochs = scale.creature_epochs if drawn else scale.garment_epochs
    steps = max(1, epochs * (drawn or len(data.pictures)) // scale.batch)
    more = {"steps": steps, "learning_rate": job.rate, "seed": job.seed, "samples": drawn}
    settings = settings_of(job.method, bench.settings(**more))
    layers = begin(job.method, bench.modules, settings)
    with attached(bench.network, layers) as switch:
        for _ in bench.training(layers, switch, bench.encoded(data), settings):
            pass
        return measured(bench, job.how, _captions(data), data.trigger, sheet) | {"steps": steps}


def _captions(data: Dataset) -> list[str]:
    return [picture.caption for picture in data.pictures]


@contextmanager
def specialised(bench: Bench, store: Store) -> Iterator[None]:
    """Within the block the base knows clothes laid flat: all of it fine-tuned on a wider set (DreamBooth's way)."""
    path = store.folder / "specialised.safetensors"
    before = {name: tensor.clone() for name, tensor in bench.network.state_dict().items()}
    try:
        if not path.is_file():
            _specialise(bench)
            write(path, safetensors.torch.save({k: v.contiguous() for k, v in bench.network.state_dict().items()}))
        bench.network.load_state_dict(safetensors.torch.load_file(path))
        yield
    finally:
        bench.network.load_state_dict(before)


def _specialise(bench: Bench) -> None:
    """Every weight of the UNet learns, on captions with a word of their own in front."""
    scale = bench.scale
    settings = bench.settings(steps=scale.special_steps, learning_rate=scale.special_rate, seed=0)
    examples = bench.encoded(bench.dataset("flat lays", "flatlay"))
    bench.network.requires_grad_(True)
    try:
        for _ in bench.training({"": bench.network}, Switch(), examples, settings):
            pass
    finally:
        bench.network.requires_grad_(False)
