"""Merge and resize: the sum of the deltas, the truncated SVD, and an honest account of what was lost."""

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, KERNELS, dense, factor_sets, far, make, seeds, sides, size
from torch.utils._python_dispatch import TorchDispatchMode

from trilora import files
from trilora.combine import merge, resize
from trilora.cutting import at_energy, at_rank, at_size
from trilora.errors import RankError, TargetError, TriLoRAError
from trilora.factors import Factors, canonical
from trilora.files import Adapter

Q, K, CONV = "lora_unet_blocks_0_attn_q", "lora_unet_blocks_0_attn_k", "lora_unet_blocks_0_conv"


def decaying(out: int, inner: int, rank: int, seed: int = 0, kernel: tuple[int, ...] = (), power: float = 1) -> Factors:
    """Canonical factors with singular values 1, 2^-p, 3^-p ..."""
    exact = canonical(make(out, inner, rank, seed, kernel=kernel))
    return exact._replace(sigma=torch.arange(1, exact.rank + 1).float() ** -power)


def example(seed: int = 0, rank: int = 8) -> Adapter:
    layers = {Q: decaying(40, 30, rank, seed), K: decaying(24, 30, rank, seed + 1, power=0.5)}
    return Adapter({**layers, CONV: decaying(20, 16, rank, seed + 2, (3, 3), 2)}, {"modelspec.title": "ink"})


def parts(count: int, out: int, inner: int, kernel: tuple[int, ...], seed: int) -> list[Adapter]:
    return [Adapter({Q: make(out, inner, 1 + i, seed + 10 * i, kernel=kernel)}) for i in range(count)]


@given(st.integers(1, 4), sides, sides, st.sampled_from(KERNELS), seeds)
def test_a_merge_is_the_weighted_sum_of_the_deltas(count, out, inner, kernel, seed):
    adapters, weights = parts(count, out, inner, kernel, seed), [0.5 - i for i in range(count)]
    merged, report = merge(adapters, weights, at_energy)
    want = sum(w * dense(a.layers[Q]) for w, a in zip(weights, adapters, strict=True))
    assert far(dense(merged.layers[Q]), want) <= 1e-5 * sum(size(a.layers[Q]) for a in adapters)
    assert report.share == 1


@given(st.integers(2, 3), sides, sides, st.sampled_from(KERNELS), seeds, st.integers(1, 6))
def test_a_merge_at_rank_k_is_the_truncated_svd_of_the_sum(count, out, inner, kernel, seed, k):
    adapters = parts(count, out, inner, kernel, seed)
    merged, report = merge(adapters, [1.0] * count, partial(at_rank, rank=k))
    whole = sum(dense(a.layers[Q]) for a in adapters)
    values = torch.linalg.svdvals(whole.flatten(1))
    lost = far(dense(merged.layers[Q]), whole)
    assert lost == pytest.approx(float(values[k:].norm()), abs=1e-5 * float(values[0]))
    assert 1 - report.share == pytest.approx((lost / float(values.norm())) ** 2, abs=1e-5)


def test_a_layer_that_one_adapter_has_alone_is_kept_with_its_weight():
    merged, _ = merge([example(), Adapter({Q: make(40, 30, 2)})], [0.5, 2.0], at_energy)
    assert list(merged.layers) == [Q, K, CONV]
    assert far(dense(merged.layers[CONV]), 0.5 * dense(example().layers[CONV])) < 1e-6


def test_merging_an_adapter_with_itself_adds_no_rank():
    merged, _ = merge([example(), example()], [1.0, 0.5], at_energy)
    assert {factors.rank for factors in merged.layers.values()} == {8}
    assert far(dense(merged.layers[Q]), 1.5 * dense(example().layers[Q])) < 1e-6


def test_a_1_x_1_convolution_and_a_linear_layer_are_one_matrix():
    linear, pointwise = make(12, 10, 2), make(12, 10, 3, seed=5, kernel=(1, 1))
    merged, _ = merge([Adapter({Q: linear}), Adapter({Q: pointwise})], [1.0, 1.0], at_energy)
    assert merged.layers[Q].vh.shape == (5, 10, 1, 1)
    want = dense(linear) + dense(pointwise).flatten(1)
    assert far(dense(merged.layers[Q]).flatten(1), want) < 1e-5 * float(want.norm())


@pytest.mark.parametrize(
    ("other", "words"),
    [(make(40, 20, 2), "40 x 20"), (make(8, 30, 2), "8 x 30"), (make(40, 30, 2, kernel=(3, 1)), "40 x 30 x 3 x 1")],
)
def test_shapes_that_disagree_are_named_with_their_layer(other, words):
    with pytest.raises(TargetError, match=f"{Q} is 40 x 30 in adapter 1, but {words} in adapter 2.*of one base only"):
        merge([example(), Adapter({Q: other})], [1.0, 1.0], at_energy)


def test_a_weight_is_needed_for_each_adapter():
    with pytest.raises(TriLoRAError, match="3 weights were given for 2 adapters. Give one number for each"):
        merge([example(), example(1)], [1.0, 1.0, 1.0], at_energy)


def test_nothing_left_is_an_error():
    with pytest.raises(TriLoRAError, match="zero in all layers"):
        merge([example(), example(1)], [0.0, 0.0], at_energy)


def test_layers_are_matched_through_the_names_that_a_model_knows():
    other = Adapter({"diffusion_model.blocks.0.attn.q": make(40, 30, 2)})
    unmatched, told = merge([example(), other], [1.0, 1.0], at_energy)
    assert len(unmatched.layers) == 4
    assert "adapter 2 shares no layer name" in told.summary()
    matched, quiet = merge([example(), other], [1.0, 1.0], at_energy, lambda n: Q if n in (Q, *other.layers) else n)
    assert list(matched.layers) == [Q, K, CONV]
    assert "WARNING" not in quiet.text()


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made within."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [t for t in (result if isinstance(result, tuple | list) else [result]) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *(t.numel() for t in made)])
        return result


def test_nothing_of_size_out_x_in_is_ever_made():
    """20000 x 20000 at rank 4; the matrix itself would have 400 million entries."""
    several = [Adapter({Q: make(20_000, 20_000, 4, seed)}) for seed in (0, 9)]
    with Largest() as largest:
        merged, _ = merge(several, [1.0, 0.5], partial(at_rank, rank=6))
        resize(merged, partial(at_energy, share=0.5))
    assert 20_000 * 8 <= largest.numel <= 20_000 * 16


@given(factor_sets(spectra=("random", "decaying")), st.integers(1, 12))
def test_resizing_to_k_is_the_truncated_dense_svd(factors, k):
    u, sigma, vh = torch.linalg.svd(dense(factors).flatten(1), full_matrices=False)
    want = (u[:, :k] * sigma[:k]) @ vh[:k]
    small, report = resize(Adapter({Q: factors}), partial(at_rank, rank=k))
    gap = float(sigma[k - 1] - sigma[k]) if k < len(sigma) else math.inf
    if gap > 1e-3 * float(sigma[0]):  # else the k-th direction is not determined
        assert far(dense(small.layers[Q]).flatten(1), want) <= 2e-3 * float(sigma[0])
    assert far(small.layers[Q].sigma, sigma[: small.rank]) <= 1e-5 * size(factors)
    assert report.share == pytest.approx(float(sigma[:k].square().sum() / sigma.square().sum()), abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_known_spectrum_is_cut_exactly(kernel):
    whole = decaying(30, 24, 10, kernel=kernel)
    u, sigma, vh = torch.linalg.svd(dense(whole).flatten(1), full_matrices=False)
    small, _ = resize(Adapter({Q: whole}), partial(at_rank, rank=4))
    assert far(dense(small.layers[Q]).flatten(1), (u[:, :4] * sigma[:4]) @ vh[:4]) < 1e-5


@given(st.integers(1, 12), st.floats(0.01, 1), seeds)
def test_energy_keeps_the_fewest_values_that_hold_the_share_in_each_layer(rank, share, seed):
    adapter = Adapter({Q: make(20, 20, rank, seed), K: make(20, 14, rank, seed + 5)})
    small, report = resize(adapter, partial(at_energy, share=share))
    for name, row in zip((Q, K), report.rows, strict=True):
        squares = torch.linalg.svdvals(dense(adapter.layers[name])).square()
        held = squares.cumsum(0) / squares.sum()
        k = small.layers[name].rank
        assert held[k - 1] >= share - 1e-5
        assert k == 1 or held[k - 2] < share + 1e-5
        assert (row.rank, row.full_rank) == (k, min(rank, 14) if name == K else rank)
    assert report.share >= share - 1e-5


def test_the_report_tells_each_layer_and_the_whole():
    small, report = resize(example(), partial(at_rank, rank=2))
    whole, kept = (math.fsum(float(f.sigma.square().sum()) for f in a.layers.values()) for a in (example(), small))
    assert report.share == pytest.approx(kept / whole, abs=1e-6)
    assert f"3 layers, rank 2\n{kept / whole:.2%} of the energy kept" in report.text()
    squares = example().layers[K].sigma.square()
    row = next(line for line in report.table().splitlines() if line.startswith(K))
    assert row.split()[1:] == ["2", "8", f"{float(squares[:2].sum() / squares.sum()):.2%}"]
    assert small.metadata["trilora.energy_kept"] == f"{kept / whole:.6f}"


@given(st.integers(9_000, 90_000), st.sampled_from(DTYPES), st.integers(0, 3000), seeds)
@settings(max_examples=20)
def test_the_saved_file_fits_the_size_and_uses_it(tmp_path_factory, budget, dtype, said, seed):
    adapter = Adapter(
        {f"{Q}_{i}": decaying(50, 20 + 7 * i, 12, seed + i, power=i / 2) for i in range(8)}, {"note": "ä" * (said // 6)}
    )
    path = tmp_path_factory.mktemp("size") / "a.safetensors"
    whole, _ = resize(adapter, at_energy)
    files.save(whole, path, dtype)
    everything = path.stat().st_size
    small, _ = resize(adapter, partial(at_size, size=budget, dtype=dtype))
    files.save(small, path, dtype)
    assert path.stat().st_size <= budget
    if path.stat().st_size < everything:
        dearest = (50 + 69) * dtype.itemsize
        assert path.stat().st_size > budget - dearest - 8 * 500 - said - 600  # what is spared for the header


def test_size_keeps_the_values_with_the_most_energy_per_byte():
    adapter = example()
    small, _ = resize(adapter, partial(at_size, size=6000, dtype=torch.float32))
    cost = {name: f.u.shape[0] + f.vh[0].numel() for name, f in adapter.layers.items()}
    ranks = {name: small.layers[name].rank if name in small.layers else 0 for name in adapter.layers}
    worth = {name: f.sigma.square() / cost[name] for name, f in adapter.layers.items()}
    dropped = max(float(worth[name][k]) for name, k in ranks.items() if k < 8)
    kept = min(float(worth[name][k - 1]) for name, k in ranks.items() if k)
    assert kept >= dropped
    assert len(set(ranks.values())) > 1


def test_a_size_too_small_for_anything_says_which_would_do():
    rule = partial(at_size, dtype=torch.float32)
    with pytest.raises(RankError, match=r"A file of 0.001 MB has no room.*at least 0\.\d\d MB") as caught:
        resize(example(), partial(rule, size=1000))
    enough = float(re.search(r"at least ([\d.]+) MB", str(caught.value))[1]) + 0.005
    resize(example(), partial(rule, size=int(enough * 1e6)))


def test_a_layer_without_any_value_left_is_left_out_and_told():
    adapter = Adapter({Q: decaying(20, 20, 4), K: decaying(20, 20, 4)._replace(sigma=torch.zeros(4))})
    small, report = resize(adapter, partial(at_rank, rank=2))
    assert list(small.layers) == [Q]
    assert "1 layers keep no singular value" in report.summary()


SD1 = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}


def test_a_merge_says_what_it_came_from():
    first = Adapter(example().layers, {**SD1, "modelspec.title": "ink", "modelspec.trigger_phrase": "zorvex"})
    second = Adapter(example(3).layers, {**SD1, "ss_output_name": "wash", "modelspec.trigger_phrase": "quall"})
    merged, report = merge([first, second], [1.0, 0.5], partial(at_rank, rank=12))
    said = merged.metadata
    assert said.items() >= {**SD1, "modelspec.title": "ink + wash", "trilora.method": "merge"}.items()
    assert said["modelspec.trigger_phrase"] == "zorvex, quall"
    assert '"title": "wash", "weight": 0.5' in said["trilora.merged_from"]
    assert said["ss_network_dim"] == said["trilora.rank"] == "12"
    assert "WARNING" not in report.text()


def test_bases_that_differ_are_warned_of_and_not_claimed():
    other = Adapter(example(3).layers, {"ss_base_model_version": "sdxl_base_v1-0"})
    merged, report = merge([Adapter(example().layers, SD1), other], [1.0, 1.0], at_energy)
    assert "WARNING: the adapters name different bases (sd_v1, sdxl_base_v1-0)" in report.summary()
    assert "ss_base_model_version" not in merged.metadata


def test_a_resized_adapter_still_says_all_it_said():
    said = {**SD1, "ss_tag_frequency": '{"ink": {"tree": 2}}', "ss_network_dim": "8"}
    small, _ = resize(Adapter(example().layers, said), partial(at_rank, rank=3))
    assert small.metadata.items() >= {**said, "ss_network_dim": "3", "ss_network_alpha": "3"}.items()


def test_what_is_cut_off_is_out_of_memory():
    small, _ = resize(example(), partial(at_rank, rank=1))
    for factors in small.layers.values():
        assert all(t.untyped_storage().nbytes() == 4 * t.numel() for t in factors)


def test_what_comes_in_is_left_as_it_was():
    adapter = example()
    before = {name: [t.clone() for t in factors] for name, factors in adapter.layers.items()}
    merge([adapter, adapter], [2.0, -0.5], at_energy)
    resize(adapter, partial(at_rank, rank=1))
    assert all(
        torch.equal(a, b) for name, saved in before.items() for a, b in zip(saved, adapter.layers[name], strict=True)
    )


def test_progress_is_told_layer_by_layer():
    seen = []

    def track(names):
        for name in names:
            seen.append((len(names), name))
            yield name

    merge([example(), Adapter({"extra": make(4, 4, 1)})], [1.0, 1.0], at_energy, track=track)
    assert seen == [(4, Q), (4, K), (4, CONV), (4, "extra")]


def test_full_cores_merge_too():
    core = make(12, 10, 3, core="full")
    merged, _ = merge([Adapter({Q: core}), Adapter({Q: make(12, 10, 2)})], [1.0, 1.0], at_energy)
    want = dense(core) + dense(make(12, 10, 2))
    assert far(dense(merged.layers[Q]), want) < 1e-5 * float(want.norm())
