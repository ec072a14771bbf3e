"""What many of the workflows share."""

from typing import Any

from demo.workflow import SEED, TRIGGER, Node, node

TREE, BOAT = "a blue tree in the middle in a meadow", "a red boat on the right in the desert"
DEMO_MODEL = {"base": node("TriLoRADemoModel")}
NEGATIVE = "nothing"


def words(text: str, title: str) -> Node:
    """A prompt for the demo model."""
    return node("CLIPTextEncode", title, clip=["base", 1], text=text)


def canvas(size: int = 128, batch: int = 2) -> dict[str, Node]:
    """The empty latents, and the empty negative prompt."""
    latents = node("EmptyLatentImage", "Size and number of pictures", width=size, height=size, batch_size=batch)
    return {"canvas": latents, NEGATIVE: words("", "Negative prompt")}


def picture(
    name: str, title: str, model: list[Any], positive: str | list[Any], negative: str | list[Any] = NEGATIVE,
    cfg: float = 3.5,
) -> dict[str, Node]:  # fmt: skip
    """Sampler, decoder and saved pictures: nodes `<name> sampler`, `<name> decoder` and `<name>`."""
    conds = {key: [value, 0] if isinstance(value, str) else value for key, value in
             {"positive": positive, "negative": negative}.items()}  # fmt: skip
    sampler = node(
        "KSampler", title, model=model, **conds, latent_image=["canvas", 0], seed=SEED, steps=20, cfg=cfg,
        sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    return {
        f"{name} sampler": sampler,
        f"{name} decoder": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["base", 2]),
        name: node("SaveImage", title, images=[f"{name} decoder", 0], filename_prefix=f"TriLoRA/{name}"),
    }


def load(file: str, title: str = "Load TriLoRA") -> Node:
    """An adapter that comes with the pack, on the demo model."""
    return node("TriLoRALoad", title, model=["base", 0], file=f"demo: {file}", strength=1.0)


def dataset(resolution: int = 128, bucket_step: int = 0) -> Node:
    """The example style with its trigger word."""
    return node(
        "TriLoRADataset", "1. Pictures, captions, trigger word", folder="demo: stained_glass", trigger=TRIGGER,
        resolution=resolution, bucket_step=bucket_step,
    )  # fmt: skip


def curve(*points: tuple[float, float]) -> dict[str, Any]:
    """What the curve widget holds; the heights are 0 to 1."""
    return {"points": [list(point) for point in points], "interpolation": "linear"}


def sampling(name: str) -> tuple[str, str, str]:
    """The names of the nodes of `picture`, for a column."""
    return (f"{name} sampler", f"{name} decoder", name)
