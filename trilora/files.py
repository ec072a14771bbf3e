"""Adapters in files: standard LoRA safetensors out, any LoRA naming in; strict, atomic, never a pickle."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from .disk import write
from .errors import FileError
from .factors import Factors, canonical, canonical_once, root_split

HEADER_LIMIT = 1_000_000  # bytes; ComfyUI serves a file's metadata only up to 1 MiB
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PAIRS = (  # suffixes of (up, down), each naming in use
    (".lora_up.weight", ".lora_down.weight"),  # kohya
    (".lora_B.weight", ".lora_A.weight"),  # PEFT, diffusers
    (".lora_B.default.weight", ".lora_A.default.weight"),  # PEFT with its adapter's name
    (".lora_B", ".lora_A"),  # Mochi
    ("_lora.up.weight", "_lora.down.weight"),  # diffusers, attention processors
    (".lora.up.weight", ".lora.down.weight"),  # diffusers
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),  # transformers
)
ALPHA, MID = ".alpha", ".lora_mid.weight"
OTHER_KINDS = {  # part of a key -> what it belongs to
    ".dora_scale": "DoRA",
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".oft_": "OFT",
    ".boft_": "BOFT",
    ".a1.weight": "GLoRA",
    ".diff.": "full weight differences",
    ".diff_b.": "full weight differences",
    ".set_weight": "replaced weights",
    ".w_norm": "norm differences",
    ".b_norm": "norm differences",
}


class Layers(Mapping[str, Factors]):
    """A file's layers, each brought to U Σ Vᵀ when it is first asked for.

    Attributes:
        raw: layer name -> its factors as the file has them: up, alpha / rank for each component, down.
    """

    def __init__(self, raw: Mapping[str, Factors]) -> None:
        self.raw = raw

    def __getitem__(self, name: str) -> Factors:
        return canonical_once(self.raw[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


@dataclass(frozen=True)
class Adapter:
    """What travels on a TRILORA wire and lies in a file.

    Attributes:
        layers: layer name as files have it (`lora_unet_..._attn1_to_q`, `diffusion_model....`) -> factors.
        metadata: what the adapter says of itself, text to text.
    """

    layers: Mapping[str, Factors]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max((factors.rank for factors in self.layers.values()), default=0)

    @property
    def raw(self) -> Mapping[str, Factors]:
        """Factors of the same deltas as they came, in any dtype: enough where they are multiplied and no more."""
        return self.layers.raw if isinstance(self.layers, Layers) else self.layers


def inside(folder: Path, name: str, suffix: str = ".safetensors") -> Path:
    """`folder/name` with the suffix, refusing to leave the folder.

    Raises:
        FileError: an empty name, or one that points outside.
    """
    root = Path(os.path.abspath(folder))  # not resolved: a linked folder below it is the user's own wish
    path = Path(os.path.abspath(root / (name if name.endswith(suffix) else name + suffix)))
    blank = not path.stem.strip().strip(".") or path.stem == suffix
    if blank or "\0" in name or not path.is_relative_to(root):
        raise FileError(f"The file name {name!r} does not stay inside {folder}. Give a plain name such as 'my_style'.")
    return path


def load(path: Path, renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict) -> Adapter:
    """Read a LoRA file of any common naming; its layers become canonical factors when they are asked for.

    Args:
        path: a .safetensors file.
        renamed: gives the tensors of a trainer with names of its own the usual ones.

    Raises:
        FileError: not a whole safetensors file, a key of another kind, a factor without its partner, shapes that do
            not fit together, NaN or inf. The message names file, key and remedy.
    """
    tensors, metadata = _read(path)
    tensors = renamed(tensors)
    names = _pair(path, tensors)
    raw = {}
    for name, (up_key, down_key) in names.items():
        up, down = tensors[up_key], _with_mid(path, name, tensors, down_key)
        _check_shapes(path, name, up, down)
        scale = _alpha(path, name, tensors, rank=down.shape[0]) / down.shape[0]
        raw[name] = Factors(up.flatten(1), torch.full((down.shape[0],), scale), down)
    if not raw:
        raise FileError(f"{path.name} holds no LoRA layer ({len(tensors)} tensors). Choose a LoRA file.")
    return Adapter(Layers(raw), metadata)


def save(
    adapter: Adapter, path: Path, dtype: torch.dtype = torch.float32, suffixes: tuple[str, str] = PAIRS[0]
) -> None:
    """Write a standard LoRA file: up = u·√sigma, down = √sigma·vh, alpha = rank, canonical.

    Written beside its place, flushed, then renamed: a reader never sees half a file, and a failure leaves
    what was there.

    Args:
        adapter: what to write.
        path: a .safetensors path; its folder is made.
        dtype: of the tensors; float16 halves the file at a relative error of about 3e-4.
        suffixes: of (up, down); only kohya's come with an alpha, and any other naming means alpha = rank.

    Raises:
        FileError: a NaN or inf in a factor, or the disk refuses.
    """
    if path.suffix != ".safetensors":
        raise FileError(f"{path.name} has to end in .safetensors. Choose such a name.")
    tensors = {}
    for name, factors in adapter.layers.items():
        if not all(torch.isfinite(tensor).all() for tensor in factors):
            raise FileError(
                f"Layer {name} holds NaN or inf, so {path.name} was not written. What made the adapter went wrong: "
                "train again with a lower learning rate, or take its parts from files that are whole."
            )
        exact = canonical(factors.to("cpu"))
        up, down = root_split(exact)
        up, down = up.view(*up.shape, *[1] * (down.ndim - 2)).to(dtype), down.to(dtype)
        if not (up.isfinite().all() and down.isfinite().all()):
            raise FileError(
                f"Layer {name} holds values too large for {dtype}, so {path.name} was not written. Save it as float32."
            )
        tensors[name + suffixes[0]], tensors[name + suffixes[1]] = up.contiguous(), down.contiguous()
        if suffixes == PAIRS[0]:
            tensors[name + ALPHA] = torch.tensor(float(exact.rank))
    write(path, _serialised(tensors, dict(adapter.metadata)))


def overhead(adapter: Adapter) -> int:
    """Bytes of the adapter's file beside its u and vh: header, metadata, alphas. An upper bound, by some kilobytes."""
    offsets = [10**11, 10**11]
    header = {
        name + suffix: {"dtype": "BF16", "shape": [*factors.u.shape, *factors.vh.shape], "data_offsets": offsets}
        for name, factors in adapter.layers.items()
        for suffix in (*PAIRS[0], ALPHA)
    }
    hashes = 300
    metadata = min(len(json.dumps(dict(adapter.metadata))), HEADER_LIMIT)
    return len(json.dumps(header)) + metadata + hashes + 4 * len(adapter.layers)


def _serialised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The file's bytes, with the hash of its data part in the metadata and the header within its limit."""
    bare = to_bytes(tensors)
    digest = hashlib.sha256(bare[8 + int.from_bytes(bare[:8], "little") :]).hexdigest()
    metadata |= {"format": "pt", "sshs_model_hash": digest, "modelspec.hash_sha256": "0x" + digest}
    room = HEADER_LIMIT - int.from_bytes(bare[:8], "little")
    while len(json.dumps(metadata)) > room and metadata:
        longest = max(metadata, key=lambda key: len(metadata[key]))
        del metadata[longest]
        metadata["trilora.left_out"] = "metadata over 1 MB"
        if longest == "trilora.left_out":
            break
    return to_bytes(tensors, metadata)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as `safetensors.safe_open` gives it; nothing is read but its header.

    Raises:
        FileError: not there, or not a whole safetensors file.
    """
    if path.suffix != ".safetensors":
        raise FileError(f"{path.name} is not a .safetensors file; other formats can run code when opened. Convert it.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise FileError(f"{path} does not exist. Choose another file, or refresh the list of files.") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise FileError(
            f"{path.name} is not a whole safetensors file ({error}): it was cut short while it was copied, or is "
            "something else under that name. Download or copy it again."
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with opened(path) as file:
        # copies: a mapped file could be changed or cut under the adapter, and on Windows not be written anew
        return {key: file.get_tensor(key).clone() for key in file.keys()}, dict(file.metadata() or {})


def _pair(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Layer name -> (up key, down key); every tensor of the file has to belong to one of them."""
    names: dict[str, tuple[str, str]] = {}
    for key in tensors:
        for suffixes in PAIRS:
            if key.endswith(suffixes):
                name = key.removesuffix(suffixes[0]).removesuffix(suffixes[1])
                names[name] = (name + suffixes[0], name + suffixes[1])
                break
    used = {key for pair in names.values() for key in pair} | {n + part for n in names for part in (ALPHA, MID)}
    for key in tensors:
        if kind := next((kind for part, kind in OTHER_KINDS.items() if part in key + "."), None):
            raise FileError(
                f"{path.name} holds {kind} ({key}), which has no U Σ Vᵀ to load. Use ComfyUI's own Load LoRA node; "
                "TriLoRA Strength then scales it as a whole."
            )
    for key in tensors:
        if key not in used:
            raise FileError(f"{path.name}: {key} belongs to no LoRA layer of the file. Export the file again.")
    for name, pair in names.items():
        for key, partner in (pair, pair[::-1]):
            if key not in tensors:
                raise FileError(
                    f"{path.name}: {partner} has no partner {key}, so layer {name} can't be built. The file is "
                    "damaged or was saved in part: download or export it again."
                )
        for key in (*pair, name + MID):
            if key in tensors and not _finite(tensors[key]):
                raise FileError(
                    f"{path.name}: {key} holds NaN or inf; loading it would turn every picture black. The training "
                    "that made it went wrong: take an earlier save."
                )
    return names


def _finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or inf. Their sum tells it in one pass, unless it is itself too large."""
    return math.isfinite(tensor.sum(dtype=torch.float32)) or bool(torch.isfinite(tensor.float()).all())


def _with_mid(path: Path, name: str, tensors: Mapping[str, Tensor], down_key: str) -> Tensor:
    """The down factor, with a convolution's middle (LoCon, Tucker form) folded in: (r, in, *kernel)."""
    down, mid = tensors[down_key], tensors.get(name + MID)
    if mid is None:
        return down
    if mid.ndim != 4 or down.ndim != 4 or down.shape[2:] != (1, 1) or mid.shape[1] != down.shape[0]:
        raise FileError(
            f"{path.name}: {name}{MID} {tuple(mid.shape)} does not fit {down_key} {tuple(down.shape)}. "
            "Export the file again."
        )
    return fold_mid(down, mid)


def fold_mid(down: Tensor, mid: Tensor) -> Tensor:
    """mid ∘ down of a LoCon in Tucker form: (r, s, *kernel) and (s, in, 1, 1) -> (r, in, *kernel)."""
    return torch.einsum("rskl,si->rikl", mid.float(), down.flatten(1).float())


def _check_shapes(path: Path, name: str, up: Tensor, down: Tensor) -> None:
    flat_up = up.ndim == 2 or (up.ndim > 2 and all(side == 1 for side in up.shape[2:]))
    if not flat_up or down.ndim < 2 or 0 in (*up.shape, *down.shape) or up.shape[1] != down.shape[0]:
        raise FileError(
            f"{path.name}: the factors of {name} do not fit together: up {tuple(up.shape)}, down {tuple(down.shape)}; "
            "up must be (out, rank) and down (rank, in). Export the file again."
        )


def _alpha(path: Path, name: str, tensors: Mapping[str, Tensor], rank: int) -> float:
    """alpha; a file without one means scale 1, that is alpha = rank."""
    alpha = tensors.get(name + ALPHA)
    if alpha is None:
        return float(rank)
    if alpha.numel() != 1 or not _finite(alpha):
        raise FileError(
            f"{path.name}: {name}{ALPHA} must be one finite number, but its shape is {tuple(alpha.shape)} and its "
            f"first value {alpha.flatten()[:1].tolist()}. Export the file again."
        )
    return float(alpha)
