"""The memory of this process, as Linux tells it."""

import ctypes
import gc
from pathlib import Path


def resident(name: str) -> int:
    """Bytes in memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def settle() -> int:
    """Give back what is free, forget the peak, and return the bytes in memory.

    Without this, what is taken next would come out of memory that was freed before and never went back to the system,
    and nothing would seem to be taken at all.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")
