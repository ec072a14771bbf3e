"""Node ids, inputs, types and defaults are for ever: a change here is meant, and seen in review."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.comfy

GOLDEN = Path(__file__).parent.parent / "golden" / "schema.json"
LISTS_ON_DISK = {"folder", "file"}  # their options are whatever the folders hold


def described(node: Any) -> dict[str, Any]:
    """What a saved workflow relies on."""
    info = node.GET_SCHEMA().get_v1_info(node)
    inputs = {
        f"{group}.{name}": [kind, plain(name, options[0] if options else {})]
        for group, entries in info.input.items()
        for name, (kind, *options) in entries.items()
        if group != "hidden"
    }
    return {
        "name": info.display_name,
        "inputs": inputs,
        "outputs": list(zip(info.output_name, info.output, strict=True)),
    }


def plain(name: str, options: Any) -> Any:
    """Options without the words for people and without what lies on this disk."""
    if isinstance(options, dict):
        dropped = {"tooltip"} | ({"options"} if name in LISTS_ON_DISK else set())
        return {
            key: plain(key if key in LISTS_ON_DISK else name, value)
            for key, value in options.items()
            if key not in dropped
        }
    if isinstance(options, list | tuple):
        return [plain(name, value) for value in options]
    return options


def test_the_nodes_are_those_of_the_golden_file(pack: dict[str, Any]) -> None:
    now = json.loads(json.dumps({node_id: described(node) for node_id, node in sorted(pack.items())}))
    assert now == json.loads(GOLDEN.read_text(encoding="utf-8")), f"if this change is meant, update {GOLDEN.name}"


def test_every_input_and_output_has_a_tooltip(pack: dict[str, Any]) -> None:
    for node in pack.values():
        schema = node.GET_SCHEMA()
        assert schema.description
        for part in [*schema.inputs, *schema.outputs]:
            assert part.tooltip, (schema.node_id, part.id)
            for option in getattr(part, "options", None) or []:
                for inner in getattr(option, "inputs", []):
                    assert inner.tooltip, (schema.node_id, inner.id)


def test_a_newcomer_sets_at_most_six_widgets_to_train(pack: dict[str, Any]) -> None:
    inputs = pack["TriLoRATrain"].GET_SCHEMA().inputs
    seen = [i.id for i in inputs if hasattr(i, "default") and not i.advanced]
    assert len(seen) <= 6, seen
