"""The verb `interim`: a page of what is there, wherever the chain stopped. Where validate or gate says no, it is drawn by itself."""

import argparse
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_core.cli.verbs import Verbs, read_params

if TYPE_CHECKING:
    from blip_core.config.params import Params

log = logging.getLogger(__name__)
NAME = "interim"  # the folder of artifacts: no output of a stage, so that DVC leaves it alone


def add_verbs(verbs: Verbs) -> None:
    summary = "the report of what is there, wherever the chain stopped; drawn by itself where a gate says no"
    interim = verbs.add("interim", _interim, summary, example="")
    interim.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="default: artifacts")
    interim.add_argument("--data", type=Path, default=Path("data"), help="default: data")
    interim.add_argument("--out", type=Path, help="folder to write; default: interim in --artifacts")


def _interim(args: argparse.Namespace) -> None:
    out = args.out or args.artifacts / NAME
    _draw(args.artifacts, args.data, out, params=read_params(args), work=args.work)
    print(f"{out / 'index.html'}: open it in a browser; {out / 'table.txt'} has the short form")


def _draw(artifacts: Path, data: Path, out: Path, *, params: "Params", work: Path) -> None:
    from blip_core.report.interim import interim
    from blip_core.tracking.provenance import outdated

    root = artifacts.parent  # of a run beside the project it is another than this folder
    old = frozenset(root / path for path in outdated(root))
    interim(artifacts, data, out, params=params, outdated=old, work=work, drawn=drawn(root))


def drawn(root: Path) -> str:
    """When, and by which code, as a report says it."""
    from blip_core.runtime.installed import installed, named
    from blip_core.tracking.provenance import git_state

    state = git_state(root)
    changed = ", with changes that are not committed" if state["git_dirty"] == "true" else ""
    code = f"revision {state['git_rev'][:10]}{changed}" if state["git_rev"] else named(installed())
    return f"Drawn {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, of {code}."


@contextmanager
def shown_where_checks_fail(args: argparse.Namespace, flags: Mapping[str, Any], params: "Params") -> Iterator[None]:
    """Around a stage: the message of checks that failed names the page that tells more, which is drawn here."""
    from blip_core.checks.expectations import ChecksFailed

    try:
        yield
    except ChecksFailed as e:
        generation: Path = flags["generation"]
        raise ChecksFailed("\n".join([str(e), *_where_to_look(args, generation, params)])) from None


def _where_to_look(args: argparse.Namespace, generation: Path, params: "Params") -> Iterator[str]:
    artifacts = generation.parents[1]
    out = artifacts / NAME
    try:
        _draw(artifacts, Path("data"), out, params=params, work=args.work)
        yield f"The page {out / 'index.html'} shows the scores, what each threshold would keep, and what to do."
    except Exception as e:  # noqa: BLE001  # whatever it is, the checks that failed are what must be told
        log.warning("%s: can't be drawn (%s: %s)", out, type(e).__name__, e)
    if args.verb == "gate":
        yield f"Judge its texts yourself: `blip review {generation} --out review.html`"
        yield f"Why a text was kept or dropped: `blip explain KEY --generation {generation}`"
