"""The server around the page: which of Gradio's routes are open, by which names it may be asked, and what the browser may fetch."""

import re
from functools import partial
from pathlib import Path

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import PlainTextResponse
from gradio.routes import App
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip_core.demo.page import AnyService, make_page
from blip_core.demo.search import PictureIndex

# what the page itself asks for: Gradio has more, among it routes that fetch from other hosts
OPEN = re.compile(
    r"/|/(assets|static)/.*|/(config|theme\.css|favicon\.ico|manifest\.json)"
    r"|/gradio_api/(run/predict|upload|upload_progress|queue/join|queue/data|heartbeat/\w+|reset|cancel|startup-events|info|file=.*)"
)
FILE = "/gradio_api/file="
# Gradio's scripts are partly in the page, and styles too; of other hosts nothing may come
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
    "font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # no fonts of other hosts
CSS = """
.gradio-container { width: 100%; max-width: 76rem !important; margin: auto; }
#picture img, #hits img, #maps img { width: 100%; height: 100%; object-fit: contain; }
img.small { image-rendering: pixelated; }
.caption-label { max-width: 100% !important; white-space: normal !important; font-size: .75rem !important; padding: 0 .3rem !important; }
"""
# a small picture is enlarged, and its pixels stay squares
ENLARGED = """<script>
document.addEventListener("load", ({ target: t }) => {
  if (t.tagName === "IMG") t.classList.toggle("small", Math.max(t.naturalWidth, t.naturalHeight) < 192);
}, true);
</script>"""


def make_app(service: AnyService, index: PictureIndex | None, *, title: str, hosts: list[str], cache: Path) -> FastAPI:
    """`index`: of a generation's pictures, None when there is none to search; `hosts`: names that the page may be asked by; `cache`: the
    folder that Gradio was told to keep files in."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    most = service.settings.images.max_bytes
    app.add_middleware(Guard, most_bytes=most + 1_000_000, cache=cache)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    page = make_page(service, index, title=title, cache=cache)
    page.has_launched = True  # mounted, it would not count as launched, and take any file of this machine for an upload
    looks = {"theme": THEME, "css": CSS, "head": ENLARGED, "footer_links": []}
    closed = {"allowed_paths": [], "show_error": False, "run_history": False, "ssr_mode": False, "pwa": False, "mcp_server": False}
    gr.mount_gradio_app(app, page, path="/", max_file_size=most, enable_monitoring=False, **looks, **closed)
    app.state.end = partial(_end, page, app.routes[-1].app)  # type: ignore[attr-defined]  # what was mounted last
    return app


def _end(page: gr.Blocks, mounted: App) -> None:
    """Lets go of the browsers that have the page open: each holds a connection for as long as it does."""
    page.is_running = False
    mounted.stop_event.set()


class Guard:
    """Closes what the page does not ask for, bounds what is read of a question, and tells the browser what the page may do."""

    def __init__(self, app: ASGIApp, *, most_bytes: int, cache: Path):
        self.app, self.most_bytes, self.files = app, most_bytes, f"{FILE}{cache}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        refused = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refused or self.app)(scope, receive, told)

    def _refusal(self, request: Request) -> Response | None:
        path, size = request.scope["path"], request.headers.get("content-length", "")
        if not OPEN.fullmatch(path) or (path.startswith(FILE) and not path.startswith(self.files)):
            return PlainTextResponse("nothing here", 404)
        if request.method == "POST" and not (size.isdigit() and int(size) <= self.most_bytes):
            message = f"a question of {size or 'unknown'} bytes; at most {self.most_bytes} are taken: choose a smaller picture"
            return PlainTextResponse(message, 413)
        return None
