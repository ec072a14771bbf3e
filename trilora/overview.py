"""What a data set holds, in words, before any training."""

from collections import Counter

from .buckets import Size
from .dataset import Dataset, groups
from .pictures import Picture

NAMED = 4  # pictures that a line names


def overview(dataset: Dataset) -> list[str]:
    """Lines on pictures, sizes, buckets and captions, and on all that is amiss: missing captions, enlarged pictures,
    copies, pictures with frames."""
    pictures = dataset.pictures
    tallied = ", ".join(f"{w} x {h}: {count}" for (w, h), count in buckets(dataset))
    lines = [_counts(dataset), f"Buckets: {tallied}"]
    if dataset.encoded:
        return [*lines, "Captions: came encoded; without plain ones the base can't be preserved."]
    missing = [picture.name for picture in pictures if not picture.caption]
    lines.append(f"Captions: {len(pictures) - len(missing)} of {len(pictures)}")
    lines += _problem("no caption", missing)
    lines += _problem(
        "enlarged", [f"{p.name} x{_scale(dataset, p):.1f}" for p in pictures if _scale(dataset, p) > 1.05]
    )
    lines += _problem("copies", [" = ".join(p.name for p in same) for same in groups(pictures).values() if same[1:]])
    return lines + [f"! {picture.name} {picture.note}" for picture in pictures if picture.note]


def buckets(dataset: Dataset) -> list[tuple[Size, int]]:
    """Size (width, height) in pixels and how many pictures have it, most first."""
    return Counter(dataset.size_of(picture) for picture in dataset.pictures).most_common()


def _counts(dataset: Dataset) -> str:
    ways = [
        f"trigger “{dataset.trigger}”" if dataset.trigger else "no trigger word",
        "mirrored too" if dataset.mirror else "",
        f"{dataset.repeats} times an epoch" if dataset.repeats > 1 else "",
        f"up to {dataset.tag_orders} orders of tags" if dataset.tag_orders > 1 else "",
        f"{dataset.caption_dropout:.0%} without caption" if dataset.caption_dropout else "",
    ]
    sides = sorted(side for picture in dataset.pictures for side in picture.size)
    sizes = f"sides of {sides[0]} to {sides[-1]}"
    return ", ".join([f"{len(dataset.pictures)} pictures", sizes, *(way for way in ways if way)])


def _problem(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"! {len(names)} {what}: {', '.join(names[:NAMED])}{more}"] if names else []


def _scale(dataset: Dataset, picture: Picture) -> float:
    return dataset.placement_of(picture).scaled[0] / picture.size[0]
