"""Models that servers have: what they answer is used, kept and paid for once, whatever the network and the server do."""

import itertools
import math
import subprocess
import sys
import threading

import httpx
import pytest
import yaml

from blip_core.capfilt.chat import KEY, Address, Terms
from blip_core.capfilt.completion import Likely
from blip_core.capfilt.endpoint import log_odds
from blip_core.capfilt.fuse import FUSE, filled
from blip_core.capfilt.pace import begin, paced
from blip_core.capfilt.plugins import identify, identify_captioner, open_filter, open_fuser
from blip_core.config.capfilt import EndpointConfig, WriterConfig
from blip_core.stages.calibrate import calibrate
from blip_core.stages.caption import caption, num_crawled
from blip_core.stages.score import score
from blip_core.tables.captions import read_table, read_tables, table_paths
from blip_core.tables.manifest import content_hash
from tests.support.chat_servers import hostile_server, llama_server, make_llava, transformers_server
from tests.support.endpoints import LIMITS, PICTURES, QUESTION, SAMPLER, judge, lines, named, write
from tests.support.fault_proxy import FaultProxy, Rule
from tests.support.processes import HANG, wait_until
from tests.support.small import ROOT, small_values
from tests.support.vlms import make_folder

CAPTIONS = """
import sys
from pathlib import Path
from blip_core.config.params import load_params
from blip_core.stages.caption import caption

root, artifacts = map(Path, sys.argv[1:])
cfg, inputs = load_params(root / "params.yaml").caption, [artifacts / name for name in ("generations/g0", "shards", "gates/g0.json")]
caption(root, *inputs, root / "captions", round="r1", cfg=cfg, seed=3, work=root / "work")
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A server of llama.cpp behind the proxy."""
    with llama_server(make_llava(tmp_path_factory.mktemp("llama") / "llava")) as port, FaultProxy(port).running() as proxy:
        yield proxy


def posts(proxy) -> int:
    return sum(request.startswith("POST") for request in proxy.requests)


@pytest.mark.parametrize("kind", ["503", "500", "429", "reset", "lost", "cut", "short"])
def test_a_fault_of_the_network_costs_no_row(llama, tmp_path, impatient, kind):
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
            answer = httpx.post(f"http://127.0.0.1:{llama.port}/v1/chat/completions", json=body, timeout=HANG).json()
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
    writer = WriterConfig(captioner=name, prompt="Say it.", fuses=None, sentences="all", sampler=SAMPLER, num_candidates=1)

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
    assert {(r["model"], r["sampler"]) for r in made} == {(identify_captioner(name, "Say it."), "nucleus p=0.9, not repeatable")}
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


def test_a_server_fuses_texts(llama, tmp_path):
    """It sees both texts and no picture."""
    llama.breaks()
    fuser = open_fuser(named(llama.port), tmp_path, prompt=None, precision="fp32", fetch=None)
    begin([fuser], Terms(EndpointConfig(**LIMITS), tmp_path, "r"))
    sampler, pair = SAMPLER.model_copy(update={"top_k": 1}), ("Anna in Rome, 2019", "a red ball")

    def work(keys, prepared):
        return fuser.captions(prepared, keys, sampler, seed=1, num_candidates=1, first=0)

    for _ in range(2):
        [(_, [[found]])] = paced(fuser, lambda _: fuser.prepare_pair(*pair), work, ["k"], batch_size=4, table="t")
        assert posts(llama) == 1  # of the second time none
    body = {"messages": [{"role": "user", "content": filled(FUSE, *pair)}], "temperature": 0, "max_tokens": sampler.max_tokens}
    answer = httpx.post(f"http://127.0.0.1:{llama.port}/v1/chat/completions", json=body, timeout=HANG).json()
    assert found.text == answer["choices"][0]["message"]["content"]


def test_a_killed_run_goes_on_row_by_row(llama, ingested, tmp_path):
    """In the middle of a table: at most what was in flight is asked twice."""
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    writer = {
        "captioner": named(llama.port),
        "prompt": None,
        "fuses": None,
        "sentences": "all",
        "num_candidates": 1,
        "sampler": SAMPLER.model_dump(),
    }
    values["caption"] |= {"writers": [writer], "endpoint": LIMITS}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-c", CAPTIONS, tmp_path, ingested]
    llama.breaks(Rule("stall", match="POST .*", every=30, count=1, after=0))
    first = subprocess.Popen(command, cwd=ROOT)
    answers = tmp_path / "work/answers"
    wait_until(lambda: sum(len(path.read_bytes().splitlines()) for path in answers.glob("*/*.jsonl")) > 20)
    first.kill()
    first.wait()
    assert not (tmp_path / "captions").exists()
    llama.breaks()
    subprocess.run(command, cwd=ROOT, check=True)
    made = read_tables(tmp_path / "captions")
    assert len(lines(answers)) == len(made) and posts(llama) < len(made) - 20 + LIMITS["in_flight"]


def test_the_next_table_is_asked_for_while_the_last_answers_of_this_one_come_in(ingested, params, tmp_path):
    """So many questions as the first table has, and the last of them has its answer when a further one was asked."""
    g0 = ingested / "generations/g0"
    sizes = [size for path in table_paths(g0) if (size := num_crawled(path))]
    assert len(sizes) > 1
    asked, next_table, others = itertools.count(1), threading.Event(), set(threading.enumerate())

    def answer():
        number = next(asked)
        if number == sizes[0]:
            next_table.wait(HANG)
        if number > sizes[0]:
            next_table.set()
        return 200, {}, b'{"model": "m", "choices": [{"message": {"content": "a dog"}}]}'

    with hostile_server(answer) as server:
        writer = {"captioner": named(server.port, "m"), "num_candidates": 1, "sampler": SAMPLER}
        writers = (params.caption.writers[0].model_copy(update=writer),)
        cfg = params.caption.model_copy(update={"writers": writers, "endpoint": EndpointConfig(**LIMITS)})
        caption(tmp_path, g0, ingested / "shards", ingested / "gates/g0.json", tmp_path / "out", round="r1", cfg=cfg, seed=3, work=tmp_path)
        assert server.asked == sum(sizes) == read_tables(tmp_path / "out").num_rows
    assert not [thread for thread in set(threading.enumerate()) - others if thread.name.startswith(("table", "read-ahead"))]


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
        WriterConfig(captioner="openai:http://h#m", prompt=None, fuses=None, sentences="all", sampler=sampler, num_candidates=1)


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
