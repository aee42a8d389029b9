"""`python -m blip_core VERB`: one verb per stage, made from the stage function's own signature, and the few verbs people type.

Every verb checks the whole of params.yaml first. What a user can mend is said in one message, without a traceback.
"""

import argparse
import contextlib
import importlib
import inspect
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from blip_core.cli.verbs import add_verbs, read_params
from blip_core.files.atomic import clear_killed, disk_full
from blip_core.runtime.cores import limit_threads
from blip_core.runtime.times import Meter
from blip_core.stages import STAGES
from blip_core.tables.stopped import stopped, write_stopped

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
INJECTED = {"cfg", "model_cfg", "assemble_cfg", "compare_cfg", "score_cfg", "params", "seed", "work", "log", "fetch"}


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 something the user can mend, 2 wrong usage, 130 stopped by Ctrl-C."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("blip_core").setLevel(logging.INFO)
    meter = Meter()
    argv = sys.argv[1:] if argv is None else argv
    if _leave_out(argv):
        return 0
    try:
        limit_threads()  # before a library is imported that starts some
    except ValueError as e:
        print(e, file=sys.stderr)
        return 1
    args = _parser(argv)
    args.meter = meter
    try:
        args.act(args)
        sys.stdout.flush()
    except (ValueError, FloatingPointError) as e:
        return _say(args, str(e))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"{args.verb}: stopped; nothing half-written is left, and running it again goes on", file=sys.stderr)
        return 130
    except Exception as e:
        if disk_full(e):
            return _say(args, f"the disk is full ({e}); free some space and run it again: what was finished is kept")
        _leave_reason("crash", f"{type(e).__name__}: {e}")
        raise
    return 0


def _say(args: argparse.Namespace, message: str) -> int:
    """Tell what a user can mend; the exit code."""
    _leave_reason("input", message)
    print(f"{args.verb}: {message}", file=sys.stderr)
    _keep_traceback(args.work / "errors" / f"{args.verb}.log")
    return 1


def _keep_traceback(path: Path) -> None:
    """For whoever doubts that the input is to blame."""
    with contextlib.suppress(OSError):  # of a full disk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())


def _leave_reason(kind: str, message: str) -> None:
    """Keep the reason where an orchestrator asked for it: DVC passes no exit code on."""
    if path := os.environ.get("BLIP_ERROR_FILE"):
        from blip_core.files.content import write_json

        with contextlib.suppress(OSError):  # of a full disk
            write_json({"kind": kind, "message": message}, Path(path))


def _parser(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m blip_core", description="BLIP's bootstrapping, stage by stage.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, summary in STAGES.items():
        stage = verbs.add_parser(name, help=summary, description=summary)
        if argv and argv[0] == name:  # a stage's module is imported only when it is asked for
            _add_stage_flags(stage, _stage(name))
            stage.add_argument("--after", type=Path, help="a decision; does it say to stop, only placeholders are left")
        stage.set_defaults(act=_run_stage)
    add_verbs(verbs)
    for verb in verbs.choices.values():
        verb.add_argument("--params", type=Path, default=Path("params.yaml"), help="default: params.yaml")
        verb.add_argument("--work", type=Path, default=Path(".work"), help="checkpoints of unfinished work; default: .work")
        verb.add_argument("--run", help="MLflow run as parent/child; without it nothing is tracked")
    return parser.parse_args(argv)


def _add_stage_flags(parser: argparse.ArgumentParser, stage: Callable) -> None:
    for name, parameter in inspect.signature(stage).parameters.items():
        if name not in INJECTED:
            required = parameter.default is inspect.Parameter.empty
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=parameter.annotation, required=required, default=None if required else parameter.default
            )


def _stage(name: str) -> Callable:
    return getattr(importlib.import_module(f"blip_core.stages.{name}"), name)


def _fetch(uri: str, work: Path) -> Path:
    from blip_core.tracking.registry import fetch_model

    return fetch_model(uri, Path.cwd(), work / "models")


def _run_stage(args: argparse.Namespace) -> None:
    params, stage = read_params(args), _stage(args.verb)
    wanted = inspect.signature(stage).parameters
    flags = {n: getattr(args, n) for n in wanted if n not in INJECTED}
    offered = {
        "cfg": params.section(args.verb),
        "model_cfg": params.model,
        "assemble_cfg": params.assemble,
        "compare_cfg": params.compare,
        "score_cfg": params.score,
        "params": params,
        "seed": params.seed,
        "work": args.work,
        "fetch": lambda uri: _fetch(uri, args.work),
    }
    injected = {n: v for n, v in offered.items() if n in wanted}
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes the one that writes
        clear_killed(*(v for n, v in flags.items() if n.startswith("out")))
    if not args.run:
        with args.meter.stage():
            stage(**flags, **injected)
        args.meter.write(args.work, args.verb)
        return
    from blip_core.tracking.runs import stage_run

    inputs = [v for n, v in flags.items() if isinstance(v, Path) and not n.startswith("out")]
    with stage_run(args.run, stage=args.verb, params=offered["cfg"].model_dump(), inputs=inputs, root=Path.cwd()) as run:
        if "log" in wanted:
            injected["log"] = run.log
        with args.meter.stage():
            stage(**flags, **injected)
        if "out_metrics" in flags:
            run.log({k: v for k, v in json.loads(flags["out_metrics"].read_text()).items() if isinstance(v, int | float)})
        if args.verb == "report":  # its figures are what a person looks for in MLflow
            run.artifact(flags["out"])
    args.meter.write(args.work, args.run)


def _leave_out(argv: list[str]) -> bool:
    """Whether the rounds stopped before this stage: a decision or another input says so. Then it leaves placeholders and does nothing.

    Before the stage's module is imported, for that is what would take the time; so the flags are read as DVC writes them.
    """
    if not argv or argv[0] not in STAGES:
        return False
    flags = {flag: Path(value) for flag, value in zip(argv[1::2], argv[2::2], strict=False)}
    inputs, outs = ([path for flag, path in flags.items() if flag.startswith("--out") == out] for out in (False, True))
    reason = next(filter(None, map(stopped, inputs)), None)
    if reason and os.environ.get("RANK", "0") == "0":  # of several processes the first one
        for path in outs:
            write_stopped(reason, path)
        logging.getLogger("blip_core").info("not run, for the rounds stopped before it: %s", reason)
    return reason is not None


if __name__ == "__main__":
    # here, for a caller of `main` has its own: what it forks would inherit ours, and a child that waits for a lock may miss its end by it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
