"""Bases that are streamed, offloaded, quantised or in another precision learn as a plain one does, in less memory."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.comfy


class Pass:
    """The gradients of adapters on all attention layers of a MODEL, and what the graph held for them."""

    def __init__(self, room: Any, model: Any, checkpointing: bool = False, precision: str = "auto") -> None:
        from comfy.conds import CONDRegular

        lending, denoiser = room("nodes.lending"), room("nodes.denoiser")
        torch.manual_seed(0)
        latents, noise = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
        width = model.model.model_config.unet_config["context_dim"]
        conditions = [{"c_crossattn": CONDRegular(torch.randn(1, 7, width))} for _ in range(2)]
        self.saved: dict[int, int] = {}
        with torch.inference_mode(), lending.lent(model, checkpointing=checkpointing) as patcher:
            network = patcher.model.diffusion_model
            layers = adapters(room, network)
            host = denoiser.ComfyDenoiser(patcher, precision)
            levels = host.levels(torch.tensor([0.3, 0.7]))
            with room("trilora.attach").attached(network, layers):
                with torch.autograd.graph.saved_tensors_hooks(self.weigh, lambda tensor: tensor):
                    result = host.denoised(host.noised(latents, noise, levels), levels, conditions)
                loss = (result - latents).square().mean()
                self.weights = {p.untyped_storage().data_ptr() for p in network.parameters() if p.ndim > 1}
                parameters = [p for layer in layers.values() for p in layer.parameters()]
                self.gradients = torch.autograd.grad(loss, parameters)
        self.loss = loss.item()
        self.bytes = sum(size for place, size in self.saved.items() if place not in self.weights)

    def weigh(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def off(self, other: "Pass") -> float:
        """The largest relative difference of any parameter's gradient."""
        pairs = zip(self.gradients, other.gradients, strict=True)
        return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs)


def adapters(room: Any, network: nn.Module) -> dict[str, nn.Module]:
    """A small adapter on each attention layer, none of its factors zero."""
    layers, factors = room("trilora.layers"), room("trilora.factors")
    chosen = [path for path, _ in network.named_modules() if ".attn" in path and path.endswith((".to_q", ".to_v"))]
    made = {}
    for number, path in enumerate(chosen):
        module = network.get_submodule(path)
        draw = torch.Generator().manual_seed(number)
        u, vh = torch.randn(module.out_features, 2, generator=draw), torch.randn(2, module.in_features, generator=draw)
        made[path] = layers.TriLoRALayer(factors.Factors(0.01 * u, torch.tensor([1.0, 0.5]), 0.1 * vh))
    return made


@pytest.fixture(scope="module")
def plain(room: Any, demo: Any) -> Pass:
    """The demo model as it comes."""
    return Pass(room, demo.model)


@pytest.fixture
def streaming(comfy: Any, demo: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """As dynamic VRAM does it: weights pass through one buffer, and are unreadable there after use."""
    import comfy.ops

    network = demo.model.model.diffusion_model
    buffer = torch.zeros(2 * max(p.numel() for p in network.parameters()))
    fetch, fetches = comfy.ops.cast_bias_weight, [0, buffer.untyped_storage().data_ptr()]  # how often, and where

    def cast(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, str]:
        fetches[0] += 1
        free, passed = buffer.data, []
        for tensor in fetch(module, *args, **kwargs)[:2]:
            passed.append(None if tensor is None else free[: tensor.numel()].view(tensor.shape).copy_(tensor))
            free = free[0 if tensor is None else tensor.numel() :]
        return *passed, "in use"

    def uncast(_module: Any, _weight: Tensor, _bias: Tensor, stream: str) -> None:
        if stream is not None:
            buffer.data.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(comfy.ops, "cast_bias_weight", cast)
        patch.setattr(comfy.ops, "uncast_bias_weight", uncast)
        for module in network.modules():
            if isinstance(module, comfy.ops.CastWeightBiasOp):
                patch.setattr(module, "comfy_cast_weights", True, raising=False)
                patch.setattr(module, "_v", "its place in the stream", raising=False)
        yield fetches


@pytest.mark.parametrize("checkpointing", [False, True])
def test_streamed_weights_give_the_gradients_of_resident_ones(
    room: Any, demo: Any, plain: Pass, streaming: list[int], checkpointing: bool
) -> None:
    got = Pass(room, demo.model, checkpointing)
    assert streaming[0] > 100
    assert got.loss == plain.loss
    assert got.off(plain) < 1e-6


def test_streamed_weights_give_their_gradients_after_a_bypass_loader_too(
    room: Any, demo: Any, plain: Pass, streaming: list[int]
) -> None:
    """ComfyUI takes its LoRA off by setting each layer's `forward` to what it was."""
    layers = [m for m in demo.model.model.diffusion_model.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        layer.forward = layer.forward
    try:
        assert Pass(room, demo.model).off(plain) < 1e-6
        assert all("forward" in vars(layer) for layer in layers)
    finally:
        for layer in layers:
            del layer.forward


def test_without_the_second_fetch_streamed_weights_give_no_gradient(
    room: Any, demo: Any, streaming: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room("nodes.lending"), "_frozen_layers", lambda _root: nullcontext())
    assert any(gradient.isnan().any() for gradient in Pass(room, demo.model).gradients)


def test_ordinary_autograd_gives_the_same_gradients_and_keeps_more(
    room: Any, demo: Any, plain: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room("nodes.lending"), "_frozen_layers", lambda _root: nullcontext())
    ordinary = Pass(room, demo.model)
    assert plain.off(ordinary) < 1e-6
    assert plain.bytes < 0.95 * ordinary.bytes


def test_autograd_holds_no_streamed_weight(
    room: Any, demo: Any, streaming: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Pass(room, demo.model)
    assert not ours.saved.keys() & {streaming[1], *ours.weights}
    monkeypatch.setattr(room("nodes.lending"), "_frozen_layers", lambda _root: nullcontext())
    assert streaming[1] in Pass(room, demo.model).saved


def test_checkpointing_gives_the_same_bits_in_less_memory(room: Any, demo: Any, plain: Pass) -> None:
    got = Pass(room, demo.model, checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(got.gradients, plain.gradients, strict=True))
    assert got.bytes < 0.6 * plain.bytes


def test_a_patched_model_learns_with_its_patches(room: Any, demo: Any, plain: Pass) -> None:
    patched = demo.model.clone()
    key = "diffusion_model.middle_block.1.proj_in.weight"
    patched.add_patches({key: (torch.full_like(patched.model.state_dict()[key], 0.1),)})
    assert Pass(room, patched).off(plain) > 1e-3
    assert Pass(room, demo.model).off(plain) == 0


def test_an_offloaded_and_patched_layer_is_patched_at_both_fetches(room: Any, comfy: Any) -> None:
    """Where the card is too small, ComfyUI patches at each use instead (`weight_function`)."""
    import comfy.ops

    layer = comfy.ops.manual_cast.Linear(6, 8, device="cpu", dtype=torch.float16)
    weight = torch.randn(8, 6).half()
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(8)})
    layer.weight_function = [lambda w: w * 3]
    check_input_gradient(room, layer, 3 * weight.float())


def test_weights_stored_in_float8_learn_as_their_values_in_float32(room: Any, comfy: Any) -> None:
    import comfy.ops

    layer = comfy.ops.manual_cast.Linear(32, 16, device="cpu", dtype=torch.float8_e4m3fn)
    weight = torch.randn(16, 32).to(torch.float8_e4m3fn)
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(16)})
    check_input_gradient(room, layer, weight.float())


@pytest.mark.parametrize("form", ["float8_e4m3fn", "int8_tensorwise"])
@pytest.mark.parametrize("whole", [True, False], ids=["full precision matmul", "quantised matmul"])
def test_quantised_weights_learn_as_their_values_in_float32(room: Any, comfy: Any, form: str, whole: bool) -> None:
    import comfy.ops
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    layout = QUANT_ALGOS[form]["comfy_tensor_layout"]
    quantised = QuantizedTensor.from_float(torch.randn(64, 128), layout)
    layer = comfy.ops.mixed_precision_ops({}, torch.float32, full_precision_mm=whole).Linear(128, 64, device="cpu")
    state = quantised.state_dict("weight")
    state["bias"] = torch.zeros(64)
    state["comfy_quant"] = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    layer.load_state_dict(state)
    assert isinstance(layer.weight, QuantizedTensor)
    check_input_gradient(room, layer, quantised.dequantize(), 1e-6 if whole and "float8" in form else 0.05)


def check_input_gradient(room: Any, layer: nn.Module, weight: Tensor, tolerance: float = 1e-6) -> None:
    """The layer, lent, against a float32 one with the given weight."""
    lending, x = room("nodes.lending"), torch.randn(3, 5, weight.shape[1], requires_grad=True)
    with lending._frozen_layers(layer):
        got = layer(x)
        upward = torch.randn_like(got)
        (gradient,) = torch.autograd.grad(got, x, upward)
    want = x.detach() @ weight.T
    assert (got - want).norm() <= tolerance * want.norm()
    torch.testing.assert_close(gradient, upward @ weight, rtol=1e-6, atol=1e-5)
    assert torch.equal(lending.weight_of(layer, torch.device("cpu")), weight)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("bfloat16", 0.2), ("float16", 0.1)])
def test_each_precision_gives_gradients_as_near_as_it_can(
    room: Any, demo: Any, plain: Pass, precision: str, tolerance: float
) -> None:
    got = Pass(room, demo.model, precision=precision)
    assert all(gradient.dtype == torch.float32 for gradient in got.gradients)
    assert (got.off(plain) > 0) == (precision != "float32")
    assert got.off(plain) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_base_stored_small_and_computed_in_float32_learns_as_its_values_in_float32(
    room: Any, demo: Any, dtype: torch.dtype
) -> None:
    """Its weights are cast layer by layer, and none of the casts is kept."""
    with stored(demo.model, lambda weight: weight.to(dtype).float()):
        want = Pass(room, demo.model)
    with stored(demo.model, lambda weight: weight.to(dtype)):
        got = Pass(room, demo.model, precision="float32")
        assert demo.model.model.manual_cast_dtype is None
    assert got.off(want) < 1e-6
    assert got.bytes == want.bytes


@contextmanager
def stored(model: Any, form: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The network's weights in another form, for the block."""
    before = [(module, dict(module._parameters)) for module in model.model.diffusion_model.modules()]
    try:
        for module, parameters in before:
            for name, p in parameters.items():
                module._parameters[name] = None if p is None else nn.Parameter(form(p.detach()), requires_grad=False)
        yield
    finally:
        for module, parameters in before:
            module._parameters.update(parameters)


def test_no_flag_of_the_process_differs_afterwards(train: Callable[..., Any]) -> None:
    before = flags()
    train(steps=1)
    assert flags() == before


def flags() -> dict[str, Any]:
    """Every switch that a training could leave set."""
    import comfy.model_management as management
    import comfy.ops

    backends = {f"{b}.{n}": str(getattr(getattr(torch.backends, b), n)) for b in BACKENDS for n in BACKENDS[b]}
    own = {
        f"{module.__name__}.{name}": value
        for module in (management, comfy.ops)
        for name, value in vars(module).items()
        if isinstance(value, bool | str | torch.dtype) and not name.startswith("__")
    }
    return backends | own | {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "matmul": torch.get_float32_matmul_precision(),
        "anomaly": torch.is_anomaly_enabled(),
    }  # fmt: skip


BACKENDS = {
    "cudnn": ["enabled", "benchmark", "deterministic", "allow_tf32"],
    "mkldnn": ["enabled"],
}


@pytest.mark.parametrize("failing", [False, True], ids=["used", "after an exception"])
def test_a_lent_model_comes_back_as_it_was(room: Any, demo: Any, failing: bool) -> None:
    modules = list(demo.model.model.modules())
    before = [(dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in modules]
    try:
        with torch.inference_mode(), room("nodes.lending").lent(demo.model, checkpointing=True):
            assert sum("forward" in vars(m) for m in modules) > 100
            if failing:
                raise RuntimeError("out of memory")
    except RuntimeError:
        assert failing
    for module, (attributes, parameters, buffers) in zip(modules, before, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert all(module._parameters[name] is tensor for name, tensor in parameters.items())
        assert all(module._buffers[name] is tensor for name, tensor in buffers.items())


def test_a_layer_whose_gradient_is_not_known_is_refused_where_it_is_streamed(room: Any, comfy: Any) -> None:
    import comfy.ops

    layer = comfy.ops.manual_cast.ConvTranspose2d(4, 4, 2, device="meta")
    with (
        room("nodes.lending")._frozen_layers(layer),
        pytest.raises(Exception, match="ConvTranspose2d is streamed.*--disable-dynamic-vram"),
    ):
        layer(torch.randn(1, 4, 8, 8, requires_grad=True))


def test_the_estimate_is_near_what_a_step_keeps(room: Any, demo: Any, plain: Pass) -> None:
    estimate = room("nodes.memory").estimate
    whole = estimate(demo.model, (4, 16, 16), 2)
    assert plain.bytes < whole < 1.3 * plain.bytes
    assert estimate(demo.model, (4, 16, 16), 4) == 2 * whole
    assert estimate(demo.model, (4, 32, 32), 2) == pytest.approx(4 * whole, rel=0.02)
    assert Pass(room, demo.model, checkpointing=True).bytes < estimate(demo.model, (4, 16, 16), 2, True) < whole / 2


def test_a_transformer_is_estimated_by_its_patches(room: Any, comfy: Any) -> None:
    """Flux at 1024 x 1024 keeps tens of GB in bfloat16, and a tenth of it where its blocks are computed again."""
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    config = comfy.supported_models.Flux(FLUX)
    config.set_inference_dtype(torch.bfloat16, None)
    flux = ModelPatcher(config.get_model({}, "", device="meta"), torch.device("cpu"), torch.device("cpu"))
    estimate, blocks = room("nodes.memory").estimate, room("trilora.checkpointing").blocks
    assert len(blocks(flux.model.diffusion_model)) == 57
    whole = estimate(flux, (16, 128, 128), 1)
    assert 10e9 < whole < 60e9
    assert estimate(flux, (16, 128, 128), 1, True) < whole / 8


def test_a_transformer_that_adds_in_place_has_its_gradient_with_checkpointing_and_without(
    room: Any, comfy: Any
) -> None:
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    # Ordinary autograd refuses this network: its blocks add to tensors that its norms have saved.
    torch.manual_seed(0)
    small = {"hidden_size": 48, "num_heads": 2, "axes_dim": [8, 8, 8], "depth": 2, "depth_single_blocks": 2}
    network = Flux(**{**FLUX, **small, "context_in_dim": 32}, dtype=torch.float32, operations=comfy.ops.manual_cast)
    for p in network.parameters():
        p.requires_grad_(False).normal_(0, 0.1)
    context = torch.randn(1, 5, 32, requires_grad=True)
    inputs = (torch.randn(1, 16, 8, 8), torch.tensor([0.5]), context, torch.randn(1, 768), torch.tensor([3.5]))

    def gradient() -> Tensor:
        return torch.autograd.grad(network(*inputs).square().mean(), context)[0]

    lending, differentiable = room("nodes.lending"), room("nodes.differentiable").differentiable
    with differentiable(), lending._frozen_layers(network):
        frozen = gradient()
        with room("trilora.checkpointing").checkpointed(network) as count:
            assert count == 4
            assert torch.equal(gradient(), frozen)
        step = 1e-3 * frozen / frozen.norm()
        with torch.no_grad():
            up, down = (network(*inputs[:2], context + s * step, *inputs[3:]).square().mean() for s in (1, -1))
    torch.testing.assert_close((up - down) / 2, (step * frozen).sum(), rtol=0.02, atol=0)


FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
