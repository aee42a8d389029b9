"""Servers of chat completions: the real ones of llama.cpp and of transformers with tiny random models, and one that answers nonsense."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.processes import wait_until

LLAMA = """
import sys, time, xllamacpp
folder, port, key = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.mmproj.path, params.model_alias = f"{folder}/model.gguf", f"{folder}/mmproj.gguf", ["tiny"]
params.port, params.n_ctx, params.n_parallel, params.n_gpu_layers = int(port), 4096, 4, 0
params.api_keys, params.warmup, params.cpuparams.n_threads = [key] * bool(key), False, 1
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""
WIDTH, DEPTH, HEADS, MLP = 32, 2, 2, 48
PATCH, SIDE = 8, 32


@contextlib.contextmanager
def llama_server(folder: Path, *, key: str = "") -> Iterator[int]:
    """The port of llama.cpp's server, with the folder that `make_llava` made."""
    port = free_port()
    with _running([sys.executable, "-c", LLAMA, folder, str(port), key], port, folder / "server.log"):
        yield port


@contextlib.contextmanager
def transformers_server(folder: Path) -> Iterator[int]:
    """The port of `transformers serve`, with a folder of a model."""
    port, cache = free_port(), folder.parent / "hub"
    cache.mkdir(exist_ok=True)  # what it says that it serves lies there: nothing
    command = [Path(sys.executable).parent / "transformers", "serve", folder, "--port", str(port), "--device", "cpu"]
    with _running(command, port, folder.parent / "server.log", HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1"):
        yield port


@contextlib.contextmanager
def _running(command: list[object], port: int, log: Path, **env: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen([str(part) for part in command], env={**os.environ, **env}, stdout=out, stderr=out)
    try:
        wait_until(lambda: process.poll() is not None or answers(port))
        if process.poll() is not None:
            raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def answers(port: int) -> bool:
    """llama.cpp listens, and says 503, while it loads its model."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code != 503
    return False


@contextlib.contextmanager
def hostile_server(answer: Callable[[], tuple[int, dict[str, str], bytes] | None], models: bytes = b'{"data": []}') -> Iterator["Hostile"]:
    """To each question what `answer` gives: status, headers and body; None is silence."""
    server = Hostile(answer, models)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # so often it looks whether it is to end
    thread.start()
    try:
        yield server
    finally:
        server.done.set()
        server.shutdown()
        server.server_close()


class Hostile(http.server.ThreadingHTTPServer):
    """`asked` counts the questions, `keys` has what they were signed with."""

    daemon_threads = True

    def __init__(self, answer: Callable[[], tuple[int, dict[str, str], bytes] | None], models: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.models, self.asked, self.keys, self.done = answer, models, 0, set(), threading.Event()

    @property
    def port(self) -> int:
        return self.server_address[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hostile

    def do_GET(self) -> None:
        self._send(200, {}, self.server.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        self.server.keys.add(self.headers["Authorization"])
        if (found := self.server.answer()) is None:
            self.server.done.wait()
            return
        self._send(*found)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at what the client says."""


def make_llava(folder: Path) -> Path:
    """A LLaVA of llama.cpp with random weights; its next token is often Yes or No, as of a judge. Without llama.cpp the test skips."""
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: the package xllamacpp, of the extra `test`")
    folder.mkdir()
    rng = np.random.default_rng(0)
    _write_language_model(folder / "model.gguf", rng)
    _write_vision_model(folder / "mmproj.gguf", rng)
    return folder


def _write_language_model(path: Path, rng: np.random.Generator) -> None:
    import gguf
    from tokenizers import pre_tokenizers

    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ye", "Yes", "No"]
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(4096)
    out.add_embedding_length(WIDTH)
    out.add_block_count(DEPTH)
    out.add_feed_forward_length(MLP)
    out.add_head_count(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    out.add_token_merges(["Y e", "Ye s", "N o"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    out.add_chat_template("{% for turn in messages %}USER: {{ turn['content'] }} ASSISTANT:{% endfor %}")
    entering, leaving = (rng.normal(scale=scale, size=(len(tokens), WIDTH)).astype(np.float32) for scale in (0.3, 0.1))
    entering[:, 0], leaving[-2:, 0] = 6, 1  # all that is read speaks for the last two
    out.add_tensor("token_embd.weight", entering)
    out.add_tensor("output.weight", leaving)
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(DEPTH):
        sides = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        sides |= {"ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in sides.items()}
        shapes |= {f"blk.{block}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    _write(out, shapes | {"output_norm": (WIDTH,)}, rng)


def _write_vision_model(path: Path, rng: np.random.Generator) -> None:
    import gguf

    out = gguf.GGUFWriter(path, "clip")
    out.add_bool("clip.has_vision_encoder", True)
    out.add_string("clip.projector_type", "mlp")
    out.add_bool("clip.use_gelu", False)
    sizes = {"image_size": SIDE, "patch_size": PATCH, "embedding_length": WIDTH, "feed_forward_length": MLP, "projection_dim": WIDTH}
    for name, value in (sizes | {"block_count": DEPTH, "attention.head_count": HEADS}).items():
        out.add_uint32(f"clip.vision.{name}", value)
    out.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for name in ("mean", "std"):
        out.add_array(f"clip.vision.image_{name}", [0.5] * 3)
    shapes = {"v.patch_embd": (WIDTH, 3, PATCH, PATCH), "v.position_embd": ((SIDE // PATCH) ** 2 + 1, WIDTH), "v.pre_ln": (WIDTH,)}
    for block in range(DEPTH):
        sides = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (WIDTH, WIDTH)) | {
            "ffn_up": (MLP, WIDTH),
            "ffn_down": (WIDTH, MLP),
        }
        shapes |= {f"v.blk.{block}.{name}": shape for name, shape in (sides | {"ln1": (WIDTH,), "ln2": (WIDTH,)}).items()}
    biased = [name for name in shapes if name not in ("v.patch_embd", "v.position_embd")]
    shapes |= {f"mm.{layer}": (WIDTH, WIDTH) for layer in (0, 2)}
    for name in [*biased, "mm.0", "mm.2"]:
        out.add_tensor(f"{name}.bias", np.zeros(shapes[name][0], np.float32))
    out.add_tensor("v.class_embd", rng.normal(size=WIDTH).astype(np.float32))
    _write(out, shapes, rng)


def _write(out: object, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """Norms of ones, and all else at random."""
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", (np.ones(shape) if len(shape) == 1 else rng.normal(scale=0.2, size=shape)).astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
