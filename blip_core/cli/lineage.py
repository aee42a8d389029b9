"""The verb `lineage`: what made a model, and what became of an image's texts."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blip_core.cli.verbs import Verbs, read_params
from blip_core.report.wording import listed

ASIDE = ("artifacts/metrics/", "artifacts/summary/", "artifacts/history/", "artifacts/plots/")  # outputs that nothing is made from


def add_verbs(verbs: Verbs) -> None:
    lineage = verbs.add("lineage", _lineage, "what made a model, and what became of an image's texts", example="blip@champion")
    what = lineage.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", help="blip/3, models:/blip@champion, or a model folder")
    what.add_argument("--caption", metavar="KEY", help="of an image: the generations that hold it, the models trained on its texts")
    lineage.add_argument(
        "--texts", type=Path, metavar="FILE", help="also write every text that the model learned from, a line of JSON each"
    )
    lineage.add_argument("--json", action="store_true", help="for a program")


def _lineage(args: argparse.Namespace) -> None:
    from blip_core.versions.lineage import of_caption, of_model

    name = read_params(args).register_.name
    if args.caption and args.texts:
        raise ValueError("--texts: goes with a model, not with --caption")
    found = of_caption(args.caption, Path.cwd(), name=name) if args.caption else of_model(args.model, Path.cwd(), name=name)
    if args.texts:
        print(_write_texts(found, args.texts), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(_caption_lines(found) if args.caption else _model_lines(found)))


def _write_texts(found: dict[str, Any], path: Path) -> str:
    from blip_core.files.atomic import new_file
    from blip_core.versions.lineage import learned_from

    rows = learned_from(found, Path.cwd())
    with new_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    num = ", ".join(f"{num:,} {source}" for source, num in sorted(Counter(row["source"] for row in rows).items()))
    return f"{path}: the {len(rows):,} texts that it learned from: {num}"


def _model_lines(found: dict[str, Any]) -> Iterable[str]:
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
    yield f"its texts:  blip lineage {found.get('folder') or found['version']} --texts FILE"
    if "rebuild" in found:
        yield f"rebuild it: {found['rebuild']}"


def _version_lines(found: dict[str, Any]) -> Iterable[str]:
    model, code, generation, by = found["model"], found["code"], found["generation"], found["registered"]
    aliases = f" ({', '.join(found['aliases'])})" if found["aliases"] else ""
    yield f"{found['version']}{aliases}, registered {by['at']} by {by['by'] or '?'}"
    dirty = ", with changes that were not committed (the version's package holds the code)" if code["dirty"] else ""
    texts = ", ".join(f"{num:,} {source}" for source, num in generation["texts"].items())
    checks = found["gate"]["checks"]
    rows = {
        "weights": f"{model['model_hash']}, made by {model['dvc_stage'] or model['model'] or '?'} on {model['sources'] or '?'} texts",
        "code": f"{code['git_rev'] or 'not in git'}{dirty}",
        "package": found["package"] or "no record",
        "values": f"{found['params_hash']} (whole with --json)",
        "generation": f"{generation['name']} {generation['dvc_md5'] or generation['hash']}: {texts}",
        "shards": found["shards"]["dvc_md5"] or found["shards"]["hash"],
        "raw data": found["data"]["dvc_md5"] or "not known to DVC",
        **{role: _named(found[role], found["makers"]) for role in ("captioner", "filter")},
        "kept": _rule(found),
        "gate": f"{found['gate']['result'] or 'no record'}{f', {len(checks)} checks' if checks else ''}",
        "run": (by["run"] or "no record")
        + "".join(f", {run} of {name}" for name, run in found["runs"].items() if name == f"pretrain@{model['model']}"),
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


def _named(identities: str, makers: dict[str, str]) -> str:
    """Content hashes, with who they are in words where that is known."""
    named = (identity + (f" ({makers[identity]})" if identity in makers else "") for identity in identities.split(",") if identity)
    return ", ".join(named) or "-"


def _rule(found: dict[str, Any]) -> str:
    """What a text of the crawl had to pass for the generation."""
    rule = (found["params"] or {}).get("assemble")
    if not found["filter"] or not rule:
        return "as ingest took them: no filter had a say"
    named = {"calibrated": "its calibrated threshold"}
    limits = [f"{named.get(limit, limit)} for {source} texts" for source, limit in rule["threshold"].items() if source in rule["sources"]]
    judges = f"{rule['votes']} of the round's filters at least" if rule.get("votes", 1) > 1 else "that filter"
    best = f"; of these the {rule['keep_best']} best of an image" if rule.get("keep_best") else ""
    return f"{rule['score']} from {listed(limits)} by {judges}{best}"


def _tests(tests: dict[str, Any]) -> str:
    said = {True: "", False: " FAILED"}
    return ", ".join(f"{m} {t['difference']:+.4g} [{t['low']:+.4g}, {t['high']:+.4g}]{said[t['passed']]}" for m, t in tests.items())


def _caption_lines(found: dict[str, Any]) -> Iterable[str]:
    from blip_core.tables.captions import WRITTEN, made_of

    for version in found["generations"]:
        yield f"{version['version']}{' (in the workspace)' if version['workspace'] else ''}:"
        for row in version["texts"]:
            parents = made_of(row, version["texts"])
            made = f" {row['round']}#{row['candidate']}{parents} by captioner {row['model']}" if row["source"] in WRITTEN else ""
            score = f", match {row['match']:.3f} by filter {row['filter']}" if row["match"] is not None else ""
            yield f"  {row['reason'] or 'undecided'}: {row['text']!r}, {row['source']}{made}{score}"
            if row["models"]:
                yield f"    trained on it: {', '.join(row['models'])}"
    for identity, words in {i: words for version in found["generations"] for i, words in version["makers"].items()}.items():
        yield f"{identity}: {words}"
    if found["elsewhere"]:
        yield f"not on this machine, so not looked into: {', '.join(found['elsewhere'])}"
