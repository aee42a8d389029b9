"""The command line as a whole: the groups of verbs in the order in which `blip --help` shows them, each with its module."""

import argparse
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from blip_core.cli import chain, data, help, judge, models
from blip_core.cli.verbs import VALUES, Verbs
from blip_core.stages import STAGES

GROUPS = {
    "data": (data, "what goes in, and the texts that come out"),
    "chain": (chain, "its stages one by one (`dvc repro` runs them all), and what they cost"),
    "judge": (judge, "why a text was kept or dropped, and what people say of it"),
    "models": (models, "ask one, know what made it, choose the champion"),
    "help": (help, "begin a project, check its values"),
}


class Parser(argparse.ArgumentParser):
    """Says of a word that is no verb which one was meant."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            word, known = found[1], re.findall(r"'([^']+)'", found[2])
            close = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            if word in STAGES and word not in known:
                hint = f"a stage is run by: stage {word}"
            message = message[: found.start()] + f"no {word!r} here; {hint}"
        super().error(message)


def make_parser(prog: str, *, stages: Iterable[str]) -> argparse.ArgumentParser:
    """All verbs. Only these stages get their flags: they are those of a function, and to import it takes seconds."""
    parser = Parser(prog, "%(prog)s VERB ...", formatter_class=argparse.RawDescriptionHelpFormatter)
    # their own list, in which groups can't be told apart, is left out
    subparsers = parser.add_subparsers(prog=prog, dest="verb", required=True, metavar="VERB", help=argparse.SUPPRESS)
    shown = [f"BLIP's bootstrapping of image-text data: caption, filter, gate, train, register. `{prog} VERB --help` says more."]
    for name, (module, title) in GROUPS.items():
        module.add_verbs(verbs := Verbs(subparsers))
        shown += ["", f"{name}: {title}", *(f"  {verb:<18} {summary}" for verb, summary in verbs.summaries.items())]
    parser.description = "\n".join(shown)
    for stage in stages:
        chain.add_flags(below(subparsers.choices[chain.STAGE])[stage], stage)
    for verb in subparsers.choices.values():
        _add_common(verb, params=VALUES, work=Path(".work"))
        for inner in below(verb).values():
            _add_common(inner, params=argparse.SUPPRESS, work=argparse.SUPPRESS)  # what was said before it holds
    return parser


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The verbs that a parser has."""
    return next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), {})


def _add_common(verb: argparse.ArgumentParser, *, params: Path | str, work: Path | str) -> None:
    verb.add_argument("--params", type=Path, metavar="FILE", default=params, help="the values of the chain; default: params.yaml")
    verb.add_argument("--work", type=Path, metavar="DIR", default=work, help="unfinished work, and what is kept of it; default: .work")
