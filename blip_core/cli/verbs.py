"""What the modules of all groups share: how a verb is added, and the values that most of them read."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip_core.config.params import Params

VALUES = Path("params.yaml")
Act = Callable[[argparse.Namespace], object]


class Verbs:
    """The verbs of a group, and what is said of each. What a verb needs is imported when it acts, so that each starts at once."""

    def __init__(self, subparsers: "argparse._SubParsersAction[Any]"):
        self._subparsers = subparsers
        self.summaries: dict[str, str] = {}

    def add(self, name: str, act: Act, summary: str, *, example: str) -> argparse.ArgumentParser:
        """`example`: what stands behind the verb in one that works."""
        parser: argparse.ArgumentParser = self._subparsers.add_parser(
            name, help=summary, description=summary, epilog=f"example: %(prog)s {example}".rstrip()
        )
        parser.formatter_class = argparse.RawDescriptionHelpFormatter  # an example stays on its line
        parser.set_defaults(act=act)
        self.summaries[name] = summary
        return parser


def read_params(args: argparse.Namespace) -> "Params":
    """The checked values that --params names."""
    from blip_core.config.params import load_params

    return load_params(args.params)


def read_params_or_own(args: argparse.Namespace) -> "Params":
    """Likewise, and the package's own values where there is no project yet: for verbs that come before one."""
    from blip_core.runtime.installed import repository_file

    if args.params == VALUES and not VALUES.exists():
        logging.getLogger("blip_core").info("no %s here: the package's own values are taken", VALUES)
        args.params = repository_file("params.yaml")
    return read_params(args)
