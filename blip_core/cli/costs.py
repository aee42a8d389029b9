"""The verbs on the chain as a whole: what it will cost, what it made and did cost, and what each part of it is worth."""

import argparse
import contextlib
import os
from pathlib import Path

from blip_core.cli.verbs import Verbs, read_params
from blip_core.files.content import read_json
from blip_core.runtime.times import read_times

# of preview/profile.py, which takes seconds to import
PROFILED = ("pretrain", "stage_2", "tune_captioner", "tune_filter", "caption", "score")


def add_verbs(verbs: Verbs) -> None:
    summary = "parameters, work, memory and time of the trainings of a params.yaml, values that suit the data, or which way pays (--regime)"
    plan = verbs.add("plan", _plan, summary, example="--params params.yaml")
    told = "what ingest wrote, once it ran; default: %(default)s"
    plan.add_argument("--vocab", type=Path, default=Path("artifacts/tokenizer.json"), help=told)
    told = "what ingest said, from which the numbers of pictures come; default: %(default)s"
    plan.add_argument("--ingested", type=Path, default=Path("artifacts/metrics/ingest.json"), help=told)
    plan.add_argument("--pictures", type=int, metavar="N", help="suggest steps, lr, warm-up, momentum and queue for so many pictures")
    told = "how many blocks of the image encoder to compute twice so that each training of a BLIP fits into so much"
    plan.add_argument("--memory", type=float, metavar="GIB", help=told)
    says = "which way pays where this share of the crawl's texts is wrong (judge 50 of them): the nearest that was measured, nothing else"
    plan.add_argument("--regime", type=float, metavar="NOISE", help=says)
    for flag, what in (("crawl", "crawled pictures"), ("clean", "pictures that people described")):
        plan.add_argument(f"--{flag}", type=int, metavar="N", help=f"{what}, for --regime; default: as ingest counted")
    profile = verbs.add(
        "profile", _profile, "where the time of a few steps goes: parts, operators, a trace", example="pretrain --artifacts artifacts"
    )
    profile.add_argument("what", choices=PROFILED, help="the stage; stage_2: that of pretrain of a BLIP-2")
    profile.add_argument("--artifacts", type=Path, help="read its pictures and texts (and models, to caption and score); default: made up")
    profile.add_argument("--steps", type=int, default=5, help="steps that are timed; default: 5")
    profile.add_argument("--batch-size", type=int, help="images in a step; default: that of params.yaml")
    profile.add_argument("--out", type=Path, help="default: the folder profile in --work")
    verbs.add("times", _times, "what each stage cost when it last ran here: seconds, memory", example="")
    show = verbs.add(
        "show", _show, "serve the pages of artifacts/ to a browser on this machine: report, review sheets, Data Docs", example=""
    )
    show.add_argument("--port", type=int, default=8765, help="default: 8765; 0 takes any that is free")
    verbs.add("outbox", _outbox, "send MLflow what stages logged while it was away; each stage does so too", example="")
    _add_ablate(verbs)


def _add_ablate(verbs: Verbs) -> None:
    summary = "run the arms of ablations.yaml, each seed in a clone; tables with intervals, a figure"
    ablate = verbs.add("ablate", _ablate, summary, example="--seeds 0 1 --page docs/results.md")
    ablate.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    ablate.add_argument("--arms", nargs="+", metavar="ARM", help="default: all of ablations.yaml")
    ablate.add_argument("--out", type=Path, default=Path("benchmarks/results/ablations.json"), help="all numbers; default: %(default)s")
    ablate.add_argument("--page", type=Path, help="a Markdown page to put the tables into, with a figure beside it, as docs/results.md")
    ablate.add_argument("--show", action="store_true", help="run nothing: print the tables of what --out holds")
    ablate.add_argument("--join", type=Path, nargs="+", default=[], metavar="FILE", help="other seeds, run elsewhere, that go into --out")


def _plan(args: argparse.Namespace) -> None:
    if args.regime is not None:
        from blip_core.preview.regime import regime

        print(regime(args.regime, crawl=args.crawl, clean=args.clean, ingested=args.ingested))
        return
    from blip_core.preview.plan import plan

    pictures = args.pictures
    if pictures is None and args.ingested.exists():
        told = read_json(args.ingested)
        pictures = told["images_web"] + told["images_train"]
    print(plan(read_params(args), args.vocab, pictures=pictures, memory=args.memory))


def _profile(args: argparse.Namespace) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets on stderr
    from blip_core.preview.profile import profile

    options = {"artifacts": args.artifacts, "steps": args.steps, "batch_size": args.batch_size, "out": args.out or args.work / "profile"}
    print(profile(args.what, read_params(args), **options))


def _times(args: argparse.Namespace) -> None:
    from blip_core.report.costs import cost_section
    from blip_core.report.page import as_text

    times = read_times(args.work)
    if not times:
        raise ValueError(f"{args.work}: no stage has run with this folder for its unfinished work; run the chain, or name it with --work")
    print(as_text("What the stages cost", [cost_section(times)]), end="")


def _show(args: argparse.Namespace) -> None:
    from blip_core.cli.show import lines, serve

    root = Path.cwd()
    with serve(root, args.port) as server:
        print("\n".join(lines(root, server.server_port)), flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
            server.serve_forever()


def _outbox(args: argparse.Namespace) -> None:
    from blip_core.tracking.runs import send_kept

    print(send_kept(Path.cwd()))


def _ablate(args: argparse.Namespace) -> None:
    from blip_core.ablations.page import around, show
    from blip_core.ablations.results import joined
    from blip_core.ablations.run import ablate
    from blip_core.files.content import write_json
    from blip_core.stages.compare import paired_comparison

    if args.page:
        around(args.page)  # before the hours, not behind them
    options = {"seeds": args.seeds, "names": args.arms, "out": args.out, "work": args.work}
    failed = [] if args.show else ablate(Path.cwd(), args.params, **options, compare=paired_comparison)
    if args.join:
        write_json(joined([args.out, *args.join]), args.out)
    print(show(args.out, args.page))
    if failed:
        raise ValueError(f"the tables lack {'; '.join(failed)}")
