"""What the page asks, over HTTP. Bad input is answered with {"error": what to do} and never with a traceback.

The body of every question is what the served model takes as a row: image (base64) and text, and params.
"""

import logging
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from blip_core.containers import media_type
from blip_core.demo.search import PictureIndex
from blip_core.demo.words import Kind, word_maps
from blip_core.model.attention_map import usual_layer
from blip_core.serving.options import BadRequest, Task, choose, defaults
from blip_core.serving.rows import Row, decoded, read_rows
from blip_core.serving.service import Service

log = logging.getLogger(__name__)

FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:"
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MOST_HITS, MOST_RERANKED = 60, 200


class Question(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: str | None = None
    text: str | None = None


class Ask(Question):
    params: dict = {}


class AskMap(Question):
    layer: int
    kind: Kind


class AskSearch(BaseModel):
    text: str
    count: int = Field(12, ge=1, le=MOST_HITS)
    rerank: int = Field(32, ge=1, le=MOST_RERANKED)


def make_app(service: Service, index: PictureIndex | None, *, title: str, hosts: list[str]) -> FastAPI:
    """`index`: of a generation's pictures, None when there is none to search; `hosts`: names that the page may be asked by."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_guard(4 * service.settings.images.max_bytes // 3 + 1_000_000))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    _add_errors(app)
    _add_files(app)

    @app.get("/api/about")
    def about() -> dict:
        depth = service.model.cfg.text.depth
        found = {"title": title, "params": defaults(service.settings), "layers": depth, "layer": usual_layer(depth)}
        return {**found, "calibrated": service.calibration is not None, "search": _progress(index)}

    @app.post("/api/task/{task}")
    def answer(task: Task, ask: Ask) -> dict:
        options = choose({**ask.params, "task": task}, service.settings)
        return service.answer([_row(service, ask, task)], options)[0]

    @app.post("/api/attention")
    def attention(ask: AskMap) -> dict:
        row = decoded(_row(service, ask, "match"), service.settings, service.model.cfg.vision.image_size)
        return word_maps(service, row, layer=ask.layer, kind=ask.kind)

    @app.post("/api/search")
    def search(ask: AskSearch) -> dict:
        text = read_rows([None], [ask.text], "embed", service.settings, paths=False)[0].text
        hits = _index(index).search(text, count=ask.count, rerank=ask.rerank)
        return {"hits": hits, "search": _progress(index)}

    @app.get("/api/picture/{shard}/{key}")
    def picture(shard: str, key: str) -> Response:
        try:
            data = _index(index).picture(shard, key)
            return Response(data, media_type=media_type(data))
        except ValueError as e:
            raise BadRequest(str(e)) from None

    return app


def _row(service: Service, ask: Question, task: Task) -> Row:
    [row] = read_rows([ask.image], [ask.text], task, service.settings, paths=False)
    return row


def _index(index: PictureIndex | None) -> PictureIndex:
    if index is None:
        raise BadRequest("no pictures to search: start the page with --generation, as artifacts/generations/g1")
    return index


def _progress(index: PictureIndex | None) -> dict | None:
    if index is None:
        return None
    return {"generation": index.generation.name, "done": index.done, "total": len(index.places), "fault": index.fault}


def _add_files(app: FastAPI) -> None:
    for path, name in FILES.items():
        app.get(path)(lambda name=name: FileResponse(Path(__file__).with_name(name)))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(BadRequest)
    def bad(_: Request, e: BadRequest) -> JSONResponse:
        return _error(400, str(e).removeprefix("row 0: ").removeprefix("params: "))

    @app.exception_handler(RequestValidationError)
    def unfit(_: Request, e: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in e.errors()]
        return _error(422, "; ".join(faults))


def _guard(most_bytes: int):
    async def guard(request: Request, call_next) -> Response:
        """Bounds what is read of a question, and tells the browser what the page may do."""
        size = request.headers.get("content-length", "")
        if request.method == "POST" and not (size.isdigit() and int(size) <= most_bytes):
            answer = _error(413, f"a question of {size or 'unknown'} bytes; at most {most_bytes} are taken: choose a smaller picture")
        else:
            try:
                answer = await call_next(request)
            except Exception:
                log.exception("%s failed", request.url.path)
                answer = _error(500, "this failed, and not by your doing: the terminal that the page was started from says why")
        answer.headers.update(HEADERS)
        return answer

    return guard


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)
