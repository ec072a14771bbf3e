"""TriLoRA for ComfyUI: what ComfyUI asks of a node pack, and nothing else."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the pack's extension; the imports wait until ComfyUI asks, because tests import this file too."""
    from .nodes import extension

    return extension()
