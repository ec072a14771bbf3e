"""A real ComfyUI server with the pack in it: the one place that knows how to start, ask and stop it."""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devkit import ROOT, DevError
from devkit.terminal import tail

PACK = "TriLoRA"
"""The pack's folder name inside custom_nodes."""
START_SECONDS = 300
STOP_SECONDS = 15
FLAGS = ("--disable-auto-launch", "--disable-api-nodes")
"""The second one also keeps the web page from calling out to the internet."""
NOT_COPIED = (".venv", ".git", ".comfy", ".demo", ".*_cache", "__pycache__")


OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""Never through a proxy: the server is on this machine."""


class PromptError(DevError):
    """ComfyUI refused a workflow, or a node of it failed; the message is the node's own."""


class Server:
    """A running ComfyUI. Ask it over HTTP; `base` is its base directory (models, input, output, user)."""

    def __init__(self, port: int, base: Path, process: "subprocess.Popen[bytes]") -> None:
        self.port = port
        self.base = base
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    @property
    def log(self) -> Path:
        """All that the server has printed."""
        return self.base / "server.log"

    def get(self, path: str) -> Any:
        """GET a JSON answer."""
        with OPEN(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, data: dict[str, Any]) -> Any:
        """POST JSON and return the JSON answer, if there is one."""
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with OPEN(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any], client: str = "") -> str:
        """Queue a workflow in API form and return its id; one that ComfyUI would run only in part is refused."""
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
        except urllib.error.HTTPError as error:
            raise PromptError(refusal(error.read(), prompt)) from error
        if answer.get("node_errors"):
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            raise PromptError(refusal(json.dumps(answer).encode(), prompt))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 3600) -> dict[str, Any]:
        """Wait for a queued workflow and return its history entry."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.check_alive()
            entry = self.history(prompt_id)
            if entry:
                return succeeded(entry)
            time.sleep(0.2)
        raise DevError(f"ComfyUI was not done with the workflow within {timeout:.0f} s. Its log: {self.log}")

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a workflow; None as long as there is none, or no answer."""
        try:
            return self.get(f"/history/{prompt_id}").get(prompt_id)
        except OSError:
            return None  # too busy, or gone: the next look at the process tells which

    def run(self, prompt: dict[str, Any], timeout: float = 3600) -> dict[str, Any]:
        """Run a workflow in API form and return its history entry.

        Raises:
            PromptError: a node was refused or failed.
        """
        return self.wait(self.queue(prompt), timeout)

    def images(self, entry: dict[str, Any], node: str | None = None) -> list[Path]:
        """The picture files of a history entry, or of one node of it."""
        outputs = entry["outputs"] if node is None else {node: entry["outputs"].get(node, {})}
        return [self.file(image) for output in outputs.values() for image in output.get("images", [])]

    def file(self, item: dict[str, str]) -> Path:
        """Where a file that an output names lies on disk."""
        return self.base / item["type"] / item.get("subfolder", "") / item["filename"]

    def check_alive(self) -> None:
        """Raise with the end of its log if the server is gone."""
        if self.process.poll() is not None:
            raise DevError(
                f"{tail(self.log)}\n\nComfyUI stopped by itself (exit code {self.process.returncode}). "
                f"Its last lines are above, the whole log is {self.log}. "
                "If it was killed, the machine ran out of memory: close other programs and try again."
            )


@contextmanager
def comfy_server(
    python: Path | str, comfy: Path, base: Path, flags: Sequence[str] = (), port: int | None = None
) -> Iterator[Server]:
    """Start ComfyUI with the pack in a base directory of its own, and stop it at the end."""
    link_pack(base / "custom_nodes")
    port = port or free_port()
    command = [str(python), str(comfy / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--database-url", f"sqlite:///{base / 'comfyui.db'}"]
    command += [*FLAGS, *([] if has_cuda(python) else ["--cpu"]), *flags]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (base / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=comfy, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, **GROUP
        )
    try:
        server = Server(port, base, process)
        wait_until_ready(server)
        yield server
    finally:
        stop(process)


GROUP: dict[str, Any] = (
    {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}  # CREATE_NEW_PROCESS_GROUP
)
"""A process group of its own: Ctrl-C reaches us alone, and we stop the server in order."""


def link_pack(custom_nodes: Path) -> None:
    """Put the pack into custom_nodes: a link, or a copy where links are not allowed."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    pack = custom_nodes / PACK
    if pack.is_symlink():
        pack.unlink()
    elif pack.exists():
        shutil.rmtree(pack)
    try:
        pack.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        shutil.copytree(ROOT, pack, ignore=shutil.ignore_patterns(*NOT_COPIED))


def free_port(wanted: int = 0) -> int:
    """The wanted port if nobody listens there, else any free one."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port()
        return probe.getsockname()[1]


def has_cuda(python: Path | str) -> bool:
    """Whether torch can use an NVIDIA card here; torch is only asked where the driver shows one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return False
    question = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([str(python), "-c", question], capture_output=True).returncode == 0


def wait_until_ready(server: Server) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        server.check_alive()
        try:
            server.get("/queue")
            return
        except OSError:
            time.sleep(0.2)
    raise DevError(f"{tail(server.log)}\n\nComfyUI did not answer within {START_SECONDS} s. Its log: {server.log}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask the server to stop as Ctrl-C would, and insist if it does not."""
    if process.poll() is None:
        process.terminate() if os.name == "nt" else process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def succeeded(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the history entry of a workflow that ran to its end.

    Raises:
        PromptError: it did not; the message is the failing node's own.
    """
    if entry["status"]["completed"]:
        return entry
    messages = dict(entry["status"]["messages"])
    failed = messages.get("execution_error")
    if not failed:
        raise PromptError("The workflow was interrupted.")
    raise PromptError(f"Node {failed['node_id']} ({failed['node_type']}): {failed['exception_message'].strip()}")


def refusal(body: bytes, prompt: dict[str, Any]) -> str:
    """What ComfyUI has against a workflow, node by node."""
    try:
        answer = json.loads(body)
    except ValueError:
        return f"ComfyUI refused the workflow: {body.decode(errors='replace')}"
    lines = [f"ComfyUI refused the workflow: {words(answer.get('error', {}))}"]
    for node, found in answer.get("node_errors", {}).items():
        name = found.get("class_type") or prompt.get(node, {}).get("class_type", "?")
        lines += [f"  node {node} ({name}): {words(error)}" for error in found["errors"]]
    return "\n".join(lines)


def words(error: Any) -> str:
    """One of ComfyUI's error records as a sentence."""
    if not isinstance(error, dict):
        return str(error)
    return ": ".join(part for part in (error.get("message"), error.get("details")) if part)
