"""The verbs about versions of data and models: their flags, and what they print. The work is done elsewhere, imported when asked for."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from blip_core.report.wording import listed
from blip_core.tables.stopped import require_made

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from blip_core.tracking.registry import Registry

SHOWN = 100  # characters of a text
ASIDE = ("artifacts/metrics/", "artifacts/history/")  # outputs that nothing is made from


def add_verbs(verbs: argparse._SubParsersAction) -> None:
    _add_generations(verbs.add_parser("generations", help="every version of a generation, here and in git; get, diff, rollback"))
    lineage = verbs.add_parser("lineage", help="what made a model, and what became of an image's texts")
    what = lineage.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", help="blip/3, models:/blip@champion, or a model folder")
    what.add_argument("--caption", metavar="KEY", help="of an image: the generations that hold it, the models trained on its texts")
    lineage.add_argument(
        "--texts", type=Path, metavar="FILE", help="also write every text that the model learned from, a line of JSON each"
    )
    _json_flag(lineage)
    lineage.set_defaults(act=_lineage)
    again = verbs.add_parser("rebuild", help="train a registered version again, in a clone, and compare the weights")
    again.add_argument("model", help="as blip/3 or blip@champion")
    again.add_argument("--out", type=Path, required=True, help="folder for the clone")
    again.add_argument("--whole", action="store_true", help="every stage from the raw data on, not the last training alone")
    again.set_defaults(act=_rebuild)
    approve = verbs.add_parser("approve", help="make a candidate the champion (register.approval)")
    approve.add_argument("model", nargs="?", help="as blip/3; default: the candidate")
    reject = verbs.add_parser("reject", help="turn the candidate down")
    back = verbs.add_parser("rollback-champion", help="make an earlier version champion again")
    back.add_argument("--to", metavar="N", help="the version; default: the one that today's champion took the place of")
    for verb, act in ((approve, _approve), (reject, _reject), (back, _roll_back)):
        verb.add_argument("--reason", required=verb is not approve, default="approved", help="kept with the version")
        verb.add_argument("--by", help="who decides; default: as git knows you")
        verb.set_defaults(act=act)


def _add_generations(parser: argparse.ArgumentParser) -> None:
    _json_flag(parser)
    parser.set_defaults(act=_generations)
    what = parser.add_subparsers(dest="what", metavar="WHAT")
    get = what.add_parser("get", help="write a version to another folder, from DVC's cache or remote")
    get.add_argument("version", help="g1@REV: a commit, tag or branch whose dvc.lock is committed")
    get.add_argument("--out", type=Path, required=True, help="a new folder")
    get.set_defaults(act=_get)
    diff = what.add_parser("diff", help="texts added, dropped and reworded between two versions")
    for which in ("before", "after"):
        diff.add_argument(which, help="g1@REV, g1 as it is here, or a folder")
    diff.add_argument("--examples", type=int, default=5, help="texts of each kind to show; default: 5")
    _json_flag(diff)
    diff.set_defaults(act=_diff)
    back = what.add_parser("rollback", help="bring a version back into the workspace, with the values and data that made it")
    back.add_argument("version", help="g1@REV")
    back.add_argument("--code", action="store_true", help="and the code: every file of git as it was then")
    back.set_defaults(act=_bring_back)


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for a program")


def _generations(args: argparse.Namespace) -> None:
    from blip_core.versions.generations import describe

    rows = describe(Path.cwd())
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        raise ValueError(
            "no generation here, and none in git: run the chain; `git add dvc.lock` and commit it with each that shall be kept"
        )
    head = ["version", "date", "web", "human", "synthetic", "MB", "gate", "in", "revision"]
    print("\n".join(columns([head, *map(_generation_row, rows)], left=2)))
    if any(row["kept"] is None for row in rows):
        print("? its files are not on this machine: `python -m blip_core generations get VERSION --out DIR` fetches them")


def _generation_row(row: dict) -> list[str]:
    kept = row["kept"] or {}
    numbers = [f"{kept[s]:,}" if s in kept else "?" for s in ("web", "human", "synthetic")]
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


def _difference_lines(found: dict, before: str, after: str) -> Iterable[str]:
    yield f"{before} -> {after}: texts that a model may train on"
    head = ["source", "before", "after", "added", "dropped", "changed", "unchanged"]
    yield from columns([head, *([s, *(f"{counts[n]:,}" for n in head[1:])] for s, counts in found["sources"].items())], left=1)
    moved = [row for row in found["decisions"] if row["before"] != row["after"]]
    if moved:
        yield ""
        rows = [[row["source"], f"{row['before'] or 'undecided'} -> {row['after'] or 'undecided'}", f"{row['texts']:,}"] for row in moved]
        yield from columns([["source", "decision", "texts"], *rows], left=2)
    if found["other_picture"]:
        yield f"\n{found['other_picture']} keys name another picture now, so their texts can't be compared: the data was ingested anew"
    for kind, texts in found["examples"].items():
        if texts:
            yield f"\n{kind}, for example:"
            yield from (f"  {_example(row)}" for row in texts)


def _example(row: dict) -> str:
    origin = f"{row['key']} {row['source']}" + (f" {row['round']}#{row['candidate']}" if row["source"] == "synthetic" else "")
    old, new = (f"{(row[f'text_{when}'] or '')[:SHOWN]!r}" for when in ("before", "after"))
    score = next((f", match {row[k]:.3f}" for k in ("match_after", "match_before") if row[k] is not None), "")
    if row["reason_before"] == row["reason_after"]:
        return f"{origin}: {old} -> {new}{score}"
    return f"{origin}: {new if row['text_after'] is not None else old} ({row['reason_before']} -> {row['reason_after']}{score})"


def _bring_back(args: argparse.Namespace) -> None:
    from blip_core.versions.generations import rollback

    print(rollback(args.version, Path.cwd(), code=args.code))


def _lineage(args: argparse.Namespace) -> None:
    from blip_core.versions.lineage import of_caption, of_model

    name = _name(args)
    if args.caption and args.texts:
        raise ValueError("--texts: goes with a model, not with --caption")
    found = of_caption(args.caption, Path.cwd(), name=name) if args.caption else of_model(args.model, Path.cwd(), name=name)
    if args.texts:
        print(_write_texts(found, args.texts), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_caption_lines(found) if args.caption else _model_lines(found)))


def _write_texts(found: dict, path: Path) -> str:
    from blip_core.files.atomic import new_file
    from blip_core.versions.lineage import learned_from

    rows = learned_from(found, Path.cwd())
    with new_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    num = ", ".join(f"{num:,} {source}" for source, num in sorted(Counter(row["source"] for row in rows).items()))
    return f"{path}: the {len(rows):,} texts that it learned from: {num}"


def _model_lines(found: dict) -> Iterable[str]:
    model = found["model"]
    if "folder" in found:
        yield f"{found['folder']}, not registered: weights {model['model_hash']}, by {model['dvc_stage']} on {model['sources']} texts"
    else:
        yield from _version_lines(found)
    if found["stages"]:
        yield "behind it, as DVC has it:"
        for step in found["stages"]:
            outs = [f"{path} {md5}" for path, md5 in step["outs"].items() if not path.startswith(ASIDE)]
            yield from (f"  {step['stage']:<18} {out}" for out in outs)
    yield f"its texts:  python -m blip_core lineage {found.get('folder') or found['version']} --texts FILE"
    if "rebuild" in found:
        yield f"rebuild it: {found['rebuild']}"


def _version_lines(found: dict) -> Iterable[str]:
    model, code, generation, by = found["model"], found["code"], found["generation"], found["registered"]
    aliases = f" ({', '.join(found['aliases'])})" if found["aliases"] else ""
    yield f"{found['version']}{aliases}, registered {by['at']} by {by['by'] or '?'}"
    dirty = ", with changes that were not committed (the version's package holds the code)" if code["dirty"] else ""
    texts = ", ".join(f"{num:,} {source}" for source, num in generation["texts"].items())
    checks = found["gate"]["checks"]
    rows = {
        "weights": f"{model['model_hash']}, made by {model['dvc_stage'] or model['model'] or '?'} on {model['sources'] or '?'} texts",
        "code": f"{code['git_rev'] or 'not in git'}{dirty}",
        "values": f"{found['params_hash']} (whole with --json)",
        "generation": f"{generation['name']} {generation['dvc_md5'] or generation['hash']}: {texts}",
        "shards": found["shards"]["dvc_md5"] or found["shards"]["hash"],
        "raw data": found["data"]["dvc_md5"] or "not known to DVC",
        "captioner": found["captioner"] or "-",
        "filter": found["filter"] or "-",
        "kept": _rule(found),
        "gate": f"{found['gate']['result'] or 'no record'}{f', {len(checks)} checks' if checks else ''}",
        "run": by["run"] + "".join(f", {run} of {name}" for name, run in found["runs"].items() if name == f"pretrain-{model['model']}"),
        "measured": ", ".join(f"{metric} {value}" for metric, value in found["intervals"].items()),
    }
    yield from (f"  {name:<10} {value}" for name, value in rows.items())
    for name, tests in found["baseline_tests"].items():
        yield f"  against {name}: {_tests(tests)}"
    test = found["champion_test"]
    if test.get("metrics"):
        yield f"  against the champion of then, version {test['against']}: {_tests(test['metrics'])}"
    for move in found["champion"]:
        place = f" in place of version {move['before']}" if move["before"] else ""
        yield f"  champion   {move['at'][:19]}Z{place}, by {move['by']} ({move['how']}): {move['why']}"
    if taken := found["withdrawn"]:
        yield f"  withdrawn  {taken['at'][:19]}Z by {taken['by']} ({taken['how']}): {taken['why']}"


def _rule(found: dict) -> str:
    """What a web or synthetic text of the generation had to pass."""
    rule = (found["params"] or {}).get("assemble")
    if not found["filter"] or not rule:
        return "as ingest took them: no filter had a say"
    named = {"calibrated": "its calibrated threshold"}
    limits = [f"{named.get(limit, limit)} for {source} texts" for source, limit in rule["threshold"].items() if source in rule["sources"]]
    judges = f"{rule['votes']} of the round's filters at least" if rule.get("votes", 1) > 1 else "that filter"
    best = f"; of these the {rule['keep_best']} best of an image" if rule.get("keep_best") else ""
    return f"{rule['score']} from {listed(limits)} by {judges}{best}"


def _tests(tests: dict) -> str:
    said = {True: "", False: " FAILED"}
    return ", ".join(f"{m} {t['difference']:+.4g} [{t['low']:+.4g}, {t['high']:+.4g}]{said[t['passed']]}" for m, t in tests.items())


def _caption_lines(found: dict) -> Iterable[str]:
    for version in found["generations"]:
        yield f"{version['version']}{' (in the workspace)' if version['workspace'] else ''}:"
        for row in version["texts"]:
            made = f" {row['round']}#{row['candidate']} by captioner {row['model']}" if row["source"] == "synthetic" else ""
            score = f", match {row['match']:.3f} by filter {row['filter']}" if row["match"] is not None else ""
            yield f"  {row['reason'] or 'undecided'}: {row['text']!r}, {row['source']}{made}{score}"
            if row["models"]:
                yield f"    trained on it: {', '.join(row['models'])}"
    if found["elsewhere"]:
        yield f"not on this machine, so not looked into: {', '.join(found['elsewhere'])}"


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
    with open_registry(name or _name(args), root) as registry:
        version = act(registry, args.by or who(root))
    print(f"{registry.name}, version {version.version}, {said}: {args.reason}")


def _name(args: argparse.Namespace) -> str:
    from blip_core.config.params import load_params

    return load_params(args.params).register_.name


def _split(spec: str | None) -> tuple[str | None, str | None]:
    """`blip/3` as name and number; `3` as number alone."""
    from blip_core.versions.lineage import split_name

    if not spec or spec.isdigit():
        return None, spec
    name, number = split_name(spec)
    if not number.isdigit():
        raise ValueError(f"{spec}: expected a version, as {name}/3")
    return name, number


def columns(rows: list[list[str]], *, left: int) -> list[str]:
    """Lines of aligned columns, the first `left` of them words."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows
    ]
