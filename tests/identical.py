"""Whether two adapters, or a MODEL before and after, are the same to the last bit."""

import hashlib
from typing import Any

import torch


def same(a: Any, b: Any) -> bool:
    """Two adapters of the same layers and the same bits."""
    return list(a.layers) == list(b.layers) and all(
        torch.equal(x, y) for name in a.layers for x, y in zip(a.layers[name], b.layers[name], strict=True)
    )


def fingerprint(model: Any) -> str:
    """A hash over every tensor of the MODEL, its name, its type and its place in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tensor.is_inference()} {tensor.data_ptr()}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
