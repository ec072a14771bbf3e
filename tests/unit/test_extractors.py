"""The networks behind the numbers, each beside the library that it comes from."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from demo.draw import draw
from demo.world import COLOURS, SceneSpec, all_triples, caption, specs_over
from devkit import ROOT
from trilora.errors import DataError, FileError
from trilora.metrics import extractors
from trilora.metrics.frechet import Moments, frechet
from trilora.metrics.similarity import clip_scores

LOOKS = (None, "stained_glass", "paper_print")
Pictures = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def judge() -> extractors.Network:
    return extractors.demo(ROOT / "demo" / "judge")


@pytest.fixture(scope="module")
def specs() -> list[SceneSpec]:
    return specs_over(all_triples(), 48, seed=41)


@pytest.fixture(scope="module")
def features(judge: extractors.Network, specs: list[SceneSpec]) -> dict[str | None, torch.Tensor]:
    """Look -> features of pictures that the judge was not trained on."""
    return {look: judge.pictures(stacked([draw(spec, look) for spec in specs])) for look in LOOKS}


def stacked(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(numpy.stack([numpy.asarray(picture) for picture in pictures])).float() / 255


def noise(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(4))


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    left, right = Moments(), Moments()
    left.add(a)
    right.add(b)
    return frechet(left, right)


def test_a_picture_has_the_same_features_in_any_batch(judge: extractors.Network) -> None:
    pictures = noise(extractors.BATCH + 3, 128, 128)
    together = judge.pictures(pictures)
    assert together.shape == (extractors.BATCH + 3, judge.dimensions)
    torch.testing.assert_close(together[-2:], judge.pictures(pictures[-2:]))


def test_pictures_of_any_shape_are_looked_at_in_their_middle(judge: extractors.Network) -> None:
    wide = torch.full((1, 128, 300, 3), 0.5)
    wide[:, :, 86:214] = noise(1, 128, 128)
    torch.testing.assert_close(judge.pictures(wide), judge.pictures(noise(1, 128, 128)))
    assert judge.pictures(noise(2, 700, 20)).isfinite().all()
    with pytest.raises(DataError, match="can't be looked at"):
        judge.pictures(noise(2, 30, 30)[..., :1])


@pytest.mark.parametrize("look", LOOKS)
def test_right_prompts_score_higher_than_wrong_ones_in_every_look(
    judge: extractors.Network, specs: list[SceneSpec], features: dict[str | None, torch.Tensor], look: str | None
) -> None:
    """Prompts of other pictures, and prompts with the colour alone exchanged."""
    right = clip_scores(features[look], judge.texts([caption(spec) for spec in specs]))
    others = clip_scores(features[look], judge.texts([caption(spec) for spec in [*specs[1:], specs[0]]]))
    colours = list(COLOURS)
    swapped = [spec.colour for spec in specs]
    swapped = [colours[(colours.index(colour) + 3) % len(colours)] for colour in swapped]
    wrong = [caption(SceneSpec(s.thing, c, s.place, s.scene)) for s, c in zip(specs, swapped, strict=True)]
    assert right.mean() > 1.5 * others.mean() + 5
    assert (right > others).float().mean() >= (0.85 if look else 0.95)
    found = (right > clip_scores(features[look], judge.texts(wrong))).float().mean()
    assert found >= (0.7 if look else 0.9)  # it was trained on the base's own look alone


def test_fid_tells_looks_apart_and_falls_as_a_set_takes_on_the_look(features: dict[str | None, torch.Tensor]) -> None:
    """Half of each look is the real set; the other half is mixed into the base's pictures."""
    for look in LOOKS[1:]:
        real, other, plain = features[look][::2], features[look][1::2], features[None][1::2]
        mixed = [far(torch.cat([other[:n], plain[n:]]), real) for n in (0, 8, 16, 24)]
        assert mixed == sorted(mixed, reverse=True)
        assert mixed[0] > 2 * mixed[-1]


def test_the_demos_extractor_says_which_words_it_knows(judge: extractors.Network) -> None:
    with pytest.raises(DataError, match=r"no word of the prompt 'zorvex'.*house.*choose clip"):
        judge.texts(["zorvex"])


def test_a_folder_without_the_demos_extractor_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="demo/judge of the pack"):
        extractors.demo(tmp_path)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, saved as transformers saves one."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "demo" / "base" / "tokenizer")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={**small, **words}, vision_config={**small, "image_size": 64, "patch_size": 16}, projection_dim=24
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_gives_what_transformers_gives(clip_folder: Path) -> None:
    """Its own processor, tokenizer and model, whose last step is a normalisation."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    ours = extractors.clip(clip_folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    shown = (noise(3, 96, 150) * 255).round()
    pixels = processor(images=list(shown.byte().numpy()), return_tensors="pt")["pixel_values"]
    prompts = ["a red cat on the left", "a house", "a blue boat " * 60]
    words = CLIPTokenizer.from_pretrained(clip_folder)(
        prompts, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = CLIPModel.from_pretrained(clip_folder)(pixel_values=pixels, **words)
    seen, read = ours.pictures(shown / 255), ours.texts(prompts)
    assert seen.shape == read.shape == (3, ours.dimensions) == (3, 24)
    torch.testing.assert_close(read / read.norm(dim=1, keepdim=True), theirs.text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen / seen.norm(dim=1, keepdim=True), theirs.image_embeds, rtol=1e-2, atol=5e-3)


def test_a_folder_without_a_clip_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="copy the whole folder"):
        extractors.clip(tmp_path)


def test_inception_gives_what_torchvision_gives(tmp_path: Path) -> None:
    """torchvision's network with its own normalisation, read before its last layer."""
    from torchvision.models import inception_v3
    from torchvision.transforms.functional import normalize

    torch.manual_seed(0)
    network = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    pictures = noise(2, 299, 299)
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        theirs = network(normalize(pictures.movedim(-1, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    ours = extractors.inception(tmp_path / "inception.pth")
    assert ours.texts is None
    torch.testing.assert_close(ours.pictures(pictures), theirs, rtol=1e-3, atol=1e-4)


def test_a_file_that_is_not_inception_is_told(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match="not torchvision's Inception v3"):
        extractors.inception(tmp_path / "other.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(FileError, match="can't be read as weights"):
        extractors.inception(tmp_path / "broken.pth")
