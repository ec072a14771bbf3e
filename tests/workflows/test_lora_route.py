"""What the page asks of a LoRA file, over HTTP: the header of what is in a loras folder, and of nothing else."""

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import save_file

from devkit.server import Server

pytestmark = pytest.mark.server

PAIR = {"lora_unet_a.lora_up.weight": torch.zeros(8, 4), "lora_unet_a.lora_down.weight": torch.zeros(4, 8)}


@pytest.fixture
def loras(comfy_server: Server) -> Iterator[Path]:
    folder = comfy_server.base / "models" / "loras" / "told"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for path in folder.iterdir():
        path.unlink()


def ask(server: Server, name: str) -> Any:
    return server.get(f"/trilora/lora?name={name}")


def test_a_file_in_a_subfolder_tells_of_itself(comfy_server: Server, loras: Path) -> None:
    save_file(PAIR, loras / "a file & more.safetensors", {"modelspec.trigger_phrase": "zorvex"})
    told = ask(comfy_server, quote("told/a file & more.safetensors"))
    assert (told["ranks"], told["triggers"]) == ([4, 4], ["zorvex"])
    assert ask(comfy_server, quote("told/a file & more.safetensors", safe="")) == told


def test_an_adapter_that_comes_with_the_pack_tells_of_itself(comfy_server: Server) -> None:
    told = ask(comfy_server, quote("demo: stained_glass"))
    assert (told["ranks"], told["triggers"]) == ([8, 8], ["zorvex"])


def test_a_file_that_was_saved_anew_is_read_anew(comfy_server: Server, loras: Path) -> None:
    for word in ("one", "two"):
        save_file(PAIR, loras / "same.safetensors", {"modelspec.trigger_phrase": word})
        assert ask(comfy_server, "told/same.safetensors")["triggers"] == [word]


def test_a_broken_file_is_told_in_words_and_is_no_failure_of_the_server(comfy_server: Server, loras: Path) -> None:
    (loras / "broken.safetensors").write_bytes(b"nothing of the kind")
    assert ask(comfy_server, "told/broken.safetensors")["problem"].startswith(
        "broken.safetensors is not a whole safetensors file"
    )
    (loras / "old.pt").write_bytes(b"a pickle")
    assert "other formats can run code" in ask(comfy_server, "told/old.pt")["problem"]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors", "..%2Fsecret.safetensors", "%2e%2e%2fsecret.safetensors", "....//secret.safetensors",
        "told/../../secret.safetensors", "..%5Csecret.safetensors", "secret.safetensors%00.safetensors",
        "{base}/models/secret.safetensors", "file://{base}/models/secret.safetensors", "told", "told/", "", ".",
        "missing.safetensors",
    ],
)  # fmt: skip
def test_what_is_not_in_a_loras_folder_is_never_opened(comfy_server: Server, loras: Path, name: str) -> None:
    save_file(PAIR, comfy_server.base / "models" / "secret.safetensors", {"modelspec.trigger_phrase": "secret"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(comfy_server, name.format(base=comfy_server.base))
    assert refused.value.code == 404
    assert json.loads(refused.value.read())["error"].endswith("is no file of a loras folder.")


def test_a_question_without_a_name_is_refused(comfy_server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        comfy_server.get("/trilora/lora")
    assert refused.value.code == 404
