"""Where a training begins that goes on with an adapter: its layers as layers of the network."""

from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..trilora.errors import TargetError
from ..trilora.factors import Factors, canonical
from ..trilora.files import Adapter
from .patching import key_map, path_of, shape_of


def start_factors(model: ModelPatcher, adapter: Adapter) -> tuple[dict[str, Factors], dict[str, Factors]]:
    """Factors by layer path below the diffusion model, and those, by their own names, that can only be carried along.

    Adapters on slices of one weight (q, k and v of a fused qkv) become one adapter on the whole. The text encoder's
    layers are carried.

    Raises:
        TargetError: no layer of the adapter is a layer of this MODEL, or one has another shape.
    """
    known, weights = key_map(model), model.model.state_dict()
    parts: dict[str, list[tuple[int, Factors]]] = {}
    carried = {}
    for name, factors in adapter.layers.items():
        key, first, order = _place(known.get(name))
        if key not in weights:
            carried[name] = factors
            continue
        _check(name, factors, shape_of(model.model, key), first)
        parts.setdefault(key, []).append((first, factors._replace(u=order(factors.u)) if order else factors))
    if not parts:
        raise TargetError(
            f"None of the {len(adapter.layers)} layers of the adapter to start from is a layer of this MODEL "
            f"({type(model.model).__name__}). Connect the base model that the adapter was trained on."
        )
    return {path_of(key): _whole(shape_of(model.model, key), slices) for key, slices in parts.items()}, carried


def _check(name: str, factors: Factors, shape: torch.Size, first: int) -> None:
    """Refuse what does not fit into a weight."""
    rows, inner = len(factors.u), factors.vh[0].numel()
    if inner != shape[1:].numel() or first + rows > shape[0]:
        raise TargetError(
            f"The layer {name} of the adapter is {rows} x {inner}, but the MODEL's weight is {tuple(shape)}. Connect "
            "the base model that the adapter was trained on."
        )


def _place(target) -> tuple[str | None, int, Callable[[Tensor], Tensor] | None]:
    """The weight's key, the first row and the order of rows that an entry of ComfyUI's key map means."""
    if target is None or isinstance(target, str):
        return target, 0, None
    key, part, *order = target
    dimension, first, _length = part or (0, 0, 0)
    return (key if dimension == 0 else None), first, (order[0] if order else None)


def _whole(shape: torch.Size, slices: list[tuple[int, Factors]]) -> Factors:
    """Factors on rows of a weight as canonical factors on all of it, the kernel of a convolution as the weight has it.

    A 1 x 1 convolution may be a linear layer in the file, and the other way round.
    """
    columns = []
    for first, factors in slices:
        u = torch.zeros(shape[0], factors.u.shape[1])
        u[first : first + len(factors.u)] = factors.u
        columns.append(u)
    each = [factors for _, factors in slices]
    rows = torch.cat([factors.vh.reshape(-1, *shape[1:]) for factors in each])
    together = Factors(torch.cat(columns, 1), torch.cat([f.sigma for f in each]), rows)
    return canonical(together)
