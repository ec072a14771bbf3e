"""What the page can ask of the server: to watch trainings, to stop one and keep it, to save one now."""

from aiohttp import web
from server import PromptServer

from .live import ASKED, Live, runs


def add_routes() -> None:
    """The routes of the pack; each takes a JSON object, and may be called by hand too.

    POST /trilora/watch {"client_id", "workflow"}: that client shows this workflow from now on ("" for none); the
        answer is every run of it as it stands, what is new comes over the client's websocket.
    POST /trilora/stop {"node_id", "workflow"}: the run of that node, or every run, ends after its step and is kept.
    POST /trilora/save {"node_id", "workflow"}: its state and adapter are written after its step, and it goes on.
    """
    routes = PromptServer.instance.routes

    @routes.post("/trilora/watch")
    async def watch(request: web.Request) -> web.Response:
        asked = await _body(request)
        client, workflow = str(asked.get("client_id", "")), str(asked.get("workflow") or "")
        for gone in [c for c in ASKED if c not in PromptServer.instance.sockets or c == client]:
            del ASKED[gone]
        if workflow:
            ASKED[client] = workflow
        return web.json_response({"runs": [live.whole() for live in runs() if live.workflow == workflow]})

    @routes.post("/trilora/stop")
    async def stop(request: web.Request) -> web.Response:
        found = _learning(await _body(request))
        for live in found:
            live.run.stop()
        return _answer("stopped", found)

    @routes.post("/trilora/save")
    async def save(request: web.Request) -> web.Response:
        found = _learning(await _body(request))
        for live in found:
            live.save_asked = True
        return _answer("saving", found)


async def _body(request: web.Request) -> dict:
    try:
        asked = await request.json() if request.can_read_body else {}
    except ValueError:  # no JSON, or no text
        asked = None
    if not isinstance(asked, dict):
        raise web.HTTPBadRequest(text="Send a JSON object.")
    return asked


def _learning(asked: dict) -> list[Live]:
    """The runs meant: of a node, of a workflow, of both, or all."""
    node, workflow = asked.get("node_id"), asked.get("workflow")
    return [live for live in runs() if live.run and node in (None, live.node) and workflow in (None, live.workflow)]


def _answer(word: str, found: list[Live]) -> web.Response:
    return web.json_response({word: [live.node for live in found]}, status=200 if found else 404)
