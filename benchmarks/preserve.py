"""What keeping the base costs and brings: preservation from the start, and repair afterwards, against neither.

    python benchmarks/preserve.py            # three seeds, hours of one core; with --keep it goes on after a break
    python benchmarks/preserve.py --over     # the plain LoRA learns 8 pictures alone, twice as long: over-trained
    python benchmarks/preserve.py --quick    # one seed, about five minutes: shows that it runs, its figures say little

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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from demo.draw import draw
from demo.world import SCENES, SceneSpec, caption, held_out_triples, specs_over, trained_triples
from devkit import ROOT, comfyui

STYLE, TRIGGER = "demo: stained_glass", "zorvex"
PLAIN = "neither"
PRESERVED: Mapping[str, dict[str, Any]] = {
    PLAIN: {"preserve": 0.0},
    "preserved at every 2nd picture": {"preserve": 0.3, "preserve_every": 2},
    "preserved at every picture": {"preserve": 0.3, "preserve_every": 1},
}
REPAIRED, FIRMER = "repaired", "repaired, preserve 1"
ALONE, WITH_PICTURES = "repaired on pictures by the adapter alone", "repaired with the training pictures"
ARMS = (*PRESERVED, REPAIRED, FIRMER, ALONE, WITH_PICTURES)


@dataclass(frozen=True)
class Size:
    """How much is trained and measured; `learned` is how many of the style's pictures are learned from."""

    steps: int = 400
    learned: int = 100
    repair: int = 400
    captions: int = 40
    world: int = 15
    turns: int = 9
    seeds: tuple[int, ...] = (0, 1, 2)


FULL, OVER = Size(), Size(steps=800, learned=8, repair=300)
QUICK = Size(steps=30, repair=15, captions=10, world=4, turns=2, seeds=(0,))


class Pack:
    """The pack's nodes and modules in a ComfyUI in this process, and the demo model's wires."""

    def __init__(self, base: Path) -> None:
        sys.path.insert(0, str(comfyui.find(ROOT)))
        arguments, sys.argv = sys.argv, sys.argv[:1]
        from comfy.cli_args import args

        args.cpu, args.base_directory = not torch.cuda.is_available(), str(base)
        for folder in ("models", "input", "output", "custom_nodes"):
            (base / folder).mkdir(parents=True)
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

    def __init__(self, pack: Pack, size: Size, kept: Path) -> None:
        self.pack, self.size, self.kept = pack, size, kept
        train, held = self.dataset(folder=[STYLE]).split(0.25, 0)
        self.train = replace(train, pictures=train.pictures[: size.learned])
        unseen = {picture.caption for picture in held.pictures}
        words = dict.fromkeys(caption(spec) for spec in specs_over(trained_triples(), 3 * size.captions, seed=5))
        self.captions = [text for text in words if text not in unseen][: size.captions]
        measured = {"style": held, "base": self.world()}
        yardstick = pack.module("nodes.worn").Yardstick
        self.yardsticks = {name: yardstick(pack.wires, data, 0, _quiet) for name, data in measured.items()}

    def dataset(self, **inputs: Any) -> Any:
        return self.pack.run("TriLoRADataset", trigger=[TRIGGER], resolution=[128], bucket_step=[0], **inputs)[0]

    def world(self) -> Any:
        """Pictures of the base's world, of combinations that the base itself never saw."""
        triples, scenes = held_out_triples(), list(SCENES)
        chosen = triples[:: len(triples) // self.size.world][: self.size.world]
        specs = [SceneSpec(*triple, scenes[i % len(scenes)], i) for i, triple in enumerate(chosen)]
        images = torch.stack([torch.from_numpy(numpy.array(draw(spec))).float() / 255 for spec in specs])
        return self.dataset(folder=["unused"], images=[images], captions=[caption(spec) for spec in specs])

    def losses(self, arm: str, seed: int) -> tuple[float, float]:
        """(style, forgetting)."""
        adapter = self.adapter(arm, seed)
        return self.yardsticks["style"].measure(adapter).style, self.yardsticks["base"].measure(adapter).forgotten

    def adapter(self, arm: str, seed: int) -> Any:
        """The adapter of an arm, trained if it is not kept yet."""
        files = self.pack.module("trilora.files")
        path = self.kept / f"{arm.replace(' ', '_').replace(',', '')}-{seed}.safetensors"
        if not path.is_file():
            files.save(self.trained(arm, seed), path)
        return files.load(path)

    def trained(self, arm: str, seed: int) -> Any:
        if arm in PRESERVED:
            return self.run(self.task(self.train, self.settings(arm, seed)))
        if arm == ALONE:
            return self.repaired_alone(seed)
        inputs = self.repair_inputs(seed) | ({"preserve": 1.0} if arm == FIRMER else {})
        inputs |= {"dataset": self.train} if arm == WITH_PICTURES else {}
        adapter, pictures, *_ = self.pack.run("TriLoRARepair", **inputs)
        sheet = Image.fromarray((pictures[0] * 255).round().byte().numpy()).quantize(200)
        sheet.save(self.kept / f"{arm.replace(' ', '_')}-{seed}.png", optimize=True)
        return adapter

    def settings(self, arm: str, seed: int) -> Any:
        """An ordinary LoRA, trained far enough to forget."""
        return self.pack.module("trilora.settings").Settings(
            method="lora", rank=8, steps=self.size.steps, batch=4, learning_rate=3e-3, seed=seed, **PRESERVED[arm]
        )

    def repair_inputs(self, seed: int) -> dict[str, Any]:
        return {
            **dict(zip(("model", "clip", "vae"), self.pack.wires, strict=True)),
            **{"trilora": self.adapter(PLAIN, seed), "trigger": TRIGGER, "captions": "\n".join(self.captions)},
            **{"resolution": 128, "preserve": 0.3, "seed": seed},
            **self.repairing(),
        }

    def repaired_alone(self, seed: int) -> Any:
        """The same repair, but what lies under the noise is painted by the adapter alone, never by the base."""
        repairing, worn, data = (self.pack.module(f) for f in ("nodes.repairing", "nodes.worn", "trilora.dataset"))
        start, sizes = self.adapter(PLAIN, seed), [(128, 128)] * len(self.captions)
        how, prompts = replace(repairing.PAINTING, seed=seed), [f"{TRIGGER}, {words}" for words in self.captions]
        painted = worn.paint(self.pack.wires, start, prompts, sizes, how, _quiet)
        made = self.pack.module("trilora.pictures").from_tensors(painted, self.captions)
        settings = self.pack.module("trilora.settings").Settings(
            rank=start.rank, seed=seed, preserve=0.3, preserve_every=1, schedule="cosine", **self.repairing()
        )
        pictures = data.Dataset(made, TRIGGER, 128, 0)
        return self.run(self.task(pictures, settings, start=start, imitate=True))

    def repairing(self) -> dict[str, Any]:
        return {"steps": self.size.repair, "learning_rate": 3e-3, "batch": 4}

    def task(self, data: Any, settings: Any, **more: Any) -> Any:
        """A training that is not watched."""
        watch = self.pack.module("trilora.run").Watch(checkpoint_every=0, resume=False)
        none = self.pack.module("nodes.previews").Preview(every=0)
        task = self.pack.module("nodes.running").Task
        return task(*self.pack.wires, data, settings, watch=watch, preview=none, share=0.0, **more)

    def run(self, task: Any) -> Any:
        progress = self.pack.module("nodes.progress").Progress("1", task.settings.steps)
        return self.pack.module("nodes.running").run_training(task, progress).adapter()

    def step_times(self) -> dict[str, float]:
        """Processor time of a step of each way of preserving over that of none: medians over turns."""
        model, clip, vae = self.pack.wires
        encoding, learning = self.pack.module("nodes.encoding"), self.pack.module("trilora.training")
        lending, attach = self.pack.module("nodes.lending"), self.pack.module("trilora.attach")
        chosen = self.pack.module("trilora.targets").select(model.model.diffusion_model)
        encoded = encoding.encode(self.train, clip, vae, True, _quiet)
        times: dict[str, list[float]] = {arm: [] for arm in PRESERVED}
        with lending.lent(model) as patcher:
            seen = self.pack.module("nodes.denoiser").ComfyDenoiser(patcher)
            pictures = encoding.examples(seen, encoded)
            trainings = {}
            for arm in PRESERVED:
                settings = self.settings(arm, 0)
                layers = learning.create_layers(chosen, settings)
                trainings[arm] = learning.Training(seen, layers, attach.Switch(), pictures, settings)
            for _ in range(self.size.turns + 1):
                for arm, training in trainings.items():
                    with attach.attached(patcher.model.diffusion_model, training.layers) as training.switch:
                        begin = time.process_time()
                        training.step()
                        times[arm].append(time.process_time() - begin)
        medians = {arm: statistics.median(values[1:]) for arm, values in times.items()}  # the first turn warms up
        return {arm: median / medians[PLAIN] for arm, median in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="one seed, few steps: the figures say little")
    sizes.add_argument("--over", action="store_true", help="an over-trained LoRA: eight pictures, 800 steps")
    parser.add_argument("--seeds", type=int, nargs="*", help="which seeds")
    parser.add_argument("--repair", type=int, help="steps of a repair, in place of 400, or of 300 with --over")
    parser.add_argument("--arms", nargs="*", default=ARMS, help="which rows")
    parser.add_argument("--keep", type=Path, help="folder for adapters and pictures, with which a later call goes on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else OVER if options.over else FULL
    size = replace(size, repair=options.repair or size.repair)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():  # as ComfyUI runs every node
        kept = options.keep or Path(folder) / "kept"
        kept.mkdir(parents=True, exist_ok=True)
        bench = Bench(Pack(Path(folder) / "comfyui"), size, kept)
        report(bench, options.arms, options.seeds or size.seeds)


def report(bench: Bench, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """The table, row by row as it comes."""
    for arm, ratio in bench.step_times().items():
        print(f"step time, {arm}: {ratio:.2f}", flush=True)
    print("\n| | style loss | forgetting |\n|---|---|---|", flush=True)
    plain = {seed: bench.losses(PLAIN, seed) for seed in seeds}
    for arm in arms:
        pairs = [(bench.losses(arm, seed), plain[seed]) for seed in seeds]
        style, forgotten = ([own[i] / first[i] for own, first in pairs] for i in (0, 1))
        print(f"| {arm} | {spread(style)} | {spread(forgotten)} |", flush=True)


def spread(values: Sequence[float]) -> str:
    """Mean, and range over the seeds."""
    between = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{between}"


def _quiet(*_: Any) -> None:
    pass


if __name__ == "__main__":
    main()
