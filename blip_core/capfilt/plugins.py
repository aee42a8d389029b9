"""Captioners and filters by name, as params.yaml has them in `caption.writers` and `score.filters`.

tuned                      the round's own
a folder or .pth file      a BLIP, ours or a public one (weights/load.py), or what `kinds` opens by the model_type of its config.json
models:/blip/3             a version of the registry, or an alias as models:/blip@champion; DVC can't see that an alias has moved on
sieve:CAPTIONER#ENCODER    a filter of two folders (sieve.py)
openai:URL#MODEL           a model that a server has (endpoint.py)
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from blip_core.capfilt.adapter import ADAPTER, identify_adapter, load_adapted_captioner, load_adapted_judge
from blip_core.capfilt.blip2 import load_blip2_filter
from blip_core.capfilt.clip import contrastive_types, load_clip
from blip_core.capfilt.endpoint import identify_endpoint, open_endpoint_captioner, open_endpoint_fuser, open_endpoint_judge
from blip_core.capfilt.fuse import Fuser, load_fuser
from blip_core.capfilt.judge import load_judge
from blip_core.capfilt.med import Captioner, Filter, MedCaptioner, MedFilter
from blip_core.capfilt.sieve import SieveFilter, load_encoder
from blip_core.capfilt.vlm import load_vlm_captioner
from blip_core.compute.distributed import device
from blip_core.compute.precision import resolved
from blip_core.files.content import sha256_file
from blip_core.model.blip import CAPTIONING, RETRIEVAL
from blip_core.model.blip2 import ImageText
from blip_core.model.inference import for_inference
from blip_core.tokenizer.folders import TOKENIZER, VOCAB
from blip_core.weights.checkpoint import is_blip2, model_hash
from blip_core.weights.hashes import folder_hash
from blip_core.weights.load import load_pretrained, read_config
from blip_core.weights.models import load_any

T = TypeVar("T")
TUNED = "tuned"
Place = Path | str  # a folder or file; or the name itself, where a scheme as sieve: says what it is
Fetch = Callable[[str], Place]  # models:/NAME/VERSION to the folder where it lies now
_LONGEST = 40  # tokens of a text, where nothing says what a public filter was tuned with: more than the paper's 35


class Kind(NamedTuple):
    """What opens folders of a model_type, in each role; None where it has none."""

    captioner: Callable[..., Captioner] | None = None  # of (place, identity, prompt=, precision=)
    filter: Callable[..., Filter] | None = None  # of (place, identity, question=, precision=)
    fuser: Callable[..., Fuser] | None = None  # likewise, of two texts
    asks: bool = False  # the filter's scores change with the question


class Scheme(NamedTuple):
    """What a name SCHEME:REST opens."""

    kind: Kind
    identify: Callable[[str], str]  # of the whole name


@functools.cache
def kinds() -> dict[str, Kind]:
    """By model_type, beside our own and public BLIPs. What transformers lists is open, so a new family needs no code."""
    from transformers.models.auto import modeling_auto as known

    answering = dict.fromkeys(known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, Kind(load_vlm_captioner, load_judge, asks=True))
    answering[ADAPTER] = Kind(load_adapted_captioner, load_adapted_judge)
    contrastive = dict.fromkeys(contrastive_types(), Kind(filter=_open_clip))
    own = {"blip": BLIP, "blip-2": Kind(load_vlm_captioner, _open_blip2)}
    found = answering | contrastive | own
    writing = known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return found | {name: found.get(name, Kind())._replace(fuser=load_fuser) for name in writing}


def open_captioner(name: str, tuned: Path, *, prompt: str | None, precision: str, fetch: Fetch | None) -> Captioner:
    """ValueError when there is no such model, or it can't write."""
    path = find_model(name, tuned, fetch)
    kind = kind_of(path)
    if kind.captioner is None:
        raise ValueError(f"{_found(path)}, which can't write; expected a BLIP, or a model that transformers lists for image-text-to-text")
    return kind.captioner(path, identify_captioner(path, prompt), prompt=prompt, precision=precision)


def open_fuser(name: str, tuned: Path, *, prompt: str | None, precision: str, fetch: Fetch | None) -> Fuser:
    """ValueError when there is no such model, or it can't fuse texts."""
    path = find_model(name, tuned, fetch)
    kind = kind_of(path)
    if kind.fuser is None:
        raise ValueError(f"{_found(path)}, which can't fuse texts; expected a model that transformers lists for text generation")
    return kind.fuser(path, identify_captioner(path, prompt), prompt=prompt, precision=precision)


def open_filter(name: str, tuned: Path, *, question: str, precision: str, fetch: Fetch | None) -> Filter:
    """ValueError when there is no such model, or it can't score."""
    path = find_model(name, tuned, fetch)
    kind = kind_of(path)
    if kind.filter is None:
        lists = "image-text-to-text or zero-shot image classification"
        raise ValueError(f"{_found(path)}, which can't judge; expected a BLIP, or a model that transformers lists for {lists}")
    return kind.filter(path, identify_filter(path, question), question=question, precision=precision)


def kind_of(path: Place) -> Kind:
    """ValueError when a folder has no config.json, or its model wants code of its own."""
    if isinstance(path, str):
        return SCHEMES[_scheme(path)].kind
    config = {"model_type": "blip"} if path.is_file() else read_config(path)
    if "model" in config or config.get("model_type") == "blip":
        return BLIP
    kind = kinds().get(str(config.get("model_type")), Kind())
    if kind == Kind() and "auto_map" in config:
        raise ValueError(
            f"{_found(path)} and wants code of its own (auto_map), which is never run; expected a model that transformers knows"
        )
    return kind


def _found(path: Place) -> str:
    if isinstance(path, str):
        return path
    return f"{path / 'config.json'}: model_type is {read_config(path).get('model_type')!r}"


def _open_writer(path: Path, identity: str, *, prompt: str | None, precision: str) -> Captioner:
    captioner = open_blip(path, precision=precision)[0]
    _require(captioner.model, CAPTIONING, f"{path}: can't write captions, as BlipForConditionalGeneration can")
    return captioner if prompt is None else replace(captioner, prompt=prompt, identity=identity)


def _open_clip(path: Path, identity: str, *, precision: str, **_: Any) -> Filter:
    return load_clip(path, identity, precision=precision)


def _open_blip2(path: Path, identity: str, *, precision: str, **_: Any) -> Filter:
    return load_blip2_filter(path, identity, precision=precision)


def _open_sieve(name: str, identity: str, *, precision: str, **_: Any) -> Filter:
    captioner, encoder = _sieve_parts(name)
    writes = open_captioner(str(captioner), captioner, prompt=None, precision=precision, fetch=None)
    return SieveFilter(writes, load_encoder(encoder, precision=precision), identity)


def _identify_sieve(name: str) -> str:
    return hashlib.sha256("+".join(map(identify, _sieve_parts(name))).encode()).hexdigest()[:16]


def _sieve_parts(name: str) -> tuple[Path, Path]:
    captioner, mark, encoder = name.removeprefix("sieve:").partition("#")
    if not mark or not Path(captioner).exists() or not Path(encoder).is_dir():
        raise ValueError(f"{name}: expected sieve:CAPTIONER#ENCODER, two folders that are there: of a captioner, and of a sentence encoder")
    return Path(captioner), Path(encoder)


def _open_judge(path: Path, identity: str, *, precision: str, **_: Any) -> Filter:
    judge = open_blip(path, precision=precision)[1]
    _require(judge.model, RETRIEVAL, f"{path}: can't judge texts, as BlipForImageTextRetrieval can")
    return judge


BLIP = Kind(_open_writer, _open_judge)
SCHEMES = {
    "sieve": Scheme(Kind(filter=_open_sieve), _identify_sieve),
    "openai": Scheme(Kind(open_endpoint_captioner, open_endpoint_judge, open_endpoint_fuser, asks=True), identify_endpoint),
}


def open_blip(path: Path, *, precision: str, vocab: Path | None = None, image_size: int | None = None) -> tuple[MedCaptioner, MedFilter]:
    """A BLIP or our BLIP-2 in its roles, whichever it has the weights for; `vocab` and `image_size` as `load_pretrained` has them."""
    if path.is_dir() and is_blip2(path) and not vocab and not image_size:
        model, tokenizer = load_any(path)
    else:
        model, tokenizer = load_pretrained(path, vocab=vocab, image_size=image_size)
    for_inference(model.to(device()), resolved(precision))
    identity, max_tokens = identify(path), _fact(path, "max_tokens", min(_LONGEST, model.med.cfg.max_positions))
    captioner = MedCaptioner(model, tokenizer, identity, _fact(path, "prompt", ""), precision)
    return captioner, MedFilter(model, tokenizer, identity, max_tokens, precision)


def find_model(name: str, tuned: Path, fetch: Fetch | None) -> Place:
    """The folder or file behind a name; the name itself where it has a scheme of ours."""
    if name == TUNED:
        return tuned
    if _scheme(name) in SCHEMES:
        return name
    if name.startswith("models:/"):
        if fetch is None:
            raise ValueError(f"{name}: no registry here to fetch it from; name a folder")
        return fetch(name)
    if not Path(name).exists():
        raise ValueError(f"{name}: no such folder or file; expected 'tuned', the path of a model, or models:/NAME/VERSION")
    return Path(name)


def identify_captioner(place: Place, prompt: str | None) -> str:
    """What its texts carry: the model's content hash, and with a prompt of the writer's another."""
    return identify(place) if prompt is None else _asked(place, prompt)


def identify_filter(place: Place, question: str) -> str:
    """What its scores carry."""
    return _asked(place, question) if kind_of(place).asks else identify(place)


def describe_captioner(name: str, place: Place, prompt: str | None) -> str:
    """For people, beside the content hash: the name in params.yaml, the base where it is an adapter, and the prompt where one is set."""
    about = read_config(place) if isinstance(place, Path) and place.is_dir() else {}
    base, asked = about.get("base"), prompt or about.get("prompt") or about.get("question")
    return name + (f", an adapter of {base}" if base else "") + (f", asked {asked!r}" if asked else "")


def describe_filter(name: str, place: Place, question: str) -> str:
    """Likewise, with the question."""
    return describe_captioner(name, place, question if kind_of(place).asks else None)


def _asked(place: Place, words: str) -> str:
    base, plus, own = identify(place).rpartition("+")
    return base + plus + hashlib.sha256(f"{own} {words}".encode()).hexdigest()[:16]


def identify(path: Place) -> str:
    """Content hash of a model: of ours by what makes it, of others by all their files but texts for people; of an adapter BASE+ADAPTER.

    ValueError when a folder has no config.json."""
    if isinstance(path, str):
        return SCHEMES[_scheme(path)].identify(path)
    if path.is_file():
        return sha256_file(path)[:16]
    if (config := read_config(path)).get("model_type") == ADAPTER:
        return identify_adapter(path)
    if "model" in config and (path / "model.safetensors").exists() and any((path / name).exists() for name in (TOKENIZER, VOCAB)):
        return model_hash(path)
    return folder_hash(path)


def _scheme(name: str) -> str:
    return name.partition(":")[0]


def _require(model: ImageText, parts: tuple[str, ...], fault: str) -> None:
    if lacking := model.lacking(*parts):
        raise ValueError(f"{fault}: its weights have no {', '.join(lacking)}; name a folder that has them")


def _fact(path: Path, key: str, default: T) -> T:
    """What our model folders note beside the weights."""
    return read_config(path).get(key, default) if path.is_dir() else default
