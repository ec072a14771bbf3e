"""The names of an adapter's layers as several tools write them: Stable Diffusion 1.x, 2.x and XL."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ..errors import TargetError
from ..factors import Factors
from ..files import PAIRS, Adapter
from .paths import COMFYUI, KOHYA, diffusers_path, dotted, kohya, stability


class Naming(NamedTuple):
    """How a tool names layers and factors."""

    unet: Callable[[str, int], str]  # diffusers' path, depth of the UNet -> name
    texts: tuple[str, str, str]  # prefixes of a text encoder's layers: the only one, the first of two, the second
    joint: str  # what stands between the parts of a text encoder's path
    suffixes: tuple[str, str]  # of (up, down)


KOHYA_TEXTS = ("lora_te_", "lora_te1_", "lora_te2_")
DIFFUSERS_TEXTS = ("text_encoder.", "text_encoder.", "text_encoder_2.")
NAMINGS = {
    "kohya": Naming(lambda path, _: kohya(path), KOHYA_TEXTS, "_", PAIRS[0]),
    "diffusers": Naming(
        lambda path, _: f"unet.{path}", ("text_encoder.", "text_encoder.", "text_encoder_2."), ".", PAIRS[1]
    ),
    "comfyui": Naming(lambda path, depth: COMFYUI + stability(path, depth), KOHYA_TEXTS, "_", PAIRS[0]),
}
ATTENTION, UPSAMPLER = r"output_blocks\.(\d+)\.1\.", r"output_blocks\.(\d+)\.2\.conv$"  # ComfyUI's
SECOND = ("lora_te2_", "text_encoder_2.")
TEXTS = (*KOHYA_TEXTS[:2], "text_encoder.", *SECOND)
PREFIXES = (KOHYA, "unet.", COMFYUI, "base_model.model.", "")


def renamed(adapter: Adapter, to: str, depth: int = 2) -> Adapter:
    """The adapter under the names of a tool; `depth` is that of the base's UNet, see `paths.stability`.

    Raises:
        TargetError: a name that is none of a Stable Diffusion's, or two of one layer.
    """
    two = _two(adapter.layers)
    layers = {_in(NAMINGS[to], name, depth, two): factors for name, factors in adapter.layers.items()}
    if to == "comfyui":
        layers = _upsampling(layers, depth)
    if len(layers) != len(adapter.layers):
        raise TargetError("The file names one of its layers twice, in two ways. Export it again.")
    return Adapter(layers, adapter.metadata)


def _upsampling(layers: Mapping[str, Factors], depth: int) -> dict[str, Factors]:
    """An upsampler stands third in its block, but second where the level has no attention, as the first of SD1.5.

    Which levels have some is told by the adapter's own layers; one without any on attention is left as it is.
    """
    attentive = {int(found[1]) // (depth + 1) for name in layers if (found := re.search(ATTENTION, name))}

    def placed(name: str) -> str:
        found = re.search(UPSAMPLER, name)
        bare = found and attentive and int(found[1]) // (depth + 1) not in attentive
        return name.replace(".2.conv", ".1.conv") if bare else name

    return {placed(name): factors for name, factors in layers.items()}


def in_kohya(adapters: Iterable[Adapter]) -> Callable[[str], str]:
    """What gives a layer of these adapters its name in this package's own files; one of another architecture stays."""
    two = _two(name for adapter in adapters for name in adapter.layers)

    def named(name: str) -> str:
        try:
            return _in(NAMINGS["kohya"], name, 2, two)
        except TargetError:
            return name

    return named


def _two(names: Iterable[str]) -> bool:
    """Whether the base has two text encoders: a name of the second is there, or kohya's number of the first."""
    return any(name.startswith((*SECOND, KOHYA_TEXTS[1])) for name in names)


def _in(naming: Naming, name: str, depth: int, two: bool) -> str:
    """The name in another naming; `two` where the base has two text encoders."""
    text = next((prefix for prefix in TEXTS if name.startswith(prefix)), None)
    if text:
        path = dotted(name[len(text) :])
        whole = path if path.startswith("text_") else f"text_model.{path}"  # newer transformers leave it out
        return naming.texts[2 if text in SECOND else int(two)] + whole.replace(".", naming.joint)
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
    path = _without_processor(dotted(name[len(prefix) :]) if prefix == KOHYA else name[len(prefix) :])
    return naming.unet(diffusers_path(path, depth), depth)


def _without_processor(path: str) -> str:
    """`attn1.to_out.0` for the older `attn1.processor.to_out`."""
    return re.sub(r"\.to_out$", ".to_out.0", path.replace(".processor.", "."))
