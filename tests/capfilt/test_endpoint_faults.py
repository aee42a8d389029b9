"""Servers that refuse, are busy, are silent or talk nonsense: each is said in plain words, and what was answered stays."""

import json
import time

import pytest

from blip_core.capfilt.chat import KEY
from blip_core.capfilt.completion import Choice, Message
from blip_core.capfilt.ledger import Ledger
from blip_core.capfilt.plugins import identify
from tests.support.chat_servers import hostile_server
from tests.support.endpoints import lines, named, write

GOOD = {"model": "m", "choices": [{"message": {"content": "a dog"}, "finish_reason": "stop"}], "usage": {"total_tokens": 7}}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_that_no_waiting_mends_is_not_repeated(status, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    answers = iter([(200, {}, json.dumps(GOOD).encode())] * 3)
    with hostile_server(lambda: next(answers, (status, {}, b'{"error": {"message": "no"}}'))) as server:
        with pytest.raises(ValueError, match=rf"answers {status} .*no.*; the (key in|server has no such)") as refused:
            write(named(server.port, "m"), tmp_path)
        assert server.asked <= 3 + 4 and server.keys == {"Bearer secret"} and "secret" not in str(refused.value)
    assert len(lines(tmp_path)) == 3  # what was answered stays


BAD = {
    "garbage": (b"\x00\xff\x17 no", "answers 200 with .*Invalid JSON"),
    "html": (b"<html><body>Bad gateway</body></html>", "<html>.*Invalid JSON"),
    "half": (json.dumps(GOOD).encode()[:40], "Invalid JSON: EOF"),
    "no choices": (json.dumps(GOOD | {"choices": []}).encode(), "choices: List should have at least 1 item"),
    "empty choice": (json.dumps(GOOD | {"choices": [{}]}).encode(), "choices.0.message: Field required"),
    "other model": (json.dumps(GOOD | {"model": "other"}).encode(), "answers as the model 'other'; name the model that is meant"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_answer_that_is_none_is_shown_and_finished_rows_stay(kind, tmp_path, impatient):
    body, message = BAD[kind]
    answers = iter([(200, {}, json.dumps(GOOD).encode())] * 5)
    with hostile_server(lambda: next(answers, (200, {}, body))) as server:
        with pytest.raises(ValueError, match=message) as refused:
            write(named(server.port, "m"), tmp_path)
        assert str(server.port) in str(refused.value) and server.asked <= 5 + 3 * 4
    assert len(lines(tmp_path)) == 5
    with hostile_server(lambda: (200, {}, json.dumps(GOOD).encode())) as server:
        assert len(write(named(server.port, "m"), tmp_path)) == 9
        assert server.asked == 4


def test_silence_ends(tmp_path):
    with hostile_server(lambda: None) as server, pytest.raises(ValueError, match=r"no answer within 0.3 seconds \(endpoint.timeout\)"):
        write(named(server.port, "m"), tmp_path, timeout=0.3, patience=0.1)


def test_a_server_that_is_busy_is_asked_when_it_says(tmp_path):
    """In seconds or by a date; one that says to come back in an hour is not waited for."""
    answers = iter([(429, {"Retry-After": "1"}, b""), (503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 -0000"}, b"")])
    start = time.monotonic()
    with hostile_server(lambda: next(answers, (200, {}, json.dumps(GOOD).encode()))) as server:
        assert len(write(named(server.port, "m"), tmp_path, in_flight=1)) == 9
        assert server.asked == 11 and time.monotonic() - start >= 1
    with hostile_server(lambda: (429, {"Retry-After": "3600"}, b"come back later")) as server:
        with pytest.raises(ValueError, match="answers 429 'come back later', for 60 seconds"):
            write(named(server.port, "m"), tmp_path / "other", in_flight=1)
        assert server.asked == 1


def test_an_answer_with_an_end_of_line_in_it_is_paid_for_once(tmp_path):
    """Python's splitlines cut such a line of the ledger in two, so that the answer was lost and asked for again at each run."""
    said, path = "a dog\u2028and\x85a\x0bcat", tmp_path / "t.jsonl"
    for request in ("first", "second"):
        ledger = Ledger(path, "r")
        ledger.add({request: Choice(message=Message(content=said)).model_dump_json()}, 7)
        ledger.close()
    assert [Choice.model_validate_json(a).message.content for a in Ledger(path, "r").answers.values()] == [said, said]


def test_an_account_that_is_spent_and_a_picture_that_is_blocked(tmp_path):
    broke = json.dumps({"error": {"code": "insufficient_quota", "message": "pay"}}).encode()
    with hostile_server(lambda: (429, {}, broke)) as server:
        with pytest.raises(ValueError, match="the account is spent"):
            write(named(server.port, "m"), tmp_path, in_flight=1)
        assert server.asked == 1
    blocked = json.dumps({"error": {"code": "content_filter", "message": "no"}}).encode()
    answers = iter([(400, {}, blocked)])
    with hostile_server(lambda: next(answers, (200, {}, json.dumps(GOOD).encode()))) as server:
        found = write(named(server.port, "m"), tmp_path, in_flight=1)
    assert [own[0].text for own in found.values()] == ["", *["a dog"] * 8]


def test_tokens_have_a_budget_of_their_own(tmp_path):
    with hostile_server(lambda: (200, {}, json.dumps(GOOD).encode())) as server:
        with pytest.raises(ValueError, match="endpoint.max_tokens_total: 20 is spent"):
            write(named(server.port, "m"), tmp_path, in_flight=1, max_tokens_total=20)
        assert server.asked == 3  # of 7 tokens each
        with pytest.raises(ValueError, match="is spent"):
            write(named(server.port, "m"), tmp_path, in_flight=1, max_tokens_total=20)
        assert server.asked == 3
        write(named(server.port, "m"), tmp_path, run="another", in_flight=1, max_tokens_total=42)
        assert server.asked == 9
    untold = json.dumps({k: v for k, v in GOOD.items() if k != "usage"}).encode()
    with hostile_server(lambda: (200, {}, untold)) as server, pytest.raises(ValueError, match="says of no answer how many tokens"):
        write(named(server.port, "m"), tmp_path / "untold", in_flight=1, max_tokens_total=20)


def test_a_line_that_was_cut_is_asked_for_again(tmp_path, caplog):
    with hostile_server(lambda: (200, {}, json.dumps(GOOD).encode())) as server:
        write(named(server.port, "m"), tmp_path)
        (path,) = tmp_path.glob("*/t.jsonl")
        path.write_bytes(path.read_bytes()[:-30])
        write(named(server.port, "m"), tmp_path)
        assert server.asked == 10 and "1 answers were cut off" in caplog.text
        write(named(server.port, "m"), tmp_path)
        assert server.asked == 10


def test_what_a_server_says_of_itself_tells_its_models_apart():
    """Of what it says anew at every question, nothing counts."""

    def identity(**entry):
        models = json.dumps({"data": [{"id": "other"}, {"id": "m", **entry}]}).encode()
        with hostile_server(lambda: None, models) as server:
            return identify(named(server.port, "m"))

    first = identity(root="/models/a", created=1, permission=[{"id": "x"}])
    assert first == identity(root="/models/a", created=2, permission=[]) != identity(root="/models/b", created=1)
    with hostile_server(lambda: None, b"<html>") as server, pytest.raises(ValueError, match="which is no list of models"):
        identify(named(server.port, "m"))
