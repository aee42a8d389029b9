"""Values laid over params.yaml, as `--set key=value` gives them, and the name of a run that says which. Needs PyYAML alone."""

import argparse
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

LONGEST = 80  # characters of a run's name


def add_set(parser: argparse.ArgumentParser, help_: str) -> None:
    """The flags `--set` and `--set-file`, whose values are the dict `args.params`."""
    parser.add_argument("--set", dest="params", type=assignment, action=_Gathered, nargs="+", metavar="KEY=VALUE", help=help_)
    told = "a YAML file of such keys with their values, as configs/tasks.yaml"
    parser.add_argument("--set-file", dest="params", type=assignments, action=_Gathered, metavar="FILE", help=told)


class _Gathered(argparse.Action):
    """Pairs of all uses of the flag, in one dict."""

    def __call__(self, parser: object, namespace: argparse.Namespace, pairs: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (getattr(namespace, self.dest) or {}) | dict(pairs))


def assignment(text: str) -> tuple[str, Any]:
    """`assemble.threshold.web=0.7` as key and value. The value is read as YAML, JSON among it; ArgumentTypeError says where it is none."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip(".") or any(c.isspace() for c in key):
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, as assemble.threshold.web=0.7")
    try:
        return key, json.loads(value)  # also 1e-4, which YAML takes for a text
    except ValueError:
        pass
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise argparse.ArgumentTypeError(f"{key}: {_where(value, e)}") from None


def assignments(path: str) -> list[tuple[str, Any]]:
    """The keys of a YAML file with their values; ArgumentTypeError says what is wrong with it."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise argparse.ArgumentTypeError(f"{path}: {e}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{path}: expected keys of params.yaml with their values, got {type(found).__name__}")
    if strange := [key for key in found if not isinstance(key, str)]:
        raise argparse.ArgumentTypeError(f"{path}: expected keys of params.yaml, got {strange[0]!r}; quote it if it is one")
    return list(found.items())


def _where(value: str, error: yaml.YAMLError) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if not problem or not mark:
        return f"{value!r} is no YAML: {error}"
    return f"{value!r} is no YAML: {problem} at character {mark.index + 1}; quote the value for the shell if it has blanks or brackets"


def did_you_mean(key: str, values: dict[str, Any]) -> str:
    """The key of `values`, as deep, that looks like this dotted one, as the end of a message; nothing where none does."""
    close = difflib.get_close_matches(key, [k for k in _dotted(values) if k.count(".") == key.count(".")], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _dotted(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{before}{name}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{name}.")


def run_name(deployment: str, parameters: dict[str, Any]) -> str:
    """`retrain 1a2b3c4 web=0.7`: what a run of the flow `bootstrap` is about, by what differs from the whole chain of the folder."""
    words = [deployment, *(parameters.get("stages") or [])]
    if parameters.get("from_stage"):
        words.append(f"from {parameters['from_stage']}")
    if parameters.get("revision"):
        words.append(parameters["revision"][:7])
    words += [f"{key.rsplit('.', 1)[-1]}={json.dumps(value)}" for key, value in (parameters.get("params") or {}).items()]
    words += ["anew"] * bool(parameters.get("force"))
    name = " ".join(words)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 2]} …"
