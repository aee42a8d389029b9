"""The verbs that ask a model about pictures of one's own: caption, match, search. A picture that can't be read is a row that says why."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip_core.cli.verbs import Verbs, read_params

if TYPE_CHECKING:
    from blip_core.api.models import Model
    from blip_core.capfilt.pair_scores import PairScores

Row = dict[str, Any]
NUMBERS = ("itm", "itc", "match")
PICTURES = "a picture, a folder of them, or - for a list of paths on stdin"


def add_verbs(verbs: Verbs) -> None:
    caption = verbs.add("caption", _caption, "captions of pictures", example="photo.jpg holiday/ --out captions.csv")
    caption.add_argument("pictures", nargs="+", metavar="PICTURE", help=PICTURES)
    caption.add_argument("--count", type=int, default=1, metavar="N", help="captions of each picture; default: 1")
    how = "beam: the most probable caption; nucleus: drawn, more diverse; default: beam"
    caption.add_argument("--sampler", choices=("beam", "nucleus"), default="beam", help=how)
    caption.add_argument("--prompt", metavar="TEXT", help="stands before the caption; default: the one that the model was tuned with")
    caption.add_argument("--seed", type=int, default=0, metavar="N", help="of what nucleus draws; default: 0")
    match = verbs.add("match", _match, "how well texts fit pictures", example="photo.jpg 'a red ball' 'a green kite'")
    match.add_argument("pictures", nargs=1, metavar="PICTURE", help=PICTURES)
    match.add_argument("texts", nargs="+", metavar="TEXT", help="each is scored against each picture")
    search = verbs.add("search", _search, "the pictures of a folder that fit a text best", example="holiday/ 'a red ball' --count 5")
    search.add_argument("pictures", nargs=1, metavar="FOLDER", help=f"{PICTURES}; what was seen of them is kept for the next search")
    search.add_argument("texts", nargs="+", metavar="TEXT", help="each is searched for on its own")
    search.add_argument("--count", type=int, default=10, metavar="N", help="pictures to show for a text; default: 10")
    for verb in (caption, match, search):
        where = "a model folder, a .pth file, or models:/NAME@ALIAS of the registry; default: the challenger's folder in artifacts/models"
        verb.add_argument("--model", metavar="MODEL", help=where)
        verb.add_argument("--out", type=Path, metavar="FILE", help="write the rows there: .csv or .jsonl; default: the screen")
        verb.add_argument("--format", choices=("text", "csv", "jsonl"), help="of the rows; default: by the ending of --out, else text")


def _caption(args: argparse.Namespace) -> None:
    from blip_core.api.capfilt import each_caption, writer

    def rows(model: "Model", pictures: list[str]) -> Iterator[Row]:
        captioner = model.writing(args.prompt)
        about = {"sampler": args.sampler, "num_candidates": args.count, "prompt": args.prompt}
        cfg = writer(captioner.identity, **about, options={"beams": max(3, args.count)})
        each = each_caption(captioner, pictures, cfg, seed=args.seed, batch_size=8)
        for picture, found in zip(pictures, each, strict=True):
            if isinstance(found, ValueError):
                yield _fault(picture, found)
            else:
                yield from ({"picture": picture, "caption": text} for text in found)

    _answer(args, ["caption"], rows)


def _match(args: argparse.Namespace) -> None:
    from blip_core.api.capfilt import each_score

    def rows(model: "Model", pictures: list[str]) -> Iterator[Row]:
        each = each_score(model.judging(), pictures, [args.texts] * len(pictures), batch_size=32)
        for picture, found in zip(pictures, each, strict=True):
            if isinstance(found, ValueError):
                yield _fault(picture, found)
            else:
                named = ({"picture": picture, "text": text} for text in args.texts)
                yield from (row | numbers for row, numbers in zip(named, _numbers(model, found), strict=True))

    _answer(args, ["text", *NUMBERS], rows)


def _search(args: argparse.Namespace) -> None:
    from blip_core.api.search import Index

    if args.count < 1:
        raise ValueError(f"--count {args.count}: expected 1 or more")

    def rows(model: "Model", pictures: list[str]) -> Iterator[Row]:
        index = Index(model, pictures, args.work)
        for text in args.texts:
            found, scores = index.search(text, count=args.count)
            named = ({"picture": picture, "text": text} for picture in found)
            yield from (row | numbers for row, numbers in zip(named, _numbers(model, scores), strict=True))
        yield from (_fault(picture, why) for picture, why in index.faults.items())

    _answer(args, ["text", *NUMBERS], rows)


def _fault(picture: str, why: object) -> Row:
    return {"picture": picture, "fault": str(why)}


def _numbers(model: "Model", scores: "PairScores") -> Iterator[Row]:
    """Of each pair what the model has: a CLIP has no itm, and only the filter of a round has a match."""
    columns = {"itm": scores.itm, "itc": scores.itc}
    if model.calibration is not None:
        columns["match"] = model.calibration.match(scores)
    for values in zip(*columns.values(), strict=True):
        yield {name: round(float(value), 6) for name, value in zip(columns, values, strict=True) if value == value}


def _answer(args: argparse.Namespace, columns: list[str], rows: Callable[["Model", list[str]], Iterator[Row]]) -> None:
    """Load the model, write the rows. ValueError at the end when a picture could not be read."""
    from blip_core.api.models import load
    from blip_core.cli.rows import Rows, found_pictures

    with Rows(["picture", *columns, "fault"], args.out, args.format) as out:
        pictures = found_pictures(args.pictures, sys.stdin)
        for row in rows(load(args.model or _newest(args)), pictures):
            out.write(row)
    if out.faults:
        raise ValueError(f"{out.faults} of {len(pictures)} pictures could not be read; their rows say why")


def _newest(args: argparse.Namespace) -> str:
    """The challenger's folder, or that of the newest model that was trained, where the rounds stopped before it."""
    from blip_core.tables.stopped import newest_trained

    if not args.params.exists():
        raise ValueError("which model? Name a folder, a .pth file or a registered version with --model (no params.yaml here names one)")
    params, models = read_params(args), Path("artifacts/models")
    model = models / newest_trained(models, params.challenger, params)[0]
    if not model.exists():
        raise ValueError(f"{model}: no model here yet; run the chain, or name another with --model, as models:/blip@champion")
    return str(model)
