"""The graph's own MODEL, lent to training as ComfyUI loads it and given back as it was."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..trilora.checkpointing import checkpointed
from ..trilora.errors import TrainingError
from ..trilora.frozen import frozen, lying
from .differentiable import differentiable
from .shaping import bypassed


@contextmanager
def lent(model: ModelPatcher, memory: int = 0, checkpointing: bool = False) -> Iterator[ModelPatcher]:
    """The MODEL loaded on its device, ready for autograd, with none of its weights learning or kept by autograd.

    Leaves the inference mode that ComfyUI runs prompts in, for the block. The model may be larger than the card:
    what ComfyUI streams or offloads is fetched for the forward and once more for the backward (`trilora.frozen`).
    No weight is copied.

    Args:
        model: the graph's MODEL, with whatever patches it carries.
        memory: bytes to keep free for what training needs beside the weights.
        checkpointing: compute each block again in the backward instead of remembering it.

    Raises:
        TrainingError: the MODEL carries a LoRA that autograd can't pass.
    """
    if bypassed(model):
        raise TrainingError(
            "The LoRA on this MODEL came through a bypass loader, and no gradient passes that. Load it with Load "
            "TriLoRA or Load LoRA."
        )
    comfy.model_management.load_models_gpu([model], memory_required=memory)
    model.pre_run()
    model.model.current_patcher = None  # lets no network prefetch: that fills buffers outside inference mode
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(differentiable())
            stack.enter_context(_ordinary_tensors(model.model))
            stack.enter_context(_frozen_layers(model.model))
            if checkpointing:
                stack.enter_context(checkpointed(model.model.diffusion_model))
            yield model
    finally:
        model.cleanup()


def weight_of(module: nn.Module, device: torch.device) -> Tensor:
    """A layer's weight as it acts, patches and all, in float32 on the device: a copy."""
    with fetched(module, torch.empty(0, device=device)) as weight:
        return weight.clone()


@contextmanager
def fetched(module: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """The weight that the layer's next use would see, dense, as `like` is in dtype and device; no copy if it lies so.

    ComfyUI's buffers are inference tensors, which only inference mode may fill.
    """
    if _lies_ready(module, like):
        yield module.weight.detach()
        return
    with torch.inference_mode():
        if hasattr(module, "cast_bias_weight"):  # GGUF layers bring their own
            weight, bias, stream = *module.cast_bias_weight(like)[:2], None
        else:
            weight, bias, stream = comfy.ops.cast_bias_weight(module, like, offloadable=True)
        dense = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        dense = dense.to(like.dtype)
        smoothing = getattr(module, "pre_quant_scale", None)  # on the input: a factor on the weight's columns
        if smoothing is not None:
            dense = dense * smoothing.to(dense)
    try:
        yield dense
    finally:
        with torch.inference_mode():
            comfy.ops.uncast_bias_weight(module, weight, bias, stream)


def _lies_ready(module: Any, like: Tensor) -> bool:
    """Whether the weight is an ordinary one that needs no fetching, casting or patching."""
    weight = module.weight
    return (
        type(weight) is nn.Parameter
        and weight.dtype == like.dtype
        and weight.device == like.device
        and not module.weight_function
        and not hasattr(module, "_v")
        and not weight.is_inference()
    )


@contextmanager
def _ordinary_tensors(root: nn.Module) -> Iterator[None]:
    """Loaders make weights under inference mode, which autograd refuses: see each through an ordinary tensor.

    Streamed weights stay as they are: ComfyUI keeps notes on them (`_v` marks their layers).
    """
    swapped: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
    try:
        for module in root.modules():
            for tensors in () if hasattr(module, "_v") else (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if type(tensor) in (Tensor, nn.Parameter) and (tensor.is_inference() or tensor.requires_grad):
                        view = _view(tensor)
                        tensors[name] = nn.Parameter(view, False) if isinstance(tensor, nn.Parameter) else view
                        swapped.append((tensors, name, tensor, tensors[name]))
        yield
    finally:
        for tensors, name, tensor, view in swapped:
            if tensors[name] is view and view.data_ptr() == tensor.data_ptr():  # else ComfyUI has moved it meanwhile
                tensors[name] = tensor


@contextmanager
def _frozen_layers(root: nn.Module) -> Iterator[None]:
    changed: list[tuple[nn.Module, dict[str, Any]]] = []
    try:
        for module in root.modules():
            if isinstance(module, comfy.ops.CastWeightBiasOp) and _runs_as_its_class(module):
                before = {name: own for name, own in vars(module).items() if name == "forward"}
                module.forward = _frozen_forward(module)
                changed.append((module, before))
        yield
    finally:
        for module, before in changed:
            del module.forward
            vars(module).update(before)


def _runs_as_its_class(module: nn.Module) -> bool:
    """Whether nobody has replaced how it runs; ComfyUI's bypass loader leaves the class's own behind as if it had."""
    return vars(module).get("forward") in (None, MethodType(type(module).forward, module))


def _frozen_forward(module: Any) -> Callable[..., Any]:
    """How a layer runs while it is lent."""
    own = module.forward
    known = type(module).forward.__module__ == comfy.ops.__name__
    if known and _is_affine(module):
        return _affine(module, own)
    if known and isinstance(module, tuple(NORMS)):
        return lambda input: _norm(module, own, input)

    def other(*args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)):
            return _run(lambda: own(*args, **kwargs))
        if module.weight is not None and module.weight.device != args[0].device:
            raise TrainingError(
                f"A layer of the kind {type(module).__name__} is streamed to the GPU, and its gradient is not known "
                "here. Start ComfyUI with --disable-dynamic-vram and --highvram, so that the model is loaded whole."
            )
        return own(*args, **kwargs)

    return other


AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _is_affine(module: Any) -> bool:
    """A linear layer, mixed precision's own among them, or a convolution that pads with zeros."""
    if isinstance(module, AFFINE[1:]):
        return module.padding_mode == "zeros" and "_conv_forward" not in vars(module)
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and not hasattr(module, "num_experts"))


def _affine(module: Any, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """How it runs: as it is where autograd may point to its weight, else so that its backward fetches it again."""
    torchs, linear = isinstance(module, AFFINE), isinstance(module, nn.Linear)
    flat = isinstance(module, nn.Conv2d | nn.Conv3d)  # conv1d gives a view, which a network may not add to
    clamps = isinstance(module, comfy.ops.fp8_ops.Linear)  # its input in place

    def viewing(x: Tensor) -> Tensor:
        return _view(own(x))

    def fetching(x: Tensor) -> Tensor:
        other = torchs and module.weight.dtype != x.dtype  # another precision than the base's: as manual_cast layers
        return _run(lambda: (module.forward_comfy_cast_weights if other else own)(x))

    def forward(input: Tensor) -> Tensor:
        ready = _lies_ready(module, input)
        if ready and linear:
            return own(input)  # autograd points to the weight where it lies, and keeps nothing else
        learns = input.requires_grad and torch.is_grad_enabled()
        if ready and flat:
            return lying(module, input, own) if learns else own(input)
        run, x = viewing if ready else fetching, input.clone() if clamps else input
        return frozen(module, x, run, fetched) if learns else run(x)

    return forward


NORMS: dict[type, Callable[..., Tensor]] = {
    nn.GroupNorm: lambda m, x, weight, bias: nn.functional.group_norm(x, m.num_groups, weight, bias, m.eps),
    nn.LayerNorm: lambda m, x, weight, bias: nn.functional.layer_norm(x, m.normalized_shape, weight, bias, m.eps),
    nn.RMSNorm: lambda m, x, weight, bias: nn.functional.rms_norm(x, m.normalized_shape, weight, m.eps),
}


def _norm(module: Any, own: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """With copies of its few weights, that autograd may keep."""
    if module.weight is None or _lies_ready(module, x):
        return own(x)
    dtype = x.dtype if module.comfy_cast_weights or not torch.is_autocast_enabled(x.device.type) else None
    with torch.inference_mode():
        weight, bias, stream = comfy.ops.cast_bias_weight(
            module, device=x.device, dtype=dtype or module.weight.dtype, bias_dtype=dtype or module.weight.dtype,
            offloadable=True,
        )  # fmt: skip
    copies = [None if tensor is None else tensor.clone() for tensor in (weight, bias)]
    with torch.inference_mode():
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    kind = next(norm for norm in NORMS if isinstance(module, norm))
    return NORMS[kind](module, x, *copies)


def _run(forward: Callable[[], Any]) -> Any:
    """Run a layer as ComfyUI itself does, under inference mode; the result is an ordinary tensor."""
    with torch.inference_mode():
        result = forward()
    return _view(result) if isinstance(result, Tensor) else result


def _view(tensor: Tensor) -> Tensor:
    view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return view.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
