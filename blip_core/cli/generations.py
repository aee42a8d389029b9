"""The verb `generations`: every version of a generation in a table, and get, diff and rollback of one."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blip_core.cli.verbs import Verbs
from blip_core.tables.stopped import require_made

SHOWN = 100  # characters of a text


def add_verbs(verbs: Verbs) -> None:
    summary = "every version of a generation, here and in git; get, diff, rollback"
    parser = verbs.add("generations", _generations, summary, example="diff g1@ds/g1 g1")
    parser.add_argument("--json", action="store_true", help="for a program")
    what = Verbs(parser.add_subparsers(dest="what", metavar="WHAT"))
    summary = "write a version to another folder, from DVC's cache or remote"
    get = what.add("get", _get, summary, example="g1@ds/g1 --out earlier-g1")
    get.add_argument("version", help="g1@REV: a commit, tag or branch whose dvc.lock is committed")
    get.add_argument("--out", type=Path, required=True, help="a new folder")
    diff = what.add("diff", _diff, "texts added, dropped and reworded between two versions", example="g1@ds/g1 g1 --examples 10")
    for which in ("before", "after"):
        diff.add_argument(which, help="g1@REV, g1 as it is here, or a folder")
    diff.add_argument("--examples", type=int, default=5, help="texts of each kind to show; default: 5")
    diff.add_argument("--json", action="store_true", help="for a program")
    summary = "bring a version back into the workspace, with the values and data that made it"
    back = what.add("rollback", _bring_back, summary, example="g1@ds/g1")
    back.add_argument("version", help="g1@REV")
    back.add_argument("--code", action="store_true", help="and the code: every file of git as it was then")


def _generations(args: argparse.Namespace) -> None:
    from blip_core.tables.captions import WRITTEN
    from blip_core.versions.generations import describe

    rows = describe(Path.cwd())
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        raise ValueError(
            "no generation here, and none in git: run the chain; `git add dvc.lock` and commit it with each that shall be kept"
        )
    head = ["version", "date", "web", "human", *WRITTEN, "MB", "gate", "in", "revision"]
    print("\n".join(_columns([head, *map(_generation_row, rows)], left=2)))
    if any(row["kept"] is None for row in rows):
        print("? its files are not on this machine: `blip generations get VERSION --out DIR` fetches them")


def _generation_row(row: dict[str, Any]) -> list[str]:
    from blip_core.tables.captions import WRITTEN

    kept = row["kept"] or {}
    numbers = [f"{kept[s]:,}" if s in kept else "?" for s in ("web", "human", *WRITTEN)]
    where = "workspace" if row["workspace"] else ""
    return [row["version"], row["date"][:16], *numbers, f"{row['bytes'] / 1e6:.1f}", row["gate"] or "-", where, row["rev"][:9]]


def _get(args: argparse.Namespace) -> None:
    from blip_core.versions.generations import get

    print(f"{args.out}: {get(args.version, args.out, Path.cwd())}")


def _diff(args: argparse.Namespace) -> None:
    from blip_core.versions.cache import open_cache
    from blip_core.versions.differences import differences
    from blip_core.versions.generations import fetched, resolve

    root = Path.cwd()

    def files(spec: str) -> dict[str, Path]:
        folder = Path(spec)
        require_made(folder)
        if (folder / "manifest.json").exists():
            return {path.name: path for path in folder.iterdir()}
        with open_cache(root) as cache:
            return fetched(resolve(spec, root), cache, root)

    found = differences(files(args.before), files(args.after), examples=args.examples)
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else "\n".join(_difference_lines(found, args.before, args.after)))


def _difference_lines(found: dict[str, Any], before: str, after: str) -> Iterable[str]:
    yield f"{before} -> {after}: texts that a model may train on"
    head = ["source", "before", "after", "added", "dropped", "changed", "unchanged"]
    yield from _columns([head, *([s, *(f"{counts[n]:,}" for n in head[1:])] for s, counts in found["sources"].items())], left=1)
    moved = [row for row in found["decisions"] if row["before"] != row["after"]]
    if moved:
        yield ""
        rows = [[row["source"], f"{row['before'] or 'undecided'} -> {row['after'] or 'undecided'}", f"{row['texts']:,}"] for row in moved]
        yield from _columns([["source", "decision", "texts"], *rows], left=2)
    if found["other_picture"]:
        yield f"\n{found['other_picture']} keys name another picture now, so their texts can't be compared: the data was ingested anew"
    for kind, texts in found["examples"].items():
        if texts:
            yield f"\n{kind}, for example:"
            yield from (f"  {_example(row)}" for row in texts)


def _example(row: dict[str, Any]) -> str:
    from blip_core.tables.captions import WRITTEN

    origin = f"{row['key']} {row['source']}" + (f" {row['round']}#{row['candidate']}" if row["source"] in WRITTEN else "")
    old, new = (f"{(row[f'text_{when}'] or '')[:SHOWN]!r}" for when in ("before", "after"))
    score = next((f", match {row[k]:.3f}" for k in ("match_after", "match_before") if row[k] is not None), "")
    if row["reason_before"] == row["reason_after"]:
        return f"{origin}: {old} -> {new}{score}"
    return f"{origin}: {new if row['text_after'] is not None else old} ({row['reason_before']} -> {row['reason_after']}{score})"


def _bring_back(args: argparse.Namespace) -> None:
    from blip_core.versions.generations import rollback

    print(rollback(args.version, Path.cwd(), code=args.code))


def _columns(rows: list[list[str]], *, left: int) -> list[str]:
    """Lines of aligned columns, the first `left` of them words."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows
    ]
