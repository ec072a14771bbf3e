"""A small CLIP vocabulary: every byte, so that any word can be written, and merges for the world's own words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from .world import COLOURS, PLACES, SCENES, THINGS

LENGTH = 77
END = "</w>"
EXTRA_WORDS = "a an the of with and picture at by under over small big little dark bright".split()


def world_words() -> list[str]:
    """Every word that a caption can contain."""
    phrases = [*THINGS, *COLOURS, *PLACES.values(), *SCENES.values(), *EXTRA_WORDS]
    return sorted({word for phrase in phrases for word in phrase.split()})


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE uses, in its order."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [256 + i for i in range(256 - len(keep))]
    return [chr(c) for c in (*keep, *moved)]


def merges(words: list[str]) -> list[tuple[str, str]]:
    """Joins the most frequent pair again and again until every word is one piece."""
    split = {word: [*word[:-1], word[-1] + END] for word in words}
    rules: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in split.values()):
        pairs = Counter(pair for pieces in split.values() for pair in zip(pieces, pieces[1:], strict=False))
        best = max(pairs, key=lambda p: (pairs[p], p))
        rules.append(best)
        split = {word: _join(pieces, best) for word, pieces in split.items()}
    return rules


def _join(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Every occurrence of the pair as one piece."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """vocab.json and merges.txt in CLIP's order (bytes, bytes that end a word, merges, start, end), then the rest."""
    rules = merges(world_words())
    letters = byte_letters()
    pieces = [*letters, *(c + END for c in letters), *("".join(rule) for rule in rules)]
    vocabulary = dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"])
    numbered = {piece: i for i, piece in enumerate(vocabulary)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(rule) for rule in rules)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(numbered, rules, pad_token="<|endoftext|>", model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]):
    """(n, 77) token ids, padded with the end token."""
    made = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return made.input_ids
