"""Questions to a server by the chat completions of OpenAI, as vLLM, SGLang, NIM, llama.cpp, `transformers serve` and hosted APIs have them.

`Chat.ask` is where to start. A server that is busy or away is asked again for a while; an answer that can't be used is said with what
was got; one that was had before comes from the ledger.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import stamina
from pydantic import ValidationError

from blip_core.capfilt.completion import Choice, Completion, Message
from blip_core.capfilt.ledger import Budget, Ledger
from blip_core.compute.work import Halt
from blip_core.config.capfilt import EndpointConfig

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
_CONNECTS = 10.0  # seconds
_SHOWN = 300  # characters of an answer in a message
_SAYS_AGAIN = 30.0  # seconds between two lines on a server that is busy
_GARBLED = 3  # times that an answer may be no answer: each may have been paid for
_BUSY = {408, 409, 425, 429}  # and all from 500 on
_BLOCKED = {"content_filter", "content_policy_violation"}  # what hosted APIs call a picture that they will not look at
_BROKE = "insufficient_quota"  # a 429 that waiting does not mend


class Busy(Exception):
    """The server is busy or away; `after` seconds it may be asked again, where it says so."""

    def __init__(self, fault: str, after: float | None = None):
        super().__init__(fault)
        self.after = after


class Garbled(Exception):
    """A 200 without an answer."""


class Rejected(ValueError):
    """The request itself is at fault."""


@dataclass(frozen=True)
class Terms:
    """How a run asks servers; pickles."""

    limits: EndpointConfig
    folder: Path  # of the ledgers
    run: str  # what `max_requests` and `max_tokens_total` are for
    workers: int = 1  # that share them


@dataclass(frozen=True)
class Address:
    """Of a model: openai:URL#MODEL."""

    name: str
    url: str
    model: str

    @classmethod
    def of(cls, name: str) -> "Address":
        """ValueError unless there are both."""
        url, _, model = name.removeprefix("openai:").partition("#")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as e:
            raise ValueError(f"{name}: {e}; {_EXPECTED}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or not model:
            raise ValueError(f"{name}: {_EXPECTED}")
        if parsed.userinfo or parsed.query:
            raise ValueError(f"openai:{parsed.copy_with(userinfo=b'', query=None)}#{model}: a key has no place in an address; set {KEY}")
        path = parsed.path.rstrip("/") or "/v1"
        return cls(name, str(parsed.copy_with(path=path)), model)


_EXPECTED = "expected openai:URL#MODEL, as openai:http://localhost:8000/v1#Qwen/Qwen3-VL-8B-Instruct"


def client(timeout: float) -> httpx.Client:
    """With the key of the environment, which goes nowhere else: not into a message, a table or a ledger."""
    key = os.environ.get(KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.Client(headers=headers, limits=limits, timeout=httpx.Timeout(timeout, connect=_CONNECTS))


class _Here(threading.local):
    """What a thread is at."""

    ledger: Ledger | None = None


class Chat:
    """A conversation with one model, of many threads at once, while tables are being made."""

    def __init__(self, address: Address, terms: Terms, budget: Budget, identity: str):
        self.address, self.limits, self.client = address, terms.limits, client(terms.limits.timeout)
        self.budget, self.folder, self.run = budget, terms.folder / identity, terms.run
        self.slots = threading.Semaphore(self.limits.in_flight)  # held while the server has a question, not while answers are kept
        self.fault: Halt | None = None  # after which nothing more is asked
        self.said = 0.0
        self.one_each = False  # the server gives one answer, whatever `n` asks for
        logging.getLogger("stamina").setLevel(logging.ERROR)  # it would tell of each request
        waits = {"wait_initial": 0.5, "wait_max": 30.0, "wait_jitter": 0.5}
        self.patient = stamina.RetryingCaller(attempts=None, timeout=self.limits.patience, **waits)
        self.doubting = stamina.RetryingCaller(attempts=_GARBLED, timeout=None, **waits)
        self.turn = threading.Lock()  # of a table whose questions are being handed out
        self._here = _Here()

    @contextlib.contextmanager
    def of(self, table: str) -> Iterator[Ledger]:
        """The ledger of a table, open while that is being made."""
        ledger = Ledger(self.folder / f"{Path(table).stem}.jsonl", self.run)
        try:
            yield ledger
        finally:
            ledger.close()

    def keep_in(self, ledger: Ledger) -> None:
        """What this thread asks from now on, and how it is answered."""
        self._here.ledger = ledger

    def stop(self) -> None:
        """Ask nothing more; what is in flight is waited for."""
        self.fault = self.fault or Halt(f"{self.address.name}: stopped")

    def ask(self, body: dict[str, Any], seeds: list[int]) -> list[Choice]:
        """An answer of each seed; from the ledger where it was had before.

        Rejected where this request is at fault, Halt where every other would fail too.
        """
        ledger = self._here.ledger
        assert ledger is not None
        body = {"model": self.address.model, **body}
        requests = {hashlib.sha256(json.dumps(body | {"seed": seed}, sort_keys=True).encode()).hexdigest()[:32]: seed for seed in seeds}
        missing = {request: seed for request, seed in requests.items() if request not in ledger.answers}
        try:
            while missing:
                for request in self._pay(ledger, body, missing):
                    del missing[request]
        except Halt as e:
            self.fault = self.fault or e
            raise self.fault from None
        return [Choice.model_validate_json(ledger.answers[request]) for request in requests]

    def _pay(self, ledger: Ledger, body: dict[str, Any], missing: dict[str, int]) -> list[str]:
        """Those of the missing that one question brought: all, which counts the picture once, where the server can; else the first."""
        seed, count = next(iter(missing.values())), 1 if self.one_each else len(missing)
        try:
            answer = self._persistently(body | {"seed": seed} | ({"n": count} if count > 1 else {}))
        except Rejected:
            if count == 1:
                raise
            self.one_each = True
            return []
        self.one_each = self.one_each or len(answer.choices) < count
        found = {
            request: choice.model_dump_json(exclude_none=True) for request, choice in zip(missing, answer.choices[:count], strict=False)
        }
        tokens = answer.usage.total_tokens if answer.usage else None
        ledger.add(found, tokens or 0)
        self.budget.require_told(tokens)  # what came is kept first
        return list(found)

    def _persistently(self, body: dict[str, Any]) -> Completion:
        try:
            return self.doubting(Garbled, self.patient, self._again, self._post, body)
        except Garbled as e:
            raise Halt(f"{e}, {_GARBLED} times; expected a chat completion: is this the address of a server that has them?") from None
        except Busy as e:
            raise Halt(f"{e}, for {self.limits.patience:g} seconds (endpoint.patience); run it again once the server answers") from None

    def _again(self, error: Exception) -> bool | float:
        """Whether to ask once more, or after how many seconds."""
        if not isinstance(error, Busy) or self.fault or (error.after or 0) > self.limits.patience:
            return False
        if time.monotonic() - self.said > _SAYS_AGAIN:
            self.said = time.monotonic()
            log.warning("%s; asking again", error)
        return True if error.after is None else error.after

    def _post(self, body: dict[str, Any]) -> Completion:
        """One request; Busy, Garbled, Rejected or Halt where it has no answer."""
        with self.slots:
            try:
                return self._exchange(body)
            except Halt as e:  # known before the slot is another's
                self.fault = self.fault or e
                raise

    def _exchange(self, body: dict[str, Any]) -> Completion:
        if self.fault:
            raise self.fault
        self.budget.take()
        answered = False
        try:
            response = self.client.post(f"{self.address.url}/chat/completions", json=body)
            answered = response.status_code == 200
        except httpx.TimeoutException:
            raise Busy(f"{self.address.name}: no answer within {self.limits.timeout:g} seconds (endpoint.timeout)") from None
        except httpx.RequestError as e:
            raise Busy(f"{self.address.name}: {e or type(e).__name__}") from None
        finally:
            if not answered:
                self.budget.give_back()
        answer = self._read(response, body) if answered else self._refused(response)
        self.budget.spend(answer.usage.total_tokens if answer.usage else 0)  # before the slot is another's
        return answer

    def _read(self, response: httpx.Response, body: dict[str, Any]) -> Completion:
        try:
            answer = Completion.model_validate_json(response.content)
        except ValidationError as e:
            fault = "; ".join(f"{'.'.join(map(str, error['loc'])) or 'the whole'}: {error['msg']}" for error in e.errors())
            raise Garbled(f"{self.address.name}: answers 200 with {response.text[:_SHOWN]!r} ({fault})") from None
        if not answer.model.startswith(self.address.model):
            raise Halt(f"{self.address.name}: answers as the model {answer.model!r}; name the model that is meant behind the #")
        first = answer.choices[0]
        whole = (first.message.content or "").strip("\ufffd")  # llama.cpp has none of a text that ends at once, or within a character
        if body.get("logprobs") and whole and not first.likely:
            raise Halt(
                f"{self.address.name}: gives no top_logprobs, which a judge needs; expected a server that does, as vLLM or llama.cpp"
            )
        return answer

    def _refused(self, response: httpx.Response) -> Completion:
        require_welcome(self.address, response)
        code, status = _code(response), response.status_code
        fault = f"{self.address.name}: {said(response)}"
        if code in _BLOCKED:
            return Completion(model=self.address.model, choices=[Choice(message=Message(), finish_reason="content_filter")])
        if code == _BROKE:
            raise Halt(f"{fault}; the account is spent")
        if status in _BUSY or status >= 500:
            raise Busy(fault, _retry_after(response))
        raise Rejected(f"{fault}; the server does not take this request")


def require_welcome(address: Address, response: httpx.Response) -> None:
    """Halt where a server will not talk to us, or knows no such model."""
    if response.status_code in (401, 403):
        found = "is not accepted" if os.environ.get(KEY) else "is not set"
        raise Halt(f"{address.name}: {said(response)}; the key in the environment variable {KEY} {found}")
    if response.status_code == 404:
        raise Halt(f"{address.name}: {said(response)}; the server has no such address or no such model; {_EXPECTED}")


def said(response: httpx.Response) -> str:
    """A refusal in the server's own words."""
    return f"answers {response.status_code} {response.text[:_SHOWN]!r}"


def _code(response: httpx.Response) -> str | None:
    """What the API's errors name their reason by."""
    try:
        return response.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, which the header gives as a number or as a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # no date, or one that does not say of which zone
        return None
