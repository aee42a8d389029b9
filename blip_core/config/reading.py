"""YAML to checked settings: every fault in one message, with its key, what was got and what was expected."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from blip_core.config.base import Config

AnyConfig = TypeVar("AnyConfig", bound=Config)
Place = tuple[int | str, ...]  # of a value in nested mappings and lists


def read_values(path: Path) -> dict[str, Any]:
    """A YAML file of sections, unchecked."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run from the project's root or name the file with --params") from None
    except yaml.YAMLError as e:
        raise ValueError(f"{path}: not valid YAML: {e}") from None
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
    where = ".".join(str(p) for p in place)
    if fault["type"] == "extra_forbidden":
        *parents, key = fault["loc"]
        close = difflib.get_close_matches(str(key), _known_keys(cls, parents), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{path}: {where}: unknown key{hint}"
    if fault["type"] == "missing":
        return f"{path}: {where}: missing"
    text = isinstance(fault["input"], str) and fault["type"] == "float_parsing" and "e" in fault["input"]
    hint = " (YAML reads 3e-4 as text: write 3.0e-4)" if text else ""
    got = "" if isinstance(fault["input"], dict) else f", got {fault['input']!r}"
    return f"{path}: {where or 'file'}: {fault['msg']}{got}{hint}"


def _known_keys(cls: type, parents: list[int | str]) -> list[str]:
    """The keys that the class at this path of `cls` accepts; none where the path leaves the classes."""
    for name in parents:
        field = next((f for n, f in getattr(cls, "model_fields", {}).items() if name in (n, f.alias)), None)
        cls = field.annotation if field and isinstance(field.annotation, type) else object
    return [f.alias or n for n, f in getattr(cls, "model_fields", {}).items()]
