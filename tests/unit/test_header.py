"""What a LoRA file tells of itself before it is loaded, whoever made it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trilora.dataset import Dataset
from trilora.errors import FileError
from trilora.factors import Factors
from trilora.files import Adapter, save
from trilora.header import LETTERS, TAGS, read
from trilora.metadata import base_named, describe
from trilora.pictures import Picture
from trilora.settings import Settings

CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def pair(name: str = CROSS, rank: int = 4, width: int = 768) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_up.weight": torch.zeros(8, rank), f"{name}.lora_down.weight": torch.zeros(rank, width)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.safetensors"


def test_a_file_that_was_trained_here_tells_rank_base_trigger_and_settings(path: Path) -> None:
    settings = Settings(rank=4, steps=20, batch=2, learning_rate=2e-3, preserve=0.5)
    dataset = Dataset((Picture("p", "a cat, sea", (8, 8), torch.zeros(8, 8, 3)),), "inkstyle", repeats=3)
    said = describe(settings, dataset, base_named("SDXL"), "base.safetensors", [0.25] * 20)
    save(Adapter({CROSS: Factors(torch.eye(8, 4), torch.ones(4), torch.eye(4, 8))}, said), path)
    header = read(path)
    assert (header.kind, header.layers, header.ranks) == ("LoRA", 1, (4, 4))
    assert (header.base, header.guessed) == ("SDXL", False)
    assert header.triggers == ("inkstyle",)
    assert header.size == path.stat().st_size
    told = {"steps": "20", "batch": "2", "learning rate": "0.002", "preserve": "0.5", "loss": "0.250000"}
    assert told.items() <= header.settings.items()
    assert "min-SNR" not in header.settings  # it was off


def test_a_file_of_kohyas_tools_tells_its_most_frequent_tags_where_it_has_no_trigger(path: Path) -> None:
    tags = {f"tag {i}": i for i in range(1, 40)}
    said = {
        "ss_base_model_version": "sd_v1",
        "ss_tag_frequency": json.dumps({"10_a": tags, "1_b": {"tag 3": 100, "": 7}}),
        "ss_datasets": json.dumps([{"subsets": [{"class_tokens": None}]}]),
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1)",
        "ss_resolution": "(512, 512)",
        "ss_training_comment": "None",
    }
    save_file(pair(), path, said)
    header = read(path)
    assert header.triggers == ()
    assert header.tags[:2] == (("tag 3", 103), ("tag 39", 39))
    assert len(header.tags) == TAGS
    assert header.settings == {"optimizer": "AdamW(weight_decay=0.1)", "resolution": "512x512"}


def test_class_tokens_are_the_trigger_where_there_is_no_phrase(path: Path) -> None:
    subsets = [{"class_tokens": "ohwx man"}, {"class_tokens": "ohwx man, sks"}, "odd"]
    save_file(pair(), path, {"ss_datasets": json.dumps([{"subsets": subsets}, "odd", {"subsets": 3}])})
    assert read(path).triggers == ("ohwx man", "sks")


@pytest.mark.parametrize(("width", "base"), [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL"), (333, "")])
@pytest.mark.parametrize("name", [CROSS, "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_v"])
def test_a_file_without_metadata_tells_its_base_by_its_layers(path: Path, width: int, base: str, name: str) -> None:
    save_file(pair(name, width=width), path)
    header = read(path)
    assert (header.base, header.guessed) == (base, bool(base))
    assert (header.triggers, header.tags, header.settings) == ((), (), {})


def test_layers_of_different_rank_are_told_as_a_span(path: Path) -> None:
    save_file(pair("lora_unet_a", 2) | pair("lora_te1_b", 32), path)
    assert read(path).ranks == (2, 32)


def test_another_kind_of_adapter_is_named(path: Path) -> None:
    save_file({"lora_unet_a.hada_w1_a": torch.zeros(4, 2)}, path)
    assert replace(read(path), size=0, settings={}) == replace(read(path), size=0, kind="LoHa", layers=0, ranks=())


@pytest.mark.parametrize("text", ["{", "3", "null", '["a"]', '{"a": 3}', '{"a": {"b": "c"}}'])
def test_metadata_that_is_no_table_is_passed_over(path: Path, text: str) -> None:
    save_file(pair(), path, {"ss_tag_frequency": text, "ss_datasets": text, "trilora.settings": text})
    header = read(path)
    assert (header.triggers, header.tags, header.settings) == ((), (), {})


def test_a_long_text_is_cut(path: Path) -> None:
    save_file(pair(), path, {"ss_training_comment": "word\n" * 1000, "modelspec.trigger_phrase": "x" * 1000})
    header = read(path)
    assert len(header.settings["comment"]) == LETTERS
    assert header.settings["comment"].startswith("word word")
    assert len(header.triggers[0]) == LETTERS


@pytest.mark.parametrize("data", [b"", b"\x40" + b"\0" * 7 + b"{not a header", b"\xff" * 64])
def test_a_broken_file_is_told_in_words(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"some\.safetensors is not a whole safetensors file"):
        read(path)


def test_a_file_that_was_cut_short_is_told_in_words(path: Path) -> None:
    save_file(pair(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FileError, match="cut short"):
        read(path)
