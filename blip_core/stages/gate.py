"""Let a generation pass to training, or stop. Whatever is missing, unreadable or unknown stops it as well."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import write_csv

from blip_core.checks.contract import COLUMNS, RANGES, each_row, max_chars, row_expectations, score_expectations
from blip_core.checks.docs import RESULTS, Docs, write_docs
from blip_core.checks.expect import Expect, at_least, at_most, share_at_most
from blip_core.checks.expectations import broken, check, folder_faults, require, schema_faults
from blip_core.config.selection import AssembleConfig, Crawled, GateConfig
from blip_core.files.atomic import new_file
from blip_core.files.content import sha256_file, write_json
from blip_core.selection.calibration import read_calibrations
from blip_core.selection.choice import Rule, candidate_paths, choose, judged_candidates, overused, rejected
from blip_core.selection.evidence import crawl_texts, planted_pairs
from blip_core.selection.judged_noise import LABELS, PLANTED, bounded_by, drawn_for, judged_noise
from blip_core.selection.labels import read_labels
from blip_core.selection.noise import FALSE_KINDS, TRUE, Noise, residual_noise
from blip_core.selection.outcome import judged, kept_nothing
from blip_core.selection.sliced import by_slices
from blip_core.stages.assemble import measure
from blip_core.tables.captions import CONTROLS, DEGENERATE, SCHEMA, WRITTEN, each_table, read_table, table_paths
from blip_core.tables.counting import Walk
from blip_core.tables.manifest import content_hash, listed_hash, read_manifest
from blip_core.tables.slices import Columns

REMEDY = "It stays out of training. Mend the captions, the filter, or sections assemble and gate of params.yaml, and run the stages again."
# the short names that `dvc metrics show` and MLflow's table of passes have
SUMMARY = {"rejected_by_filter": "noise_web", "residual_noise": "residual_noise_web", "coverage": "coverage", "texts": "texts_kept"}
NUM_BINS = 40
CONTROL_SCHEMA = pa.schema([*SCHEMA, ("truth", pa.bool_()), ("kind", pa.string())])


def gate(
    generation: Path,
    scores: Path,
    calibration: Path,
    shards: Path,
    labels: Path,
    out_gate: Path,
    out_metrics: Path,
    out_docs: Path,
    out_summary: Path,
    out_curve: Path,
    out_histogram: Path,
    *,
    cfg: GateConfig,
    assemble_cfg: AssembleConfig,
    columns: Path = Path("columns"),
) -> str:
    """Write the gate file of `generation` only when every check passed; ChecksFailed lists those that failed, behind
    what is the reason of many: a source that keeps nothing. All else is written either way, where the tables can be read: metrics and
    Data Docs, `out_docs` and the index of all beside it; `out_summary`, the numbers that a round is judged by; `out_curve`, precision and
    recall of the first filter; `out_histogram`, how many texts of each source have which score.

    `scores` and `calibration` are those that the generation was chosen by: its reasons are compared with the rule applied anew, and
    the planted controls among the scores go through the same rule. `labels`: folder of what people said of texts; of each source of which
    they judged enough kept texts, they bound the noise in place of the controls. `columns`: where the files lie by which `cfg.slices` are
    told.
    """
    for path in (out_gate, out_metrics, out_summary, out_curve, out_histogram, out_docs / RESULTS):
        path.unlink(missing_ok=True)
    parents = read_manifest(generation).get("parents", {})
    faults = [*folder_faults(generation), *_score_faults(scores, calibration, parents)]
    docs = Docs(out_docs, f"Gate of {generation.name}", listed_hash(generation))
    facts: dict[str, float] = {}
    if faults:
        results, nothing = broken(faults), []
        write_docs(docs, results, answers={})
    else:
        rule = Rule(assemble_cfg, read_calibrations(calibration))
        facts, sliced = _facts(generation, scores, Columns(columns, [s.column for s in cfg.slices]), cfg=cfg, rule=rule)
        facts |= _judged_facts(generation, labels, candidates=parents["scores"], cfg=cfg, rule=rule)
        nothing = kept_nothing(table_paths(generation), facts, rule=rule)
        results = check(_suites(generation, shards, facts, sliced, cfg=cfg, rule=rule), docs=replace(docs, notes=nothing))
        write_json({name: facts[fact] for name, fact in SUMMARY.items() if fact in facts}, out_summary)
        _write_csv(_curve(calibration), out_curve)
        _write_csv(_histogram(generation, rule), out_histogram)
    write_json({**facts, "checks": len(results), "checks_failed": sum(not r["passed"] for r in results)}, out_metrics)
    require(results, what="\n".join([*nothing, f"{generation} does not pass its gate"]), remedy=REMEDY, docs=out_docs)
    verdict = {"passed": True, "generation": listed_hash(generation), "parents": parents, "noise_bounded_by": bounded_by(facts)}
    write_json({**verdict, "checks": results}, out_gate)
    return f"{generation.name} passed all {len(results)} checks."


def _score_faults(scores: Path, calibration: Path, parents: dict[str, Any]) -> list[str]:
    """Why `scores` and `calibration` are not what the generation was chosen by, or can't be read."""
    found = content_hash(scores)
    if parents.get("scores") != found:
        return [f"{scores}: now is {found}, but the generation was chosen from scores {parents.get('scores')}: run assemble again"]
    if not calibration.exists() or parents.get("calibration") != sha256_file(calibration):
        return [f"{calibration}: missing, or not what the generation was chosen by: run calibrate and assemble again"]
    if scores / CONTROLS not in table_paths(scores):
        return [f"{scores / CONTROLS}: not listed in the manifest, so the residual noise can't be estimated: run score again"]
    off = schema_faults(scores / CONTROLS, CONTROL_SCHEMA, exact=False)
    off += [f for path in candidate_paths(scores) for f in schema_faults(path)]
    return off or _control_faults(scores / CONTROLS)


def _control_faults(path: Path) -> list[str]:
    controls = read_table(path, CONTROL_SCHEMA.names)
    fits = pc.equal(pc.equal(controls["kind"], TRUE), controls["truth"])
    sound = pc.and_kleene(pc.is_in(controls["kind"], value_set=pa.array([TRUE, *FALSE_KINDS])), pc.fill_null(fits, False))
    wrong = controls.filter(pc.invert(sound)).slice(0, 1).to_pylist()
    expected = f"expected {TRUE!r} with True, or one of {FALSE_KINDS} with False"
    return [f"{path}: key {row['key']!r}: kind {row['kind']!r} with truth {row['truth']}, {expected}; run score again" for row in wrong]


def _facts(generation: Path, scores: Path, columns: Columns, *, cfg: GateConfig, rule: Rule) -> tuple[dict[str, float], list[Expect]]:
    """Everything that the limits are held against, flat; and the limits of slices."""
    facts = measure(table_paths(generation), rule=rule)
    facts["texts_off_rule"] = _off_rule(generation, scores, rule=rule)
    controls = read_table(scores / CONTROLS)
    facts["controls_true"] = pc.sum(controls["truth"], min_count=0).as_py()
    facts["controls_false"] = controls.num_rows - facts["controls_true"]
    crawl = crawl_texts(generation, rule, columns)
    kind, planted = planted_pairs(controls, rule, columns, where=str(scores / CONTROLS))
    noise = residual_noise(kind, planted.judged, crawl["web"].judged, confidence=cfg.confidence) if "web" in crawl else None
    sliced = by_slices({s: texts for s, texts in crawl.items() if s in rule.cfg.sources}, kind, planted, noise, cfg)
    return facts | _noise_facts(noise) | sliced.facts, sliced.limits


def _judged_facts(generation: Path, labels: Path, *, candidates: str, cfg: GateConfig, rule: Rule) -> dict[str, float]:
    """What people's labels say of the kept texts. Labels of others than `candidates`, a content hash, count for nothing, and are told."""
    found = read_labels([labels])
    said = drawn_for(found, generation=listed_hash(generation), scores=candidates)
    facts: dict[str, float] = {"labels": len(said), "labels_elsewhere": len(found) - len(said)}
    noise = judged_noise(said, generation, score=rule.cfg.score, confidence=cfg.confidence, min_labels=cfg.min_labels) if said else {}
    for source, n in noise.items():
        facts |= {f"judged_texts_{source}": n.texts, f"judged_noise_{source}": n.share, f"judged_noise_{source}_upper": n.upper}
    return facts


def _off_rule(generation: Path, scores: Path, *, rule: Rule) -> int:
    """Candidates of the generation that are not what the rule makes of the scores, and such as are missing from it."""
    common, wrong = overused(candidate_paths(scores), max_share=rule.cfg.max_share), 0
    found, scored = ({p.name: p for p in paths} for paths in (table_paths(generation), candidate_paths(scores)))
    columns = ["key", "source", "round", "candidate", "text", rule.cfg.score, "reason"]
    for name in {*found, *scored}:
        table = read_table(found[name]) if name in found else SCHEMA.empty_table()
        crawl = table.filter(judged(table)).select(columns)
        candidates = judged_candidates(scored[name], rule) if name in scored else SCHEMA.empty_table()
        chosen = choose(candidates, overused=common, rule=rule, where=str(scores / name)).select(columns)
        if not crawl.equals(chosen):
            wrong += sum(a != b for a, b in zip(crawl.to_pylist(), chosen.to_pylist(), strict=False)) + abs(len(crawl) - len(chosen))
    return wrong


def _noise_facts(noise: Noise | None) -> dict[str, float]:
    """Without a point estimate that metric is left out, and the bound is 1."""
    if noise is None:
        return {}
    facts = {"control_tpr": noise.tpr, **{f"control_fpr_{k}": f for k, f in noise.fpr.items()}, "residual_noise_web_upper": noise.upper}
    facts["residual_noise_web_worst"] = noise.worst
    facts |= {f"residual_noise_web_if_{k}": n for k, n in noise.by_kind.items()}
    return facts if noise.point is None else {**facts, "residual_noise_web": noise.point}


def _suites(
    generation: Path, shards: Path, facts: dict[str, float], sliced: list[Expect], *, cfg: GateConfig, rule: Rule
) -> dict[str, tuple[pa.Table | Walk, list[Expect]]]:
    """Tables and their expectations: all texts, the crawl's candidates, and what was measured of the generation as a whole."""
    texts = Walk(lambda: each_row(table_paths(generation), [*COLUMNS, "filter", "opinions", *RANGES], shards))
    crawl = Walk(lambda: (_marked(table, generation, rule) for table in texts))
    suites: dict[str, tuple[pa.Table | Walk, list[Expect]]] = {
        "texts": (texts, row_expectations(max_chars=max_chars(generation))),
        "candidates": (crawl, _candidate_expectations(cfg, rule)),
    }
    whole = [*_fact_expectations(cfg, rule), *_noise_expectations(facts, cfg, rule)]
    for name, limits in {"generation": whole, **({"slices": sliced} if sliced else {})}.items():
        # what could not be measured stands as null, and null fails
        suites[name] = (pa.table({e.columns[0]: pa.array([facts.get(e.columns[0])], pa.float64()) for e in limits}), limits)
    return suites


def _marked(table: pa.Table, generation: Path, rule: Rule) -> pa.Table:
    """The crawl's candidates of a table; 1 or 0 whether they are rejected, and degenerate."""
    crawl = table.filter(judged(table))
    marks = {"rejected": rejected(crawl, rule=rule, where=str(generation)), "degenerate": pc.is_in(crawl["reason"], pa.array(DEGENERATE))}
    for name, mark in marks.items():
        crawl = crawl.append_column(name, pc.cast(mark, pa.float64()))
    return crawl


def _candidate_expectations(cfg: GateConfig, rule: Rule) -> list[Expect]:
    expectations = score_expectations()
    for source in rule.cfg.sources:
        says = f"noise ratio: share of the {source} texts that the filter rejected"
        expectations.append(share_at_most(f"noise_{source}", "rejected", _limit(cfg, source), says, kind="noise", where=("source", source)))
    for source in _written(rule):
        says = f"share of the {source} texts that are degenerate: empty, loops, cut off, or the same for too many images"
        where = ("source", source)
        expectations.append(share_at_most(f"degenerate_share_{source}", "degenerate", cfg.max_degenerate, says, where=where))
    return expectations


def _written(rule: Rule) -> list[Crawled]:
    """The sources of captioners' texts that take part."""
    return [source for source in rule.cfg.sources if source in WRITTEN]


def _limit(cfg: GateConfig, source: str) -> float:
    if source not in cfg.max_noise:
        raise ValueError(f"gate.max_noise: no limit for source {source!r}, which takes part; set it in params.yaml")
    return cfg.max_noise[source]


def _fact_expectations(cfg: GateConfig, rule: Rule) -> list[Expect]:
    expectations = [
        at_least("texts_human", 1, "human texts"),
        at_least("coverage", cfg.min_coverage, "share of the crawl's images that keep a text"),
        at_most("texts_off_rule", 0, "candidates whose decision is not what the rule makes of their scores"),
        at_least("controls_true", cfg.min_controls, "planted true pairs"),
        at_least("controls_false", cfg.min_controls, "planted false pairs"),
    ]
    for source in _written(rule):
        says = f"share of different texts among the kept {source} ones"
        expectations.append(at_least(f"distinct_share_{source}", cfg.min_distinct, says))
    return expectations


def _noise_expectations(facts: dict[str, float], cfg: GateConfig, rule: Rule) -> list[Expect]:
    """The bound on the noise left in a source's kept texts: by people's labels, where there are enough; else, of web texts, by controls."""
    expectations, by = [], bounded_by(facts)
    for source in rule.cfg.sources:
        says = f"noise left in the kept {source} texts: upper {cfg.confidence:.0%} bound by "
        if by.get(source) == LABELS:
            says += f"{LABELS} of {facts[f'judged_texts_{source}']:,} of them"
            expectations.append(at_most(f"judged_noise_{source}_upper", cfg.max_residual_noise, says))
        elif source == "web":
            expectations.append(at_most("residual_noise_web_upper", cfg.max_residual_noise, f"{says}{PLANTED}"))
    return expectations


def _curve(calibration: Path) -> pa.Table:
    """Precision and recall of the first filter, that decides, by rising threshold of P(match)."""
    return pa.table(json.loads(calibration.read_text())["filters"][0]["curve"])


def _histogram(generation: Path, rule: Rule) -> pa.Table:
    """Texts of the crawl by source in equal bins of the score that the rule asks for."""
    ends = np.linspace(*((-1, 1) if rule.cfg.score == "itc" else (0, 1)), NUM_BINS + 1)
    counts = {str(source): np.zeros(NUM_BINS, dtype=np.int64) for source in rule.cfg.sources}
    for table in each_table(generation, ["source", rule.cfg.score]):
        for source in counts:
            scores = table.filter(pc.equal(table["source"], source))[rule.cfg.score].drop_null().to_numpy()
            counts[source] += np.histogram(scores[~np.isnan(scores)], bins=ends)[0]
    return pa.table({str(rule.cfg.score): ends[:-1].round(4), **counts})


def _write_csv(table: pa.Table, path: Path) -> None:
    with new_file(path) as temporary:
        write_csv(table, temporary)
