"""The verbs about models: ask one (ask.py), try one on a page, know what made it (lineage.py), make it again, choose the champion."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from blip_core.cli import ask, lineage
from blip_core.cli.verbs import Verbs, read_params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from blip_core.tracking.registry import Registry


def add_verbs(verbs: Verbs) -> None:
    ask.add_verbs(verbs)
    _add_demo(verbs)
    _add_pack(verbs)
    lineage.add_verbs(verbs)
    summary = "train a registered version again, in a clone, and compare the weights"
    again = verbs.add("rebuild", _rebuild, summary, example="blip@champion --out rebuilt")
    again.add_argument("model", help="as blip/3 or blip@champion")
    again.add_argument("--out", type=Path, required=True, help="folder for the clone")
    again.add_argument("--whole", action="store_true", help="every stage from the raw data on, not the last training alone")
    _add_decisions(verbs)
    tasks = verbs.add("tasks", _tasks, "what each model is worth on the downstream tasks, in one table", example="")
    told = "default: artifacts, or those of the newest run beside it (.work/runs) that has tasks"
    tasks.add_argument("--artifacts", type=Path, help=told)


def _add_demo(verbs: Verbs) -> None:
    summary = "a page to try a model: captions, match, search, attention"
    demo = verbs.add("demo", _demo, summary, example="--model models:/blip@champion")
    demo.add_argument(
        "--model", help="a model folder, also of others, or a version as models:/blip@champion; default: the challenger's folder"
    )
    demo.add_argument("--generation", type=Path, help="whose pictures can be searched; default: the challenger's, if it is there")
    demo.add_argument("--shards", type=Path, help="default: artifacts/shards beside the generation")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen at; it asks for no password; default: 127.0.0.1")
    demo.add_argument("--port", type=int, default=7860, help="default: 7860; 0 takes any that is free")


def _add_pack(verbs: Verbs) -> None:
    summary = "pack a model folder, also one of others, for `mlflow models serve -m`"
    pack = verbs.add("pack", _pack, summary, example="weights/Qwen3-VL-4B-Instruct --out served")
    pack.add_argument("model", type=Path, help="a folder that writes or judges; a chain's own model is packed when it is registered")
    pack.add_argument("--out", type=Path, required=True, help="folder to write; an earlier one there is replaced")


def _add_decisions(verbs: Verbs) -> None:
    summary = "make a candidate the champion (register.approval)"
    approve = verbs.add("approve", _approve, summary, example="blip/3 --reason 'its captions read well'")
    approve.add_argument("model", nargs="?", help="as blip/3; default: the candidate")
    reject = verbs.add("reject", _reject, "turn the candidate down", example="--reason 'it names no colours'")
    summary = "make an earlier version champion again"
    back = verbs.add("rollback-champion", _roll_back, summary, example="--to 2 --reason 'version 3 fails on portraits'")
    back.add_argument("--to", metavar="N", help="the version; default: the one that today's champion took the place of")
    for verb in (approve, reject, back):
        verb.add_argument("--reason", required=verb is not approve, default="approved", help="kept with the version")
        verb.add_argument("--by", help="who decides; default: as git knows you")


def _demo(args: argparse.Namespace) -> None:
    from blip_core.demo.verb import demo

    demo(args)


def _pack(args: argparse.Namespace) -> None:
    from blip_core.stages.register import pack

    pack(args.model, read_params(args), args.out)
    print(f"{args.out}: mlflow models serve -m {args.out} --env-manager local -p 5001")


def _tasks(args: argparse.Namespace) -> None:
    from blip_core.config.params import load_params
    from blip_core.report.page import as_text
    from blip_core.report.tasks import read_tasks, tasks_section

    newest = sorted(Path(".work/runs").glob("*/artifacts"), key=lambda path: path.stat().st_mtime, reverse=True)
    for artifacts in [args.artifacts] if args.artifacts else [Path("artifacts"), *newest]:
        params = load_params(artifacts.parent / "params.yaml")
        if found := read_tasks(artifacts, params):
            print(as_text(f"Tasks of {artifacts}", [tasks_section(found, params)]))
            return
    raise ValueError("no model was measured on a task: `make tasks` does it on the sample data, docs/tasks.md tells of your own")


def _rebuild(args: argparse.Namespace) -> None:
    from blip_core.tracking.registry import open_registry
    from blip_core.versions.lineage import find_version, split_name
    from blip_core.versions.rebuild import prepare, train

    name, wanted = split_name(args.model)
    root = Path.cwd()
    with open_registry(name, root) as registry:
        task = prepare(registry, find_version(registry, wanted or "@champion"), args.out, root, whole=args.whole)
    print(train(task))


def _approve(args: argparse.Namespace) -> None:
    from blip_core.tracking.champion import approve

    name, number = _split(args.model)
    _decide(args, name, lambda registry, by: approve(registry, number, by=by, why=args.reason), "is champion now")


def _reject(args: argparse.Namespace) -> None:
    from blip_core.tracking.champion import reject

    _decide(args, None, lambda registry, by: reject(registry, by=by, why=args.reason), "is turned down")


def _roll_back(args: argparse.Namespace) -> None:
    from blip_core.tracking.champion import roll_back

    name, number = _split(args.to)
    _decide(args, name, lambda registry, by: roll_back(registry, number, by=by, why=args.reason), "is champion again")


def _decide(args: argparse.Namespace, name: str | None, act: Callable[["Registry", str], "ModelVersion"], said: str) -> None:
    from blip_core.tracking.provenance import who
    from blip_core.tracking.registry import open_registry

    root = Path.cwd()
    with open_registry(name or read_params(args).register_.name, root) as registry:
        version = act(registry, args.by or who(root))
    print(f"{registry.name}, version {version.version}, {said}: {args.reason}")


def _split(spec: str | None) -> tuple[str | None, str | None]:
    """`blip/3` as name and number; `3` as number alone."""
    from blip_core.versions.lineage import split_name

    if not spec or spec.isdigit():
        return None, spec
    name, number = split_name(spec)
    if not number.isdigit():
        raise ValueError(f"{spec}: expected a version, as {name}/3")
    return name, number
