"""The pack's own socket types, made once: `io.Custom` makes a new class at each call."""

from comfy_api.latest import io

TriLoRA = io.Custom("TRILORA")  # a trilora.Adapter
TriLoRADataset = io.Custom("TRILORA_DATASET")  # a trilora.dataset.Dataset

CATEGORY = "TriLoRA"
