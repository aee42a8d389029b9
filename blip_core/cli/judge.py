"""The verbs about what became of an image's texts and why, and what people say of them."""

import argparse
from functools import partial
from pathlib import Path

from blip_core.cli.verbs import Verbs, read_params


def add_verbs(verbs: Verbs) -> None:
    summary = "what happened to an image: every text, its scores, its fate"
    history = verbs.add("history", _history, summary, example="web-000000012")
    history.add_argument("key", help="of the image, as web-000000012")
    history.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="default: artifacts")
    summary = "why a generation keeps or drops each text of an image: the rule in numbers"
    explain = verbs.add("explain", _explain, summary, example="web-000000012 --generation artifacts/generations/g1")
    explain.add_argument("key", help="of the image, as web-000000012")
    explain.add_argument("--generation", type=Path, default=Path("artifacts/generations/g1"), help="default: artifacts/generations/g1")
    summary = "a sheet on which a person judges texts: one HTML file, no server"
    review = verbs.add("review", _review, summary, example="artifacts/generations/g1 --out review.html")
    review.add_argument("generation", type=Path, help="that a round made, as artifacts/generations/g1")
    review.add_argument("--out", type=Path, required=True, help="the file to write")
    review.add_argument("--count", type=int, default=200, help="texts to judge; default: 200")
    review.add_argument("--around", type=float, help="score near which more are drawn; default: each source's threshold")
    review.add_argument("--kept", action="store_true", help="ask about kept texts alone: the gate bounds their noise by it")
    review.add_argument("--source", help="ask about texts of this source alone, as web")
    review.add_argument("--seed", type=int, help="another seed draws other texts; default: that of params.yaml")
    review.add_argument("--explain", type=Path, metavar="FILTER", help="show where this filter looked, as artifacts/rounds/r1/filter")
    review.add_argument("--shards", type=Path, help="default: artifacts/shards beside the generation")
    summary = "what the labels of people say of each other, of the filter and of a generation"
    agreement = verbs.add("agreement", _agreement, summary, example="labels/r1 --generation artifacts/generations/g1")
    agreement.add_argument("labels", type=Path, nargs="+", help="files that the sheet exported, or folders of them")
    agreement.add_argument("--generation", type=Path, required=True, help="that the sheet was made of, as artifacts/generations/g1")
    agreement.add_argument("--out", type=Path, help="write all numbers to this JSON file as well")


def _history(args: argparse.Namespace) -> None:
    from blip_core.explain.history import history

    print(history(args.key, args.artifacts))


def _explain(args: argparse.Namespace) -> None:
    from blip_core.explain.image import explain

    print(explain(args.key, args.generation))


def _review(args: argparse.Namespace) -> None:
    from blip_core.review.maps import filter_maps
    from blip_core.review.sheet import write_sheet

    seed = read_params(args).seed if args.seed is None else args.seed
    shards = args.shards or args.generation.resolve().parents[1] / "shards"
    asked = {"around": args.around, "kept": args.kept, "source": args.source}
    maps = partial(filter_maps, folder=args.explain) if args.explain else None
    made = write_sheet(args.generation, shards, args.out, count=args.count, seed=seed, maps=maps, **asked)
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
