"""The pack's nodes: each file one family, each node a schema and one call."""

from comfy_api.latest import ComfyExtension, io


class TriLoRAExtension(ComfyExtension):
    async def on_load(self) -> None:
        from . import routes, routes_lora

        routes.add_routes()
        routes_lora.add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .combine import ExtractTriLoRA, MergeTriLoRA, ResizeTriLoRA
        from .compare import TriLoRACompare
        from .dataset import TriLoRADatasetNode
        from .demo import TriLoRADemoModel
        from .demo_pictures import TriLoRADemoPictures
        from .evaluate import TriLoRAEvaluate
        from .loading import ApplyTriLoRA, LoadTriLoRA, SaveTriLoRA
        from .repair import TriLoRARepair
        from .schedule import TriLoRASchedule
        from .spectrum import TriLoRASpectrum
        from .strength import TriLoRAStrength
        from .train import TrainTriLoRA
        from .train_options import TrainOptions, TrainWatch

        return [
            TriLoRADatasetNode,
            TrainTriLoRA,
            TrainOptions,
            TrainWatch,
            SaveTriLoRA,
            LoadTriLoRA,
            ApplyTriLoRA,
            TriLoRAStrength,
            MergeTriLoRA,
            ExtractTriLoRA,
            ResizeTriLoRA,
            TriLoRARepair,
            TriLoRASchedule,
            TriLoRASpectrum,
            TriLoRACompare,
            TriLoRAEvaluate,
            TriLoRADemoModel,
            TriLoRADemoPictures,
        ]


def extension() -> TriLoRAExtension:
    """What the root `comfy_entrypoint` hands to ComfyUI."""
    return TriLoRAExtension()
