"""How pictures are shown, drawn and held out."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trilora.dataset import Batches, Dataset, generator
from trilora.pictures import Picture

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
    assert Dataset((picture,), trigger).prompt_of(picture) == prompt


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
