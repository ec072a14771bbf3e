"""What a running training tells ComfyUI, and what ComfyUI tells it: bar, text, previews, cancel, stop and keep."""

import time

import comfy.model_management
import comfy.utils
from aiohttp import web
from PIL import Image
from server import PromptServer

from ..trilora.report import clock
from ..trilora.run import Run
from ..trilora.training import Step

PREVIEW_SIZE = 512  # pixels of the longer side that the page is sent
RUNNING: dict[str, Run] = {}  # node id -> the run that it is in


class Progress:
    """ComfyUI's bar with the loss and the time left as text on the node."""

    def __init__(self, node_id: str, total: int) -> None:
        self.node_id, self.bar, self.told, self.mean = node_id, comfy.utils.ProgressBar(total), 0.0, 0.0
        self.first: tuple[float, int] | None = None

    def say(self, text: str, at_once: bool = False) -> None:
        """Text on the node, at most four times a second; raises when the user cancels."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if at_once or time.monotonic() - self.told > 0.25:
            self.told = time.monotonic()
            PromptServer.instance.send_progress_text(text, self.node_id)

    def count(self, text: str, done: int, total: int) -> None:
        """What is being encoded, and how far that is."""
        self.say(f"{text} ({done} of {total})")

    def step(self, step: Step) -> None:
        """One step further."""
        now = time.monotonic()
        self.first = self.first or (now, step.number)
        self.mean = step.loss if step.number == self.first[1] else self.mean + (step.loss - self.mean) * 0.05
        rate = (step.number - self.first[1]) / max(now - self.first[0], 1e-9)
        left = f", {clock((step.total - step.number) / rate)} left" if rate else ""
        self.say(f"step {step.number} of {step.total}, loss {self.mean:.4f}, {rate:.2f} it/s{left}")
        self.bar.update_absolute(step.number, step.total)

    def show(self, picture: Image.Image, number: int, total: int) -> None:
        """A preview picture beside the bar."""
        self.bar.update_absolute(number, total, ("JPEG", picture, PREVIEW_SIZE))


def add_routes() -> None:
    """POST /trilora/stop {"node_id": ...}: the run of that node, or every run, ends after its step and is kept."""
    routes = PromptServer.instance.routes

    @routes.post("/trilora/stop")
    async def stop(request: web.Request) -> web.Response:
        asked = (await request.json()).get("node_id") if request.can_read_body else None
        stopped = [node_id for node_id in RUNNING if asked in (None, node_id)]
        for node_id in stopped:
            RUNNING[node_id].stop()
        return web.json_response({"stopped": stopped}, status=200 if stopped else 404)
