"""What a training sends to pages: nothing unasked, then increments, at most four a second."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from demo.workflow import TRIGGER, node
from devkit.events import Events
from devkit.server import OPEN, Server

pytestmark = pytest.mark.server

WORKFLOW = "00000000-0000-4000-8000-000000000001"
OTHER = "00000000-0000-4000-8000-000000000002"
STEPS = 40
TRAINING = {
    "targets": "attention", "alpha": 8.0, "preserve": 0.3, "shrink": 0.0, "clip_norm": 1.0,
    "method": "trilora", "method.core": "diagonal", "method.initialisation": "balanced",
}  # fmt: skip


def graph(seed: int) -> dict[str, Any]:
    wires = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["data", 0]}
    return {
        "base": node("TriLoRADemoModel"),
        "data": node("TriLoRADataset", folder="demo: stained_glass", trigger=TRIGGER, resolution=64, bucket_step=0),
        "watch": node(
            "TriLoRATrainWatch", held_out_share=0.1, score_every=20, patience=0, keep_best=True, checkpoint_every=0,
            checkpoints=1, resume=False, previews="on",
            **{"previews.every": 20, "previews.prompt": "", "previews.seed": 1, "previews.steps": 2,
               "previews.cfg": 3.5},
        ),
        "train": node(
            "TriLoRATrain", **wires, watch=["watch", 0], steps=STEPS, learning_rate=3e-3, rank=2, batch=1, seed=seed,
            **TRAINING,
        ),
        "save": node("TriLoRASave", trilora=["train", 0], filename="watched", precision="float32"),
    }  # fmt: skip


class Listener:
    """A client of the server, and when it heard what."""

    def __init__(self, server: Server, client: str) -> None:
        self.server, self.client = server, client
        self.heard: list[tuple[float, str, dict[str, Any]]] = []
        self.events = Events(server.port, client)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for kind, data in self.events:
            self.heard.append((time.monotonic(), kind, data))

    def watch(self, workflow: str) -> list[dict[str, Any]]:
        return self.server.post("/trilora/watch", {"client_id": self.client, "workflow": workflow})["runs"]

    def run(self, seed: int, workflow: str = WORKFLOW) -> None:
        """Queue the graph as a page with this workflow does, and wait for its end."""
        extra = {"extra_pnginfo": {"workflow": {"id": workflow}}}
        body = {"prompt": graph(seed), "client_id": self.client, "extra_data": extra}
        self.server.wait(self.server.post("/prompt", body)["prompt_id"], 120)
        time.sleep(0.5)  # for what is still under way

    def progress(self) -> list[tuple[float, dict[str, Any]]]:
        return [(at, data) for at, kind, data in self.heard if kind == "trilora.progress"]


@pytest.fixture(scope="module")
def pages(comfy_server: Server) -> Iterator[dict[str, Listener]]:
    """Two pages while a workflow ran that one of them shows."""
    pages = {name: Listener(comfy_server, name) for name in ("watching", "elsewhere")}
    pages["watching"].watch(WORKFLOW)
    assert pages["elsewhere"].watch(OTHER) == []
    pages["watching"].run(seed=1)
    yield pages
    for page in pages.values():
        page.events.close()


def test_a_page_gets_at_most_four_messages_a_second(pages: dict[str, Listener]) -> None:
    times = [at for at, _ in pages["watching"].progress()]
    assert len(times) > 3
    assert all(later - at > 0.95 for at, later in zip(times, times[4:], strict=False))


def test_a_page_gets_each_step_once_and_every_score_picture_and_spectrum(pages: dict[str, Listener]) -> None:
    told = [data for _, data in pages["watching"].progress()]
    assert [step for data in told for step in data["steps"]] == list(range(1, STEPS + 1))
    assert {step for data in told for step in data["pictures"]} == {0, 20, 40}
    assert {step for data in told for step, _ in data["spectra"]} == {20, 40}
    assert {step for data in told for step, _ in data["held_out"]} == {0, 20, 40}
    assert (told[-1]["stage"], told[-1]["step"]) == ("ended", STEPS)
    assert "train" not in [data["node"] for _, kind, data in pages["watching"].heard if kind == "text"]


def test_a_page_that_comes_afterwards_gets_all_of_it_at_once(pages: dict[str, Listener]) -> None:
    (told,) = pages["watching"].watch(WORKFLOW)
    assert (told["node"], told["whole"], told["steps"]) == ("train", True, list(range(1, STEPS + 1)))
    assert all(value is not None for value in told["loss"])


def test_a_page_with_another_workflow_hears_nothing(pages: dict[str, Listener]) -> None:
    assert pages["elsewhere"].progress() == []


def test_without_a_page_that_shows_it_a_run_says_its_steps_as_text(pages: dict[str, Listener]) -> None:
    page = pages["watching"]
    page.watch("")
    before = len(page.heard)
    page.run(seed=2)
    heard = [(kind, data.get("node")) for _, kind, data in page.heard[before:]]
    assert ("text", "train") in heard
    assert "trilora.progress" not in [kind for kind, _ in heard]


def test_save_and_stop_find_no_run_where_nothing_learns(comfy_server: Server) -> None:
    for route in ("stop", "save"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            comfy_server.post(f"/trilora/{route}", {"node_id": "train"})


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b'"stop"'])
def test_what_is_no_json_object_is_refused_as_the_askers_mistake(comfy_server: Server, body: bytes) -> None:
    for route in ("watch", "stop", "save"):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{comfy_server.url}/trilora/{route}", body, headers)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            OPEN(request, timeout=60)
