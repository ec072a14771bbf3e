"""How pictures are shown, drawn and held out."""

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trilora.dataset import Batches, Dataset
from trilora.errors import DataError
from trilora.overview import overview
from trilora.pictures import Picture, from_encodings, from_tensors, read_folder
from trilora.plot import contact_sheet
from trilora.seeds import generator


def test_without_a_step_every_picture_is_square():
    picture = Picture("a", "", (300, 1000), torch.zeros(1000, 300, 3))
    assert Dataset((picture,), resolution=384, bucket_step=0).size_of(picture) == (384, 384)
    assert Dataset((picture,), resolution=512, bucket_step=64).size_of(picture) == (320, 640)


@pytest.mark.parametrize(
    ("trigger", "caption", "prompt"),
    [("zxk", "a cat", "zxk, a cat"), ("zxk", "", "zxk"), ("", "a cat", "a cat"), ("", "", "")],
)
def test_the_prompt_is_the_trigger_and_the_caption(trigger, caption, prompt):
    picture = Picture("a", caption, (20, 20), torch.zeros(20, 20, 3))
    data = Dataset((picture,), trigger)
    assert data.prompt_of(picture) == prompt
    assert data.plain(caption) == caption


@pytest.mark.parametrize(
    ("caption", "plain"),
    [("zxk, a cat", "a cat"), ("a cat, Zxk", "a cat"), ("a zxk cat", "a cat"), ("zxk", ""), ("zxk zxk cat", "cat")],
)
def test_a_caption_that_says_the_trigger_itself_is_left_as_it_is_and_loses_it_where_it_must(caption, plain):
    picture = Picture("a", caption, (20, 20), torch.zeros(20, 20, 3))
    data = Dataset((picture,), "zxk")
    assert data.prompt_of(picture) == caption
    assert data.plain(caption) == plain
    assert Dataset((picture,), "xk").prompt_of(picture) == f"xk, {caption}", "a part of a word is not the word"


size_lists = st.lists(st.sampled_from([(8, 8), (8, 16), (16, 8)]), min_size=1, max_size=20).map(tuple)


def epoch(batches: Batches, number: int) -> list[list[int]]:
    return [batches.at(number * batches.per_epoch + i) for i in range(batches.per_epoch)]


@given(size_lists, st.integers(1, 6), st.integers(0, 99), st.integers(0, 3))
def test_every_index_comes_once_an_epoch_in_batches_of_one_size(sizes, batch, seed, number):
    batches = Batches(sizes, batch, seed)
    drawn = epoch(batches, number)
    assert all(len(indices) == batch for indices in drawn)
    assert all(len({sizes[i] for i in indices}) == 1 for indices in drawn)
    assert {i for indices in drawn for i in indices} == set(range(len(sizes)))
    for size, members in Counter(sizes).items():  # what is more than once fills up the last batch of its size
        rows = [indices for indices in drawn if sizes[indices[0]] == size]
        assert len(rows) == -(-members // batch)
        assert sum(len(set(indices)) == batch for indices in rows) >= members // batch
        counts = Counter(i for indices in rows for i in indices).values()
        assert max(counts) - min(counts) <= 1
        if members % batch == 0:
            assert set(counts) == {1}


@given(size_lists, st.integers(1, 4), st.integers(0, 99), st.permutations(range(12)))
def test_a_batch_depends_on_seed_and_step_alone(sizes, batch, seed, order):
    batches = Batches(sizes, batch, seed)
    asked = {step: batches.at(step) for step in order}
    assert [asked[step] for step in range(12)] == [Batches(sizes, batch, seed).at(step) for step in range(12)]


def test_epochs_differ_and_the_seed_decides():
    sizes = ((8, 8),) * 20
    batches = Batches(sizes, 4, 1)
    assert epoch(batches, 0) != epoch(batches, 1)
    assert epoch(batches, 0) == epoch(Batches(sizes, 4, 1), 0)
    assert epoch(batches, 0) != epoch(Batches(sizes, 4, 2), 0)


def test_sizes_are_mixed_within_an_epoch():
    sizes = ((8, 8),) * 20 + ((8, 16),) * 20
    order = [sizes[indices[0]] for indices in epoch(Batches(sizes, 2, 0), 0)]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def test_a_generator_is_decided_by_its_seed_and_its_purpose():
    def draw(*what):
        return torch.rand(4, generator=generator(*what)).tolist()

    assert draw(0, "noise", 1) == draw(0, "noise", 1)
    others = [draw(0, "noise", 2), draw(1, "noise", 1), draw(0, "batches", 1), draw(0, "noise", "1"), draw(0)]
    assert len({tuple(values) for values in [*others, draw(0, "noise", 1)]}) == 6


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    Batches(((8, 8),) * 5, 2, 0).at(7)
    assert torch.equal(torch.get_rng_state(), before)


def solid(shades: list[int], **settings: Any) -> Dataset:
    """A data set of one-coloured pictures; equal shades are copies."""
    images = [torch.full((20, 20, 3), shade / 255) for shade in shades]
    return Dataset(from_tensors(images, [f"shade {shade}" for shade in shades]), **settings)


@given(size_lists, st.integers(1, 6), st.integers(1, 30), st.integers(0, 9))
def test_an_epoch_of_samples_is_that_many_rounded_up_to_batches(sizes, batch, samples, seed):
    some, whole = Batches(sizes, batch, seed, samples), Batches(sizes, batch, seed)
    assert some.per_epoch == min(whole.per_epoch, -(-samples // batch))
    drawn = epoch(some, 1)
    assert all(len({sizes[i] for i in indices}) == 1 for indices in drawn)
    assert drawn == epoch(whole, 1)[: some.per_epoch]
    if samples >= len(sizes) + batch * len(set(sizes)):
        assert drawn == epoch(whole, 1)


def test_samples_are_drawn_anew_each_epoch_until_every_picture_was_seen():
    batches = Batches(((8, 8),) * 40, 2, 3, samples=10)
    epochs = [{i for indices in epoch(batches, number) for i in indices} for number in range(40)]
    assert all(len(drawn) == 10 for drawn in epochs)
    assert epochs[0] != epochs[1]
    assert set.union(*epochs) == set(range(40))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=14), st.floats(0, 0.99), st.integers(0, 5))
def test_a_split_loses_nothing_and_keeps_copies_together(shades, share, seed):
    data = solid(shades)
    train, held_out = data.split(share, seed)
    if not share or len(set(shades)) < 2:
        assert train is data
        assert held_out is None
        return
    names = [[p.name for p in side.pictures] for side in (train, held_out)]
    assert sorted(names[0] + names[1]) == sorted(p.name for p in data.pictures)
    assert min(map(len, names)) >= 1
    shown = [{p.caption for p in side.pictures} for side in (train, held_out)]
    assert not shown[0] & shown[1]
    if len(set(shades)) == len(shades):
        assert len(names[1]) == min(max(1, round(share * len(shades))), len(shades) - 1)


def test_a_split_depends_on_bytes_and_seed_not_on_order():
    shades = list(range(20))

    def held(order: list[int], seed: int) -> set[str]:
        return {p.caption for p in solid(order).split(0.3, seed)[1].pictures}

    assert held(shades, 1) == held(shades[::-1], 1)
    assert held(shades, 1) != held(shades, 2)


def test_what_is_held_out_is_shown_once_and_as_it_is():
    data = solid([1, 2, 3, 4], trigger="zxk", resolution=64, bucket_step=8, fit="pad", mirror=True, repeats=3,
                 tag_orders=4, caption_dropout=0.1)  # fmt: skip
    train, held_out = data.split(0.25, 0)
    assert train == replace(data, pictures=train.pictures)
    assert held_out == Dataset(held_out.pictures, "zxk", 64, 8, "pad")


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_outside_its_range_is_named(share):
    with pytest.raises(DataError, match=f"held-out share is {share}"):
        solid([1, 2]).split(share, 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fit": "stretch"}, "fit 'stretch' is unknown.*crop, pad"),
        ({"caption_dropout": 1.5}, "caption_dropout is 1.5"),
        ({"pictures": ()}, "no picture in the data set"),
    ],
)
def test_a_wrong_setting_is_named(settings, words):
    with pytest.raises(DataError, match=words):
        replace(solid([1]), **settings)


CHANGES = {
    "trigger": "other", "resolution": 128, "bucket_step": 0, "fit": "pad", "mirror": True, "repeats": 2,
    "tag_orders": 2, "kept_tags": 1, "caption_dropout": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Dataset) if field.name != "pictures"])
def test_every_setting_is_in_the_identity(name):
    assert solid([1, 2], **{name: CHANGES[name]}).identity() != solid([1, 2]).identity()


def test_the_identity_is_of_bytes_captions_and_masks_not_of_names():
    data = solid([1, 2])
    first, second = data.pictures

    def identity(*pictures: Picture) -> str:
        return replace(data, pictures=pictures).identity()

    assert identity(replace(first, name="x"), second) == data.identity() == solid([1, 2]).identity()
    others = [(second, first), (first,), (replace(first, caption="x"), second), (replace(first, alpha=True), second)]
    others += [(replace(first, mask=torch.ones(20, 20) * weight), second) for weight in (0.5, 1)]
    others += [tuple(solid([1, 3]).pictures)]
    assert len({data.identity(), *(identity(*pictures) for pictures in others)}) == len(others) + 1
    latents = [torch.zeros(4, 8, 8)] * 2
    one, other = (from_encodings(latents, [[torch.ones(2, 3) * words, {}]]) for words in (1, 2))
    assert identity(*one) != identity(*other)


def test_encodings_have_no_plain_caption_and_their_own_size():
    data = Dataset(from_encodings([torch.zeros(4, 8, 12)], ["words"]), trigger="zxk")
    assert data.encoded
    assert not data.has_plain
    assert data.size_of(data.pictures[0]) == (12, 8)
    assert solid([1], trigger="zxk").has_plain
    assert not solid([1]).has_plain


def test_an_overview_counts_buckets_and_names_what_is_amiss(tmp_path):
    sizes = {"a": (600, 600), "b": (600, 600), "c": (300, 600), "d": (64, 64)}
    for i, (name, size) in enumerate(sizes.items()):
        Image.new("RGB", size, (i, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "a.txt").write_text("a caption")
    frames = [Image.new("RGB", (600, 600), (0, i, 0)) for i in range(3)]
    frames[0].save(tmp_path / "e.gif", save_all=True, append_images=frames[1:])
    lines = overview(Dataset(read_folder(tmp_path), "zxk", mirror=True))
    assert lines == [
        "5 pictures, sides of 64 to 600, trigger “zxk”, mirrored too",
        "Buckets: 512 x 512: 4, 320 x 640: 1",
        "Captions: 1 of 5",
        "! 4 no caption: b.png, c.png, d.png, e.gif",
        "! 2 enlarged: c.png x1.1, d.png x8.0",
        "! 1 copies: a.png = b.png",
        "! e.gif moves or has pages: only the first of 3 is used",
    ]


def test_an_overview_of_nothing_amiss_has_no_warning():
    data = solid([1, 2], resolution=16, bucket_step=0)
    assert not [line for line in overview(data) if line.startswith("!")]
    encoded = overview(Dataset(from_encodings([torch.zeros(4, 8, 12)] * 2, ["words"])))
    assert "the base can't be preserved" in encoded[-1]
    assert encoded[1] == "Buckets: 12 x 8: 2"


def test_a_contact_sheet_marks_missing_captions_and_warnings():
    def red(heading: list[str], caption: str) -> int:
        sheet = numpy.array(contact_sheet([torch.ones(20, 20, 3)], [caption], heading)).astype(int)
        return int((abs(sheet - numpy.array([0xE4, 0x57, 0x2E])).sum(-1) < 30).sum())

    assert red(["fine"], "a cat") == 0
    assert red(["fine"], "") > 0
    assert red(["! amiss"], "a cat") > 0
