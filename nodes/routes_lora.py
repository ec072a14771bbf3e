"""What the page asks about files: GET /trilora/lora?name=... tells of a LoRA before it is loaded."""

import asyncio
from dataclasses import asdict

from aiohttp import web
from server import PromptServer

from ..trilora import header
from ..trilora.errors import FileError
from . import lora_files


def add_routes() -> None:
    """The answer is the file's `trilora.header.Header`, or {"problem": ...} in words for a file that can't be read.

    Only what the list of LoRAs holds is ever opened; any other name is 404 {"error": ...}.
    """

    @PromptServer.instance.routes.get("/trilora/lora")
    async def lora(request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        if name not in lora_files.listed():
            return web.json_response({"error": f"{name!r} is no file of a loras folder."}, status=404)
        try:
            return web.json_response(asdict(await asyncio.to_thread(header.read, lora_files.path_of(name))))
        except FileError as error:
            return web.json_response({"problem": str(error)})
