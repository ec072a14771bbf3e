"""What an adapter says of the pictures it was trained on."""

import json

import torch

from trilora.dataset import Dataset
from trilora.metadata import base_named, describe
from trilora.pictures import Encoding, Picture
from trilora.settings import Settings

SETTINGS = Settings(steps=20, batch=2)
BASE = base_named("SDXL")


def picture(caption: str) -> Picture:
    return Picture("p", caption, (8, 8), torch.zeros(8, 8, 3))


def test_repeats_and_epochs_are_told_as_kohya_counts_them() -> None:
    dataset = Dataset((picture("a cat, sea"), picture("a dog, sea")), "inkstyle", repeats=3)
    said = describe(SETTINGS, dataset, BASE, "", [0.5] * 20)
    assert json.loads(said["ss_tag_frequency"]) == {"3_inkstyle": {"sea": 2, "a cat": 1, "a dog": 1}}
    assert said["ss_num_train_images"] == "6"
    assert said["ss_num_epochs"] == "7"  # 20 steps of 2 pictures are 40; 6 an epoch


def test_a_run_that_ended_at_once_counts_no_epoch() -> None:
    said = describe(SETTINGS, Dataset((picture("a cat"),)), BASE, "", [])
    assert said["ss_num_epochs"] == said["ss_steps"] == "0"
    assert said["trilora.loss"] == ""


def test_encoded_pictures_have_no_table_of_tags() -> None:
    encoded = Picture("p", "", (8, 8), Encoding(torch.zeros(4, 8, 8), None))
    said = describe(SETTINGS, Dataset((encoded,)), BASE, "", [0.5])
    assert "ss_tag_frequency" not in said
    assert all(isinstance(value, str) for value in said.values())
