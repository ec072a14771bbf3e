"""How well pictures fit their prompts, as the cosine of their features."""

from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError


def clip_scores(pictures: Tensor, texts: Tensor) -> Tensor:
    """max(100 cos(picture, text), 0) of each pair (Hessel et al. 2021, on the paper's scale): (N, D), (N, D) -> (N,).

    A negative cosine counts as 0, as usual in this field: below 0 there is nothing left to fit less.

    Raises:
        DataError: there are none, or the shapes differ.
    """
    if pictures.ndim != 2 or pictures.shape != texts.shape or not len(pictures):
        raise DataError(
            f"Features of pictures {tuple(pictures.shape)} and of prompts {tuple(texts.shape)} can't be paired. Give "
            "one prompt for each picture, at least one, both read by the same extractor."
        )
    return 100 * F.cosine_similarity(pictures.cpu().double(), texts.cpu().double(), dim=1).clamp(min=0)


def clip_score(pictures: Tensor, texts: Tensor) -> float:
    """The mean of `clip_scores`, 0 to 100."""
    return float(clip_scores(pictures, texts).mean())
