"""Writing files so that nothing is ever half there."""

import contextlib
import os
from pathlib import Path

from .errors import FileError


def write(path: Path, data: bytes) -> None:
    """Write beside the place, flush, rename: a reader never sees half a file, and a failure leaves what was there.

    Raises:
        FileError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(
            f"{path} could not be written: {error.strerror or error}. Free {len(data) / 1e6:.0f} MB or choose another "
            "folder; what was there before is untouched."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
