"""One line of progress: rewritten in place on a terminal, a new line now and then anywhere else."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from devkit import DevError

TAIL = 20
"""How many lines of a failed command's log are shown."""


class StatusLine:
    """A line that changes while something goes on."""

    def __init__(self, every: float = 20.0) -> None:
        self.live = sys.stdout.isatty()
        self.every = every
        self.last = 0.0

    def show(self, text: str) -> None:
        """Replace the line; without a terminal, print it at most once in `every` seconds."""
        now = time.monotonic()
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", flush=True)
        elif now - self.last >= self.every:
            self.last = now
            print(text, flush=True)

    def done(self, text: str) -> None:
        """Print the line for good; the next one starts below it."""
        print(f"\r\033[K{text}" if self.live else text, flush=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def tail(log: Path, lines: int = TAIL) -> str:
    """The last lines of a log file, as one text without colours."""
    text = re.sub(r"\033\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
    return "\n".join(text.splitlines()[-lines:])


def run_quietly(title: str, command: list[str], log: Path, remedy: str, env: dict[str, str] | None = None) -> None:
    """Run a command behind a status line, its output in `log`.

    Raises:
        DevError: the command failed; the message has the end of its output and `remedy`.
    """
    start, line = time.monotonic(), StatusLine()
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})}) as job,
    ):
        try:
            while job.poll() is None:
                line.show(f"{title} ... {clock(time.monotonic() - start)}")
                time.sleep(0.2)
        except BaseException:
            job.terminate()
            raise
    if job.returncode:
        line.done(f"{title}: failed")
        raise DevError(f"{tail(log)}\n\n{title} failed (exit code {job.returncode}). {remedy}\nThe whole log: {log}")
    line.done(f"{title}: {clock(time.monotonic() - start)}")
