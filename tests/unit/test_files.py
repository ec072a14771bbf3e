"""Files: what goes out comes back, any LoRA naming comes in, and what is wrong is said with file, key and remedy."""

import errno
import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from strategies import KERNELS, dense, factor_sets, far, make, off_identity, randn, size
from torch import Tensor

from trilora import disk, files
from trilora import factors as algebra
from trilora.errors import FileError
from trilora.factors import Factors, canonical
from trilora.files import PAIRS, Adapter, inside, load, save

UP, DOWN = PAIRS[0]
Q = "lora_unet_blocks_0_attn_q"
MIB = 1 << 20


def raw(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def header(path: Path) -> int:
    """Bytes of a file's header, its length field included."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def example() -> Adapter:
    """An adapter of a linear layer, a full core and a convolution."""
    layers = {
        Q: make(12, 8, 4),
        "lora_unet_k": make(6, 9, 3, core="full"),
        "lora_unet_conv": make(7, 5, 3, kernel=(3, 3)),
    }
    return Adapter(layers, {"trilora.format": "1", "modelspec.trigger_phrase": "zæöß 画"})


@given(factors=factor_sets())
def test_what_is_saved_is_read_back(tmp_path_factory, factors):
    path = tmp_path_factory.mktemp("lora") / "a.safetensors"
    save(Adapter({Q: factors}), path)
    back = load(path).layers[Q]
    assert far(dense(back), dense(factors)) <= 2e-6 * size(factors)
    assert off_identity(back.u) < 1e-5
    assert back.vh.shape[1:] == factors.vh.shape[1:]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_a_round_trip_is_as_exact_as_the_dtype(tmp_path, dtype, tolerance):
    path, adapter = tmp_path / "a.safetensors", example()
    save(adapter, path, dtype)
    assert {tensor.dtype for key, tensor in raw(path)[0].items() if not key.endswith(".alpha")} == {dtype}
    back = load(path)
    assert list(back.layers) == sorted(adapter.layers) or list(back.layers) == list(adapter.layers)
    for name, factors in adapter.layers.items():
        want = dense(factors)
        assert far(dense(back.layers[name]), want) <= tolerance * float(want.norm())


def test_metadata_is_kept(tmp_path):
    save(example(), tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").metadata.items() >= example().metadata.items()


def test_saving_changes_nothing_of_the_adapter(tmp_path):
    adapter, twin = example(), example()
    save(adapter, tmp_path / "a.safetensors")
    assert dict(adapter.metadata) == dict(twin.metadata)
    assert all(torch.equal(a, b) for n in twin.layers for a, b in zip(adapter.layers[n], twin.layers[n], strict=True))


def test_the_file_is_a_standard_lora_with_alpha_the_rank_and_sigma_in_its_norms(tmp_path):
    adapter = example()
    save(adapter, tmp_path / "a.safetensors")
    tensors, _ = raw(tmp_path / "a.safetensors")
    assert sorted(tensors) == sorted(n + part for n in adapter.layers for part in (UP, DOWN, ".alpha"))
    for name, factors in adapter.layers.items():
        up, down, alpha = (tensors[name + part] for part in (UP, DOWN, ".alpha"))
        assert alpha.shape == ()
        assert alpha == factors.rank == down.shape[0] == up.shape[1]
        assert up.ndim == down.ndim
        sigma = up.flatten(1).norm(dim=0) * down.flatten(1).norm(dim=1)
        torch.testing.assert_close(sigma, canonical(factors).sigma, rtol=1e-5, atol=1e-5)
        assert far((up.flatten(1) @ down.flatten(1)).view_as(dense(factors)), dense(factors)) <= 1e-6 * size(factors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_alpha_is_the_rank_exactly_at_every_rank(tmp_path, dtype):
    save(Adapter({Q: make(258, 258, 257)}), tmp_path / "a.safetensors", dtype)
    assert float(raw(tmp_path / "a.safetensors")[0][Q + ".alpha"]) == 257


@pytest.mark.parametrize("suffixes", PAIRS, ids=lambda pair: pair[0])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_every_naming_is_read_and_a_missing_alpha_means_scale_one(tmp_path, suffixes, alpha):
    name, up, down = "transformer.blocks.0.attn.to_out.0", randn(0, 6, 4), randn(1, 4, 5)
    tensors = {name + suffixes[0]: up, name + suffixes[1]: down}
    if alpha is not None:
        tensors[name + ".alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = load(tmp_path / "a.safetensors")
    assert list(adapter.layers) == [name]
    want = up @ down * (1 if alpha is None else alpha / 4)
    torch.testing.assert_close(dense(adapter.layers[name]).float(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["diffusion_model.blocks.0.q", "lora_te1_layers_0_q", "model.diffusion_model.blocks.0.q"]
)
def test_any_layer_name_is_read(tmp_path, name):
    save_file({name + UP: randn(0, 6, 2), name + DOWN: randn(1, 2, 5)}, tmp_path / "a.safetensors")
    assert list(load(tmp_path / "a.safetensors").layers) == [name]


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_any_float_dtype_is_read_into_float32(tmp_path, dtype):
    up, down = randn(0, 6, 2).to(dtype), randn(1, 2, 5).to(dtype)
    save_file({Q + UP: up, Q + DOWN: down, Q + ".alpha": torch.tensor(1.0).to(dtype)}, tmp_path / "a.safetensors")
    factors = load(tmp_path / "a.safetensors").layers[Q]
    assert factors.sigma.dtype == torch.float32
    torch.testing.assert_close(dense(factors).float(), up.float() @ down.float() / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_a_middle_factor_is_folded_in(tmp_path, kernel):
    up, down, mid = randn(0, 6, 3, 1, 1), randn(1, 3, 5, 1, 1), randn(2, 3, 3, *kernel)
    tensors = {Q + UP: up, Q + DOWN: down, Q + ".lora_mid.weight": mid, Q + ".alpha": torch.tensor(6.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    want = 2 * torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))
    got = dense(load(tmp_path / "a.safetensors").layers[Q]).float()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_u_sigma_vh_of_a_layer_is_found_when_it_is_asked_for_and_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(algebra, "canonical", lambda factors: asked.append(factors) or canonical(factors))
    save(example(), tmp_path / "a.safetensors", torch.float16)
    back = load(tmp_path / "a.safetensors")
    up, scale, down = back.raw[Q]
    assert (up.dtype, scale.tolist(), down.dtype) == (torch.float16, [1.0] * 4, torch.float16)
    assert len(back.layers) == 3
    assert not asked
    assert back.layers[Q] is back.layers[Q]
    assert len(asked) == 1
    assert far(dense(back.layers[Q]), up.double() @ down.double()) < 1e-6
    assert Adapter(dict(back.layers)).raw[Q] is back.layers[Q]


def test_an_adapter_stays_as_it_was_read_whatever_becomes_of_the_file(tmp_path):
    save(example(), tmp_path / "a.safetensors")
    back = load(tmp_path / "a.safetensors")
    want = [tensor.clone() for factors in back.raw.values() for tensor in factors]
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.write(b"\0" * file.seek(0, 2))
        file.truncate(10)
    assert all(map(torch.equal, [tensor for factors in back.raw.values() for tensor in factors], want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_numbers_with_an_endless_sum_are_read(tmp_path, dtype):
    largest = torch.full((6, 2), float(torch.finfo(dtype).max) / 4, dtype=dtype)
    save_file({Q + UP: largest, Q + DOWN: torch.zeros(2, 5, dtype=dtype)}, tmp_path / "a.safetensors")
    assert not load(tmp_path / "a.safetensors").layers[Q].sigma.any()


def test_the_rank_of_an_adapter_is_its_largest():
    assert example().rank == 4
    assert Adapter({}).rank == 0


def test_the_hashes_are_those_of_everything_behind_the_header(tmp_path):
    path = tmp_path / "a.safetensors"
    save(example(), path)
    digest = hashlib.sha256(path.read_bytes()[header(path) :]).hexdigest()
    metadata = load(path).metadata
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == "0x" + digest
    save(Adapter(example().layers, {"another": "note"}), path)
    assert load(path).metadata["sshs_model_hash"] == digest


@pytest.mark.parametrize(
    "huge",
    ["x" * 2_500_000, json.dumps({f"tag {i}": i for i in range(90_000)}), "画" * 400_000, '\\"\n' * 200_000],
    ids=["plain", "json", "wide characters", "escapes"],
)
def test_metadata_too_large_for_a_header_is_trimmed_and_the_rest_kept(tmp_path, huge):
    path = tmp_path / "a.safetensors"
    save(Adapter(example().layers, {"ss_tag_frequency": huge, "modelspec.title": "Ink"}), path)
    assert header(path) < MIB
    adapter = load(path)
    assert "ss_tag_frequency" not in adapter.metadata
    assert adapter.metadata["modelspec.title"] == "Ink"
    assert adapter.metadata["trilora.left_out"]
    assert set(adapter.layers) == set(example().layers)
    digest = hashlib.sha256(path.read_bytes()[header(path) :]).hexdigest()
    assert adapter.metadata["sshs_model_hash"] == digest


@given(sizes=st.lists(st.integers(0, 700_000), max_size=5), count=st.sampled_from([1, 300]))
def test_the_header_stays_below_a_mebibyte(sizes, count):
    tensors = {f"lora_unet_{'x' * 90}_{i}{part}": torch.zeros(1) for i in range(count) for part in (UP, DOWN)}
    data = files._serialised(tensors, {f"note {i}": "é\n" * (length // 2) for i, length in enumerate(sizes)})
    assert 8 + int.from_bytes(data[:8], "little") < MIB


@pytest.mark.parametrize("length", [999_000, 1_040_000, 1_048_500, 1_060_000, 1_100_000])
def test_the_header_stays_below_a_mebibyte_whatever_the_length_of_a_note(tmp_path, length):
    save(Adapter(example().layers, {"notes": "x" * length}), tmp_path / "a.safetensors")
    assert header(tmp_path / "a.safetensors") < MIB


def test_metadata_that_just_fits_is_not_trimmed(tmp_path):
    save(Adapter(example().layers, {"notes": "x" * 990_000}), tmp_path / "a.safetensors")
    assert len(load(tmp_path / "a.safetensors").metadata["notes"]) == 990_000


def good() -> dict[str, Tensor]:
    return {Q + UP: randn(0, 6, 4), Q + DOWN: randn(1, 4, 5), Q + ".alpha": torch.tensor(4.0)}


def conv(**changes: Tensor) -> dict[str, Tensor]:
    tensors = {"up": randn(0, 6, 4, 1, 1), "down": randn(1, 4, 5, 1, 1), "mid": randn(2, 4, 4, 3, 3)} | changes
    return {f"{Q}.lora_{key}.weight": tensor for key, tensor in tensors.items()}


def holding(value: float, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.ones(shape)
    tensor.view(-1)[-1] = value
    return tensor


NAN, INF = float("nan"), float("inf")
REMEDY = r"[Ee]xport|[Dd]ownload|Choose|take an earlier save|Use ComfyUI's own Load LoRA"
BAD = {  # what is wrong -> (the file's tensors, the key that the message names)
    "ranks differ": (good() | {Q + UP: randn(0, 6, 3)}, Q),
    "up has a kernel": (good() | {Q + UP: randn(0, 6, 4, 3, 3)}, Q),
    "up is a vector": (good() | {Q + UP: randn(0, 6)}, Q),
    "up is a number": (good() | {Q + UP: torch.tensor(1.0)}, Q),
    "down is a vector": (good() | {Q + DOWN: randn(0, 4)}, Q),
    "down is a number": (good() | {Q + DOWN: torch.tensor(1.0)}, Q),
    "rank zero": ({Q + UP: torch.zeros(6, 0), Q + DOWN: torch.zeros(0, 5)}, Q),
    "no outputs": (good() | {Q + UP: torch.zeros(0, 4)}, Q),
    "no inputs": (good() | {Q + DOWN: torch.zeros(4, 0)}, Q),
    "down is missing": ({Q + UP: randn(0, 6, 4)}, Q + DOWN),
    "up is missing": ({Q + DOWN: randn(0, 4, 5)}, Q + UP),
    "NaN in up": (good() | {Q + UP: holding(NAN, (6, 4))}, Q + UP),
    "NaN in down": (good() | {Q + DOWN: holding(NAN, (4, 5))}, Q + DOWN),
    "inf in up": (good() | {Q + UP: holding(INF, (6, 4))}, Q + UP),
    "minus inf in half": (good() | {Q + DOWN: holding(-INF, (4, 5)).half()}, Q + DOWN),
    "alpha is NaN": (good() | {Q + ".alpha": torch.tensor(NAN)}, Q + ".alpha"),
    "alpha is a vector": (good() | {Q + ".alpha": torch.ones(2)}, Q + ".alpha"),
    "mid is of another rank": (conv(mid=randn(2, 4, 3, 3, 3)), Q + ".lora_mid.weight"),
    "mid gives another rank": (conv(mid=randn(2, 3, 4, 3, 3)), Q),
    "mid on a linear layer": (good() | {Q + ".lora_mid.weight": randn(0, 4, 4)}, Q + ".lora_mid.weight"),
    "mid beside a down with a kernel": (conv(down=randn(1, 4, 5, 3, 3)), Q + ".lora_mid.weight"),
    "NaN in mid": (conv(mid=holding(NAN, (4, 4, 3, 3))), Q + ".lora_mid.weight"),
    "alpha alone": ({Q + ".alpha": torch.tensor(4.0)}, Q + ".alpha"),
    "mid alone": ({Q + ".lora_mid.weight": randn(0, 4, 4, 3, 3)}, Q + ".lora_mid.weight"),
    "alpha of no layer": (good() | {"lora_unet_other.alpha": torch.tensor(1.0)}, "lora_unet_other.alpha"),
    "a stray tensor": (good() | {"position_ids": torch.ones(1, 4)}, "position_ids"),
    "the same layer in two namings": (good() | {Q + PAIRS[1][0]: randn(0, 6, 4), Q + PAIRS[1][1]: randn(1, 4, 5)}, Q),
    "no tensor": ({}, "holds no LoRA layer"),
    "a whole model": ({"blocks.0.attn.q.weight": randn(0, 4, 4)}, "blocks.0.attn.q.weight"),
    "DoRA": (good() | {Q + ".dora_scale": torch.ones(6, 1)}, Q + ".dora_scale"),
    "LoHa": ({Q + f".hada_w{i}_{x}": randn(0, 4, 4) for i in (1, 2) for x in "ab"}, Q + ".hada_w"),
    "LoKr": ({Q + ".lokr_w1": randn(0, 2, 2), Q + ".lokr_w2": randn(0, 2, 2)}, Q + ".lokr_w"),
    "a difference": ({Q + ".diff": randn(0, 4, 4)}, Q + ".diff"),
    "a bias difference": (good() | {Q + ".diff_b": randn(0, 6)}, Q + ".diff_b"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_wrong_file_is_refused_naming_file_key_and_remedy(tmp_path, wrong):
    tensors, key = BAD[wrong]
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(FileError) as caught:
        load(tmp_path / "style.safetensors")
    message = str(caught.value)
    assert "style.safetensors" in message
    assert key in message
    assert re.search(REMEDY, message)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [("DoRA", "DoRA"), ("LoHa", "LoHa"), ("LoKr", "LoKr"), ("a difference", "full weight differences")],
)
def test_another_kind_of_adapter_is_called_by_its_name(tmp_path, wrong, kind):
    save_file(BAD[wrong][0], tmp_path / "a.safetensors")
    with pytest.raises(FileError, match=rf"holds {kind} .*Load LoRA"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_another_kind_is_called_by_its_name_though_its_alpha_comes_first(tmp_path, kind):
    save_file(BAD[kind][0] | {Q + ".alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    with pytest.raises(FileError, match=rf"holds {kind} .*Load LoRA"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 40, "header", "half", -4, -1])
def test_a_file_cut_short_is_refused(tmp_path, cut):
    path = tmp_path / "style.safetensors"
    save(example(), path)
    data = path.read_bytes()
    end = {"header": header(path), "half": len(data) // 2}.get(cut, cut)
    path.write_bytes(data[:end])
    with pytest.raises(
        FileError, match=r"style\.safetensors is not a whole safetensors file.*(Download|copy) it again"
    ):
        load(path)


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><html>Not found</html>", b"", pickle.dumps({"a": 1}), b"\xff" * 64, bytes(64)],
    ids=["a page", "empty", "a pickle", "ones", "zeros"],
)
def test_something_else_under_the_name_is_refused(tmp_path, content):
    (tmp_path / "style.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=r"style\.safetensors is not a whole safetensors file"):
        load(tmp_path / "style.safetensors")


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.bin", "a.pth", "a.safetensors.pt", "a"])
def test_a_pickles_suffix_is_refused_before_anything_is_opened(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileError, match=rf"{name} is not a \.safetensors file.*can run code.*Convert"):
        load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FileError, match=r"gone\.safetensors does not exist.*Choose another file"):
        load(tmp_path / "gone.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileError, match="folder"):
        load(tmp_path / "folder.safetensors")


@pytest.mark.parametrize("part", ["u", "sigma", "vh"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_factors_that_are_no_numbers_are_not_written(tmp_path, part, value):
    factors = make(6, 5, 3)
    getattr(factors, part).view(-1)[0] = value
    with pytest.raises(FileError, match=rf"Layer {Q} holds NaN or inf.*a\.safetensors was not written.*learning rate"):
        save(Adapter({Q: factors}), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_factors_too_large_for_the_dtype_are_not_written(tmp_path):
    factors = Factors(torch.ones(6, 1), torch.tensor([1e12]), torch.ones(1, 5))
    with pytest.raises(FileError, match=Q):
        save(Adapter({Q: factors}), tmp_path / "a.safetensors", torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("before", [b"what was there", None], ids=["over a file", "new"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, call, before):
    path = tmp_path / "a.safetensors"
    if before:
        path.write_bytes(before)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, call, full)
    with pytest.raises(FileError, match=r"a\.safetensors could not be written: No space left.*Free \d+ MB"):
        save(example(), path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_an_interrupted_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"what was there")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(example(), path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"what was there"]


def test_the_bytes_are_flushed_before_they_take_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(disk.os, "fsync", lambda *a: (calls.append("fsync"), fsync(*a)))
    monkeypatch.setattr(disk.os, "replace", lambda *a: (calls.append("replace"), replace(*a)))
    save(example(), tmp_path / "a.safetensors")
    assert calls == ["fsync", "replace"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_new_folder_is_made(tmp_path):
    save(example(), tmp_path / "styles" / "ink" / "a.safetensors")
    assert load(tmp_path / "styles" / "ink" / "a.safetensors").rank == 4


def test_a_folder_that_cannot_be_made_is_an_error_with_words(tmp_path):
    (tmp_path / "note").write_text("a file, not a folder")
    with pytest.raises(FileError, match="could not be written"):
        save(example(), tmp_path / "note" / "a.safetensors")


def test_a_file_is_never_saved_under_a_name_that_cannot_be_loaded(tmp_path):
    with pytest.raises(FileError, match=r"\.safetensors"):
        save(example(), tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "want"),
    [("ink", "ink.safetensors"), ("ink.safetensors", "ink.safetensors"), ("v1.5/ink", "v1.5/ink.safetensors")],
)
def test_a_plain_name_stays_inside_its_folder(tmp_path, name, want):
    assert inside(tmp_path, name) == tmp_path.resolve() / want


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "/", "../", "", " ", "\n", "sub/", ".safetensors", "../lora-evil/x", "a\0b"]
)
def test_a_name_that_leaves_the_folder_or_is_none_is_refused(tmp_path, name):
    folder = tmp_path / "lora"
    folder.mkdir()
    with pytest.raises(FileError, match="does not stay inside.*plain name such as"):
        inside(folder, name)
