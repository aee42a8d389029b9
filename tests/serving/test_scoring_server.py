"""`mlflow models serve` as its clients see it: what is answered, and what each kind of bad input is told."""

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.processes import HANG, wait_until


@pytest.fixture(scope="module")
def ask(served, tmp_path_factory):
    """Sends rows and params to a real server; returns the status and the answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{served[0]}/mlflow.db", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/blip@champion", "--env-manager", "local"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        options = {"cwd": log.parent, "stdout": out, "stderr": out, "start_new_session": True}
        server = subprocess.Popen([*command, "-p", str(port)], env=environment, **options)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG) as client:
        try:
            _wait(client, server, log)
            yield lambda body: _sent(client, body)
        finally:
            os.killpg(server.pid, 15)
            server.wait(HANG)


def _wait(client, server, log):
    wait_until(lambda: server.poll() is not None or _answers(client))
    assert server.poll() is None, log.read_text()


def _answers(client):
    with contextlib.suppress(httpx.TransportError):
        return client.get("/ping").status_code == 200


def _sent(client, body):
    headers = {"Content-Type": "application/json"}
    answer = client.post("/invocations", content=json.dumps(body), headers=headers)  # ASCII, as httpx sends no lone surrogate
    return answer.status_code, answer.json()


def picture(seed=0, size=(48, 40), mode="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, mode)
    return base64.b64encode(buffer.getvalue()).decode()


def test_captions_by_beam_and_by_nucleus(ask):
    rows = [{"image": picture(0)}, {"image": picture(1, mode="JPEG")}]
    status, beam = ask({"dataframe_records": rows})
    assert status == 200 and [len(row["captions"]) for row in beam["predictions"]] == [1, 1]
    asked = {"sampler": "nucleus", "num_captions": 2, "p": 0.9}
    status, sampled = ask({"dataframe_records": rows, "params": asked})
    assert status == 200 and [len(row["captions"]) for row in sampled["predictions"]] == [2, 2]
    assert ask({"inputs": {"image": [row["image"] for row in rows]}}) == (200, beam)
    assert ask({"dataframe_split": {"columns": ["image"], "data": [[row["image"]] for row in rows]}}) == (200, beam)


def test_match_and_embeddings(ask):
    row = {"image": picture(), "text": "a red ball"}
    status, answer = ask({"dataframe_records": [row], "params": MATCH})
    [match] = answer["predictions"]
    assert status == 200 and 0 < match["itm"] < 1 and -1 <= match["itc"] <= 1
    mixed = [row, {"image": picture(1)}, {"text": "a star"}]
    status, answer = ask({"dataframe_records": mixed, "params": EMBED})
    names = ["image_embedding", "text_embedding"]
    assert [sorted(found) for found in answer["predictions"]] == [names, names[:1], names[1:]]
    pair = answer["predictions"][0]
    assert np.dot(pair["image_embedding"], pair["text_embedding"]) == pytest.approx(match["itc"], abs=2e-3)
    assert ask({"dataframe_records": [{"text": "a star"}], "params": EMBED})[0] == 200


def test_the_logged_example_is_answered(ask, served):
    [example] = served[0].rglob("serving_input_example.json")
    status, answer = ask(json.loads(example.read_text()))
    assert status == 200 and set(answer["predictions"][0]) == {"itm", "itc"}


def bomb():
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


SURROGATE = {"dataframe_records": [{"text": "a\ud800"}], "params": {"task": "embed"}}
MATCH, EMBED = {"task": "match"}, {"task": "embed"}
BAD = {
    "not base64": ([{"image": "%%%"}], {}, "row 0: image: expected a JPEG, PNG, WebP or GIF file as base64 text; paths are not taken here"),
    "a path": ([{"image": "/etc/hostname"}], {"allow_path": True}, "row 0: image: expected"),
    "a URL": ([{"image": "https://example.org/a.jpg"}], {}, "row 0: image: URLs are not fetched here; send the file as base64"),
    "no image": ([{"image": picture()}, {"image": base64.b64encode(b"plain text").decode()}], {}, "row 1: image: not_an_image"),
    "a bomb": ([{"image": bomb()}], {}, "row 0: image: bomb: 12000 x 12000 pixels, at most 40000000 in all are allowed"),
    "a tiny image": ([{"image": picture(size=(8, 8))}], {}, "row 0: image: too_small"),
    "too many bytes": ([{"image": "A" * 45_000_000}], {}, "row 0: image: too_many_bytes"),
    "too many rows": ([{"image": "QQ=="}] * 65, {}, "65 rows, at most 64 are allowed"),
    "match without a text": (
        [{"image": picture(), "text": "a"}, {"image": picture()}],
        MATCH,
        "row 1: no text; task match needs image and text",
    ),
    "match without an image": ([{"text": "a"}], MATCH, "row 0: no image"),
    "caption with a text": ([{"image": picture(), "text": "a"}], {}, "row 0: a text, which task caption does not read"),
    "caption without an image": ([{"text": "a"}], {}, "row 0: no image"),
    "embed of nothing": ([{"text": "a"}, {"text": None}], EMBED, "row 1: neither image nor text"),
    "an unknown task": ([{"image": picture()}], {"task": "tag"}, "params: task: got 'tag'; one of caption, match, embed"),
    "an unknown sampler": ([{"image": picture()}], {"sampler": "top"}, "params: sampler: got 'top'"),
    "p of two": ([{"image": picture()}], {"p": 2.0}, "params: p: got 2.0"),
    "no temperature": ([{"image": picture()}], {"temperature": 1e-300}, "params: temperature: got 1e-300"),
    "p of null": ([{"image": picture()}], {"p": None}, "params: p: got None"),
    "p of text": ([{"image": picture()}], {"p": "much"}, "Can not safely convert"),
    "many beams": ([{"image": picture()}], {"beams": 1000}, "params: beams: 1000, at most 16 are allowed"),
    "several by beam": ([{"image": picture()}], {"num_captions": 9}, "params: num_captions: 9 of a search with 3 beams"),
    "top_k below none": ([{"image": picture()}], {"top_k": -1}, "params: top_k: got -1"),
    "many captions": ([{"image": picture()}], {"num_captions": 99, "sampler": "nucleus"}, "params: num_captions: 99, at most 16"),
    "no caption": ([{"image": picture()}], {"num_captions": 0}, "params: num_captions: got 0"),
    "long captions": ([{"image": picture()}], {"max_tokens": 500}, "params: max_tokens: 500, this model writes"),
    "a number": ([{"image": 5}], {}, "row 0: image: expected a JPEG, PNG, WebP or GIF file as base64 text; a program"),
    "a list": ([{"image": [["a"]]}], {}, "row 0: image: expected"),
    "a dict": ([{"image": {"a": 1}}], {}, "row 0: image: expected"),
    "a number for a text": ([{"text": 7}], EMBED, "row 0: text: expected a string, got int '7'"),
    "NUL": ([{"text": "a\0b"}], EMBED, "row 0: text: nul_text"),
    "an empty text": ([{"text": " "}], EMBED, "row 0: text: empty_text"),
    "a huge text": ([{"text": "a " * 1_000_000}], EMBED, "row 0: text: text_too_long"),
    "nothing": ([], {}, "no row: expected at least one"),
    "another column": ([{"picture": picture()}], {}, "no row: expected at least one, with `image` or `text`"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_told_what_was_expected(ask, kind):
    rows, params, message = BAD[kind]
    status, answer = ask({"dataframe_records": rows, "params": params})
    assert status == 400
    assert message in answer["message"] and "Traceback" not in str(answer)
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize("body", [{}, [], {"inputs": []}, {"inputs": 5}, {"inputs": ["QQ=="]}, {"inputs": {"image": []}}, SURROGATE])
def test_other_shapes_are_refused(ask, body):
    assert ask(body)[0] == 400


def test_lists_of_different_lengths_are_refused(ask):
    status, answer = ask({"inputs": {"image": [picture(), picture()], "text": ["a"]}, "params": MATCH})
    assert status == 400 and "same length" in answer["message"]


def test_the_server_goes_on_after_all_this(ask):
    assert ask({"dataframe_records": [{"image": picture()}]})[0] == 200
