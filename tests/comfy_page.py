"""ComfyUI's own page in a browser: load a workflow, queue it, look."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Locator, Page

from devkit import ROOT
from devkit.server import PACK, Server

SCREENSHOTS = ROOT / "build" / "screenshots"
OF_CORE = ("/user.css", "/api/userdata", "/templates/index", "core workflow templates", "before initialization")
"""What the front end says in its console with no pack at all: files that a new user and a slim server don't have."""
READY = "() => window.app?.isGraphReady && app.rootGraph.nodes.length && app.extensionManager.workflow.activeWorkflow"
LOAD = """async ([workflow, name]) => {
    const form = workflow.nodes ? app.loadGraphData(workflow, true, true, name) : app.loadApiJson(workflow, name);
    await form;
    app.canvas.setDirty(true, true);
}"""
SHOWN = """([id, scale]) => {
    const node = app.graph.getNodeById(id), ds = app.canvas.ds;
    ds.scale = scale;
    ds.offset[0] = 100 / scale - node.pos[0];
    ds.offset[1] = 100 / scale - node.pos[1];
    app.canvas.setDirty(true, true);
}"""
DRAFTED = """() => {
    const values = (workflow) => JSON.stringify(workflow.nodes.map((node) => node.widgets_values));
    const drafts = Object.entries(localStorage).filter(([key]) => key.includes("Workflow.Draft.v"));
    return drafts.some(([, draft]) => values(JSON.parse(JSON.parse(draft).data)) === values(app.graph.serialize()));
}"""


@contextmanager
def drawn_in(server: Server, renderer: str, theme: str = "dark") -> Iterator[None]:
    """Within the block, pages that are opened have this renderer ("classic" or "new") and this theme."""
    server.post("/settings", {"Comfy.VueNodes.Enabled": renderer == "new", "Comfy.ColorPalette": theme})
    try:
        yield
    finally:
        server.post("/settings", {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark"})


class ComfyPage:
    """A tab with ComfyUI's front end. `errors` holds everything that went wrong in its console.

    `workflow` is the id that an opened template gets; tabs with the same one show the same runs.
    """

    def __init__(self, page: Page, server: Server, workflow: str) -> None:
        self.page, self.server, self.workflow = page, server, workflow
        self.errors: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))

    def _hear(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url')})"
        if message.type == "error" and not any(known in text for known in OF_CORE):
            self.errors.append(text)

    def open(self, template: str = "train_your_first_style") -> "ComfyPage":
        """Open one of the pack's templates by its address, as a link to it does."""
        self.server.post("/settings", {"Comfy.TutorialCompleted": False})  # true opens a graph that looks for models
        file = json.loads((ROOT / "example_workflows" / f"{template}.json").read_text(encoding="utf-8"))
        named = {**file, "id": self.workflow}  # else a panel shows the last run of the test before
        self.page.route(f"**/{template}.json*", lambda route: route.fulfill(json=named))
        self.page.goto(f"{self.server.url}/?template={template}&source={PACK}")
        self.page.wait_for_function(READY, timeout=120_000)
        return self

    def reload(self) -> None:
        """Reload the page; the front end brings the open workflow back."""
        self.page.reload()
        self.page.wait_for_function(READY, timeout=120_000)

    def wait_for_draft(self) -> None:
        """Wait until the front end keeps what the widgets hold now: a reload brings that back."""
        self.page.wait_for_function(DRAFTED, timeout=30_000)

    def load(self, workflow: dict[str, Any], name: str = "test") -> None:
        """Put a workflow, in either form, into the graph."""
        self.page.evaluate(LOAD, [workflow, name])

    def run(self, script: str, argument: Any = None) -> Any:
        """Evaluate JavaScript in the page; `app` is ComfyUI's."""
        return self.page.evaluate(script, argument)

    def queue(self) -> str:
        """Queue the graph as the Run button does, and return the prompt's id."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/prompt")) as answer:
            self.page.evaluate("() => app.queuePrompt(0)")
        return answer.value.json()["prompt_id"]

    def set(self, node_id: int, **widgets: Any) -> None:
        """Set widgets of a node by name."""
        script = """([id, values]) => {
            const node = app.graph.getNodeById(id);
            for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name];
        }"""
        self.page.evaluate(script, [node_id, widgets])

    def look_at(self, node_id: int, scale: float = 1.0) -> None:
        """Bring a node to the upper left corner of the view."""
        self.page.evaluate(SHOWN, [node_id, scale])
        self.page.wait_for_timeout(150)

    def panel(self, label: str) -> Locator:
        """The panel of a node, by its label."""
        return self.page.get_by_role("region", name=label)

    def until(self, true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """Wait for something and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := true():
                return found
            self.page.wait_for_timeout(100)
        raise AssertionError(f"not within {seconds:.0f} s: {what}")

    def screenshot(self, name: str) -> Path:
        """Keep what is seen now under build/screenshots/."""
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path
