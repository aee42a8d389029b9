"""The verbs about data: raw data before ingest, and the generations that come of it (generations.py has
those of their versions, export.py writes them for others)."""

import argparse
from pathlib import Path

from blip_core.cli import export, generations
from blip_core.cli.verbs import Verbs, read_params, read_params_or_own

TASK_PICTURES = {"train": 2000, "val": 200, "test": 400}  # of the sample's tasks
TASK_CLIPS = 200  # of test


def add_verbs(verbs: Verbs) -> None:
    sample = verbs.add("sample", _sample, "write the built-in sample data", example="--out data")
    sample.add_argument("--out", type=Path, required=True, help="a new folder")
    sample.add_argument("--tasks", action="store_true", help="instead, the files of the downstream tasks: docs/tasks.md")
    _add_inspect(verbs)
    _add_fetch(verbs)
    summary = "note what lies of ingest.web and ingest.clean in S3 or behind links, so that DVC sees a change"
    listing = verbs.add("list", _list, summary, example="")
    listing.add_argument("--data", type=Path, default=Path("data"), help="folder for the listings; default: data")
    summary = "whether a folder of caption tables keeps its contract: every row, and its picture"
    contract = verbs.add("contract", _contract, summary, example="artifacts/generations/g1")
    contract.add_argument("folder", type=Path, help="as artifacts/generations/g1, artifacts/heldout or artifacts/rounds/r1/scores")
    contract.add_argument("--shards", type=Path, help="default: shards of the artifacts that the folder lies in")
    generations.add_verbs(verbs)
    export.add_verb(verbs)


def _add_inspect(verbs: Verbs) -> None:
    summary = "a look at raw data before ingest: format, counts, first rows, what is wrong"
    inspect = verbs.add("inspect", _inspect, summary, example="data/web --limit 200")
    inspect.add_argument("path", help="a folder (or file) of images and texts, or s3://bucket/prefix")
    inspect.add_argument("--limit", type=int, default=1000, help="samples to look at; 0 looks at all; default: 1000")
    for field in ("image", "text", "split"):
        inspect.add_argument(f"--{field}", help=f"name of the column or key of the {field}, as ingest.web_fields has it; default: searched")


def _add_fetch(verbs: Verbs) -> None:
    summary = "fetch the pictures of a list of URLs: CC3M, CC12M, LAION, COYO, DataComp, any table"
    fetch = verbs.add("fetch", _fetch, summary, example="cc3m.tsv --out data/web")
    fetch.add_argument("lists", type=Path, nargs="+", metavar="LIST", help=".csv, .tsv, .jsonl, .parquet, or folders of them")
    fetch.add_argument("--out", type=Path, required=True, help="folder of the tars; what is there is gone on with")
    fetch.add_argument("--url", help="column of the URLs; default: searched")
    fetch.add_argument("--text", help="column of the texts, '' for none; default: searched")
    fetch.add_argument("--shards", type=_span, metavar="A-B", help="only these shards, as 0-99: several machines share a list")
    fetch.add_argument("--ray-workers", type=int, default=0, help="of a Ray cluster, which share the shards: docs/scale.md; default: none")
    fetch.add_argument("--rows-per-shard", type=int, default=10_000, help="at most 10000; default: 10000")
    fetch.add_argument("--short-side", type=int, default=512, help="pixels; a larger picture is made smaller, 0 leaves all; default: 512")
    fetch.add_argument("--quality", type=int, default=95, help="of the JPEG of a picture that is made smaller; default: 95")
    fetch.add_argument("--in-flight", type=int, default=256, help="requests at once; default: 256")
    fetch.add_argument("--per-host", type=int, default=8, help="of them to one host; default: 8")
    fetch.add_argument("--attempts", type=int, default=3, help="for a row whose failure may pass; default: 3")
    fetch.add_argument("--timeout", type=float, default=30, help="seconds for a picture; default: 30")
    fetch.add_argument("--max-bytes", type=int, default=20_000_000, help="of a picture as it comes; default: 20000000")
    fetch.add_argument("--min-yield", type=float, default=0.0, help="share of the rows that must give a picture, else exit 1; default: 0")
    fetch.add_argument("--again", nargs="+", default=[], metavar="REASON", help="failed rows to try again besides those that may pass")
    fetch.add_argument("--ignore-robots", action="store_true", help="ask hosts whose robots.txt keeps us off")
    fetch.add_argument("--allow-private", action="store_true", help="ask addresses that are not public, as of your own network")
    fetch.add_argument("--user-agent", default="blip-fetch", help="who asks; put a contact in it: 'blip-fetch (+mail@example.org)'")


def _span(word: str) -> range:
    first, _, last = word.partition("-")
    if first.isdecimal() and (last or first).isdecimal() and (found := range(int(first), int(last or first) + 1)):
        return found
    raise argparse.ArgumentTypeError(f"{word!r}: expected A-B with A no greater than B")


def _sample(args: argparse.Namespace) -> None:
    from blip_core.sample.captioned import STREAMS, write_captioned
    from blip_core.sample.classes import write_classes
    from blip_core.sample.clips import write_clip_questions, write_clips
    from blip_core.sample.pairs import write_pairs
    from blip_core.sample.questions import write_questions
    from blip_core.sample.write import write_sample

    cfg = read_params_or_own(args).sample
    if args.tasks:
        write_questions(args.out / "vqa", seed=cfg.seed, sizes=TASK_PICTURES)
        write_classes(args.out / "shapes", seed=cfg.seed, pictures=TASK_PICTURES["test"])
        write_classes(args.out / "all-shapes", seed=cfg.seed, pictures=TASK_PICTURES["test"], several=True)
        write_pairs(args.out / "nlvr", seed=cfg.seed, sizes={part: n // 2 for part, n in TASK_PICTURES.items()})
        write_clips(args.out / "clips", seed=cfg.seed, clips=TASK_CLIPS)
        stills = {part: n for part, n in TASK_PICTURES.items() if part != "test"}
        write_clip_questions(args.out / "clip-qa", seed=cfg.seed, sizes=stills, clips=TASK_CLIPS)
        for kind in STREAMS:
            write_captioned(args.out / kind, kind=kind, seed=cfg.seed, sizes={part: n // 2 for part, n in TASK_PICTURES.items()})
    else:
        write_sample(args.out, cfg)


def _inspect(args: argparse.Namespace) -> None:
    from blip_core.config.intake import FieldsConfig
    from blip_core.preview.enough import Least
    from blip_core.preview.inspect import inspect

    fields = FieldsConfig(image=args.image, text=args.text, split=args.split)
    params = read_params_or_own(args)
    print(inspect(args.path, cfg=params.ingest, limit=args.limit, fields=fields, least=Least.of(params)))


def _fetch(args: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from blip_core.fetch.run import as_lines, fetch
    from blip_core.fetch.settings import FetchConfig

    values = {name: value for name, value in vars(args).items() if name in FetchConfig.model_fields}
    values |= {"short_side": args.short_side or None, "again": tuple(args.again)}
    try:
        cfg = FetchConfig(**values, robots=not args.ignore_robots, private=args.allow_private)
    except ValidationError as e:
        fault = e.errors()[0]
        raise ValueError(f"--{str(fault['loc'][0]).replace('_', '-')} {fault['input']}: {fault['msg']}") from None
    counts = fetch(args.lists, args.out, cfg=cfg, shards=args.shards, user_agent=args.user_agent)
    print(f"{args.out}: {as_lines(counts)}")


def _list(args: argparse.Namespace) -> None:
    from blip_core.intake.sources import write_listings
    from blip_core.intake.unseen import note_unseen

    cfg = read_params(args).ingest
    print("\n".join([*write_listings(args.data, cfg), *note_unseen(args.data, cfg)]))


def _contract(args: argparse.Namespace) -> None:
    from blip_core.checks.contract import check_folder

    print(check_folder(args.folder, args.shards))
