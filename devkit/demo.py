"""Run a workflow on a running ComfyUI, show how far it is, and tell where its results lie."""

import json
import shutil
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from devkit import ROOT, DevError
from devkit.events import Events
from devkit.server import Server
from devkit.terminal import StatusLine, clock

BAR = 16


class Watch:
    """Turns ComfyUI's events into a status line, one for each node in turn."""

    def __init__(self, prompt: dict[str, Any]) -> None:
        self.prompt = prompt
        self.line = StatusLine()
        self.seen: list[str] = []
        self.start = time.monotonic()
        self.text = ""

    def follow(self, events: Events) -> None:
        """Show events until the server hangs up."""
        handlers = {"executing": self.executing, "progress": self.progress, "text": self.note}
        try:
            for kind, data in events:
                if kind in handlers:
                    handlers[kind](data)
        except OSError:
            return  # hung up in the middle of a message

    def executing(self, data: dict[str, Any]) -> None:
        """A node begins, so the one before it has ended; no node: the workflow has ended."""
        if self.seen and self.seen[-1] != data["node"]:
            self.line.done(f"{self.head()}  {clock(time.monotonic() - self.start)}  {self.text}".rstrip())
        if data["node"] and data["node"] not in self.seen[-1:]:
            self.seen.append(data["node"])
            self.start, self.text = time.monotonic(), ""
            self.line.show(f"{self.head()} ...")

    def progress(self, data: dict[str, Any]) -> None:
        """A node is so far along."""
        value, total = data["value"], max(data["max"], 1)
        took = time.monotonic() - self.start
        bar = ("#" * (BAR * value // total)).ljust(BAR, ".")
        speed = f"{value / took:.2f} it/s, {clock((total - value) * took / value)} left" if value and took > 1 else ""
        self.line.show(f"{self.head()}  {bar} {value}/{total}  {self.text}  {speed}".rstrip())

    def note(self, data: dict[str, Any]) -> None:
        """A node says a line about its work."""
        self.text = " ".join(data["text"].split())

    def head(self) -> str:
        """Which node of how many is at work."""
        return f"[{len(self.seen):2}/{len(self.prompt)}] {title(self.prompt, self.seen[-1])}"


def title(prompt: dict[str, Any], node: str) -> str:
    """A node's title as the workflow's author gave it, else its type."""
    record = prompt.get(node, {})
    return record.get("_meta", {}).get("title") or record.get("class_type", f"node {node}")


def run_watched(server: Server, prompt: dict[str, Any]) -> dict[str, Any]:
    """Run a workflow with its progress on the terminal, and return its history entry."""
    client = uuid.uuid4().hex
    events, watch = Events(server.port, client), Watch(prompt)
    reader = threading.Thread(target=watch.follow, args=(events,), daemon=True)
    reader.start()
    try:
        entry = server.wait(server.queue(prompt, client), timeout=24 * 3600)
        reader.join(2)  # the last node's line comes just after the result
        return entry
    finally:
        events.close()
        if watch.line.live:
            print()


def pictures(server: Server, prompt: dict[str, Any], entry: dict[str, Any]) -> list[tuple[str, str]]:
    """(title of the node, file) of every picture, in the order of the workflow."""
    return [
        (title(prompt, node), str(keep(server, image)))
        for node in prompt
        for image in entry["outputs"].get(node, {}).get("images", [])
    ]


def lay_out_sheet(python: Path, cells: list[tuple[str, str]], out: Path) -> Path:
    """Put the pictures on one labelled sheet, with the environment's Pillow."""
    command = [str(python), str(ROOT / "demo" / "sheet.py"), str(out)]
    done = subprocess.run(command, input=json.dumps(cells).encode(), capture_output=True)
    if done.returncode:
        raise DevError(f"The sheet of pictures could not be made:\n{done.stderr.decode()}")
    return out


def keep(server: Server, image: dict[str, str]) -> Path:
    """Where a picture lies; a preview is copied into output/, because ComfyUI empties its temp folder when it stops."""
    file = server.file(image)
    if image["type"] != "temp":
        return file
    kept = server.base / "output" / "previews" / file.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy2(file, kept))


def adapters(base: Path, since: float) -> list[Path]:
    """The adapter files written since then."""
    files = list((base / "models" / "loras").rglob("*.safetensors"))
    return sorted(file for file in files if file.stat().st_mtime >= since)
