"""Bands of a spectrum and what is told of it."""

import pytest
import torch

from trilora.errors import TriLoRAError
from trilora.factors import Factors, canonical, delta
from trilora.files import Adapter
from trilora.gains import along
from trilora.layers import TriLoRALayer
from trilora.spectrum import (
    BINS,
    Band,
    bands,
    by_block,
    effective_rank,
    glimpse,
    histogram,
    measure,
    only,
    table,
)


def factors(rank: int, seed: int = 0, size: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    u, vh = torch.randn(12, rank, generator=generator), torch.randn(rank, 10, generator=generator)
    return canonical(Factors(u, torch.full((rank,), size), vh))


ADAPTER = Adapter(
    {"lora_unet_down_blocks_0_a_to_q": factors(6), "lora_unet_mid_block_a_to_q": factors(3, 1)}, {"a": "b"}
)


@pytest.mark.parametrize("count", range(1, 9))
def test_bands_cover_the_spectrum_once_and_widen(count: int) -> None:
    for rank in range(count, 130):
        found = bands(rank, count)
        assert [value for band in found for value in range(*band)] == list(range(rank))
        widths = [band.last - band.first for band in found]
        assert len(widths) == count
        assert all(a <= b + 1 for a, b in zip(widths, widths[1:], strict=False)), (rank, found)


def test_more_bands_than_singular_values_are_refused() -> None:
    with pytest.raises(TriLoRAError, match="no bands of 3 singular values. Take fewer"):
        bands(3, 4)


def test_edges_are_counted_as_people_count() -> None:
    assert bands(8, 3, "1, 4") == [Band(0, 1), Band(1, 4), Band(4, 8)]
    assert [str(band) for band in bands(8, 3, "1, 4")] == ["value 1", "values 2-4", "values 5-8"]


@pytest.mark.parametrize("edges", ["4, 1", "0, 3", "1, 8", "1, 9", "1", "1, 2, 3", "1; 4", "one, two"])
def test_edges_that_cut_no_bands_are_refused(edges: str) -> None:
    with pytest.raises(TriLoRAError, match="edges"):
        bands(8, 3, edges)


@pytest.mark.parametrize("edges", ["", "1, 2", "2, 5"])
def test_the_bands_of_an_adapter_add_up_to_it(edges: str) -> None:
    parts = [only(ADAPTER, band) for band in bands(ADAPTER.rank, 3, edges)]
    assert all(part.metadata == ADAPTER.metadata for part in parts)
    for name, whole in ADAPTER.layers.items():
        total = sum(delta(part.layers[name]) for part in parts if name in part.layers)
        assert torch.allclose(total, delta(whole), atol=1e-5)


def test_a_layer_whose_rank_ends_before_the_band_is_left_out() -> None:
    assert list(only(ADAPTER, Band(3, 6)).layers) == ["lora_unet_down_blocks_0_a_to_q"]
    assert only(ADAPTER, Band(2, 6)).layers["lora_unet_mid_block_a_to_q"].rank == 1


@pytest.mark.parametrize("rank", [1, 2, 7, 32])
def test_the_effective_rank_of_equal_values_is_their_number(rank: int) -> None:
    assert effective_rank(torch.full((rank,), 0.3)) == pytest.approx(rank)
    assert effective_rank(torch.cat([torch.full((rank,), 0.3), torch.zeros(5)])) == pytest.approx(rank)


def test_the_effective_rank_of_a_falling_spectrum_lies_between() -> None:
    assert effective_rank(torch.tensor([1.0, 1e-6])) == pytest.approx(1, abs=1e-3)
    assert 1 < effective_rank(torch.tensor([1.0, 0.5, 0.25])) < 3
    assert effective_rank(torch.zeros(4)) == 1


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q", "down_blocks_0"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v", "mid_block"),
        ("diffusion_model.double_blocks.12.img_attn.qkv", "double_blocks.12"),
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight", "input_blocks.4"),
        ("double_blocks.0.img_attn.qkv[0:3072]", "double_blocks.0"),
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", "lora_te1"),
        ("final_layer", "final_layer"),
    ],
)
def test_a_layer_belongs_to_its_block(name: str, block: str) -> None:
    assert measure({name: factors(2)})[0].block == block


def test_shares_are_of_the_squared_norm_of_the_whole_change() -> None:
    lines = measure(ADAPTER.layers)
    norms = [float(delta(f).square().sum()) for f in ADAPTER.layers.values()]
    assert [line.share for line in lines] == pytest.approx([norm / sum(norms) for norm in norms], rel=1e-4)
    assert [line.name for line in by_block(lines)["down_blocks_0"]] == ["down_blocks_0_a_to_q"]
    ninety = next(k for k in range(1, 7) if lines[0].sigma[:k].square().sum() >= 0.9 * lines[0].sigma.square().sum())
    assert lines[0].values_90 == ninety


def test_the_histogram_stands_where_a_gain_curve_looks() -> None:
    """The gain of the k-th value is the curve at its place; the bin at that place shows that value."""
    sigma = factors(7).sigma
    bins = torch.tensor(histogram([sigma]))
    assert len(bins) == BINS
    seen = along({"x": sigma}, lambda places: bins[(places * (BINS - 1)).round().long()].float())["x"]
    assert torch.allclose((seen / 1e6).sqrt(), sigma / sigma[0], atol=1e-3)


def test_the_histogram_puts_the_weakest_value_of_every_layer_at_its_end_whatever_their_ranks() -> None:
    bins = histogram([torch.tensor([3.0, 1.0]), torch.tensor([3.0, 2.0, 2.0, 2.0])])
    assert bins[0] == 1_000_000
    assert bins[-1] == int((1 + 4) / (9 + 9) * 1e6)


def test_the_histogram_of_no_layer_is_empty() -> None:
    assert histogram([]) == []


def test_the_table_has_a_line_for_each_layer_and_the_energy_so_far() -> None:
    text = table(measure(ADAPTER.layers))
    assert text.startswith("2 layers, rank 6.")
    assert "σ6: 100%" in text
    assert "a_to_q" in text
    assert f"{measure(ADAPTER.layers)[1].rank:.2f} of 3" in text


def test_an_adapter_of_zeros_is_told_without_a_number_that_is_none() -> None:
    zero = {"x": factors(3)._replace(sigma=torch.zeros(3))}
    assert "nan" not in table(measure(zero))
    assert set(histogram(line.sigma for line in measure(zero))) == {0}


@pytest.mark.parametrize("shape", [(24, 10), (12, 6, 3, 3)])
def test_a_glimpse_of_learning_layers_is_their_singular_values(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    layers = {
        str(i): TriLoRALayer(
            Factors(*(torch.randn(s, generator=draw) for s in ((shape[0], rank), (rank,), (rank, *shape[1:])))),
            gain=0.5,
        )
        for i, rank in enumerate((4, 3, 4))
    }
    exact = [torch.linalg.svdvals(delta(layer.factors()).flatten(1))[:4] for layer in layers.values()]
    wanted = torch.stack(exact).square().mean(0).sqrt()
    torch.testing.assert_close(torch.tensor(glimpse(layers)), wanted, rtol=1e-3, atol=1e-3 * float(wanted[0]))


def test_a_glimpse_of_layers_that_have_learned_nothing_is_zero() -> None:
    layer = TriLoRALayer(Factors(torch.zeros(8, 2), torch.ones(2), torch.randn(2, 5)))
    assert glimpse({"layer": layer}) == [0.0, 0.0]
