"""Captioners and judges that a server has: openai:URL#MODEL. The key lies in the environment, as OPENAI_API_KEY.

A server promises no equal text for an equal seed, and says little of its weights. So such texts are marked as not repeatable, and
what stands for a content hash is the model's name with what the server says of it.
"""

import base64
import hashlib
import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import simplejpeg

from blip_core.capfilt.answers import without_thoughts
from blip_core.capfilt.chat import Address, Chat, Rejected, Terms, client, require_welcome, said
from blip_core.capfilt.completion import Choice, Likely
from blip_core.capfilt.fuse import FUSE, filled
from blip_core.capfilt.ledger import Budget
from blip_core.capfilt.med import Caption
from blip_core.capfilt.pair_scores import PairScores
from blip_core.capfilt.vlm import INSTRUCTION
from blip_core.config.capfilt import SamplerConfig
from blip_core.files.content import hash64

log = logging.getLogger(__name__)

_QUALITY = 95  # of the JPEG that is sent
_PASSING = {"created", "permission"}  # vLLM and llama.cpp give both anew at every question
_PATIENCE = 60.0  # seconds for what a server says of itself
_MOST_LIKELY = 20  # tokens that may be asked for


def identify_endpoint(name: str) -> str:
    """Hash of the model's name and of what /v1/models says of it, as far as that lasts.

    ValueError when no server answers, or it refuses the key."""
    address = Address.of(name)
    try:
        with client(_PATIENCE) as http:
            response = http.get(f"{address.url}/models")
    except httpx.TransportError as e:
        raise ValueError(f"{name}: no server answers there ({e or type(e).__name__}); start it, or name another") from None
    if response.status_code in (401, 403):
        require_welcome(address, response)
    about: dict[str, Any] = {}
    if response.status_code != 200:
        log.warning("%s: %s when asked what it serves; its name alone tells it from others", name, said(response))
    else:
        about = _entry(address, response)
    lasting = {key: value for key, value in about.items() if key not in _PASSING}
    return hashlib.sha256(json.dumps([address.model, lasting], sort_keys=True).encode()).hexdigest()[:16]


def _entry(address: Address, response: httpx.Response) -> dict[str, Any]:
    """Of the model in the list; {} where it is not there, as with servers that load what they are asked for."""
    try:
        return next((entry for entry in response.json()["data"] if entry["id"] == address.model), {})
    except (ValueError, KeyError, TypeError):
        fault = f"/models {said(response)}, which is no list of models"
        raise ValueError(
            f"{address.name}: {fault}; expected the address of a server with OpenAI's API, as http://localhost:8000/v1"
        ) from None


@dataclass
class Endpoint:
    """What captioner and judge share."""

    address: Address
    identity: str
    instruction: str
    _chat: Chat | None = field(default=None, init=False)

    def begin(self, terms: Terms, budget: Budget) -> None:
        self._chat = Chat(self.address, terms, budget, self.identity)

    def chat(self) -> Chat:
        if self._chat is None:
            raise ValueError(
                f"{self.address.name}: a server is asked by the stages caption, calibrate and score alone, which keep what it answers"
            )
        return self._chat

    def prepare(self, picture: np.ndarray) -> str:
        """A data URL."""
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=_QUALITY, colorsubsampling="444")
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"

    def _ask(self, body: dict[str, Any], seeds: list[int], about: str) -> list[Choice]:
        try:
            return self.chat().ask(body, seeds)
        except Rejected as e:
            raise Rejected(f"{about}: {e}") from None

    def _turn(self, picture: str, text: str) -> dict[str, Any]:
        """The picture first: servers keep what equal beginnings have in common."""
        parts = [{"type": "image_url", "image_url": {"url": picture}}] + [{"type": "text", "text": text}] * bool(text)
        return {"messages": [{"role": "user", "content": parts}]}


@dataclass
class EndpointCaptioner(Endpoint):
    """Writes what it is told to."""

    def captions(
        self, pictures: list[str], keys: list[str], sampler: SamplerConfig, *, seed: int, num_candidates: int, first: int
    ) -> list[list[Caption]]:
        shape = {"temperature": sampler.temperature, "top_p": sampler.p, "max_tokens": sampler.max_tokens}
        shape |= {"top_k": sampler.top_k} if sampler.top_k else {}  # not of OpenAI itself
        numbers = range(first, first + num_candidates)
        found = []
        for picture, key in zip(pictures, keys, strict=True):
            seeds = [hash64(f"{seed} {key} {number}") & 0x7FFFFFFF for number in numbers]  # some servers have no room for more bits
            choices = self._ask(self._turn(picture, self.instruction) | shape, seeds, f"picture {key!r}")
            found.append([Caption(without_thoughts(c.message.content or ""), c.finish_reason == "length") for c in choices])
        return found


@dataclass
class EndpointFuser(EndpointCaptioner):
    """Makes one text of two; the server sees no picture."""

    def prepare_pair(self, web: str, caption: str) -> str:
        return filled(self.instruction, web, caption)

    def _turn(self, picture: str, text: str) -> dict[str, Any]:
        """What stands for the picture is all that is asked."""
        return {"messages": [{"role": "user", "content": picture}]}


@dataclass
class EndpointJudge(Endpoint):
    """P(yes) to a question on each text (VQAScore, Lin et al. 2024), as `itm`; no `itc`. `instruction` is the question."""

    _unsure: bool = field(default=False, init=False)  # it was said that an answer was neither yes nor no

    def encode(self, texts: list[str]) -> list[str]:
        return texts

    def score(self, pictures: list[str], texts: list[list[str]]) -> PairScores:
        odds = [self._odds(picture, text) for picture, row in zip(pictures, texts, strict=True) for text in row]
        return PairScores(np.array(odds), np.full(len(odds), math.nan))

    def _odds(self, picture: str, text: str) -> float:
        asks = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": _MOST_LIKELY}
        likely = self._ask(self._turn(picture, self.instruction.replace("{text}", text)) | asks, [0], f"text {text!r}")[0].likely
        odds = log_odds(likely)
        if odds is None and not self._unsure:
            self._unsure = True
            found = [one.token for one in likely[:5]]
            log.warning("%s: says neither yes nor no of %r, but likeliest %s; this counts as log-odds of 0", self.address.name, text, found)
        return odds or 0.0


def log_odds(likely: list[Likely]) -> float | None:
    """Of yes against no, each in any spelling. One that is not among the likeliest tokens is taken to be as likely as the last of them;
    None where neither is."""
    found = [[one.logprob for one in likely if one.token.strip().casefold() == word] for word in ("yes", "no")]
    if not any(found):
        return None
    least = min(one.logprob for one in likely)
    yes, no = (float(np.logaddexp.reduce(own or [least])) for own in found)
    return yes - no


def open_endpoint_captioner(name: str, identity: str, *, prompt: str | None, precision: str) -> EndpointCaptioner:
    """`precision` is the server's own affair."""
    return EndpointCaptioner(Address.of(name), identity, INSTRUCTION if prompt is None else prompt)


def open_endpoint_fuser(name: str, identity: str, *, prompt: str | None, precision: str) -> EndpointFuser:
    """Likewise."""
    return EndpointFuser(Address.of(name), identity, FUSE if prompt is None else prompt)


def open_endpoint_judge(name: str, identity: str, *, question: str, precision: str) -> EndpointJudge:
    """Likewise."""
    return EndpointJudge(Address.of(name), identity, question)
