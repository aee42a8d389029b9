"""The verb `demo`: which model, and the server until Ctrl-C."""

import argparse
import logging
import os
import socket
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from blip_core.tables.stopped import newest_trained, require_made

if TYPE_CHECKING:
    from fastapi import FastAPI

    from blip_core.config.params import Params
    from blip_core.demo.search import PictureIndex
    from blip_core.serving.service import Service

log = logging.getLogger(__name__)


def demo(args: argparse.Namespace) -> None:
    """`args`: model, generation, shards, host and port as cli/models.py has them, and what every verb takes."""
    from blip_core.config.params import load_params

    if find_spec("gradio") is None:
        raise ValueError("the page needs Gradio, which is not installed: pip install 'blip-bootstrap[demo]'")
    params = load_params(args.params)
    listening = _listen(args.host, args.port)  # before the model is read: a port that is taken is said at once
    with listening, tempfile.TemporaryDirectory(prefix="blip-demo-") as folder:
        from blip_core.serving.options import packed_settings
        from blip_core.serving.service import Service, open_service

        cache = Path(folder).resolve()
        model = model_folder(args.model or f"artifacts/models/{_challenger(params)}", args.work)
        service = open_service(model, packed_settings(model, params))
        index = _index(args, params, model, service) if isinstance(service, Service) else None
        hosts = ["127.0.0.1", "localhost", args.host] if args.host in ("127.0.0.1", "localhost") else ["*"]
        _prepare_gradio(cache)
        from blip_core.demo.app import make_app

        app = make_app(service, index, title=args.model or str(model), hosts=hosts, cache=cache)
        _serve(app, listening, index)


def _prepare_gradio(cache: Path) -> None:
    """What it reads of the environment, much of it when it is imported: no setting of the user's may open what this page keeps closed."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"})


def _challenger(params: "Params") -> str:
    """Or the newest model that was trained, where the rounds stopped before it."""
    return newest_trained(Path("artifacts/models"), params.challenger, params)[0]


def model_folder(spec: str, work: Path) -> Path:
    """The folder of a model that is here, or of a registered version, which is fetched once."""
    if spec.startswith("models:/"):
        from blip_core.tracking.registry import fetch_model

        return fetch_model(spec, Path.cwd(), work / "models")
    require_made(Path(spec))
    if not (Path(spec) / "config.json").exists():
        raise ValueError(f"{spec}: no model folder (config.json is missing); name one, or a registered version as models:/blip@champion")
    return Path(spec)


def _index(args: argparse.Namespace, params: "Params", model: Path, service: "Service") -> "PictureIndex | None":
    from blip_core.demo.search import PictureIndex

    generation = args.generation or Path("artifacts/generations") / params.models[_challenger(params)].generation
    if args.generation is None and not (generation / "manifest.json").exists():
        log.info("no generation to search; name one with --generation")
        return None
    shards = args.shards or generation.resolve().parents[1] / "shards"
    return PictureIndex(service, model, generation, shards, args.work)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as e:
        raise ValueError(f"{host}:{port}: can't listen there ({e}); name another port with --port, or 0 for any that is free") from None


def _serve(app: "FastAPI", listening: socket.socket, index: "PictureIndex | None") -> None:
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.end()
            await super().shutdown(sockets)

    stop = threading.Event()
    builder = threading.Thread(target=_build, args=(index, stop), name="search-index", daemon=True)
    host, port = listening.getsockname()[:2]
    print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    if index is not None:
        builder.start()
    try:
        Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[listening])
    finally:
        stop.set()
        if builder.is_alive():
            builder.join(30)


def _build(index: "PictureIndex", stop: threading.Event) -> None:
    """Pictures that can't be read end the index, and not the page."""
    try:
        index.build(stop)
    except (ValueError, OSError) as e:
        index.fault = str(e)
        log.error("search index: %s", e)
