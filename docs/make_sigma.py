"""Draws the pictures of docs/sigma.md and prints its table: `COMFYUI_PATH=... python docs/make_sigma.py [NAME ...]`.

Needs the environment of `python dev.py test`. Trains two adapters on the demo model first and keeps them in .demo/sigma
for the next time. NAMEs are those of `VIEWS`; none means all.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from demo.draw import draw  # noqa: E402
from demo.workflow import PROMPTS, SEED, STYLE, TRIGGER  # noqa: E402
from demo.world import SceneSpec, caption, held_out_triples, specs_over  # noqa: E402
from devkit import comfyui  # noqa: E402
from trilora.charts_sigma import labelled_grid, picture_of  # noqa: E402

KEPT = ROOT / ".demo" / "sigma"
STEPS, CFG, SIZE = 20, 3.5, 128
TRAININGS = {
    "good": {"steps": 220, "learning_rate": 2e-3},  # as the demo
    "overcooked": {"steps": 400, "learning_rate": 8e-3},
}
SOFTENINGS = {  # gain of the first singular value, gain of the others
    "as trained": (1.0, 1.0),
    "all x 0.75": (0.75, 0.75),
    "all x 0.5": (0.5, 0.5),
    "first kept, rest x 0.4": (1.0, 0.4),
    "first x 0.5, rest kept": (0.5, 1.0),
}
ON, OFF = [[0, 1], [1, 1]], [[0, 0], [1, 0]]
EARLY, LATE = [[0, 1], [0.5, 1], [0.5, 0], [1, 0]], [[0, 0], [0.5, 0], [0.5, 1], [1, 1]]
SCHEDULES = {  # curve of the first singular value, curve of the others
    "base": (OFF, OFF),
    "all, all the time": (ON, ON),
    "all, first half": (EARLY, EARLY),
    "all, second half": (LATE, LATE),
    "1 first, then 2-8": (EARLY, LATE),
    "2-8 first, then 1": (LATE, EARLY),
}


class Studio:
    """ComfyUI in this process with the pack in it, and the demo model."""

    def __init__(self) -> None:
        self.nodes = start_comfyui()
        self.demo = dict(zip(("model", "clip", "vae"), self.run("TriLoRADemoModel"), strict=True))
        pack = self.nodes["TriLoRACompare"].__module__.rpartition(".")[0]
        self.sampling = sys.modules[f"{pack}.sampling"]

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """Execute a node of the pack as a prompt would."""
        node = self.nodes[node_id]
        with torch.inference_mode():
            clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}})
            result = getattr(clone, node.FUNCTION)(**inputs)
            return tuple((asyncio.run(result) if inspect.isawaitable(result) else result).result or ())

    def adapter(self, name: str) -> Any:
        """A trained adapter, from .demo/sigma if it is there."""
        if not (KEPT / "models" / "loras" / f"{name}.safetensors").exists():
            (data,) = self.run("TriLoRADataset", folder=[STYLE], trigger=[TRIGGER], resolution=[SIZE], bucket_step=[0])
            (watch,) = self.run(
                "TriLoRATrainWatch", held_out_share=0.0, score_every=100, patience=0, keep_best=True,
                previews={"previews": "off"}, resume=False, checkpoint_every=0, checkpoints=2,
            )  # fmt: skip
            trained, *_ = self.run(
                "TriLoRATrain", **self.demo, dataset=data, **TRAININGS[name], rank=8, batch=4, seed=SEED,
                method={"method": "trilora", "core": "diagonal", "initialisation": "balanced"},
                targets={"targets": "attention"}, alpha=8.0, preserve=0.0, shrink=0.0, clip_norm=1.0, watch=watch,
            )  # fmt: skip
            self.run("TriLoRASave", trilora=trained, filename=name, precision="float32")
        return self.run("TriLoRALoad", model=self.demo["model"], file=f"{name}.safetensors", strength=1.0)[1]

    def compare(self, adapters: list[Any], **how: Any) -> Image.Image:
        """TriLoRA Compare's grid for the demo's prompts."""
        (grid,) = self.run(
            "TriLoRACompare", **self.demo, adapters={f"trilora_{i}": each for i, each in enumerate(adapters)},
            prompts="\n".join(f"{TRIGGER}, {prompt}" for prompt in PROMPTS), seeds=str(SEED), compare=how,
            steps=STEPS, cfg=CFG, width=SIZE, height=SIZE, negative="", sampler="euler", scheduler="normal", cell=512,
        )  # fmt: skip
        return picture_of(grid[0])

    def sample(self, model: Any, prompt: str, seed: int, hooks: Any = None) -> Tensor:
        """One picture, (height, width, 3)."""
        from comfy.hooks import set_conds_props

        conds = [self.sampling.encode(self.demo["clip"], words) for words in (prompt, "")]
        conds = set_conds_props(conds, strength=1.0, set_cond_area="default", hooks=hooks)
        return self.sampling.sample(model, *conds, self.demo["vae"], seed, STEPS, CFG, SIZE, SIZE)[0]


def start_comfyui() -> dict[str, type]:
    """ComfyUI's nodes and the pack's by id; ComfyUI's folders lie in .demo/sigma."""
    sys.path.insert(0, str(comfyui.find(ROOT)))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.base_directory = str(KEPT)
    for name in ("models", "input", "output", "custom_nodes"):
        (KEPT / name).mkdir(parents=True, exist_ok=True)
    from server import PromptServer

    import nodes

    PromptServer(asyncio.new_event_loop())
    if not asyncio.run(nodes.load_custom_node(str(ROOT))):
        sys.exit("ComfyUI could not load the pack.")
    return nodes.NODE_CLASS_MAPPINGS


def softened(adapter: Any, name: str) -> Any:
    """The adapter with gains of `SOFTENINGS`, as TriLoRA Strength's curve gives them."""
    first, rest = SOFTENINGS[name]
    layers = {
        layer: f._replace(sigma=torch.cat([f.sigma[:1] * first, f.sigma[1:] * rest]))
        for layer, f in adapter.layers.items()
    }
    return replace(adapter, layers=layers, metadata={"modelspec.title": name})


def spectrum(studio: Studio) -> Image.Image:
    """TriLoRA Spectrum of both adapters beside each other."""
    parts = [studio.run("TriLoRASpectrum", trilora=studio.adapter(name))[0] for name in TRAININGS]
    return picture_of(torch.cat(parts, dim=2)[0])


def bands(studio: Studio) -> Image.Image:
    return studio.compare([studio.adapter("good")], compare="bands", count=3, edges="1, 3", strength=1.0)


def bands_times_3(studio: Studio) -> Image.Image:
    return studio.compare([studio.adapter("good")], compare="bands", count=3, edges="1, 3", strength=3.0)


def top_k(studio: Studio) -> Image.Image:
    return studio.compare([studio.adapter("good")], compare="top k", k="1, 2, 4")


def soften(studio: Studio) -> Image.Image:
    cooked = studio.adapter("overcooked")
    return studio.compare([softened(cooked, name) for name in SOFTENINGS], compare="adapters", strength=1.0)


def schedule(studio: Studio) -> Image.Image:
    """TriLoRA Schedule: the first singular value and the rest, each in its half of the steps."""
    pictures = {}
    for name, curves in SCHEDULES.items():
        coarse, fine = ({"points": points, "interpolation": "linear"} for points in curves)
        bands = {"bands": "2 bands", "coarse": coarse, "fine": fine, "edges": "1"}
        (hooks,) = studio.run("TriLoRASchedule", trilora=studio.adapter("good"), strength=1.0, bands=bands)
        for prompt in PROMPTS:
            words = f"{TRIGGER}, {prompt}"
            pictures[words, name] = studio.sample(studio.demo["model"], words, SEED, hooks)
    return labelled_grid([f"{TRIGGER}, {prompt}" for prompt in PROMPTS], list(SCHEDULES), pictures)


def table(studio: Studio, count: int = 6) -> str:
    """How near to the style, and how far from the base, each softening of the overcooked adapter is."""
    scenes = specs_over(held_out_triples(), count, seed=2)
    wanted = cells(torch.stack([drawn(scene) for scene in scenes]))
    models = {"base": studio.demo["model"], "the good adapter": applied(studio, studio.adapter("good"))}
    cooked = studio.adapter("overcooked")
    models |= {f"overcooked, {name}": applied(studio, softened(cooked, name)) for name in SOFTENINGS}
    lines = ["| adapter | distance to the style | change without the trigger |", "|---|---|---|"]
    plain: list[Tensor] = []
    for name, model in models.items():
        styled = [studio.sample(model, f"{TRIGGER}, {caption(s)}", i) for i, s in enumerate(scenes)]
        without = [studio.sample(model, caption(s), i) for i, s in enumerate(scenes)]
        plain = plain or without
        change = sum(float((a - b).abs().mean()) for a, b in zip(without, plain, strict=True)) / count
        lines.append(f"| {name} | {frechet(cells(torch.stack(styled)), wanted):.4f} | {100 * change:.1f} % |")
    return "\n".join(lines)


def applied(studio: Studio, adapter: Any) -> Any:
    return studio.run("TriLoRAApply", model=studio.demo["model"], trilora=adapter, strength=1.0)[0]


def drawn(scene: SceneSpec) -> Tensor:
    """The scene as the style's own hand draws it, (height, width, 3)."""
    return torch.from_numpy(numpy.array(draw(scene, STYLE.removeprefix("demo: ")))).float() / 255


def cells(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the colours of 4 x 4 pixel cells and of their steps to the cells beside them."""
    small = torch.nn.functional.avg_pool2d(pictures.double().movedim(-1, 1), 4)
    here, left, above = small[..., 1:, 1:], small[..., 1:, :-1], small[..., :-1, 1:]
    rows = torch.cat([here, here - left, here - above], dim=1).movedim(1, -1).flatten(0, 2)
    return rows.mean(0), rows.T.cov()


def frechet(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Squared Fréchet distance of two Gaussians."""
    root = torch.linalg.eigvals(a[1] @ b[1]).real.clamp_min(0).sqrt().sum()
    return float((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * root)


VIEWS: dict[str, Callable[[Studio], Any]] = {
    view.__name__: view for view in (spectrum, bands, bands_times_3, top_k, soften, schedule, table)
}

if __name__ == "__main__":
    studio = Studio()
    for name in sys.argv[1:] or VIEWS:
        made = VIEWS[name](studio)
        if isinstance(made, str):
            sys.stdout.write(made + "\n")
        else:
            made.save(ROOT / "docs" / f"sigma_{name}.png", optimize=True)
