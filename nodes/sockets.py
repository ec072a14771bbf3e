"""The pack's own socket types, made once: `io.Custom` makes a new class at each call."""

from comfy_api.latest import io

TriLoRA = io.Custom("TRILORA")  # a trilora.Adapter
TriLoRADataset = io.Custom("TRILORA_DATASET")  # a trilora.dataset.Dataset
TriLoRAOptions = io.Custom("TRILORA_OPTIONS")  # {"settings": {...}, "plain": (...), "checkpointing": ...}
TriLoRAWatch = io.Custom("TRILORA_WATCH")  # {"watch": Watch, "preview": Preview, "share": ...}

CATEGORY = "TriLoRA"
