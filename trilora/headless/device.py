"""The device that a verb works on."""

import torch

from ..errors import TriLoRAError


def chosen(name: str | None = None) -> torch.device:
    """The device of that name; the GPU where there is one, when none is named.

    Raises:
        TriLoRAError: no device, or one that this machine or this build of torch does not have.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise TriLoRAError(
            f"The device {name!r} can't be used ({reason}). Give cpu, or a GPU's name as cuda:0."
        ) from error
    return device
