"""The pack's nodes: each file one family, each node a schema and one call."""

from comfy_api.latest import ComfyExtension, io


class TriLoRAExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .combine import ExtractTriLoRA, MergeTriLoRA, ResizeTriLoRA
        from .dataset import TriLoRADatasetNode
        from .demo import TriLoRADemoModel
        from .loading import ApplyTriLoRA, LoadTriLoRA, SaveTriLoRA
        from .strength import TriLoRAStrength
        from .train import TrainTriLoRA

        return [
            TriLoRADatasetNode,
            TrainTriLoRA,
            SaveTriLoRA,
            LoadTriLoRA,
            ApplyTriLoRA,
            TriLoRAStrength,
            MergeTriLoRA,
            ExtractTriLoRA,
            ResizeTriLoRA,
            TriLoRADemoModel,
        ]


def extension() -> TriLoRAExtension:
    """What the root `comfy_entrypoint` hands to ComfyUI."""
    return TriLoRAExtension()
