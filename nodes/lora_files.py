"""The LoRA files that can be chosen: those of models/loras, and those that come with the pack."""

from pathlib import Path

import folder_paths

from ..trilora import files
from ..trilora.errors import FileError

DEMO, FOLDER = "demo: ", Path(__file__).parent.parent / "demo" / "loras"


def names() -> list[str]:
    """The user's own first."""
    return [name for name in listed() if name.endswith(".safetensors") or name.startswith(DEMO)]


def listed() -> list[str]:
    """All that lie there, of other kinds too."""
    return folder_paths.get_filename_list("loras") + [DEMO + path.stem for path in sorted(FOLDER.glob("*.safetensors"))]


def path_of(name: str) -> Path:
    """The file behind one of the names.

    Raises:
        FileError: there is none any more.
    """
    if name.startswith(DEMO):
        return files.inside(FOLDER, name.removeprefix(DEMO))
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise FileError(f"{name} is not in a loras folder any more. Refresh the list (key R) and choose again.")
    return Path(path)
