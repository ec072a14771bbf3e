"""What `dev.py` is made of: an environment, a ComfyUI, a running server.

Standard library only: it runs before anything is installed.
"""

from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
"""The pack's own folder."""


class DevError(Exception):
    """Something the person at the terminal can mend; the message says what and how."""
