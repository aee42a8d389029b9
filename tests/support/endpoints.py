"""Models of servers as the stages have them: nine pictures written of and judged, with a ledger."""

import json

import numpy as np

from blip_core.capfilt.chat import Terms
from blip_core.capfilt.pace import begin, paced
from blip_core.capfilt.plugins import open_captioner, open_filter
from blip_core.config.capfilt import EndpointConfig, SamplerConfig
from tests.support.processes import HANG

SAMPLER = SamplerConfig(name="nucleus", p=0.9, top_k=0, temperature=1.0, beams=1, min_tokens=0, max_tokens=6, repetition_penalty=1.0)
LIMITS = {"in_flight": 4, "timeout": HANG, "patience": 60, "max_requests": None, "max_tokens_total": None}
QUESTION = "Does it show {text}? yes or no."
PICTURES = dict(zip((f"k{n}" for n in range(9)), np.random.default_rng(0).integers(0, 256, (9, 40, 56, 3), dtype=np.uint8), strict=True))


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
