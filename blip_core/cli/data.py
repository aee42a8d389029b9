"""The verbs that people type: what each reads from the command line, and what it calls. Stages are added in __main__.py.

What a verb needs is imported when it runs, so that each starts as fast as it can.
"""

import argparse
import os
from pathlib import Path

from blip_core.cli.versions import add_verbs as add_versions
from blip_core.demo.verb import add_verb as add_demo
from blip_core.runtime.times import read_times


def add_verbs(verbs: argparse._SubParsersAction) -> None:
    _add_data(verbs)
    _add_fates(verbs)
    _add_runs(verbs)
    add_versions(verbs)
    add_demo(verbs)


def _add_data(verbs: argparse._SubParsersAction) -> None:
    """About the raw data, and the tables that come of it."""
    sample = verbs.add_parser("sample", help="write the built-in sample data")
    sample.add_argument("--out", type=Path, required=True)
    sample.set_defaults(act=_sample)
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


def _add_fates(verbs: argparse._SubParsersAction) -> None:
    """About what became of an image, and what people say of it."""
    history = verbs.add_parser("history", help="what happened to an image: every text, its scores, its fate")
    history.add_argument("key", help="of the image, as web-000000012")
    history.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="default: artifacts")
    history.set_defaults(act=_history)
    explain = verbs.add_parser("explain", help="why a generation keeps or drops each text of an image: the rule in numbers")
    explain.add_argument("key", help="of the image, as web-000000012")
    explain.add_argument("--generation", type=Path, default=Path("artifacts/generations/g1"), help="default: artifacts/generations/g1")
    explain.set_defaults(act=_explain)
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


def _add_runs(verbs: argparse._SubParsersAction) -> None:
    """About what the chain costs, cost, and is worth."""
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
    ablation = verbs.add_parser("ablate", help="run the arms of ablations.yaml, each seed in a clone; tables with intervals, a figure")
    ablation.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    ablation.add_argument("--arms", nargs="+", metavar="ARM", help="default: all of ablations.yaml")
    ablation.add_argument("--out", type=Path, default=Path("benchmarks/results/ablations.json"), help="all numbers; default: %(default)s")
    ablation.add_argument("--page", type=Path, help="a Markdown page to put tables and figure into, as docs/results.md")
    ablation.add_argument("--show", action="store_true", help="run nothing: tables and figure of what --out holds")
    ablation.add_argument("--join", type=Path, nargs="+", default=[], metavar="FILE", help="other seeds, run elsewhere, that go into --out")
    ablation.set_defaults(act=_ablate)
    verbs.add_parser("params", help="check params.yaml").set_defaults(act=read_params)


def read_params(args: argparse.Namespace):
    """The checked values that --params names."""
    from blip_core.config.params import load_params

    return load_params(args.params)


def _sample(args: argparse.Namespace) -> None:
    from blip_core.sample.write import write_sample

    write_sample(args.out, read_params(args).sample)


def _inspect(args: argparse.Namespace) -> None:
    from blip_core.config.intake import FieldsConfig
    from blip_core.preview.inspect import inspect

    fields = FieldsConfig(image=args.image, text=args.text, split=args.split)
    print(inspect(args.path, cfg=read_params(args).ingest, limit=args.limit, fields=fields))


def _list(args: argparse.Namespace) -> None:
    from blip_core.intake.sources import write_listings

    print("\n".join(write_listings(args.data, read_params(args).ingest)))


def _check(args: argparse.Namespace) -> None:
    from blip_core.checks.contract import check_folder

    print(check_folder(args.folder, args.shards))


def _export(args: argparse.Namespace) -> None:
    from blip_core.export.data import export

    options = {"form": args.format, "everything": args.all, "licence": args.license, "shards": args.shards, "metrics": args.metrics}
    manifest = export(args.generation, args.out, **options)
    print(f"{args.out}: {manifest['images']} images with {sum(manifest['texts'].values())} texts; {args.out / 'README.md'} is its card")
    if args.to:
        from blip_core.export.upload import upload

        print(f"{args.to}: {upload(args.out, args.to, read_params(args).ingest.remote)} objects sent, the rest was there")


def _history(args: argparse.Namespace) -> None:
    from blip_core.explain.history import history

    print(history(args.key, args.artifacts))


def _explain(args: argparse.Namespace) -> None:
    from blip_core.explain.image import explain

    print(explain(args.key, args.generation))


def _review(args: argparse.Namespace) -> None:
    from blip_core.review.sheet import write_sheet

    seed = read_params(args).seed if args.seed is None else args.seed
    shards = args.shards or args.generation.resolve().parents[1] / "shards"
    made = write_sheet(args.generation, shards, args.out, count=args.count, around=args.around, seed=seed)
    print(f"{args.out}: {made['texts']} texts at {made['pictures']} pictures, {made['bytes'] / 1e6:.1f} MB; open it in a browser")


def _agreement(args: argparse.Namespace) -> None:
    from blip_core.files.content import write_json
    from blip_core.review.agreement import agreement, as_table
    from blip_core.selection.labels import read_labels

    params = read_params(args)
    found = agreement(read_labels(args.labels), args.generation, cfg=params.evaluate, seed=params.seed)
    print(as_table(found), end="")
    if args.out:
        write_json(found, args.out)


def _times(args: argparse.Namespace) -> None:
    from blip_core.report.costs import cost_section
    from blip_core.report.page import as_text

    times = read_times(args.work)
    if not times:
        raise ValueError(f"{args.work}: no stage has run with this folder for its unfinished work; run the chain, or name it with --work")
    print(as_text("What the stages cost", [cost_section(times)]), end="")


def _outbox(args: argparse.Namespace) -> None:
    from blip_core.tracking.runs import send_kept

    print(send_kept(Path.cwd()))


def _profile(args: argparse.Namespace) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets on stderr
    from blip_core.preview.profile import profile

    options = {"artifacts": args.artifacts, "steps": args.steps, "batch_size": args.batch_size, "out": args.out or args.work / "profile"}
    print(profile(args.what, read_params(args), **options))


def _plan(args: argparse.Namespace) -> None:
    from blip_core.preview.plan import plan

    print(plan(read_params(args)))


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
