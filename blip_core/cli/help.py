"""The verbs to begin with: a project of one's own, its values, the package's version, and completion for the shell."""

import argparse
from pathlib import Path

from blip_core.cli.verbs import Verbs, read_params
from blip_core.stages import STAGES

SHELLS = ("bash", "zsh", "tcsh", "fish")


def add_verbs(verbs: Verbs) -> None:
    init = verbs.add("init", _init, "begin a project of your own, without a clone: chain, values, deployments, labels", example="my-crawl")
    init.add_argument("folder", type=Path, help="a new folder, or one that has none of these files yet")
    verbs.add("params", _params, "check params.yaml", example="--params params.yaml")
    version = verbs.add("version", _version, "which package this is: its version, and a hash of its code", example="")
    version.add_argument("--out", type=Path, help="write both to this JSON file instead, as a project's chain does for DVC to watch")
    summary = "a script by which a shell completes verbs, flags and paths; made in seconds, so keep it in a file"
    completion = verbs.add("completion", _completion, summary, example="bash > ~/.local/share/bash-completion/completions/blip")
    completion.add_argument("shell", choices=SHELLS, help="whose script is printed")


def _init(args: argparse.Namespace) -> None:
    from blip_core.cli.init import init

    print(init(args.folder))


def _params(args: argparse.Namespace) -> None:
    read_params(args)
    print(f"{args.params}: all values are fine")


def _version(args: argparse.Namespace) -> None:
    from blip_core.runtime.installed import installed, named

    if args.out is None:
        print(named(installed()))
        return
    from blip_core.files.content import write_json

    write_json(installed(), args.out)


def _completion(args: argparse.Namespace) -> None:
    import shtab

    from blip_core.cli.parser import make_parser

    parser = make_parser("blip", stages=STAGES)
    waiting = [parser]
    while waiting:
        for action in waiting.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                action.help = None  # else shtab takes the groups' list of verbs for no verbs
                waiting += action.choices.values()
            elif action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # what shtab looks for
    print(shtab.complete(parser, shell=args.shell))
