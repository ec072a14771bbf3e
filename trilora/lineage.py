"""What an adapter that was made from others says of itself: what it came from, and for which base it is."""

import datetime
import json
from collections.abc import Sequence

from .files import Adapter
from .metadata import FORMAT, Base

BASE_KEYS = ("ss_base_model_version", "modelspec.architecture")
SHARED_KEYS = (*BASE_KEYS, "ss_v2", "ss_sd_model_name", "modelspec.implementation", "modelspec.resolution")


def of_merge(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, str]:
    """Metadata of a merge: sources with weights, all their trigger words, and of the base whatever all agree on."""
    triggers = list(dict.fromkeys(filter(None, (a.metadata.get("modelspec.trigger_phrase") for a in adapters))))
    names = [title(adapter, number) for number, adapter in enumerate(adapters, 1)]
    sources = [
        {"title": name, "weight": weight, "sshs_model_hash": adapter.metadata.get("sshs_model_hash", "")}
        for name, weight, adapter in zip(names, weights, adapters, strict=True)
    ]
    shared = {key: {adapter.metadata.get(key) for adapter in adapters} for key in SHARED_KEYS}
    return {
        **{key: value for key, values in shared.items() if len(values) == 1 and (value := values.pop())},
        **_made("merge", " + ".join(names)),
        "trilora.merged_from": json.dumps(sources),
        "modelspec.trigger_phrase": ", ".join(triggers),
        "ss_datasets": json.dumps([{"subsets": [{"class_tokens": ", ".join(triggers)}]}]),
    }


def of_extraction(base: Base, base_file: str, tuned_file: str) -> dict[str, str]:
    """Metadata of the difference of two models; a file name may be empty."""
    return {
        **_made("extract", f"{tuned_file or 'tuned model'} less {base_file or 'base model'}"),
        "ss_v2": str(base.kohya.startswith("sd_v2")),
        "ss_base_model_version": base.kohya,
        "ss_sd_model_name": base_file,
        "modelspec.architecture": base.modelspec,
    }


def differing_bases(adapters: Sequence[Adapter]) -> list[str]:
    """The names of the adapters' bases, where two of them differ; else nothing."""
    for key in BASE_KEYS:
        bases = sorted({base for adapter in adapters if (base := adapter.metadata.get(key))})
        if len(bases) > 1:
            return bases
    return []


def title(adapter: Adapter, number: int) -> str:
    """How to call an adapter in a message or a title."""
    keys = ("modelspec.title", "ss_output_name")
    return next((name for key in keys if (name := adapter.metadata.get(key))), f"adapter {number}")


def _made(method: str, name: str) -> dict[str, str]:
    return {
        "ss_network_module": "networks.lora",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": name,
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "trilora.version": FORMAT,
        "trilora.method": method,
    }
