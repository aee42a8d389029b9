"""YAML to checked settings: every fault in one message, with its key, what was got and what was expected."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from blip_core.config.base import Config

AnyConfig = TypeVar("AnyConfig", bound=Config)
Place = tuple[int | str, ...]  # of a value in nested mappings and lists


class _Loader(yaml.SafeLoader):
    """YAML lets a later key win over an earlier one of the same name, which would be lost in silence; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, mark in ((str(key.value), key.start_mark) for key, _ in node.value):
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name!r} stands here a second time", problem_mark=mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_values(path: Path) -> dict[str, Any]:
    """A YAML file of sections, unchecked. ValueError says in which line it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run from the project's root or name the file with --params") from None
    except OSError as e:
        raise ValueError(f"{path}: can't be read ({e.strerror}); expected a YAML file as params.yaml") from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: no text in UTF-8 ({e}); expected a YAML file as params.yaml") from None
    try:
        values = yaml.load(text, _Loader)  # which is a SafeLoader
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path}{where}: not valid YAML: {e.problem}") from None
    except yaml.reader.ReaderError as e:
        raise ValueError(f"{path}, line {text.count(chr(10), 0, e.position) + 1}: not valid YAML: {e.reason}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


def laid_over(values: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`values` with those of `overlay`: mappings are merged, all else is replaced. Neither is changed."""
    merged = dict(values)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        merged[key] = laid_over(values[key], value) if both else value
    return merged


def checked(
    cls: type[AnyConfig], values: dict[str, Any], where: Path | str, *, place: Callable[[Place], Place] = lambda place: place
) -> AnyConfig:
    """ValueError lists every fault with its key, what was got and what was expected; `place` tells where in the file a key stands."""
    try:
        return cls(**values)
    except ValidationError as e:
        lines = (_explain(where, cls, place(fault["loc"]), fault) for fault in e.errors())
        raise ValueError("\n".join(dict.fromkeys(lines))) from None


def _explain(path: Path | str, cls: type[Config], place: Place, fault: ErrorDetails) -> str:
    """One line for one pydantic error: where, what was got, what to do."""
    where = ".".join(str(p) for p in place if p != "[key]")
    if fault["type"] == "extra_forbidden":
        return f"{path}: {where}: unknown key{_meant(cls, list(fault['loc'][:-1]), str(fault['loc'][-1]))}"
    if fault["type"] == "missing":
        return f"{path}: {where}: missing"
    if fault["type"] == "union_tag_not_found":
        return f"{path}: {where}: kind is missing"
    text = isinstance(fault["input"], str) and fault["type"] == "float_parsing" and "e" in fault["input"]
    hint = " (YAML reads 3e-4 as text: write 3.0e-4)" if text else ""
    got = "" if isinstance(fault["input"], dict) else f", got {fault['input']!r}"
    return f"{path}: {where}{': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}{got}{hint}"


def _meant(cls: type, parents: list[int | str], key: str) -> str:
    """The nearest known key, if any; of a key with dots, which belong to command lines, how YAML has it."""
    spelt: list[int | str] = []
    for part in key.split("."):
        known = _known_keys(cls, [*parents, *spelt])
        close = [part] if part in known or not known else difflib.get_close_matches(part, known, n=1)
        if not close:
            return ""
        spelt += close
    if len(spelt) == 1:
        return f"; did you mean {spelt[0]!r}?"
    return f"; did you mean {': {'.join(map(str, spelt))}: …{'}' * (len(spelt) - 1)}?"


def _known_keys(cls: type, parents: list[int | str]) -> list[str]:
    """The keys that the class at this path of `cls` accepts; none where the path leaves the classes."""
    for name in parents:
        field = next((f for n, f in getattr(cls, "model_fields", {}).items() if name in (n, f.alias)), None)
        kinds = get_args(field.annotation) or (field.annotation,) if field else ()  # of what may be null: the class
        cls = next((kind for kind in kinds if isinstance(kind, type) and hasattr(kind, "model_fields")), object)
    return [f.alias or n for n, f in getattr(cls, "model_fields", {}).items()]
