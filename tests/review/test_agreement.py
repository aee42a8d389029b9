"""People judge a sample of the texts: what they are asked, what their labels say of all texts, and what the calibration learns of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from blip_core.__main__ import main
from blip_core.review.agreement import agreement, as_table, kappa, weighted_share
from blip_core.review.choose import choose_cards, read_rule
from blip_core.selection.labelled import labelled_pairs
from blip_core.selection.labels import judged, read_labels
from blip_core.tables.captions import caption_table, read_tables, write_table
from blip_core.tables.manifest import write_manifest
from tests.support.archives import jpeg
from tests.support.reviews import THRESHOLD, human, row, said, words, write_generation, write_labels, write_shards

CFG = SimpleNamespace(bootstrap=200, confidence=0.95)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """The folder of a generation, and which of its texts are right."""
    folder = tmp_path_factory.mktemp("crawl") / "g1"
    return folder, write_generation(folder, 1200)


def drawn(folder, count=120, seed=0, **options):
    return choose_cards(folder, rule=read_rule(folder, **options), count=count, seed=seed)


def rows_of(cards):
    return [r for card in cards for r in card.rows]


def test_sources_and_sides_have_equal_parts_and_near_texts_the_better_chance(crawl):
    rows = rows_of(drawn(crawl[0]))
    sides = [(r.pair.source, r.scores["match"] >= THRESHOLD[r.pair.source]) for r in rows]
    assert len(rows) == 120 and {side: sides.count(side) for side in set(sides)} == dict.fromkeys(set(sides), 30) and len(set(sides)) == 4
    for side in set(sides):
        near_first = sorted((abs(r.scores["match"] - THRESHOLD[side[0]]), r.weight) for r, s in zip(rows, sides, strict=True) if s == side)
        weights = [weight for _, weight in near_first]
        assert weights == sorted(weights) and weights[0] < weights[-1] / 2


def test_weights_stand_for_all_texts_that_the_score_decided(tmp_path):
    rows = [row(i, f"text {i} {c}", source, c, i / 100) for i in range(100) for source, c in (("web", 0), ("synthetic", 0))]
    for i, reason in enumerate(("duplicate", "outranked", "loop", "source_off", "boilerplate")):
        rows.append(row(90 + i, f"{reason} one", "synthetic", 1, 0.95, reason=reason))
    rows.append(row(0, "not scored", "web", 1, 0.5, reason="markup") | {"match": None})
    write_table(caption_table([human(0), *rows]), tmp_path / "web-00000.parquet")
    write_manifest(tmp_path, rule={"score": "match", "threshold": THRESHOLD})
    assert sum(r.weight for r in rows_of(drawn(tmp_path, 60))) == pytest.approx(202)
    everything = rows_of(drawn(tmp_path, 1000))
    assert {r.weight for r in everything} == {1.0} and len(everything) == 202
    found = {r.pair.text for r in everything}
    assert {"duplicate one", "outranked one"} <= found and not found & {"loop one", "source_off one", "boilerplate one", "not scored"}
    shown = {r.pair.text for card in drawn(tmp_path, 1000) for r in card.others}
    assert {"loop one", "not scored"} <= shown and "a ball" not in shown


def test_the_order_tells_nothing_and_a_seed_says_which(crawl):
    cards = drawn(crawl[0], 400)
    assert drawn(crawl[0], 400) == cards
    assert {r.pair for r in rows_of(drawn(crawl[0], 400, seed=1))} != {r.pair for r in rows_of(cards)}
    match = [r.scores["match"] for r in rows_of(cards)]
    assert abs(np.corrcoef(np.argsort(np.argsort(match)), np.arange(len(match)))[0, 1]) < 0.1
    assert len({card.rows[0].pair.key for card in cards}) == len(cards)  # a picture is shown once


def test_around_moves_the_crowd(crawl):
    def near(cards, limit):
        return sum(abs(r.scores["match"] - limit) < 0.06 for r in rows_of(cards))

    assert near(drawn(crawl[0], around=0.3), 0.3) > 2 * near(drawn(crawl[0]), 0.3)


def test_what_can_not_be_sampled_is_said(crawl, tmp_path):
    with pytest.raises(ValueError, match="5 texts on a sheet: expected at least 24, 2 of each of 12 bands.*report.review"):
        drawn(crawl[0], 5)
    write_table(caption_table([human(0)]), tmp_path / "train-00000.parquet")
    write_manifest(tmp_path)
    with pytest.raises(ValueError, match="names no rule .* expected a generation that a round made"):
        read_rule(tmp_path)
    write_manifest(tmp_path, rule={"score": "match", "threshold": THRESHOLD})
    with pytest.raises(ValueError, match="no candidate of web, synthetic has a score"):
        drawn(tmp_path)


def test_labels_of_a_sample_tell_of_all_texts(crawl):
    """Mean of the estimates over many sheets: the truth. The 95 % intervals hold it nine times in ten at the very least."""
    folder, truth = crawl
    table = read_tables(folder, ["text", "source", "match", "reason"]).to_pylist()
    web = [r for r in table if r["source"] == "web"]
    right, passes = np.array([truth[r["text"]] for r in web]), np.array([r["match"] >= 0.8 for r in web])
    true = {"kept_right": right[passes].mean(), "dropped_right": right[~passes].mean(), "right_dropped": 1 - passes[right].mean()}
    true["alike"] = (right == passes).mean()
    found = [agreement(said(drawn(folder, 120, seed=s), words(truth)), folder, cfg=CFG, seed=0)["sources"]["web"] for s in range(40)]
    for name, value in true.items():
        estimates = np.array([[f[name][k] for k in ("value", "low", "high")] for f in found])
        assert abs(estimates[:, 0].mean() - value) < 0.03, name
        assert np.mean((estimates[:, 1] <= value) & (value <= estimates[:, 2])) >= 0.9, name


def test_a_share_with_equal_weights_has_wilsons_interval_and_texts_of_a_picture_count_as_one():
    from scipy.stats import binomtest

    value, pictures = np.repeat([1.0, 0.0], [17, 3]), np.arange(20).astype(str)
    wilson = binomtest(17, 20).proportion_ci(0.9, method="wilson")
    found = weighted_share(value, np.full(20, 7.0), pictures, 0.9)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.85, wilson.low, wilson.high))
    assert weighted_share(np.repeat(value, 3), np.ones(60), np.repeat(pictures, 3), 0.9) == pytest.approx(found)
    assert weighted_share(np.empty(0), np.empty(0), np.empty(0, str), 0.9)["value"] is None
    sure = weighted_share(np.ones(10), np.ones(10), pictures[:10], 0.95)
    assert sure["value"] == sure["high"] == 1 and 0.6 < sure["low"] < 0.8


def test_kappa_is_cohens():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    a, b, weight = rng.random(200) < 0.6, rng.random(200) < 0.3, rng.random(200)
    b = np.where(rng.random(200) < 0.7, a, b)
    cells = np.array([weight[x & y].sum() for x, y in ((a, b), (a, ~b), (~a, b), (~a, ~b))])
    assert kappa(cells) == pytest.approx(cohen_kappa_score(a, b, sample_weight=weight))


def test_reviewers_and_filter_are_compared(crawl):
    folder, _ = crawl
    cards = drawn(folder)
    passes = {r.pair.text: r.scores["match"] >= THRESHOLD[r.pair.source] for r in rows_of(cards)}
    texts = sorted(passes)
    of_filter = words(passes)
    contrary = words({text: not p for text, p in passes.items()})
    torn = {**of_filter, **dict.fromkeys(texts[:30], "unsure"), **{t: contrary[t] for t in texts[30:60]}}
    labels = [label for name, v in (("ada", of_filter), ("bob", contrary), ("cy", torn)) for label in said(cards, v, reviewer=name)]
    found = agreement(labels, folder, cfg=CFG, seed=0)
    ada, bob, cy = (found["reviewers"][name] for name in ("ada", "bob", "cy"))
    assert ada["alike"]["value"] == 1 and ada["kappa"]["value"] == 1 and ada["kappa"]["low"] == 1
    assert bob["alike"]["value"] == 0 and bob["kappa"]["value"] < 0 and bob["labels"] == 120
    assert cy["unsure"] == 30 and cy["right"] + cy["wrong"] == 90 and cy["pairs"] == 90
    between = found["between"]["ada - cy"]
    assert between["pairs"] == 90 and between["alike"]["value"] == pytest.approx(2 / 3)
    assert found["between"]["ada - bob"]["alike"]["value"] == 0
    table = as_table(found)
    assert max(map(len, table.splitlines())) <= 100 and "ada - bob" in table and "Thresholds of match: web 0.8" in " ".join(table.split())


def test_of_several_filters_the_verdict_of_all_of_them_is_compared(tmp_path):
    """A text that the first filter accepts and the others outvote counted as accepted."""
    rows = [row(i, f"text {i}", "web", 0, 0.95 if i % 2 else 0.1) for i in range(40)]
    for r in rows[1::4]:
        r["reason"] = "below_threshold"
    write_table(caption_table([human(0), *rows]), tmp_path / "web-00000.parquet")
    write_manifest(tmp_path, rule={"score": "match", "threshold": THRESHOLD, "votes": 2})
    decided = words({r["text"]: r["reason"] == "kept" for r in rows})
    found = agreement(said(drawn(tmp_path, 40), decided), tmp_path, cfg=CFG, seed=0)["sources"]["web"]
    assert found["alike"]["value"] == 1 and found["right_dropped"]["value"] == 0 and found["dropped_right"]["value"] == 0


def test_labels_of_another_generation_are_left_out_and_counted(crawl, tmp_path):
    folder, truth = crawl
    labels = said(drawn(folder), words(truth))
    gone = [label.model_copy(update={"text": "never seen"}) for label in labels[:7]]
    found = agreement([*labels[7:], *gone], folder, cfg=CFG, seed=0)
    assert found["pairs"] == 113 and found["pairs_elsewhere"] == 7 and "7 judged texts are not in it" in " ".join(as_table(found).split())
    with pytest.raises(ValueError, match="holds none of the 7 judged texts; name the generation that the sheet was made of"):
        agreement(gone, folder, cfg=CFG, seed=0)


def test_the_newest_judgement_counts_and_doubt_says_nothing(crawl, tmp_path):
    folder, truth = crawl
    cards = drawn(folder)[:3]
    text = rows_of(cards)[0].pair.text
    first = said(cards, dict.fromkeys(truth, "wrong"))
    later = said(cards, dict.fromkeys(truth, "wrong") | {text: "right"}, time="2026-01-02T05:00:00Z")
    write_labels(tmp_path / "b.jsonl", first)
    write_labels(tmp_path / "a.jsonl", later)
    (tmp_path / "notes.txt").write_text("no labels")
    labels = read_labels([tmp_path, tmp_path / "b.jsonl"])
    assert sorted(labels, key=lambda k: k.pair) == sorted(later, key=lambda k: k.pair)
    bob = said(cards, dict.fromkeys(truth, "unsure") | {text: "wrong"}, reviewer="bob")
    found = {j.pair.text: j.right for j in judged([*labels, *bob])}
    assert found.pop(text) == 0.5 and set(found.values()) == {0.0}
    assert judged(said(cards, dict.fromkeys(truth, "unsure"))) == []


def test_sheets_count_by_how_much_of_them_is_judged(crawl):
    folder, truth = crawl
    sheets = [said(drawn(folder, 120, seed=s), words(truth), sheet=f"{s}" * 16) for s in (1, 2)]
    sheets[1] = sheets[1][:40]
    pairs = {j.pair: j.weight for j in judged([*sheets[0], *sheets[1]])}
    assert sum(pairs.values()) == pytest.approx(160)
    alone = {j.pair: j.weight for j in judged(sheets[0])}
    both = alone.keys() & {label.pair for label in sheets[1]}
    assert all(pairs[p] > alone[p] for p in both) and all(pairs[p] == alone[p] for p in alone.keys() - both)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"verdict": "maybe"}, r"verdict: Input should be 'right', 'wrong' or 'unsure', got 'maybe'"),
        ({"version": 2}, r"version: Input should be 1, got 2; this program reads version 1"),
        ({"weight": 0.0}, r"weight: Input should be greater than or equal to 1, got 0.0"),
        ({"key": None}, r"key: Input should be a valid string, got None"),
        ({"time": "yesterday"}, r"time: .* got 'yesterday'"),
        ({"colour": "red"}, r"colour: Extra inputs are not permitted"),
        ({"sheet": "../../x"}, r"sheet: String should match"),
    ],
)
def test_each_line_of_labels_is_checked(crawl, tmp_path, change, message):
    path = write_labels(tmp_path / "l.jsonl", said(drawn(crawl[0])[:2], words(crawl[1])))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["\ufeff" + lines[0], "", json.dumps(json.loads(lines[1]) | change)]))
    with pytest.raises(ValueError, match=rf"l\.jsonl:3: {message}.*export it from the sheet again"):
        read_labels([path])


def test_files_that_hold_no_labels_are_named(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"version": 1}\n')
    with pytest.raises(ValueError, match=r"l\.jsonl:1: sheet: Field required; export"):
        read_labels([tmp_path])
    (tmp_path / "l.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"l\.jsonl: not UTF-8"):
        read_labels([tmp_path])
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        read_labels([tmp_path / "nowhere"])
    (tmp_path / "l.jsonl").unlink()
    for name in (".gitkeep", "README.md", "notes.txt"):
        (tmp_path / name).write_text("")
    assert read_labels([tmp_path]) == []
    for name in ("labels.csv", "labels.jsonl.txt"):  # passed for a folder without labels
        (tmp_path / name).write_text("text,verdict\n")
        with pytest.raises(ValueError, match=rf"{name}: no file of labels; expected \.jsonl files"):
            read_labels([tmp_path])
        (tmp_path / name).unlink()


@pytest.fixture
def shards(tmp_path):
    """60 pictures of the crawl, of which the first lies in the held-out test set too."""
    crawled = [row(i, "", "web", 0, 0.5) for i in range(60)]
    write_shards(tmp_path / "shards", crawled)
    write_shards(tmp_path / "shards", [human(0)], prefix="test", pictures={human(0)["key"]: jpeg(crawled[0]["key"])})
    write_manifest(tmp_path / "shards")
    return tmp_path / "shards"


def labels_of(rows, tmp_path):
    """Labels of these texts by ada: right where the text says so. bob is of another mind about the text that says "tie"."""
    write_table(caption_table(rows), tmp_path / "g/web-00000.parquet")
    write_manifest(tmp_path / "g", rule={"score": "match", "threshold": THRESHOLD})
    cards = drawn(tmp_path / "g", 10**4)
    verdicts = {r["text"]: "right" if "right" in r["text"] else "wrong" for r in rows}
    bob = said(cards, {t: "right" if "tie" in t else "unsure" for t in verdicts}, reviewer="bob")
    kept_alone = said(cards, dict.fromkeys(verdicts, "wrong"), sheet="6" * 16, asked="kept")
    return write_labels(tmp_path / "labels/a.jsonl", [*said(cards, verdicts), *bob, *kept_alone]).parent


def test_the_calibration_takes_labels_of_pictures_that_are_there_and_evaluate_nothing(shards, tmp_path):
    rows = [row(i, f"right {i}" if i % 2 else f"wrong {i}", "web", 0, 0.3 + 0.6 * (i % 3 == 0)) for i in range(40)]
    rows += [row(50, "tie", "web", 0, 0.5), row(51, "right other", "web", 0, 0.5, image_id="other"), row(99, "right gone", "web", 0, 0.5)]
    rows += [row(i, f"right made {i}", "synthetic", 0, 0.5) for i in range(20)]  # none is wrong: they tell nothing
    table, facts = labelled_pairs(labels_of(rows, tmp_path), shards, min_labels=19)
    assert facts == {
        "labels": 126,
        "labels_kept_alone": 63,
        "labels_used": 39,
        "labels_right": 20,
        "labels_wrong": 19,
        "labels_tied": 1,
        "labels_other_picture": 4,  # gone, another one, and the held-out picture's two texts
        "labels_too_few": 19,
    }
    assert table["truth"].to_pylist() == ["right" in t for t in table["text"].to_pylist()] and "wrong 0" not in table["text"].to_pylist()
    with pytest.raises(
        ValueError, match=r"of 126 labels none can be used: .*58 texts of a source.*20 right and 20 wrong.*judge more, or empty"
    ):
        labelled_pairs(tmp_path / "labels", shards, min_labels=20)


def test_a_folder_without_labels_changes_nothing(shards, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none/.gitkeep").touch()
    table, facts = labelled_pairs(tmp_path / "none", shards, min_labels=10)
    assert table.num_rows == 0 and facts["labels"] == facts["labels_used"] == 0


def test_people_teach_the_calibration_to_trust_synthetic_texts_less():
    """The same scores, but synthetic texts are right less often; planted pairs, which are like web texts, can't tell."""
    from blip_core.capfilt.pair_scores import PairScores
    from blip_core.evaluation.metrics import expected_calibration_error
    from blip_core.selection.calibration import Calibration
    from blip_core.stages.calibrate import shared_weight

    rng = np.random.default_rng(0)

    def pairs(count, *, offset):
        scores = PairScores(3 * rng.standard_normal(count), 0.2 * rng.standard_normal(count))
        return scores, rng.random(count) < 1 / (1 + np.exp(-scores.itm_logit - 5 * scores.itc - offset))

    planted, labels, unseen = pairs(3000, offset=0), pairs(300, offset=-2), pairs(5000, offset=-2)
    scores = PairScores(*(np.concatenate([getattr(p[0], name) for p in (planted, labels)]) for name in ("itm_logit", "itc")))
    truth, labelled = np.concatenate([planted[1], labels[1]]), np.arange(3300) >= 3000
    weight = shared_weight(truth, labelled, np.where(labelled, rng.uniform(1, 9, 3300), 1.0), 0.5)
    for true in (True, False):
        assert weight[labelled & (truth == true)].sum() == pytest.approx(weight[~labelled & (truth == true)].sum())
    alone, taught = Calibration.fit(*planted), Calibration.fit(scores, truth, synthetic=labelled, weight=weight)
    assert alone.synthetic == 0 and taught.synthetic < -0.5
    balanced = np.concatenate([rng.choice(np.flatnonzero(unseen[1] == true), 2000) for true in (True, False)])
    errors = [expected_calibration_error(unseen[1][balanced], c.match(unseen[0].where(balanced), synthetic=True)) for c in (alone, taught)]
    assert errors[1] < 0.6 * errors[0]


def test_calibrate_says_how_many_labels_it_took(ingested, params, tmp_path, caplog):
    from blip_core.selection.calibration import read_calibrations
    from blip_core.stages.calibrate import calibrate
    from blip_core.tokenizer.folders import load_tokenizer
    from blip_core.weights.checkpoint import new_model, save_model

    base = read_tables(ingested / "generations/g0", ["key", "image_id", "text", "source", "round", "candidate"]).to_pylist()
    web = [r for r in base if r["source"] == "web"][:60]
    for i, r in enumerate(web):
        r |= {"match": i / 60, "itm": i / 60, "itc": 0.0, "filter": "f" * 16, "reason": "kept" if i >= 48 else "below_threshold"}
    (stem,) = {r.pop("shard") for r in web}
    write_table(caption_table(web), tmp_path / f"g/{stem}.parquet")
    write_manifest(tmp_path / "g", rule={"score": "match", "threshold": THRESHOLD})
    cards = drawn(tmp_path / "g", 1000)
    write_labels(tmp_path / "labels/a.jsonl", said(cards, {r["text"]: "right" if i % 3 else "wrong" for i, r in enumerate(web)}))
    tokenizer = load_tokenizer(ingested / "tokenizer.json")
    save_model(new_model(params.model, tokenizer, seed=1), tokenizer, tmp_path / "filter", prompt="", max_tokens=24)
    inputs = {name: ingested / name for name in ("shards", "heldout")}
    for name in ("labels", "none"):
        (tmp_path / name).mkdir(exist_ok=True)
        outs = {"out": tmp_path / f"{name}-calibration.json", "out_metrics": tmp_path / f"{name}.json"}
        options = {"cfg": params.calibrate, "score_cfg": params.score, "seed": 0, "work": tmp_path}
        calibrate(tmp_path / "filter", labels=tmp_path / name, **inputs, **outs, **options)
    assert "tuned is not shown to tell true from false pairs" in caplog.text  # its weights are random
    with_labels, without = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("labels", "none"))
    assert with_labels["labels"] == with_labels["labels_used"] == with_labels["labels_right"] + with_labels["labels_wrong"] == 60
    assert 0 <= with_labels["labels_alike"] <= 1 and with_labels["pairs_true"] == without["pairs_true"]
    assert without["labels_used"] == 0 and "labels_alike" not in without
    assert read_calibrations(tmp_path / "labels-calibration.json") != read_calibrations(tmp_path / "none-calibration.json")
    assert all(without[f"{m}_low"] <= without[m] <= without[f"{m}_high"] for m in ("auc", "auc_itm", "auc_itc", "ece", "recall"))


def test_both_verbs(crawl, tmp_path, capsys):
    folder, truth = crawl
    with pytest.raises(SystemExit):
        main(["review", str(folder)])
    labels = write_labels(tmp_path / "l.jsonl", said(drawn(folder), words(truth)))
    options = ["--generation", str(folder), "--work", str(tmp_path)]
    assert main(["agreement", str(labels), *options, "--out", str(tmp_path / "a.json")]) == 0
    assert "PEOPLE AND FILTER" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["reviewers"]["ada"]["labels"] == 120
    (tmp_path / "l.jsonl").write_text("{")
    assert main(["agreement", str(labels), *options]) == 1
    assert f"{labels}:1: " in capsys.readouterr().err
