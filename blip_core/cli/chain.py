"""The verb `stage` with one below it for each stage, made from its function's own signature, and behind it those of costs.py.

A stage's flags are its paths; its values come from params.yaml.
"""

import argparse
import importlib
import inspect
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_core.cli import costs, interim
from blip_core.cli.verbs import Verbs, read_params
from blip_core.files.atomic import clear_killed
from blip_core.files.content import write_json
from blip_core.runtime.installed import repository_file, require_same_code
from blip_core.stages import STAGES
from blip_core.tables.stopped import stopped, write_stopped

if TYPE_CHECKING:
    from blip_core.config.params import Params
    from blip_core.tracking.runs import StageRun

INJECTED = {"cfg", "model_cfg", "assemble_cfg", "compare_cfg", "gate_cfg", "score_cfg", "params", "seed", "work", "log", "fetch", "drawn"}
STAGE = "stage"  # the verb


def add_verbs(verbs: Verbs) -> None:
    summary = "run one stage of dvc.yaml by hand: ingest, pretrain, caption, …"
    parser = verbs.add(STAGE, _run_stage, summary, example="ingest --help")
    stages = Verbs(parser.add_subparsers(dest="verb", metavar="NAME", required=True))
    for name, says in STAGES.items():
        stages.add(name, _run_stage, says, example="")
    interim.add_verbs(verbs)
    costs.add_verbs(verbs)


def add_flags(parser: argparse.ArgumentParser, stage: str) -> None:
    """Imports the stage's module; its example is the command that dvc.yaml has."""
    for name, parameter in inspect.signature(_function(stage)).parameters.items():
        if name not in INJECTED:
            required = parameter.default is inspect.Parameter.empty
            role = "is written" if name.startswith("out") else "is read" if parameter.annotation is Path else "as dvc.yaml has it"
            default = None if required else parameter.default
            parser.add_argument(f"--{name.replace('_', '-')}", type=parameter.annotation, required=required, default=default, help=role)
    parser.add_argument("--after", type=Path, help="a decision; does it say to stop, only placeholders are left")
    parser.add_argument("--run", help="its name in MLflow as round/stage; without it nothing is tracked")
    parser.epilog = f"example: %(prog)s {_example(stage)}"


def _example(stage: str) -> str:
    """The stage's flags in dvc.yaml, of its first model or round."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    chain, values = (yaml.load(repository_file(name).read_text(), loader) for name in ("dvc.yaml", "params.yaml"))
    body = chain["stages"][stage]
    known = dict(values)
    if "foreach" in body:
        key, item = next(iter(values[body["foreach"].strip("${}")].items()), ("vqa", {}))  # params.yaml may have no task
        known |= {"key": key} | {f"item.{name}": value for name, value in item.items()}
    elif "matrix" in body:
        task, model = next(iter(values["tasks"]), "vqa"), next(iter(values["models"]))
        known |= {"key": f"{task}-{model}", "item.task": task, "item.model": model}
    flags = body.get("do", body)["cmd"].partition(f" {STAGE} {stage} ")[2]
    return re.sub(r"\$\{([\w.]+)\}", lambda found: known[found[1]], flags)


def _function(stage: str) -> Callable[..., str | None]:
    return getattr(importlib.import_module(f"blip_core.stages.{stage}"), stage)


def _fetch(uri: str, work: Path) -> Path:
    from blip_core.tracking.registry import fetch_model

    return fetch_model(uri, Path.cwd(), work / "models")


def _run_stage(args: argparse.Namespace) -> None:
    require_same_code(Path.cwd())
    params, stage = read_params(args), _function(args.verb)
    wanted = inspect.signature(stage).parameters
    flags = {n: getattr(args, n) for n in wanted if n not in INJECTED}
    offered = {
        "cfg": params.task(flags["task"]) if "task" in flags else params.section(args.verb),
        "model_cfg": params.model,
        "assemble_cfg": params.assemble,
        "compare_cfg": params.compare,
        "gate_cfg": params.gate,
        "score_cfg": params.score,
        "params": params,
        "seed": params.seed,
        "work": args.work,
        "fetch": lambda uri: _fetch(uri, args.work),
    }
    injected = {n: v for n, v in offered.items() if n in wanted}
    if args.verb == "ingest" and "DVC_STAGE" in os.environ:  # DVC runs it, and will run it again when it sees a change
        from blip_core.intake.unseen import require_noted

        require_noted(args.data, params.ingest)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes the one that writes
        clear_killed(*(v for n, v in flags.items() if n.startswith("out")))
    if "drawn" in wanted:
        injected["drawn"] = interim.drawn(Path.cwd())
    if not args.run:
        with args.meter.stage(), interim.shown_where_checks_fail(args, flags, params):
            stage(**flags, **injected)
        _warn(args.verb, flags, params)
        args.meter.write(args.work, args.verb)
        return
    from blip_core.tracking.runs import stage_run

    inputs = [v for n, v in flags.items() if isinstance(v, Path) and not n.startswith("out")]
    with stage_run(args.run, stage=args.verb, params=offered["cfg"].model_dump(), inputs=inputs, root=Path.cwd()) as run:
        if "log" in wanted:
            injected["log"] = run.log
        with _told(run, args.verb, flags), args.meter.stage(), interim.shown_where_checks_fail(args, flags, params):
            outcome = stage(**flags, **injected)
        if outcome:
            run.tag("outcome", outcome)
    _warn(args.verb, flags, params)
    args.meter.write(args.work, args.run)


@contextmanager
def _told(run: "StageRun", verb: str, flags: dict[str, Any]) -> Iterator[None]:
    """Log what the stage does and, however it ends, what it has written: a gate that fails has measured all the same."""
    from blip_core.tracking.passes import NOTE

    began = time.time()
    run.tag(NOTE, f"{STAGES[verb]}.")
    try:
        yield
    finally:
        _tell(run, verb, {name: path for name, path in flags.items() if name.startswith("out") and _written(path, began)})


def _written(path: Path, since: float) -> bool:
    return path.exists() and path.stat().st_mtime >= since


def _tell(run: "StageRun", verb: str, outs: dict[str, Path]) -> None:
    """Log what the stage has written: its metrics, what the whole pass is judged by, which model it is, and the report."""
    from blip_core.tracking.passes import NOTE, with_intervals

    if "out_metrics" in outs:
        points, table = with_intervals(json.loads(outs["out_metrics"].read_text()))
        run.log(points)
        if table:
            run.tag(NOTE, f"{STAGES[verb]}.\n\n{table}")
    if "out_summary" in outs:
        run.headline(json.loads(outs["out_summary"].read_text()))
    if verb in ("pretrain", "tune_task") and "out" in outs:  # by this its registered version finds its training
        from blip_core.weights.checkpoint import model_hash

        run.tag("model_hash", model_hash(outs["out"]))
    if verb == "report" and "out" in outs:  # its figures are what a person looks for in MLflow
        run.artifact(outs["out"])


def _warn(stage: str, flags: dict[str, Any], params: "Params") -> None:
    """Behind ingest: what a later stage will find too few, and what is not plain in the sources' fields."""
    if stage == "ingest":
        from blip_core.metadata.folder import accounted
        from blip_core.preview.enough import lacking_after_ingest
        from blip_core.preview.field_account import account_lines, kept_line

        account = accounted(flags["out_metadata"])
        logging.getLogger("blip_core").info("fields of the sources: %s", kept_line(account))
        for line in account_lines(account):
            logging.getLogger("blip_core").warning("fields of the sources: %s", line)
        for line in lacking_after_ingest(json.loads(flags["out_metrics"].read_text()), flags["out_heldout"], params):
            logging.getLogger("blip_core").warning("too few for a later stage: %s", line)


def named_stage(argv: list[str]) -> str | None:
    """The stage that a command line is about."""
    return next((name for name in argv[1:2] if argv[0] == STAGE and name in STAGES), None)


def leave_out(argv: list[str]) -> bool:
    """Whether the rounds stopped before this stage: a decision or another input says so. Then it leaves placeholders and does nothing.

    Before the stage's module is imported, for that is what would take the time; so the flags are read as DVC writes them.
    """
    if not named_stage(argv):
        return False
    flags = {flag: Path(value) for flag, value in zip(argv[2::2], argv[3::2], strict=False)}
    outs = {flag: path for flag, path in flags.items() if flag.startswith("--out")}
    reason = next(filter(None, (stopped(path) for flag, path in flags.items() if flag not in outs)), None)
    if reason and os.environ.get("RANK", "0") == "0":  # of several processes the first one
        for flag, path in outs.items():
            write_json({}, path) if flag == "--out-summary" else write_stopped(reason, path)  # a table of metrics has no room for reasons
        logging.getLogger("blip_core").info("not run, for the rounds stopped before it: %s", reason)
    return reason is not None
