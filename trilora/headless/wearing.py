"""Adapters on a pipeline, for as long as a block lasts; its weights stay as they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..attach import attached
from ..errors import TargetError
from ..factors import Factors, scaled
from ..files import Adapter
from ..training import frozen
from .paths import names_of, text_names_of

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
Placed = dict[str, dict[str, Factors]]  # component -> layer path -> factors


@contextmanager
def worn(pipe: Any, adapters: Sequence[tuple[Adapter, float]]) -> Iterator[None]:
    """Within the block the pipeline predicts, and reads, with these adapters, each at its strength.

    Raises:
        TargetError: a layer that the pipeline does not have, or one of another shape.
    """
    with ExitStack() as stack:
        for adapter, strength in adapters:
            for component, layers in placed(pipe, adapter).items() if strength else ():
                root = getattr(pipe, component)
                stack.enter_context(attached(root, shown(root, layers, strength)))
        yield


def shown(root: nn.Module, factors: Mapping[str, Factors], strength: float = 1.0) -> dict[str, Any]:
    """Layers that show these factors at a strength; nothing of them learns."""
    modules = {path: root.get_submodule(path) for path in factors}
    device = next(root.parameters()).device
    return dict(frozen(modules, {path: scaled(each, strength) for path, each in factors.items()}, device))


def placed(pipe: Any, adapter: Adapter) -> Placed:
    """Where the adapter's layers sit in the pipeline, the kernels of convolutions as its weights have them.

    Raises:
        TargetError: as for `worn`.
    """
    known = _known(pipe)
    parts: Placed = {}
    for name, factors in adapter.layers.items():
        if name not in known:
            raise TargetError(
                f"The layer {name} of the adapter does not exist in this {type(pipe).__name__}. The adapter was "
                f"trained on {adapter.metadata.get('ss_base_model_version', 'another architecture')}: use that base."
            )
        component, path = known[name]
        shape = getattr(pipe, component).get_submodule(path).weight.shape
        if factors.u.shape[0] != shape[0] or factors.vh[0].numel() != shape[1:].numel():
            raise TargetError(
                f"The layer {name} of the adapter is {factors.u.shape[0]} x {tuple(factors.vh.shape[1:])}, but the "
                f"base's weight is {tuple(shape)}. Use the base that the adapter was trained on."
            )
        fitting = factors._replace(vh=factors.vh.reshape(-1, *shape[1:]))
        parts.setdefault(component, {})[path] = fitting
    return parts


def _known(pipe: Any) -> dict[str, tuple[str, str]]:
    """Every name that files give a layer of the pipeline -> (component, path)."""
    known = {name: ("unet", path) for name, path in names_of(pipe.unet, depth_of(pipe.unet)).items()}
    for number, component in enumerate(COMPONENTS[1:], 1):
        if (encoder := getattr(pipe, component, None)) is not None:
            known |= {name: (component, path) for name, path in text_names_of(encoder, number).items()}
    return known


def depth_of(unet: Any) -> int:
    """Residual blocks a level of a UNet."""
    depth = unet.config.layers_per_block
    return int(depth if isinstance(depth, int) else depth[0])
