"""The report on a small tree of artifacts whose numbers are known: each is looked for where a person would look for it."""

import csv
import io
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from blip_core.config.params import Params
from blip_core.files.content import write_json
from blip_core.report.examples import pick_examples
from blip_core.report.figures import metric_bars
from blip_core.report.filters import _pairs
from blip_core.report.page import Section, Table, as_html, as_text
from blip_core.runtime.times import StageTime
from blip_core.sample.scene_texts import human_captions
from blip_core.sample.truth import load_truth
from blip_core.sample.write import write_sample
from blip_core.selection.calibration import Calibrated, Calibration, write_calibrations
from blip_core.selection.noise import FALSE_KINDS
from blip_core.stages.describe import describe
from blip_core.stages.report import report
from blip_core.tables.captions import caption_table, read_table, write_table
from blip_core.tables.manifest import content_hash, write_manifest
from blip_core.tables.shards import ShardWriter
from blip_core.tables.stopped import write_stopped
from tests.stages.test_assemble import as_applied
from tests.support.small import sample_config

EVIL = "<script>alert('x')</script> & $x_{$ <b>bold</b>"
FALSE = "a purple moon and a purple boat and a purple box"


def make_params(rounds: int = 1, examples: int = 5) -> Params:
    """The project's own parameters with other rounds and models."""
    values = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    values["rounds"] = {
        f"r{i}": {"base": f"g{i - 1}", "model": f"g{i - 1}", "next": f"g{i}", "labels": "labels/r1"} for i in range(1, rounds + 1)
    }
    values["models"] = {
        f"g{i}": {"generation": f"g{i}", "sources": "human,web,synthetic" if i else "human,web", "round": "base"} for i in range(rounds + 1)
    }
    values["challenger"] = f"g{rounds}"
    values["baselines"] = "g0"
    values["assemble"] |= {"score": "match", "threshold": {"web": 0.5, "synthetic": 0.5}}
    values["report"] = {"examples": examples, "review": 12}
    return Params(**values)


def decided(source: str, rows: list[tuple[str, str, bool]]) -> list[dict]:
    """Rows of a generation from (key, text, kept)."""
    return [
        {
            "key": k,
            "text": t,
            "source": source,
            "candidate": 0,
            "match": 0.9 if kept else 0.1,
            "itm": 0.8,
            "itc": 0.3,
            "filter": "f",
            "reason": "kept" if kept else "below_threshold",
        }
        for k, t, kept in rows
    ]


KINDS = ("JPEG", "PNG", "WEBP")


def colour_of(key: str) -> tuple[int, int, int]:
    number = int(key[-9:])
    return 20 + 60 * (number % 4), 20 + 30 * (number // 4 % 7), 120


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=95)
    return buffer.getvalue()


def write_shards(folder: Path, keys: list[str]) -> dict[str, str]:
    """Plain pictures, each of its key's own colour, of every kind in turn; returns the shard of each key."""
    with ShardWriter(folder, "web", num_images=16) as writer:
        pixels = {key: np.full((32, 32, 3), colour_of(key), np.uint8) for key in keys}
        shard = {k: writer.add(k, encoded(p, KINDS[int(k[-9:]) % 3]), image_id=k, width=32, height=32) for k, p in pixels.items()}
    write_manifest(folder)
    return shard


def write_generation(folder: Path, rows: list[dict], shard: dict[str, str]) -> None:
    for stem in sorted(set(shard.values())):
        write_table(caption_table([r for r in rows if shard[r["key"]] == stem]), folder / f"{stem}.parquet")
    human = {"key": "train-0", "text": "a ball", "source": "human", "reason": "kept"}
    write_table(caption_table([human]), folder / "train-00000.parquet")
    write_manifest(folder, rule=as_applied())


def write_round(artifacts: Path, r: str) -> None:
    kinds = [kind for kind in ("true", *FALSE_KINDS) for _ in range(6)]
    controls = caption_table(
        [{"key": f"val-{i}", "text": "x", "filter": "f", "itm": 0.9 if kind == "true" else 0.2} for i, kind in enumerate(kinds)]
    )
    controls = controls.append_column("truth", pa.array([k == "true" for k in kinds])).append_column("kind", pa.array(kinds))
    write_table(controls, artifacts / "rounds" / r / "scores" / "controls.parquet")
    write_json({"filters": ["f" * 16]}, artifacts / "rounds" / r / "scores" / "manifest.json")
    write_json({"captioners": ["c" * 16]}, artifacts / "rounds" / r / "captions" / "manifest.json")
    curve = {"precision": [0.5, 0.9], "recall": [1.0, 0.7], "threshold": [0.05, 0.5]}
    metrics = {"auc": 0.951, "auc_itm": 0.902, "auc_itc": 0.873, "ece": 0.044, "precision": 0.9, "recall": 0.7}
    about = {"metrics": {**metrics, "auc_low": 0.94, "auc_high": 0.96, "pairs_true": 50, "pairs_false": 50}, "curve": curve}
    found = [Calibrated("f", "tuned", Calibration(itm_logit=1.0, itc=0.0, bias=0.0), 0.6)]
    write_calibrations(found, artifacts / "rounds" / r / "calibration.json", facts={"f": about})
    gain = {"challenger": 0.5, "baseline": 0.4, "difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.001}
    write_json(
        {"go_on": True, "outcome": f"on val a gain of {r}", "metrics": dict.fromkeys(("tr_r1", "ir_r1", "cider"), gain)},
        artifacts / f"metrics/decide-{r}.json",
    )
    noise = {"noise_web": 0.512, "noise_synthetic": 0.384, "residual_noise_web": 0.031, "residual_noise_web_upper": 0.087}
    write_json(noise, artifacts / f"metrics/gate-{r}.json")


def write_history(path: Path, parts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, ["step", "loss", *parts, "grad_norm", "lr"])
        writer.writeheader()
        for step in (10, 20, 30):
            writer.writerow({"step": step, "loss": 1.0 * len(parts), **dict.fromkeys(parts, 1.0), "grad_norm": 1.0, "lr": 1e-3})


def write_model(artifacts: Path, name: str, captions: list[tuple[str, str]]) -> None:
    values = {"tr_r1": 0.5, "ir_r1": 0.4, "itm_tr_r1": 0.6, "itm_ir_r1": 0.45, "cider": 1.234}
    metrics = {f"{m}{end}": v + d for m, v in values.items() for end, d in (("", 0.0), ("_low", -0.02), ("_high", 0.03))}
    facts = {"images": 1000, "captions_distinct": 42 if name == "g1" else 900}
    facts |= {"captions_distinct_share": facts["captions_distinct"] / 1000, "references_distinct_share": 0.99}
    facts |= {"captions_most_common_share": 0.112, "references_most_common_share": 0.08, "captions_loop_share": 0.005}
    chance = {f"{m}_chance": 0.0021 for m in values if m != "cider"}
    write_json(metrics | facts | chance, artifacts / "evaluations" / name / "metrics.json")
    keys, texts = zip(*captions, strict=True)
    table = pa.table({"key": keys, "caption": texts, "references": [["a"]] * len(keys)})
    write_table(table, artifacts / "evaluations" / name / "captions.parquet")


def write_verdict(artifacts: Path, challenger: str, *, better: bool) -> None:
    row = {"challenger": 0.5, "baseline": 0.4, "difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.0001, "role": "gain", "passed": better}
    row["chance"] = 0.002
    reasons = [] if better else ["tr_r1 against g0: the gain is not beyond its interval"]
    write_json(
        {"challenger": challenger, "instead_because": None, "better": better, "baselines": {"g0": {"tr_r1": row}}, "reasons": reasons},
        artifacts / "compare.json",
    )
    champion = 7 if better else 4
    write_json(
        {
            "name": "blip",
            "version": 7,
            "promoted": better,
            "champion_version": champion,
            "reasons": ["why so", *reasons],
            "model_hash": "m" * 16,
        },
        artifacts / "registration.json",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    write_sample(out, sample_config(seed=1, num_web=40, num_train=10, num_val=6, num_test=6))
    return out


def build(artifacts: Path, data: Path, *, rounds: int = 1) -> None:
    """40 web texts of which those of odd number are kept; 40 synthetic ones: 30 true, of which 20 are kept, and 10 false, 5 kept."""
    truth, draw, params = load_truth(data), np.random.default_rng(0), make_params(rounds)
    keys = sorted(k for k in truth if k.startswith("web-"))
    shard = write_shards(artifacts / "shards", keys)
    rows = decided("web", [(k, EVIL, i % 2 == 1) for i, k in enumerate(keys)])
    true = [human_captions(draw, truth[k].scene)[0] for k in keys]
    rows += decided("synthetic", [(k, FALSE if i < 10 else true[i], i % 2 == 0 if i < 10 else i < 30) for i, k in enumerate(keys)])
    base = [{"key": k, "text": "seen by Anna in Rome for 24 days", "source": "web", "reason": "kept"} for k in keys]
    write_generation(artifacts / "generations" / "g0", base, shard)
    for r, cfg in params.rounds.items():
        write_generation(artifacts / "generations" / cfg.next, rows, shard)
        generations, outs = (artifacts / "generations" / g for g in (cfg.base, cfg.next)), ("description.json", "numbers.json")
        describe(*generations, *(artifacts / "rounds" / r / name for name in outs), cfg=params.describe)
        write_round(artifacts, r)
        write_history(artifacts / f"history/captioner-{r}.csv", ["lm"])
        write_history(artifacts / f"history/filter-{r}.csv", ["itc", "itm"])
    test_keys = [k for k in truth if k.startswith("test-")]
    for name in params.models:
        own = [(k, human_captions(draw, truth[k].scene)[0]) for k in test_keys]
        write_model(artifacts, name, own if name == "g0" else [(test_keys[0], FALSE), *own[1:3], (test_keys[3], FALSE)])
        write_history(artifacts / f"history/pretrain-{name}.csv", ["itc", "itm", "lm"])
    write_verdict(artifacts, params.challenger, better=True)
    counts = {f"{kind}_{split}": 41 for kind in ("images", "texts", "shards") for split in ("web", "train", "val", "test")}
    counts |= {"marked_file_name": 31, "dropped_file_name": 29}
    write_json(counts | {"rejected_share_web": 0.123, "rejected_share_clean": 0.0}, artifacts / "metrics/ingest.json")
    quarantine = [
        {"key": "k", "where": "w", "reason": reason, "detail": "", "part": "web"} for reason in ("truncated", "truncated", "empty_text")
    ]
    write_table(pa.Table.from_pylist(quarantine), artifacts / "quarantine.parquet")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory, data) -> Path:
    folder = tmp_path_factory.mktemp("built") / "artifacts"
    build(folder, data)
    return folder


@pytest.fixture(scope="module")
def out(artifacts, data) -> Path:
    params = make_params()
    report(artifacts, data, artifacts / "ablations.json", artifacts / "report", cfg=params.report, params=params)
    return artifacts / "report"


@pytest.fixture
def own_artifacts(artifacts, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(artifacts, tmp_path / "artifacts", ignore=shutil.ignore_patterns("report"))


def run(artifacts: Path, data: Path, params: Params | None = None) -> str:
    params = params or make_params()
    report(artifacts, data, artifacts / "ablations.json", artifacts / "report", cfg=params.report, params=params)
    return (artifacts / "report" / "table.txt").read_text()


def line(table: str, *words: str) -> str:
    """The one line with all these words."""
    found = [text for text in table.splitlines() if all(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text) for w in words)]
    assert len(found) == 1, (words, found)
    return found[0]


def test_noise_before_and_after_with_the_gates_estimate(out, data):
    truth = load_truth(data)
    flags = [truth[k].text_true for k in sorted(truth) if k.startswith("web-")]
    before, after = flags.count(False) / 40, flags[1::2].count(False) / 20
    table = (out / "table.txt").read_text()
    assert f"r1, web texts: 20 of 40 kept; false ones: {before:.1%} -> {after:.1%}" in table
    assert line(table, "r1", "web", "3.1%").split() == [
        "r1",
        "web",
        "40",
        "20",
        "51.2%",
        f"{before:.1%}",
        f"{after:.1%}",
        "3.1%",
        "8.7%",
        "planted",
        "pairs",
    ]


def test_noise_of_the_synthetic_texts(out):
    rows = [text.split() for text in (out / "table.txt").read_text().splitlines() if re.match("r1 +synthetic ", text)]
    assert rows == [["r1", "synthetic", "40", "25", "38.4%", "25.0%", "20.0%", "n/a", "n/a", "n/a"]]


def page_rows(out: Path) -> list[list[str]]:
    """Cells of every table row of the page."""
    rows = re.findall(r"<tr>(.*?)</tr>", (out / "index.html").read_text(), re.DOTALL)
    return [
        [unescape(re.sub(r"<.*?>", "", cell)).strip() for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row, re.DOTALL)] for row in rows
    ]


def test_kept_texts_by_true_kind(out, data):
    truth = load_truth(data)
    kinds = [truth[k].kind for k in sorted(truth) if k.startswith("web-")]
    for kind in set(kinds):
        (found,) = [row for row in page_rows(out) if row[:2] == ["r1", kind]]
        assert found[1:5] == [kind, "true" if kind in ("clean", "terse") else "false", str(kinds.count(kind)), str(kinds[1::2].count(kind))]


def test_a_sheet_to_judge_the_texts_stands_beside_the_report(out):
    sheet = (out / "review-r1.html").read_text()
    assert "Do the texts fit? g1" in sheet and sheet.count('"weight":') == 12
    assert any("review-r1.html" in text for text in (out / "table.txt").read_text().splitlines())


def test_filter_models_verdict_intake(out):
    table = (out / "table.txt").read_text()
    assert line(table, "r1", "0.951").split() == ["r1", "tuned", "0.951", "[0.940,", "0.960]", "0.902", "0.873", "0.044"]
    # at 0.5 the curve has recall 0.7 and precision 0.9, and 20 web and 25 synthetic texts of 40 stand at 0.9
    (at_half,) = [text for text in table.splitlines() if re.match(r"r1 +0\.5 ", text)]
    assert at_half.split() == ["r1", "0.5", "70.0%", "7.8%", "50.0%", "62.5%"]
    assert [text.split()[-1] for text in table.splitlines() if re.match(r"g[01] +50\.0%", text)] == ["100.0%", "50.0%"]  # captions true
    assert "[48.0, 53.0]" in table and "[1.214, 1.264]" in table
    assert "g1 (challenger): learned from the human, web and synthetic texts of generation g1, made by round r1." in table
    assert "g0 (baseline): learned from the human and web texts of generation g0, as ingested." in table
    assert line(table, "text R@1 (ITC)", "gain").split()[-8:] == ["50.0%", "40.0%", "0.2%", "+10.0", "[+5.0,", "+15.0]", "<0.001", "yes"]
    assert "Bootstrapping helped: g1 is better than g0." in table
    assert "Registered as version 7 of blip: it is the champion now." in table
    assert [row[-1] for row in page_rows(out) if "truncated" in row] == ["2"] and "web 12.3%" in (out / "index.html").read_text()
    assert ["file_name", "31", "29"] in page_rows(out)
    assert "mlflow ui --workers 1 --backend-store-uri sqlite:///mlflow.db" in " ".join(table.split())


def test_precision_and_recall_are_told_at_the_thresholds_in_use(own_artifacts, data):
    """Each source has its own; at 0.6 nothing of the curve is left, for its last threshold is 0.5."""
    params = make_params()
    rule = params.assemble.model_copy(update={"threshold": {"web": 0.3, "synthetic": 0.6}})
    table = run(own_artifacts, data, params.model_copy(update={"assemble": rule}))
    told = [text.split() for text in table.splitlines() if re.match(r"r1 +tuned +(web|synthetic)", text)]
    assert told == [["r1", "tuned", "web", "0.3", "0.900", "70.0%", "7.8%"], ["r1", "tuned", "synthetic", "0.6", "n/a", "0.0%", "0.0%"]]


def test_how_many_false_pairs_are_kept_is_not_known_where_no_true_one_is():
    curve = {"threshold": [0.2, 0.8], "precision": [0.8, 0.0], "recall": [1.0, 0.0]}
    assert [_pairs({"curve": curve}, limit) for limit in (0.1, 0.5, 0.9)] == [
        ["0.800", "100.0%", "25.0%"],
        ["0.000", "0.0%", "n/a"],  # false ones alone, however many
        ["n/a", "0.0%", "0.0%"],
    ]


def test_which_threshold_would_keep_a_share_of_the_texts(out):
    """20 of 40 web texts stand at 0.9, the others at 0.1; of the synthetic ones 25."""
    table = (out / "table.txt").read_text()
    shares = {text.split()[1]: text.split() for text in table.splitlines() if re.match(r"r1 +\d+\.0% ", text)}
    assert (shares["50.0%"][2], shares["75.0%"][2], shares["50.0%"][-1], shares["75.0%"][-1]) == ("0.900", "0.100", "0.900", "0.100")
    assert "r1: the highest P(match) of a web text is 0.9." in table


def test_what_is_told_in_slices(own_artifacts, data):
    """A slice of few images has no interval, and one of few texts no bound."""
    assert "BY SLICES" not in run(own_artifacts, data)
    path = own_artifacts / "evaluations/g1/metrics.json"
    rare = {f"{metric}[domain=[rare]]": 0.25 for metric in ("tr_r1", "ir_r1", "itm_tr_r1", "itm_ir_r1", "cider")}
    write_json(json.loads(path.read_text()) | rare | {"images[domain=[rare]]": 7}, path)
    path = own_artifacts / "metrics/gate-r1.json"
    write_json(json.loads(path.read_text()) | {"texts_web[language=es]": 30, "noise_web[language=es]": 0.4}, path)
    table = run(own_artifacts, data)
    assert re.search(r"domain +g1 +7 +25.0%.* 0.250\n= \[rare\] +too few", table)
    assert re.search(r"language +r1 +web +30 +40.0% +n/a +n/a\n= es\n", table)


def test_what_shows_a_collapsed_captioner_and_what_chance_would_find(out):
    rows, table = page_rows(out), (out / "table.txt").read_text()
    assert ["g1", "42", "4.2%", "11.2%", "0.5%"] in rows and ["people", "n/a", "99.0%", "8.0%", "n/a"] in rows
    assert ["by chance", "0.2%", "0.2%", "0.2%", "0.2%", "n/a", "n/a"] in rows
    assert "ALARM, g1: the captions have collapsed: 42 different ones for 1,000 images" in table and "ALARM, g0" not in table


def test_what_the_texts_gained_and_lost(out):
    """On the page alone. The base's web texts name Anna, Rome and 24; the next generation has none of them."""
    rows = page_rows(out)
    assert ["r1", "names", "2", "0.0%", "0.0%", "0.0%", "0.0%"] in rows and ["r1", "numbers", "1", "0.0%", "0.0%", "0.0%", "0.0%"] in rows
    assert ["r1", "web", "-", "-", "40", "50.0%", "20", "-"] in rows
    (web,) = [row for row in rows if row[:3] == ["r1", "web", "20"]]
    assert web[3] == "5" and web[-1] == "95.0%"  # script, alert, x, b and bold; all say the same
    assert "r1, lost names: anna (40), rome (40)" in unescape((out / "index.html").read_text())
    assert "anna" not in (out / "table.txt").read_text()


def test_what_was_made_of_what(out, artifacts):
    rows = page_rows(out)
    first, next_ = (content_hash(artifacts / "generations" / g)[:16] for g in ("g0", "g1"))
    assert ["generation g0", "ingest", "the crawl and the clean set", first] in rows
    assert ["captioner of r1", "tune_captioner@r1", "model g0, tuned on the human texts of generation g0", "c" * 16] in rows
    assert ["filter of r1", "tune_filter@r1", "model g0, tuned on the human texts of generation g0", "f" * 16] in rows
    assert ["generation g1", "assemble@r1", "the texts of g0 and new captions, by r1's two", next_] in rows
    assert ["model g1", "pretrain@g1", "the human, web and synthetic texts of generation g1", "m" * 16] in rows
    assert "blip lineage blip/7" in (out / "index.html").read_text()


def test_how_often_people_and_filter_agree(own_artifacts, data):
    path = own_artifacts / "rounds/r1/calibration.json"
    found = json.loads(path.read_text())
    found["filters"][0]["metrics"]["labels_alike"] = 0.784
    write_json(found, path)
    words = " ".join(run(own_artifacts, data).split())
    assert "r1: people and tuned say the same of 78% of the texts that people judged" in words


def test_the_rule_in_use_stands_below_what_thresholds_do(out, own_artifacts, data):
    words = " ".join((out / "table.txt").read_text().split())
    assert "In use in r1: P(match) from 0.5 for web texts and 0.5 for synthetic texts." in words
    rule = make_params().assemble.model_copy(update={"score": "itm", "threshold": {"web": 0.5}, "keep_best": 2})
    words = " ".join(run(own_artifacts, data, make_params().model_copy(update={"assemble": rule})).split())
    assert "In use in r1: the raw ITM probability from 0.5 for web texts, and of these the 2 best of an image." in words


def test_a_failed_comparison_is_said_in_words(own_artifacts, data):
    write_verdict(own_artifacts, "g1", better=False)
    table = run(own_artifacts, data)
    assert "Bootstrapping is NOT shown to have helped" in table and "helped: g1 is better" not in table
    page = (own_artifacts / "report" / "index.html").read_text()
    assert page.count("- text R@1 (ITC) against g0: the gain is not beyond its interval") == 1 and "- why so" in page
    assert "not promoted, the champion stays version 4" in table
    assert line(table, "text R@1 (ITC)", "gain").split()[-1] == "NO"


def test_without_truth_the_true_noise_is_not_available(own_artifacts, tmp_path):
    table = run(own_artifacts, tmp_path)
    row = next(text.split() for text in table.splitlines() if re.match(r"r1 +web", text))
    assert row == ["r1", "web", "40", "20", "51.2%", "n/a", "n/a", "3.1%", "8.7%", "planted", "pairs"]
    assert "false ones" not in table and "boilerplate" not in table


def test_other_reasons_are_counted_beside_the_noise_ratio_of_the_gate(own_artifacts, data):
    path = own_artifacts / "generations/g1/web-00000.parquet"
    rows = read_table(path).to_pylist()
    for row in [r for r in rows if r["source"] == "synthetic" and r["reason"] == "below_threshold"][:2]:
        row["reason"] = "loop"
    write_table(caption_table(rows), path)
    write_manifest(path.parent, rule=as_applied())
    table = run(own_artifacts, data)
    assert "2 synthetic loop (r1)" in table
    assert next(text.split()[4] for text in table.splitlines() if re.match(r"r1 +synthetic", text)) == "38.4%"


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("metrics/ingest.json", "ingest"),
        ("quarantine.parquet", "ingest"),
        ("metrics/gate-r1.json", "gate@r1"),
        ("rounds/r1/calibration.json", "calibrate@r1"),
        ("rounds/r1/scores/controls.parquet", "score@r1"),
        ("rounds/r1/scores/manifest.json", "score@r1"),
        ("rounds/r1/captions/manifest.json", "caption@r1"),
        ("generations/g1", "assemble@r1"),
        ("rounds/r1/description.json", "describe@r1"),
        ("evaluations/g0/metrics.json", "evaluate@g0"),
        ("evaluations/g1/captions.parquet", "evaluate@g1"),
        ("history/pretrain-g0.csv", "pretrain@g0"),
        ("history/captioner-r1.csv", "tune_captioner@r1"),
        ("compare.json", "compare"),
        ("registration.json", "register"),
    ],
)
def test_a_missing_file_is_named_with_the_stage_that_makes_it(own_artifacts, data, path, stage):
    gone = own_artifacts / path
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(path)}: missing; .*dvc repro {re.escape(stage)}`"):
        run(own_artifacts, data)
    assert not (own_artifacts / "report").exists()


def test_broken_json_is_named(own_artifacts, data):
    (own_artifacts / "compare.json").write_text('{"better": tr')
    with pytest.raises(ValueError, match=r"compare\.json: not valid JSON .*stage compare"):
        run(own_artifacts, data)


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_shows_hostile_texts_and_obeys_none(out):
    html = (out / "index.html").read_text()
    page = Page(html)
    assert EVIL in page.texts
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b", "link", "iframe"})
    assert "<script" not in html


def test_the_page_needs_no_network_and_no_other_file(out):
    html = (out / "index.html").read_text()
    sources = [attrs["src"] for tag, attrs in Page(html).tags if tag == "img"]
    assert len(sources) == 4 + 5  # figures, and the pictures of the examples
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in html and "url(" not in html and "@import" not in html


def test_figures_are_pictures(out):
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {"scores.png", "filter.png", "models.png", "losses.png", "examples-r1.png"}
    for path in (out / "figures").iterdir():
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("L"))
        assert min(pixels.shape) > 200 and pixels.std() > 5, path


def test_a_long_name_of_a_model_is_cut_and_not_left_out():
    drawn = [metric_bars({"CIDEr": {name: (0.5, 0.4, 0.6)}}) for name in ("human_and_web_texts", "everything_that_was_there")]
    assert drawn[0] != drawn[1]


def test_lines_fit_a_terminal(out):
    assert max(map(len, (out / "table.txt").read_text().splitlines())) <= 100


def test_a_wide_table_wraps_and_loses_nothing():
    row = ["word " * 20 + "end", "12345", "a" * 60]
    text = as_text("t", [Section("s", [Table(["what", "number", "name"], [row], left=1)])])
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("word") == 20 and "end" in text and "12345" in text and text.count("a") == 60 + "what name".count("a")


def test_every_string_of_a_page_is_escaped():
    html = as_html(EVIL, [Section(EVIL, [EVIL, Table([EVIL], [[EVIL]])])])
    assert html.count("&lt;script&gt;") == 7 and "<script>" not in html and "<b>" not in html


def test_a_second_run_replaces_the_report_by_equal_bytes(own_artifacts, data):
    run(own_artifacts, data)
    folder = own_artifacts / "report"
    first = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (folder / "figures" / "stale.png").write_bytes(b"old")
    run(own_artifacts, data)
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == first
    assert not list(own_artifacts.glob("_tmp*"))


def test_what_the_stages_cost_is_shown_and_decides_nothing(own_artifacts, data, tmp_path):
    params, silent = make_params(), run(own_artifacts, data)
    for run_name, ended, gpu in (("r1/caption", "2026-01-02T03:05:00+00:00", 512.0), ("base/ingest", "2026-01-02T03:04:00+00:00", None)):
        write_json(vars(StageTime(run_name, 70.04, 1200.0, 3.0, 2.5, 812.4, gpu, ended)), tmp_path / "work/times" / f"{run_name}.json")
    write_json({"run": "r1/old", "hours": 1}, tmp_path / "work/times/r1/old.json")  # of another version
    report(
        own_artifacts,
        data,
        own_artifacts / "ablations.json",
        own_artifacts / "report",
        cfg=params.report,
        params=params,
        work=tmp_path / "work",
    )
    table, page = ((own_artifacts / "report" / name).read_text() for name in ("table.txt", "index.html"))
    assert line(table, "base/ingest").split() == ["base/ingest", "2026-01-02", "03:04:00", "70.0", "1,200.0", "2.5", "812"]
    assert line(table, "r1/caption").split()[-2:] == ["812", "512"]
    assert line(table, "sum").split() == ["sum", "140.1", "2,400.0", "5.0"]
    assert table.index("base/ingest") < table.index("r1/caption")
    assert "Where the time went" in page and "1,200.0" in page and max(map(len, table.splitlines())) <= 100
    start, end = table.index("WHERE THE TIME WENT"), table.index("WHERE THINGS ARE")
    assert table[:start] + table[end:] == silent


def test_every_round_is_shown(tmp_path, data):
    build(tmp_path / "artifacts", data, rounds=2)
    table = run(tmp_path / "artifacts", data, make_params(rounds=2))
    for r in ("r1", "r2"):
        assert len([text for text in table.splitlines() if re.match(rf"{r} +(web|synthetic) +40 ", text)]) == 2
    assert "g2 (challenger)" in table and "g1 (not compared)" in table
    assert {"examples-r1.png", "examples-r2.png"} <= {p.name for p in (tmp_path / "artifacts/report/figures").iterdir()}


def test_a_round_that_was_not_run_is_named_and_the_rest_is_shown(tmp_path, data):
    build(tmp_path / "artifacts", data, rounds=2)
    artifacts, params = tmp_path / "artifacts", make_params(rounds=2)
    numbers = json.loads((artifacts / "metrics/decide-r1.json").read_text())
    write_json({**numbers, "go_on": False, "outcome": "on val no gain"}, artifacts / "metrics/decide-r1.json")
    for name in ("generations/g2", "evaluations/g2", "rounds/r2/scores", "metrics/decide-r2.json", "metrics/gate-r2.json"):
        write_stopped("no gain: +0.0", artifacts / name)
    write_verdict(artifacts, "g1", better=True)
    verdict = json.loads((artifacts / "compare.json").read_text())
    write_json({**verdict, "instead_because": "g2 was not trained"}, artifacts / "compare.json")
    table = run(artifacts, data, params)
    assert re.search(r"^r1 +g0 +g1 +g0 +\+10.0 +\+10.0 +\+0.100 +stop$", table, re.M) and re.search(r"^r2 .* n/a +not run$", table, re.M)
    assert "After r1: on val no gain, so r2 did not follow." in table and "r2 was not run: no gain: +0.0." in table
    assert "Not trained because of it: g2." in table and "g1 is the challenger: g2 was not trained." in table
    assert "g1 (challenger)" in table and "examples-r2.png" not in {p.name for p in (artifacts / "report/figures").iterdir()}


def ablation(path: Path, params: Params, *, whole: float, **sizes) -> None:
    """Of F, which beats the chain, and of the chain itself, at seed 0."""

    def row(value: float, **against) -> dict:
        metrics = {m: {"value": value, "low": value - 0.02, "high": value + 0.03} for m in ("tr_r1", "ir_r1", "cider")}
        return {"metrics": metrics, "true_captions": 0.75, "against": against}

    gain = {"cider": {"difference": 0.2, "low": 0.1, "high": 0.3}}
    facts = {"sample": params.sample.model_dump(exclude={"seed"}), "steps": params.pretrain.optim.steps, "batch_size": 64}
    facts |= {"human_share": params.pretrain.human_share, "synthetic_share": params.pretrain.synthetic_share} | sizes
    rows = {"F": row(0.625, CF=gain), "CF": row(whole)}
    write_json({"facts": facts, "seeds": {"0": {"commit": "c0ffee" * 6, "rows": rows}}}, path)


def test_the_filter_alone_stands_beside_the_models_where_an_ablation_fits(own_artifacts, data):
    """Of this seed and these sizes, and of the sample world: a real crawl has no other ablation."""
    params = make_params()
    ablation(own_artifacts / "ablations.json", params, whole=0.5)
    table = run(own_artifacts, data)
    (alone,) = [text.split() for text in table.splitlines() if text.startswith("F alone  ")]
    assert alone == ["F", "alone", "62.5%", "62.5%", "n/a", "n/a", "0.625", "75.0%"]
    assert any(text.startswith("CF  ") for text in table.splitlines()), "it came out otherwise than this chain"
    assert "F alone against CF, captioner and filter, as they were then: CIDEr +0.200 [+0.100, +0.300]." in " ".join(table.split())
    assert "F alone" not in run(own_artifacts, own_artifacts)
    ablation(own_artifacts / "ablations.json", params, whole=0.5, steps=1)
    assert "F alone" not in run(own_artifacts, data)


WIDTHS = """
const wide = [...document.querySelectorAll("main *")].filter((e) => !e.closest(".wide") && e.getBoundingClientRect().right > innerWidth);
return [document.documentElement.scrollWidth <= innerWidth, wide.length, getComputedStyle(document.body).backgroundColor];
"""


def test_the_page_is_no_wider_than_a_phone_and_dark_where_the_screen_is(out, driver):
    seen = {}
    for scheme in ("light", "dark"):
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        driver.get((out / "index.html").as_uri())
        fits, wide, seen[scheme] = driver.execute_script(WIDTHS)
        assert fits and not wide
    assert seen["light"] == "rgb(255, 255, 255)" and max(map(int, re.findall(r"\d+", seen["dark"]))) < 50
    driver.find_element("link text", "The filter").click()
    assert driver.execute_script("return document.querySelector(location.hash).getBoundingClientRect().top") < 5


def test_data_docs_are_listed_where_they_exist(out, own_artifacts, data):
    assert line((out / "table.txt").read_text(), "Data Docs").split()[-1] == "n/a"
    page = own_artifacts / "docs" / "gate-r1" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("docs")
    assert "Data Docs of gate-r1" in run(own_artifacts, data)


def test_an_example_shows_its_own_picture_and_texts(artifacts, data):
    examples = pick_examples(artifacts / "generations/g1", artifacts / "shards", load_truth(data), count=7)
    assert len({e.key for e in examples}) == 7
    for example in examples:
        assert np.abs(example.pixels.mean((0, 1)) - colour_of(example.key)).max() < 4
        assert [t.source for t in example.texts] == ["web", "synthetic"]
        assert example.texts[0].text == EVIL


def test_fewer_examples_are_the_first_of_more(artifacts):
    few, more = (pick_examples(artifacts / "generations/g1", artifacts / "shards", None, count=n) for n in (3, 12))
    assert [e.key for e in few] == [e.key for e in more][:3]


def test_more_examples_than_images_show_all(artifacts):
    assert len(pick_examples(artifacts / "generations/g1", artifacts / "shards", None, count=100)) == 40


def test_an_example_says_what_was_decided(artifacts, data):
    examples = pick_examples(artifacts / "generations/g1", artifacts / "shards", load_truth(data), count=40)
    decisions = {text.decision() for example in examples for text in example.texts}
    assert decisions == {f"{d}; really {t}" for d in ("kept", "dropped: below threshold") for t in ("true", "false")}
    assert examples[0].texts[0].scored() in ("match 0.900, itm 0.800, itc 0.300", "match 0.100, itm 0.800, itc 0.300")
