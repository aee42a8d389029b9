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

from blip_core.atomic import clear_killed, disk_full
from blip_core.cores import limit_threads
from blip_core.demo.verb import add_verb as add_demo
from blip_core.stages import STAGES
from blip_core.stopped import stopped, write_stopped
from blip_core.times import Meter, read_times
from blip_core.versions import add_verbs

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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
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
        from blip_core.captions import write_json

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
    sample = verbs.add_parser("sample", help="write the built-in sample data")
    sample.add_argument("--out", type=Path, required=True)
    sample.set_defaults(act=_sample)
    history = verbs.add_parser("history", help="what happened to an image: every text, its scores, its fate")
    history.add_argument("key", help="of the image, as web-000000012")
    history.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="default: artifacts")
    history.set_defaults(act=_history)
    explain = verbs.add_parser("explain", help="why a generation keeps or drops each text of an image: the rule in numbers")
    explain.add_argument("key", help="of the image, as web-000000012")
    explain.add_argument("--generation", type=Path, default=Path("artifacts/generations/g1"), help="default: artifacts/generations/g1")
    explain.set_defaults(act=_explain)
    verbs.add_parser("times", help="what each stage cost when it last ran here: seconds, memory").set_defaults(act=_times)
    verbs.add_parser("outbox", help="send MLflow what stages logged while it was away; each stage does so too").set_defaults(act=_outbox)
    profile = verbs.add_parser("profile", help="where the time of a few steps goes: parts, operators, a trace")
    profile.add_argument("what", choices=("pretrain", "tune_captioner", "tune_filter", "caption", "score"))
    profile.add_argument("--artifacts", type=Path, help="read its pictures and texts (and models, to caption and score); default: made up")
    profile.add_argument("--steps", type=int, default=5, help="steps that are timed; default: 5")
    profile.add_argument("--batch-size", type=int, help="images in a step; default: that of params.yaml")
    profile.add_argument("--out", type=Path, help="default: the folder profile in --work")
    profile.set_defaults(act=_profile)
    plan = verbs.add_parser("plan", help="parameters, work and memory of the trainings of a params.yaml; trains nothing")
    plan.set_defaults(act=_plan)
    look = verbs.add_parser("inspect", help="a look at raw data before ingest: format, counts, first rows, what is wrong")
    look.add_argument("path", help="a folder (or file) of images and texts, or s3://bucket/prefix")
    look.add_argument("--limit", type=int, default=1000, help="samples to look at; 0 looks at all; default: 1000")
    for field in ("image", "text", "split"):
        look.add_argument(f"--{field}", help=f"name of the column or key of the {field}, as ingest.web_fields has it; default: searched")
    look.set_defaults(act=_inspect)
    listing = verbs.add_parser("list", help="note what lies in S3 of ingest.web and ingest.clean, so that DVC sees a change")
    listing.add_argument("--data", type=Path, default=Path("data"), help="folder for the listings; default: data")
    listing.set_defaults(act=_list)
    contract = verbs.add_parser("check", help="whether a folder of caption tables keeps its contract: every row, and its picture")
    contract.add_argument("folder", type=Path, help="as artifacts/generations/g1, artifacts/heldout or artifacts/rounds/r1/scores")
    contract.add_argument("--shards", type=Path, help="default: shards of the artifacts that the folder lies in")
    contract.set_defaults(act=_check)
    export = verbs.add_parser("export", help="write a generation for others: WebDataset, Hugging Face, COCO or BLIP lists, with a card")
    export.add_argument("generation", type=Path, help="as artifacts/generations/g1, or artifacts/heldout")
    export.add_argument("--out", type=Path, required=True, help="folder to write; an earlier export there is replaced")
    export.add_argument("--to", help="s3://bucket/prefix to upload it to as well")
    export.add_argument("--format", required=True, help="webdataset, imagefolder, parquet, coco or salesforce")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--kept-only", action="store_true", help="only the texts that were kept (default)")
    which.add_argument("--all", action="store_true", help="every text, each with the reason for its fate")
    export.add_argument("--license", default="unknown", help="for the card")
    export.add_argument("--shards", type=Path, help="default: artifacts/shards beside the generation")
    export.add_argument("--metrics", type=Path, help="default: artifacts/metrics beside the generation")
    export.set_defaults(act=_export)
    add_verbs(verbs)
    add_demo(verbs)
    review = verbs.add_parser("review", help="a sheet on which a person judges texts: one HTML file, no server")
    review.add_argument("generation", type=Path, help="that a round made, as artifacts/generations/g1")
    review.add_argument("--out", type=Path, required=True, help="the file to write")
    review.add_argument("--count", type=int, default=200, help="texts to judge; default: 200")
    review.add_argument("--around", type=float, help="score near which more are drawn; default: each source's threshold")
    review.add_argument("--seed", type=int, help="another seed draws other texts; default: that of params.yaml")
    review.add_argument("--shards", type=Path, help="default: artifacts/shards beside the generation")
    review.set_defaults(act=_review)
    agreement = verbs.add_parser("agreement", help="what the labels of people say of each other, of the filter and of a generation")
    agreement.add_argument("labels", type=Path, nargs="+", help="files that the sheet exported, or folders of them")
    agreement.add_argument("--generation", type=Path, required=True, help="that the sheet was made of, as artifacts/generations/g1")
    agreement.add_argument("--out", type=Path, help="write all numbers to this JSON file as well")
    agreement.set_defaults(act=_agreement)
    ablation = verbs.add_parser("ablate", help="run the arms of ablations.yaml, each seed in a clone; tables with intervals, a figure")
    ablation.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    ablation.add_argument("--arms", nargs="+", metavar="ARM", help="default: all of ablations.yaml")
    ablation.add_argument("--out", type=Path, default=Path("benchmarks/results/ablations.json"), help="all numbers; default: %(default)s")
    ablation.add_argument("--page", type=Path, help="a Markdown page to put tables and figure into, as docs/results.md")
    ablation.add_argument("--show", action="store_true", help="run nothing: tables and figure of what --out holds")
    ablation.set_defaults(act=_ablate)
    verbs.add_parser("params", help="check params.yaml").set_defaults(act=lambda args: _params(args))
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


def _params(args: argparse.Namespace):
    from blip_core.config import load_params

    return load_params(args.params)


def _sample(args: argparse.Namespace) -> None:
    from blip_core.sample import write_sample

    write_sample(args.out, _params(args).sample)


def _times(args: argparse.Namespace) -> None:
    from blip_core.report.costs import cost_section
    from blip_core.report.page import as_text

    times = read_times(args.work)
    if not times:
        raise ValueError(f"{args.work}: no stage has run with this folder for its unfinished work; run the chain, or name it with --work")
    print(as_text("What the stages cost", [cost_section(times)]), end="")


def _outbox(args: argparse.Namespace) -> None:
    from blip_core.tracking import send_kept

    print(send_kept(Path.cwd()))


def _profile(args: argparse.Namespace) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets on stderr
    from blip_core.profiling import profile

    options = {"artifacts": args.artifacts, "steps": args.steps, "batch_size": args.batch_size, "out": args.out or args.work / "profile"}
    print(profile(args.what, _params(args), **options))


def _plan(args: argparse.Namespace) -> None:
    from blip_core.plan import plan

    print(plan(_params(args)))


def _history(args: argparse.Namespace) -> None:
    from blip_core.history import history

    print(history(args.key, args.artifacts))


def _explain(args: argparse.Namespace) -> None:
    from blip_core.explain import explain

    print(explain(args.key, args.generation))


def _inspect(args: argparse.Namespace) -> None:
    from blip_core.config import FieldsConfig
    from blip_core.inspect import inspect

    fields = FieldsConfig(image=args.image, text=args.text, split=args.split)
    print(inspect(args.path, cfg=_params(args).ingest, limit=args.limit, fields=fields))


def _list(args: argparse.Namespace) -> None:
    from blip_core.sources import write_listings

    print("\n".join(write_listings(args.data, _params(args).ingest)))


def _check(args: argparse.Namespace) -> None:
    from blip_core.contract import check_folder

    print(check_folder(args.folder, args.shards))


def _export(args: argparse.Namespace) -> None:
    from blip_core.export.data import export

    options = {"form": args.format, "everything": args.all, "licence": args.license, "shards": args.shards, "metrics": args.metrics}
    manifest = export(args.generation, args.out, **options)
    print(f"{args.out}: {manifest['images']} images with {sum(manifest['texts'].values())} texts; {args.out / 'README.md'} is its card")
    if args.to:
        from blip_core.export.upload import upload

        print(f"{args.to}: {upload(args.out, args.to, _params(args).ingest.remote)} objects sent, the rest was there")


def _review(args: argparse.Namespace) -> None:
    from blip_core.review.sheet import write_sheet

    seed = _params(args).seed if args.seed is None else args.seed
    shards = args.shards or args.generation.resolve().parents[1] / "shards"
    made = write_sheet(args.generation, shards, args.out, count=args.count, around=args.around, seed=seed)
    print(f"{args.out}: {made['texts']} texts at {made['pictures']} pictures, {made['bytes'] / 1e6:.1f} MB; open it in a browser")


def _agreement(args: argparse.Namespace) -> None:
    from blip_core.captions import write_json
    from blip_core.review.agreement import agreement, as_table
    from blip_core.review.labels import read_labels

    params = _params(args)
    found = agreement(read_labels(args.labels), args.generation, cfg=params.evaluate, seed=params.seed)
    print(as_table(found), end="")
    if args.out:
        write_json(found, args.out)


def _ablate(args: argparse.Namespace) -> None:
    from blip_core.ablations.page import around, show
    from blip_core.ablations.run import ablate
    from blip_core.stages.compare import paired_comparison

    if args.page:
        around(args.page)  # before the hours, not behind them
    options = {"seeds": args.seeds, "names": args.arms, "out": args.out, "work": args.work}
    failed = [] if args.show else ablate(Path.cwd(), args.params, **options, compare=paired_comparison)
    print(show(args.out, args.page))
    if failed:
        raise ValueError(f"the tables lack {'; '.join(failed)}")


def _fetch(uri: str, work: Path) -> Path:
    from blip_core.registry import fetch_model

    return fetch_model(uri, Path.cwd(), work / "models")


def _run_stage(args: argparse.Namespace) -> None:
    params, stage = _params(args), _stage(args.verb)
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
    from blip_core.tracking import stage_run

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
    sys.exit(main())
