"""Preview pictures by the MODEL in training."""

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..trilora.film import OnStep, Preview
from . import sampling


class Painter:
    """Samples what a preview asks for.

    Args:
        preview: prompt, seed and steps.
        clip, vae: the graph's.
        prompt: in place of the preview's, where that is empty.
        size: (width, height) in pixels.
        model: lent, with what learns attached, by the time that a picture is asked for.
    """

    def __init__(self, preview: Preview, clip, vae, prompt: str, size: tuple[int, int], model: ModelPatcher) -> None:
        self.preview, self.vae, self.size, self.model = preview, vae, size, model
        if preview.every:
            self.positive = sampling.encode(clip, preview.prompt or prompt)
            self.negative = sampling.encode(clip, "")

    def __call__(self, tick: OnStep) -> Tensor:
        p = self.preview
        return sampling.sample(
            self.model, self.positive, self.negative, self.vae, p.seed, p.steps, p.cfg, *self.size, on_step=tick
        )[0]
