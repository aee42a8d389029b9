"""Models that servers have: what they answer is used, kept and paid for once, whatever the network and the server do."""

import json
import math
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
import yaml

from blip_core.capfilt.chat import KEY, Address, Likely, Terms
from blip_core.capfilt.endpoint import log_odds
from blip_core.capfilt.pace import begin, paced
from blip_core.capfilt.plugins import identify, open_captioner, open_filter
from blip_core.config.capfilt import EndpointConfig, SamplerConfig, WriterConfig
from blip_core.stages.calibrate import calibrate
from blip_core.stages.caption import caption
from blip_core.stages.score import score
from blip_core.tables.captions import read_table, read_tables
from blip_core.tables.manifest import content_hash
from tests.support.chat_servers import hostile_server, llama_server, make_llava, transformers_server
from tests.support.fault_proxy import FaultProxy, Rule
from tests.support.processes import wait_until
from tests.support.small import ROOT, small_values
from tests.support.vlms import make_folder

SAMPLER = SamplerConfig(name="nucleus", p=0.9, top_k=0, temperature=1.0, beams=1, min_tokens=0, max_tokens=6, repetition_penalty=1.0)
LIMITS = {"in_flight": 4, "timeout": 60, "patience": 60, "max_requests": None, "max_tokens_total": None}
QUESTION = "Does it show {text}? yes or no."
PICTURES = dict(zip((f"k{n}" for n in range(9)), np.random.default_rng(0).integers(0, 256, (9, 40, 56, 3), dtype=np.uint8), strict=True))
GOOD = {"model": "m", "choices": [{"message": {"content": "a dog"}, "finish_reason": "stop"}], "usage": {"total_tokens": 7}}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A server of llama.cpp behind the proxy."""
    with llama_server(make_llava(tmp_path_factory.mktemp("llama") / "llava")) as port, FaultProxy(port).running() as proxy:
        yield proxy


def named(port: int, model: str = "tiny") -> str:
    return f"openai:http://127.0.0.1:{port}#{model}"


def write(name, folder, *, num_candidates=1, run="r", sampler=SAMPLER, **limits):
    """What a server writes of all pictures, by key, as a stage would have it."""
    captioner = open_captioner(name, folder, prompt=None, precision="fp32", fetch=None)
    begin([captioner], Terms(EndpointConfig(**LIMITS | limits), folder, run))
    numbers = {"seed": 1, "num_candidates": num_candidates, "first": 0}

    def work(keys, pictures):
        return list(zip(keys, captioner.captions(pictures, keys, sampler, **numbers), strict=True))

    return dict(
        made
        for _, some in paced(captioner, lambda k: captioner.prepare(PICTURES[k]), work, [*PICTURES], batch_size=9, table="t")
        for made in some
    )


def judge(name, folder, texts, **limits):
    """The log-odds of texts of all pictures, by key."""
    filter = open_filter(name, folder, question=QUESTION, precision="fp32", fetch=None)
    begin([filter], Terms(EndpointConfig(**LIMITS | limits), folder, "r"))

    def work(keys, pictures):
        return [(keys[0], filter.score(pictures, [filter.encode(texts)]).itm_logit)]

    return dict(
        made
        for _, some in paced(filter, lambda k: filter.prepare(PICTURES[k]), work, [*PICTURES], batch_size=9, table="j")
        for made in some
    )


def lines(folder):
    return [json.loads(line) for path in sorted(folder.glob("*/*.jsonl")) for line in path.read_text().splitlines()]


def posts(proxy) -> int:
    return sum(request.startswith("POST") for request in proxy.requests)


@pytest.mark.parametrize("kind", ["503", "500", "429", "reset", "lost", "cut", "short"])
def test_a_fault_of_the_network_costs_no_row(llama, tmp_path, kind):
    rule = Rule(kind, match="POST .*", every=3, count=2, after=40)
    llama.breaks(rule)
    found = write(named(llama.port), tmp_path)
    assert [*found] == [*PICTURES] and all(len(own) == 1 for own in found.values()) and rule.hits == 2
    assert len(lines(tmp_path)) == 9 and posts(llama) == 11
    llama.breaks()
    assert write(named(llama.port), tmp_path) == found and posts(llama) == 0


def test_several_candidates_of_a_picture_are_one_request(llama, tmp_path):
    llama.breaks()
    found = write(named(llama.port), tmp_path, num_candidates=3)
    assert posts(llama) == 9 and all(len(own) == 3 for own in found.values())
    texts = [c.text for own in found.values() for c in own]
    assert len(set(texts)) > 20  # each has a draw of its own


def test_the_log_odds_are_those_of_all_tokens(llama, tmp_path):
    """The client sees the twenty likeliest; here the server is asked for all of them, by hand."""
    texts = ["a red ball", "two dogs"]
    llama.breaks(Rule("503", match="POST .*", every=5, count=2))
    found = judge(named(llama.port), tmp_path, texts)
    llama.breaks()
    filter = open_filter(named(llama.port), tmp_path, question=QUESTION, precision="fp32", fetch=None)
    for key, picture in PICTURES.items():
        for text, odds in zip(texts, found[key], strict=True):
            asked = [
                {"type": "image_url", "image_url": {"url": filter.prepare(picture)}},
                {"type": "text", "text": QUESTION.format(text=text)},
            ]
            body = {
                "messages": [{"role": "user", "content": asked}],
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": True,
                "top_logprobs": 261,
            }
            answer = httpx.post(f"http://127.0.0.1:{llama.port}/v1/chat/completions", json=body, timeout=60).json()
            likely = {one["token"]: one["logprob"] for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
            assert odds == pytest.approx(likely["Yes"] - likely["No"], abs=1e-3)
    assert len({round(float(odds), 3) for own in found.values() for odds in own}) > 9  # by picture and by text


def test_spellings_of_yes_and_no_count_together():
    likely = [
        Likely(token=t, logprob=math.log(p)) for t, p in {"Yes": 0.3, " yes": 0.2, "YES": 0.1, "No": 0.2, "no": 0.1, "I": 0.1}.items()
    ]
    assert log_odds(likely) == pytest.approx(math.log(0.6 / 0.3))
    assert log_odds([one for one in likely if one.token.strip().lower() != "no"]) == pytest.approx(math.log(0.6 / 0.1))
    assert log_odds(likely[-1:]) is None


def test_a_round_by_a_server_stops_at_its_budget_and_goes_on(llama, ingested, params, tmp_path):
    """Captions, scores and calibration; what is paid for is never asked again, and another run of the same costs nothing."""
    name, work, g0, shards, heldout = (
        named(llama.port),
        tmp_path / "work",
        ingested / "generations/g0",
        ingested / "shards",
        ingested / "heldout",
    )
    writer = WriterConfig(captioner=name, prompt="Say it.", sentences="all", sampler=SAMPLER, num_candidates=1)

    def run(out, **limits):
        cfg = params.caption.model_copy(update={"writers": (writer,), "endpoint": EndpointConfig(**LIMITS | limits)})
        caption(tmp_path, g0, shards, ingested / "gates/g0.json", out, round="r1", cfg=cfg, seed=3, work=work)

    llama.breaks()
    with pytest.raises(ValueError, match=r"endpoint.max_requests: 100 is spent; raise it and run again"):
        run(tmp_path / "captions", max_requests=100)
    assert posts(llama) == 100 == len(lines(work / "answers"))
    with pytest.raises(ValueError, match="max_requests: 100 is spent"):
        run(tmp_path / "captions", max_requests=100)
    assert posts(llama) == 100
    run(tmp_path / "captions", max_requests=1000)
    made = read_tables(tmp_path / "captions").to_pylist()
    assert posts(llama) == len({(r["shard"], r["key"]) for r in made}) == len(made)
    assert {(r["model"], r["sampler"]) for r in made} == {(identify(name), "nucleus p=0.9, not repeatable")}
    run(tmp_path / "again")
    assert posts(llama) == len(made) and content_hash(tmp_path / "again") == content_hash(tmp_path / "captions")

    score_cfg = params.score.model_copy(
        update={"filters": (name,), "question": QUESTION, "endpoint": EndpointConfig(**LIMITS), "controls_per_image": 1}
    )
    score(tmp_path, g0, tmp_path / "captions", shards, heldout, tmp_path / "scores", cfg=score_cfg, seed=3, work=work)
    for path in (tmp_path / "scores").glob("*.parquet"):
        scored = read_table(path)
        assert scored["itm"].null_count == 0 and scored["itc"].null_count == len(scored)
    (tmp_path / "labels").mkdir()
    cfg = params.calibrate.model_copy(update={"controls_per_image": 1})
    outs = tmp_path / "calibration.json", tmp_path / "metrics.json"
    calibrate(tmp_path, shards, heldout, tmp_path / "labels", *outs, cfg=cfg, score_cfg=score_cfg, seed=3, work=work)
    assert outs[0].exists()


def test_a_killed_run_goes_on_row_by_row(llama, ingested, tmp_path):
    """In the middle of a table: at most what was in flight is asked twice."""
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    writer = {"captioner": named(llama.port), "prompt": None, "sentences": "all", "num_candidates": 1, "sampler": SAMPLER.model_dump()}
    values["caption"] |= {"writers": [writer], "endpoint": LIMITS}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    flags = {
        "captioner": tmp_path,
        "generation": ingested / "generations/g0",
        "shards": ingested / "shards",
        "gate": ingested / "gates/g0.json",
    }
    flags |= {"out": tmp_path / "captions", "work": tmp_path / "work", "params": tmp_path / "params.yaml", "round": "r1"}
    command = [sys.executable, "-m", "blip_core", "caption", *(str(part) for n, value in flags.items() for part in (f"--{n}", value))]
    llama.breaks(Rule("stall", match="POST .*", every=30, count=1, after=0))
    first = subprocess.Popen(command, cwd=ROOT)
    answers = tmp_path / "work/answers"
    wait_until(lambda: len([*answers.glob("*/*.jsonl")]) and sum(len(p.read_bytes().splitlines()) for p in answers.glob("*/*.jsonl")) > 20)
    first.kill()
    first.wait()
    had = len(lines(answers))
    assert not (tmp_path / "captions").exists()
    llama.breaks()
    subprocess.run(command, cwd=ROOT, check=True)
    made = read_tables(tmp_path / "captions")
    assert had + posts(llama) == len(made)


def test_a_key_goes_to_the_server_alone(tmp_path, monkeypatch):
    with llama_server(make_llava(tmp_path / "llava"), key="sesame") as port:
        for key, fault in ((None, "is not set"), ("wrong-key", "is not accepted")):
            if key:
                monkeypatch.setenv(KEY, key)
            with pytest.raises(ValueError, match=f"{KEY} {fault}") as refused:
                identify(named(port))
            assert "wrong-key" not in str(refused.value)
        monkeypatch.setenv(KEY, "sesame")
        assert len(write(named(port), tmp_path / "answers")) == 9
    assert "sesame" not in "".join(p.read_text() for p in (tmp_path / "answers").rglob("*") if p.is_file())


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
def test_an_answer_that_is_none_is_shown_and_finished_rows_stay(kind, tmp_path):
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
    answers = iter([(429, {"Retry-After": "1"}, b""), (503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, b"")])
    start = time.monotonic()
    with hostile_server(lambda: next(answers, (200, {}, json.dumps(GOOD).encode()))) as server:
        assert len(write(named(server.port, "m"), tmp_path, in_flight=1)) == 9
        assert server.asked == 11 and time.monotonic() - start >= 1
    with hostile_server(lambda: (429, {"Retry-After": "3600"}, b"come back later")) as server:
        with pytest.raises(ValueError, match="answers 429 'come back later', for 60 seconds"):
            write(named(server.port, "m"), tmp_path / "other", in_flight=1)
        assert server.asked == 1


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


def test_names_that_are_no_address():
    for name in ("openai:localhost:8000#m", "openai:http://localhost:8000", "openai:#m", "openai:ftp://host/v1#m"):
        with pytest.raises(ValueError, match="expected openai:URL#MODEL, as openai:http://"):
            Address.of(name)
    with pytest.raises(ValueError, match=f"a key has no place in an address; set {KEY}") as refused:
        Address.of("openai:http://me:secret@host/v1#m")
    assert "secret" not in str(refused.value)
    assert (
        Address.of("openai:https://host#a/b").url == "https://host/v1"
        and Address.of("openai:https://host/api/v1/#m").url == "https://host/api/v1"
    )
    with pytest.raises(ValueError, match="no server answers there"):
        identify("openai:http://127.0.0.1:9#m")


def test_a_sampler_that_no_server_knows_is_refused():
    with pytest.raises(ValueError, match=r"name is beam, expected nucleus; repetition_penalty is 1.1, expected 1.0"):
        sampler = SAMPLER.model_copy(update={"name": "beam", "repetition_penalty": 1.1})
        WriterConfig(captioner="openai:http://h#m", prompt=None, sentences="all", sampler=sampler, num_candidates=1)


def test_the_server_of_transformers_writes_one_text_at_a_time_and_can_not_judge(tmp_path):
    """It passes over `n` and `logprobs` without a word."""
    folder = make_folder("llava", tmp_path / "llava")
    with transformers_server(folder) as port, FaultProxy(port).running() as proxy:
        name = named(proxy.port, str(folder))
        proxy.breaks(Rule("503", match="POST .*", every=6, count=2))
        found = write(name, tmp_path / "answers", num_candidates=2, in_flight=2)
        assert len(found) == 9 and all(len(own) == 2 for own in found.values())
        assert len(lines(tmp_path / "answers")) == posts(proxy) - 2
        proxy.breaks()
        assert write(name, tmp_path / "answers", num_candidates=2, in_flight=2) == found and posts(proxy) == 0
        with pytest.raises(ValueError, match="gives no top_logprobs, which a judge needs"):
            judge(name, tmp_path / "answers", ["a dog"])
