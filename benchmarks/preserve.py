"""What keeping the base costs and brings: preservation from the start, and repair afterwards, against neither.

    python benchmarks/preserve.py            # three seeds; about an hour on two cores
    python benchmarks/preserve.py --quick    # one seed, short: shows that it runs, its figures say little

On the demo model. A plain LoRA is trained long enough to forget its base. Style is the loss, with the trigger word,
on pictures of the style that nothing learned from; forgetting is the mean squared distance to the base, without the
trigger word, on pictures of the base's world whose captions nothing learned from. Both are given over those of the
plain LoRA of the same seed: the mean over the seeds, and the range. Step times are processor time, taken in turn.
"""

import argparse
import asyncio
import importlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from demo.draw import draw
from demo.world import SCENES, SceneSpec, caption, held_out_triples, specs_over, trained_triples
from devkit import comfyui

STYLE, TRIGGER = "demo: stained_glass", "zorvex"
PLAIN, EVERY_2, EVERY_1 = "neither", "preserved at every 2nd picture", "preserved at every picture"
REPAIRED, FIRMER = "repaired", "repaired, preserve 1"
BY_BASE, WITH_PICTURES = "repaired on pictures by the base", "repaired with the training pictures"
FULL = {"steps": 400, "repair": 200, "seeds": (0, 1, 2), "captions": 40, "world": 15, "timed": 9}
QUICK = {"steps": 30, "repair": 15, "seeds": (0,), "captions": 10, "world": 4, "timed": 2}


class Pack:
    """The pack's nodes and modules in a ComfyUI in this process, and the demo model's wires."""

    def __init__(self, base: Path) -> None:
        sys.path.insert(0, str(comfyui.find(ROOT)))
        arguments, sys.argv = sys.argv, sys.argv[:1]
        from comfy.cli_args import args

        args.cpu, args.base_directory = not torch.cuda.is_available(), str(base)
        for folder in ("models", "input", "output", "custom_nodes"):
            (base / folder).mkdir()
        from server import PromptServer

        import nodes

        sys.argv = arguments
        PromptServer(asyncio.new_event_loop())  # takes the progress texts
        asyncio.run(nodes.load_custom_node(str(ROOT)))
        self.nodes = nodes.NODE_CLASS_MAPPINGS
        self.wires = self.run("TriLoRADemoModel")

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        node = self.nodes[node_id]
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}})
        return tuple(getattr(clone, node.FUNCTION)(**inputs).result)

    def module(self, name: str) -> Any:
        """A module of the pack, such as `nodes.worn`."""
        package = self.nodes["TriLoRARepair"].__module__.removesuffix("nodes.repair")
        return importlib.import_module(package + name)


class Bench:
    """Adapters by arm and seed, each trained once and kept in a folder, and what they are measured with."""

    def __init__(self, pack: Pack, size: Mapping[str, Any], kept: Path) -> None:
        self.pack, self.size, self.kept = pack, SimpleNamespace(**size), kept
        (whole,) = self.dataset(folder=[STYLE])
        self.train, held = whole.split(0.25, 0)
        unseen = {picture.caption for picture in held.pictures}
        words = [caption(spec) for spec in specs_over(trained_triples(), 3 * self.size.captions, seed=5)]
        self.captions = [text for text in dict.fromkeys(words) if text not in unseen][: self.size.captions]
        yardstick = pack.module("nodes.worn").Yardstick
        self.yardsticks = {
            name: yardstick(pack.wires, data, 0, lambda _: None)
            for name, data in (("style", held), ("base", self.world()))
        }

    def dataset(self, **inputs: Any) -> tuple[Any, ...]:
        return self.pack.run("TriLoRADataset", trigger=[TRIGGER], resolution=[128], bucket_step=[0], **inputs)

    def world(self) -> Any:
        """Pictures of the base's world, of combinations that the base itself never saw."""
        triples, scenes = held_out_triples()[:: len(held_out_triples()) // self.size.world], list(SCENES)
        specs = [SceneSpec(*t, scenes[i % 5], i) for i, t in enumerate(triples[: self.size.world])]
        images = torch.stack([torch.from_numpy(numpy.array(draw(spec))).float() / 255 for spec in specs])
        return self.dataset(folder=["unused"], images=[images], captions=[caption(spec) for spec in specs])[0]

    def adapter(self, arm: str, seed: int) -> Any:
        """The adapter of an arm, trained if it is not kept yet."""
        files = self.pack.module("trilora.files")
        path = self.kept / f"{arm.replace(' ', '_').replace(',', '')}-{seed}.safetensors"
        if not path.is_file():
            files.save(self.trained(arm, seed), path)
        return files.load(path)

    def trained(self, arm: str, seed: int) -> Any:
        if arm in (PLAIN, EVERY_2, EVERY_1):
            return next(self.learning(arm, seed, self.size.steps))
        if arm == BY_BASE:
            return self.repaired_on_pictures_by_the_base(seed)
        inputs = self.repair_inputs(seed, 1.0 if arm == FIRMER else 0.3)
        if arm == WITH_PICTURES:
            inputs["dataset"] = self.train
        adapter, pictures, *_ = self.pack.run("TriLoRARepair", **inputs)
        sheet = (pictures[0] * 255).round().byte().numpy()
        Image.fromarray(sheet).quantize(128).save(self.kept / f"{arm.replace(' ', '_')}-{seed}.png", optimize=True)
        return adapter

    def learning(self, arm: str, seed: int, steps: int) -> Iterator[Any]:
        """Train TriLoRA with the ordinary LoRA method, far enough to forget."""
        running, settings = self.pack.module("nodes.running"), self.pack.module("trilora.settings").Settings
        chosen = settings(
            method="lora", rank=8, steps=steps, batch=4, learning_rate=3e-3, seed=seed,
            preserve=0.0 if arm == PLAIN else 0.3, preserve_every=1 if arm == EVERY_1 else 2,
        )  # fmt: skip
        yield self.run_task(running.Task(*self.pack.wires, self.train, chosen, **self.unwatched()))

    def run_task(self, task: Any) -> Any:
        progress = self.pack.module("nodes.progress").Progress("1", task.settings.steps)
        return self.pack.module("nodes.running").run_training(task, progress).adapter()

    def unwatched(self) -> dict[str, Any]:
        watch = self.pack.module("trilora.run").Watch(checkpoint_every=0, resume=False)
        return {"watch": watch, "preview": self.pack.module("nodes.previews").Preview(every=0), "share": 0.0}

    def repair_inputs(self, seed: int, preserve: float) -> dict[str, Any]:
        model, clip, vae = self.pack.wires
        return {
            "model": model, "clip": clip, "vae": vae, "trilora": self.adapter(PLAIN, seed), "trigger": TRIGGER,
            "captions": "\n".join(self.captions), "resolution": 128, "steps": self.size.repair, "learning_rate": 7e-4,
            "preserve": preserve, "batch": 2, "seed": seed,
        }  # fmt: skip

    def repaired_on_pictures_by_the_base(self, seed: int) -> Any:
        """The same repair, but what lies under the noise is painted by the base, of the captions without the trigger."""
        repairing, worn = self.pack.module("nodes.repairing"), self.pack.module("nodes.worn")
        start, sizes = self.adapter(PLAIN, seed), [(128, 128)] * len(self.captions)
        how = replace(repairing.PAINTING, seed=seed)
        painted = worn.paint(self.pack.wires, start, self.captions, sizes, how, lambda _: None, on=False)
        made = self.pack.module("trilora.dataset")
        data = made.Dataset(made.from_tensors(painted, self.captions), TRIGGER, 128, 0)
        given = {
            key: value
            for key, value in self.repair_inputs(seed, 0.3).items()
            if key in ("steps", "learning_rate", "preserve", "batch", "seed")
        }
        settings = self.pack.module("trilora.settings").Settings(rank=start.rank, **given)
        task = self.pack.module("nodes.running").Task
        return self.run_task(task(*self.pack.wires, data, settings, start=start, imitate=True, **self.unwatched()))

    def losses(self, arm: str, seed: int) -> tuple[float, float]:
        """(style, forgetting)."""
        adapter = self.adapter(arm, seed)
        return self.yardsticks["style"].measure(adapter).style, self.yardsticks["base"].measure(adapter).forgotten


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    parser.add_argument("--seeds", type=int, nargs="*", help="which seeds")
    parser.add_argument("--arms", nargs="*", help="which rows; all by default")
    parser.add_argument("--keep", type=Path, help="folder for the adapters, from which a later call goes on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = {**(QUICK if options.quick else FULL)}
    size["seeds"] = options.seeds or size["seeds"]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():  # as ComfyUI runs every node
        kept = options.keep or Path(folder) / "kept"
        kept.mkdir(parents=True, exist_ok=True)
        (Path(folder) / "comfyui").mkdir()
        bench = Bench(Pack(Path(folder) / "comfyui"), size, kept)
        arms = options.arms or [PLAIN, EVERY_2, EVERY_1, REPAIRED, FIRMER, BY_BASE, WITH_PICTURES]
        report(bench, arms)


def report(bench: Bench, arms: list[str]) -> None:
    print("| | style loss | forgetting |\n|---|---|---|", flush=True)
    plain = {seed: bench.losses(PLAIN, seed) for seed in bench.size.seeds}
    for arm in arms:
        measured = [(bench.losses(arm, seed), plain[seed]) for seed in bench.size.seeds]
        style, forgotten = ([own[i] / first[i] for own, first in measured] for i in (0, 1))
        print(f"| {arm} | {spread(style)} | {spread(forgotten)} |", flush=True)


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
