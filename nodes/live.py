"""What pages are told of a training: everything when they ask, then what is new, at most four times a second.

Nothing is made or sent while no page asks. The training's own thread only leaves word that there is news; putting it
together and sending it is the work of the server's event loop.
"""

import math
import uuid
from pathlib import Path
from typing import Any

import folder_paths
from server import PromptServer

from ..trilora.checkpoint import History
from ..trilora.run import Run

EVENT = "trilora.progress"
APART = 0.3  # seconds between two messages on one run
POINTS = 2000  # of a loss curve in one message; longer ones are sent with gaps
KEPT = 16  # runs that pages can ask for, the last one of each node

RUNS: dict[tuple[str, str], "Live"] = {}  # (workflow, node) -> the last run there
ASKED: dict[str, str] = {}  # client -> the workflow that it shows


def listeners(workflow: str) -> list[str]:
    """The clients, still connected, that show a workflow."""
    sockets = PromptServer.instance.sockets
    return [client for client, shown in list(ASKED.items()) if shown == workflow and client in sockets]


def runs() -> list["Live"]:
    """Those that pages can ask of; a list, because a training may begin while they are looked through."""
    return list(RUNS.values())


class Live:
    """One training as pages see it; each attribute is set by the training's thread.

    Attributes:
        node, workflow: whose it is.
        stage: "working" (text says at what), "learning", "ended", "cancelled" or "failed".
        said: sentences before and after.
        run: while it learns.
        pace: steps a second, seconds left, learning rate.
        pictures: steps of which there is a preview, files of `folder` under output/.
        spectra: (step, singular values) since the first.
        saved: what was last put on disk: step and file, or the problem.
        save_asked: to put it on disk after the present step.
    """

    def __init__(self, node: str, workflow: str, total: int) -> None:
        self.node, self.workflow, self.total = node, workflow, total
        self.token = uuid.uuid4().hex[:8]
        self.stage, self.text, self.folder, self.best = "working", "", "", 0
        self.said: list[str] = []
        self.run: Run | None = None
        self.history = History()
        self.pace: dict[str, float] = {}
        self.pictures: list[int] = []
        self.spectra: list[tuple[int, list[float]]] = []
        self.saved: dict[str, Any] | None = None
        self.save_asked = False
        self._sent, self._pending, self._next = 0, False, 0.0
        RUNS.pop((workflow, node), None)
        RUNS[workflow, node] = self
        for key in list(RUNS)[:-KEPT]:
            del RUNS[key]

    @property
    def watched(self) -> bool:
        """Whether any page shows it."""
        return bool(listeners(self.workflow))

    def set(self, **changed: Any) -> None:
        """Change attributes, and let pages know."""
        for name, value in changed.items():
            setattr(self, name, value)
        if not self._pending and self.watched:
            self._pending = True
            PromptServer.instance.loop.call_soon_threadsafe(self._soon)

    def keep_pictures(self, folder: Path, steps: list[int]) -> None:
        """The previews there are: files of the run's folder, of these steps."""
        inside = folder.relative_to(folder_paths.get_output_directory()).as_posix()
        self.set(folder=inside, pictures=steps)

    def whole(self) -> dict[str, Any]:
        """Everything, for a page that has just come."""
        return self._since(0) | {"whole": True}

    def _soon(self) -> None:
        loop = PromptServer.instance.loop
        loop.call_later(max(0.0, self._next - loop.time()), self._send)

    def _send(self) -> None:
        server = PromptServer.instance
        self._pending, self._next = False, server.loop.time() + APART
        message = self._since(self._sent)
        self._sent = message["step"]
        for client in listeners(self.workflow):
            server.send_sync(EVENT, message, client)

    def _since(self, after: int) -> dict[str, Any]:
        """What is new after a step; what came at that step itself once more, since it may have come after the word."""
        history = self.history
        last = min(len(history.loss), len(history.preservation))
        steps = range(after + 1, last + 1, max(1, (last - after) // POINTS))
        return {
            "workflow": self.workflow, "node": self.node, "run": self.token, "after": after, "step": last,
            "total": self.total, "stage": self.stage, "text": self.text, "said": self.said, "best": self.best,
            "learning": self.run is not None, "folder": self.folder, "saved": self.saved, **self.pace,
            "steps": list(steps),
            "loss": [_number(history.loss[step - 1]) for step in steps],
            "preservation": [_number(history.preservation[step - 1]) for step in steps],
            "held_out": [(step, _number(v)) for step, v in list(history.held_out.items()) if step >= after],
            "pictures": [step for step in self.pictures if step >= after],
            "spectra": [entry for entry in self.spectra if entry[0] >= after],
        }  # fmt: skip


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
