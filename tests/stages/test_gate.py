"""The gate stops what must not train. Each fault fails the check that is named for it, and leaves no gate file."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from blip_core.config.selection import AssembleConfig, GateConfig
from blip_core.files.content import sha256_file
from blip_core.selection.calibration import Calibrated, Calibration, write_calibrations
from blip_core.stages.gate import gate
from blip_core.tables.captions import SCHEMA, caption_table, read_table, write_table
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash, write_manifest
from blip_core.tables.shards import ShardWriter
from tests.stages.test_assemble import as_it_stands, assemble, config, row, seal

NUM_IMAGES, NUM_CONTROLS = 200, 150
LIMITS = {
    "max_noise": {"web": 0.7, "synthetic": 0.5},
    "max_residual_noise": 0.5,
    "confidence": 0.95,
    "min_coverage": 0.5,
    "min_distinct": 0.1,
    "max_degenerate": 0.1,
    "min_controls": 100,
    "min_texts": 60,
    "min_labels": 30,
    "slices": [],
}


def planted(rates: dict[str, float], count: int = NUM_CONTROLS) -> pa.Table:
    """One control of each kind per held-out picture; the first `rate` of them pass."""
    texts = [(f"val-{i}", f"{kind} {i}", 0.9 if i < rate * count else 0.1) for kind, rate in rates.items() for i in range(count)]
    rows = [row(key, text, "web", score) | {"source": "human"} for key, text, score in texts]
    kinds = [kind for kind in rates for _ in range(count)]
    extra = {"shard": ["val-00000"] * len(rows), "truth": [k == "true" for k in kinds], "kind": kinds}  # shard: as `score` leaves it
    table = caption_table(rows)
    for name, values in extra.items():
        table = table.append_column(name, pa.array(values, pa.bool_() if name == "truth" else pa.string()))
    return table


def write_shards(folder: Path, keys: dict[str, list[str]]) -> None:
    """Shards that hold a picture for each key, of the identity that `row` gives it."""
    for part, own in keys.items():
        with ShardWriter(folder, part, num_images=10_000) as writer:
            for key in own:
                writer.add(key, b"\xff\xd8 no more", image_id=f"id-{key}", width=8, height=8)
    write_manifest(folder)


class World:
    """A round after `score`: of the web texts the first 45 % are kept, of the synthetic ones 80 %."""

    def __init__(self, root: Path):
        self.root, self.rule = root, config(max_share=0.9)
        self.generation, self.scores = root / "g1", root / "scores"
        self.gate, self.metrics, self.docs = root / "gates" / "g1.json", root / "metrics.json", root / "docs" / "gate-r1"
        self.labels = root / "labels"
        self.summary, self.curve, self.histogram = root / "summary.json", root / "curve.csv", root / "histogram.csv"
        self.controls = planted({"true": 0.6, "mismatched": 0.0, "crawled": 0.0, "perturbed": 0.04})
        self.candidates = [
            candidate
            for i in range(NUM_IMAGES)
            for candidate in (
                row(f"web-{i:03d}", f"web text {i}", "web", 0.9 if i < 0.45 * NUM_IMAGES else 0.1),
                row(f"web-{i:03d}", f"synthetic {i}", "synthetic", 0.9 if i % 5 else 0.1),
            )
        ]

    def assemble(self) -> "World":
        human = [row("train-1", "a human text", "human", reason="kept")]
        web = [row(f"web-{i:03d}", f"web text {i}", "web", reason="kept") for i in range(NUM_IMAGES)]
        base = seal(self.root / "g0", {"web-00000": web, "train-00000": human})
        seal(self.scores, {"web-00000": self.candidates, "controls": self.controls})
        write_shards(self.root / "shards", {"web": [r["key"] for r in web], "train": ["train-1"]})
        assemble(base, self.scores, self.generation, self.root / "assemble.json", cfg=self.rule)
        return self

    def run(self, rule: AssembleConfig | None = None, **changes) -> dict:
        cfg = GateConfig(**(LIMITS | changes))
        outs = (self.gate, self.metrics, self.docs, self.summary, self.curve, self.histogram)
        self.labels.mkdir(exist_ok=True)
        where = (self.generation, self.scores, as_it_stands(self.root), self.root / "shards", self.labels)
        gate(*where, *outs, cfg=cfg, assemble_cfg=rule or self.rule, columns=self.root / "columns")
        return json.loads(self.gate.read_text())

    def failure(self, rule: AssembleConfig | None = None, **changes) -> str:
        """The message of a run that must fail and leave no gate file, whatever an earlier run left."""
        self.gate.parent.mkdir(exist_ok=True)
        self.gate.write_text('{"passed": true}')
        with pytest.raises(ValueError) as e:
            self.run(rule, **changes)
        assert not self.gate.exists()
        return str(e.value)

    def tamper(self, name: str, change) -> None:
        """Rewrite a table of the generation, and its manifest so that it looks whole."""
        path = self.generation / name
        rows = read_table(path).to_pylist()
        change(rows)
        write_table(caption_table(rows), path)
        facts = json.loads((self.generation / "manifest.json").read_text())
        facts.pop("files")
        write_manifest(self.generation, **facts)

    def facts(self) -> dict:
        return json.loads(self.metrics.read_text())


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def failed(message: str) -> set[str]:
    return set(re.findall(r"^  (\w+(?:\[.*?\])?): ", message, re.M))


def test_a_good_generation_passes_and_the_gate_file_names_it_and_its_parents(world):
    found = world.assemble().run()
    assert found["passed"] is True and found["generation"] == content_hash(world.generation)
    parents = {"generation": content_hash(world.root / "g0"), "scores": content_hash(world.scores)}
    assert found["parents"] == parents | {"calibration": sha256_file(world.root / "calibration.json")}
    names = {c["name"] for c in found["checks"] if c["passed"] is True}
    assert {"noise_web", "noise_synthetic", "coverage", "residual_noise_web_upper", "controls_true", "texts_off_rule"} <= names
    require_gate(world.gate, world.generation)


def test_metrics_hold_every_number_and_are_flat(world):
    world.assemble().run()
    facts = world.facts()
    assert all(isinstance(v, int | float) for v in facts.values())
    assert (facts["noise_web"], facts["noise_synthetic"], facts["control_tpr"]) == (0.55, 0.2, 0.6)
    assert (facts["control_fpr_mismatched"], facts["control_fpr_perturbed"]) == (0.0, 0.04)
    assert (facts["controls_true"], facts["controls_false"], facts["texts_off_rule"]) == (150, 450, 0)
    # keep = 0.45 = clean 0.6 + (1 - clean) 0.04 gives clean = 0.7321, and 0.2679 x 0.04 / 0.45 of what is kept is noise of the worst kind;
    # each score stands for a pass or none, so that the fit can't say more
    assert facts["residual_noise_web_if_perturbed"] == pytest.approx(0.0238, abs=1e-4)
    assert facts["residual_noise_web"] == pytest.approx(0.0238, abs=0.003)
    assert facts["residual_noise_web_if_perturbed"] < facts["residual_noise_web_upper"] < 0.1


BEYOND = {
    "noise_web": {"max_noise": {"web": 0.54, "synthetic": 0.5}},
    "noise_synthetic": {"max_noise": {"web": 0.7, "synthetic": 0.19}},
    "coverage": {"min_coverage": 0.9},
    "distinct_share_synthetic": {"min_distinct": 1.0},
    "controls_true": {"min_controls": 151},
    "residual_noise_web_upper": {"max_residual_noise": 0.02},
}


@pytest.mark.parametrize("name", BEYOND)
def test_each_limit_stops_on_its_own(world, name):
    if name == "distinct_share_synthetic":
        world.candidates[3]["text"] = world.candidates[5]["text"]
    world.assemble().run()
    assert failed(world.failure(**BEYOND[name])) == {name}
    assert world.facts()["checks_failed"] == 1 and world.facts()["noise_web"] == 0.55, "metrics are there when the gate stops as well"


def test_degenerate_captions_stop(world):
    for candidate in world.candidates[1:60:2]:
        candidate["text"] = "dog dog dog"
    assert failed(world.assemble().failure()) == {"degenerate_share_synthetic"}
    assert world.facts()["degenerate_share_synthetic"] == 0.15


def test_the_message_reads_as_a_message(world):
    lines = world.assemble().failure(**BEYOND["noise_web"]).splitlines()
    assert lines[0].startswith(f"{world.generation} does not pass its gate: 1 of ")
    assert lines[1] == "  noise_web: 0.55, expected at most 0.54 (noise ratio: share of the web texts that the filter rejected)"
    assert "stays out of training" in lines[2] and lines[3] == f"Data Docs: {world.docs / 'index.html'}"
    assert "<code>gate.max_noise.web</code> may rise" in (world.docs / "index.html").read_text()


def test_a_threshold_that_lets_all_pass_fails_on_the_controls(world):
    world.rule = config(max_share=0.9, threshold={"web": 0.0, "synthetic": 0.0})
    assert failed(world.assemble().failure()) == {"residual_noise_web_upper"}
    assert world.facts()["residual_noise_web_upper"] == 1.0 and "residual_noise_web" not in world.facts()


def test_a_threshold_that_nothing_passes_fails(world):
    world.rule = config(max_share=0.9, threshold={"web": 1.0, "synthetic": 1.0})
    names = failed(world.assemble().failure())
    assert {"noise_web", "noise_synthetic", "coverage", "distinct_share_synthetic", "residual_noise_web_upper"} <= names
    loosest = {"max_noise": {"web": 1.0, "synthetic": 1.0}, "min_coverage": 0.0, "min_distinct": 0.0, "max_residual_noise": 0.99}
    unmeasured = {"distinct_share_synthetic", "residual_noise_web_upper"}
    assert failed(world.failure(**loosest)) == unmeasured, "what can't be measured is not 0"


def test_a_source_that_keeps_nothing_is_told_first_with_its_highest_score(world, caplog):
    """Else several checks fail, and none says that the threshold lies above all scores."""
    world.rule = config(max_share=0.9, threshold={"web": 0.95, "synthetic": 0.5})
    expected = "source web keeps none of its 200 texts (200 below_threshold): the highest match is 0.9, the threshold 0.95"
    message = world.assemble().failure()
    assert caplog.messages == [expected], "assemble says it already"
    first, second, *_ = message.splitlines()
    assert first == expected and second.startswith(f"{world.generation} does not pass its gate: ")
    assert expected in (world.docs / "index.html").read_text()


def test_a_source_of_loops_alone_keeps_nothing_for_another_reason(world):
    for candidate in world.candidates[1::2]:
        candidate["text"] = "dog dog dog"
    first = world.assemble().failure().splitlines()[0]
    assert first.startswith("source synthetic keeps none of its 200 texts (200 loop): the highest match is 0.9, the threshold 0.5")


def test_a_blind_filter_fails_though_its_noise_ratio_looks_fine(world):
    world.controls = planted({"true": 0.5, "mismatched": 0.5, "crawled": 0.5, "perturbed": 0.6})
    assert failed(world.assemble().failure()) == {"residual_noise_web_upper"}


def test_few_or_no_controls_fail(world):
    world.controls = planted({"true": 0.6, "mismatched": 0.0, "crawled": 0.0, "perturbed": 0.05}, count=20)
    assert {"controls_true", "controls_false"} <= failed(world.assemble().failure())
    world.controls = planted({"true": 0.6, "mismatched": 0.0, "crawled": 0.0})
    assert failed(world.assemble().failure()) == {"residual_noise_web_upper"}, "a kind that was not planted is taken to pass always"
    world.controls = planted({})
    assert {"controls_true", "controls_false", "residual_noise_web_upper"} <= failed(world.assemble().failure())
    (world.scores / "controls.parquet").unlink()
    world.controls = SCHEMA.empty_table()
    world.assemble()
    assert "no column truth" in world.failure()


def test_controls_that_contradict_themselves_fail(world):
    place = world.controls.schema.get_field_index("truth")
    world.controls = world.controls.set_column(place, "truth", pa.array([True] * world.controls.num_rows))
    assert re.search(r"key 'val-0': kind 'mismatched' with truth True, expected 'true' with True", world.assemble().failure())


def test_scores_without_controls_fail(world):
    world.assemble()
    (world.scores / "controls.parquet").unlink()
    write_manifest(world.scores)
    assemble(world.root / "g0", world.scores, world.generation, world.root / "assemble.json", cfg=world.rule)
    assert "controls.parquet: not listed in the manifest, so the residual noise can't be estimated" in world.failure()


@pytest.mark.parametrize("score", [None, float("nan")])
def test_a_score_that_is_none_fails_and_names_the_key(world, score):
    world.assemble()
    world.tamper("web-00000.parquet", lambda rows: rows[4].update(match=score))
    assert "key 'web-002': text 'web text 2' has match" in world.failure()


def test_a_control_without_a_score_fails_and_is_named(world):
    rows = world.controls.to_pylist()
    rows[0]["itm"] = float("nan")
    world.controls = pa.Table.from_pylist(rows, world.controls.schema)
    assert re.search(r"controls\.parquet: key 'val-0': .* has match None by filter 'f', expected a number", world.assemble().failure())


TAMPERED = {
    "texts_off_rule": lambda rows: next(r for r in rows if r["reason"] == "below_threshold").update(reason="kept"),
    "key_source_candidate": lambda rows: rows.append(rows[0]),
    "key_form": lambda rows: rows[0].update(key="../web"),
    "source": lambda rows: rows[0].update(source="robot"),
    "reason": lambda rows: rows[0].update(reason=""),
    "match_range": lambda rows: rows[0].update(match=1.5),
    "reason_human": lambda rows: rows.append(row("train-1", "x", "human", candidate=7, reason="duplicate")),
    "text_known": lambda rows: rows[0].update(text=None),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_generation_that_is_not_what_the_rule_made_fails(world, name):
    world.assemble()
    world.tamper("web-00000.parquet", TAMPERED[name])
    assert name in failed(world.failure())


def test_another_rule_than_the_one_that_assembled_it_fails(world):
    assert failed(world.assemble().failure(config(max_share=0.9, threshold={"web": 0.95, "synthetic": 0.5}))) >= {"texts_off_rule"}


def test_a_lost_table_fails(world):
    world.assemble()
    (world.generation / "train-00000.parquet").unlink()
    facts = json.loads((world.generation / "manifest.json").read_text())
    write_manifest(world.generation, parents=facts["parents"])
    assert failed(world.failure()) == {"texts_human"}
    (world.generation / "web-00000.parquet").unlink()
    assert "expected" in world.failure() and not world.gate.exists()


def test_an_empty_generation_fails(world):
    world.assemble()
    for name in ("web-00000.parquet", "train-00000.parquet"):
        world.tamper(name, lambda rows: rows.clear())
    names = failed(world.failure())
    assert {"texts_rows", "candidates_rows", "coverage", "texts_human", "texts_off_rule", "noise_web", "residual_noise_web_upper"} <= names


def test_other_scores_than_it_was_chosen_from_fail(world):
    world.assemble()
    seal(world.scores, {"web-00000": world.candidates[:10]})
    assert "the generation was chosen from scores" in world.failure()


def test_a_generation_altered_after_its_gate_does_not_pass_for_it(world):
    world.assemble().run()
    path = world.generation / "web-00000.parquet"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="passed generation .* but .* now is"):
        require_gate(world.gate, world.generation)
    assert "altered since the manifest was written" in world.failure()


def test_a_source_that_is_off_is_not_judged(world):
    world.rule = config(max_share=0.9, sources=("web",), threshold={"web": 0.5})
    found = world.assemble().run(min_coverage=0.4, max_noise={"web": 0.6})
    assert not any("synthetic" in c["name"] for c in found["checks"])
    world.rule = config(max_share=0.9, sources=("synthetic",))
    world.controls = planted({"true": 0.5, "mismatched": 0.5, "crawled": 0.5, "perturbed": 0.6})
    assert not any(c["name"] == "residual_noise_web_upper" for c in world.assemble().run()["checks"])


def test_a_source_that_takes_part_needs_a_limit(world):
    assert "gate.max_noise: no limit for source 'synthetic', which takes part" in world.assemble().failure(max_noise={"web": 0.9})


def test_another_calibration_than_the_generation_was_chosen_by_fails(world):
    """A threshold on P(match) means something else then."""
    world.assemble()
    other = [Calibrated("f", "tuned", Calibration(itm_logit=0.5, itc=0.0, bias=0.0), None)]
    write_calibrations(other, world.root / "calibration.json", facts={})
    cfg, outs = GateConfig(**LIMITS), (world.gate, world.metrics, world.docs, world.summary, world.curve, world.histogram)
    with pytest.raises(ValueError, match=r"calibration\.json: missing, or not what the generation was chosen by"):
        places = (world.generation, world.scores, world.root / "calibration.json", world.root / "shards", world.labels)
        gate(*places, *outs, cfg=cfg, assemble_cfg=world.rule)
    assert not world.gate.exists()


@pytest.fixture
def told(world):
    """Columns of the pictures. Of `place` a and b are judged by themselves, c has too few texts; those of `half` are alike."""
    (world.root / "columns").mkdir()
    web = [f"{i:03d},{'a' if i < 100 else 'b' if i < 190 else 'c'},{'few' if i < 20 else 'many'},{i % 2}" for i in range(NUM_IMAGES)]
    clean = [f"{i},{i % 2}" for i in range(NUM_CONTROLS)]
    (world.root / "columns/web.csv").write_text("\n".join(["key,place,size,half", *web]))
    (world.root / "columns/clean.csv").write_text("\n".join(["key,half", *clean]))
    return world.assemble()


def test_a_limit_of_a_slice_stops_and_names_it(told):
    message = told.failure(slices=[{"column": "place", "max_noise": {"web": 0.5}}])
    assert failed(message) == {"noise_web[place=b]"}
    assert (
        "noise_web[place=b]: 1, expected at most 0.5 (noise ratio: share of the web texts with place b that the filter rejected)" in message
    )
    page = (told.docs / "index.html").read_text()
    assert "noise_web[place=b]" in page and "The limits of slices stand in <code>gate.slices</code>" in page
    facts = told.facts()
    assert (facts["noise_web[place=a]"], facts["noise_synthetic[place=a]"], facts["texts_web[place=c]"]) == (0.1, 0.2, 10)
    passes = told.run(slices=[{"column": "place", "max_noise": {"web": 0.5}}, {"column": "place", "value": "b", "max_noise": {"web": 1.0}}])
    limits = {c["name"]: c["limit"] for c in passes["checks"]}
    assert (limits["noise_web[place=a]"], limits["noise_web[place=b]"]) == ("at most 0.5", "at most 1")


def test_slices_with_too_few_texts_count_at_their_worst_in_the_whole(told):
    """20 of 200 web texts, all kept: were they rejected, the noise ratio would be 0.65; were they noise, a fifth of the 90 kept more."""
    few = {"column": "size", "max_noise": {"web": 0.95}, "max_residual_noise": 0.99}
    message = told.failure(slices=[few], max_noise={"web": 0.6, "synthetic": 0.5})
    assert failed(message) == {"noise_web[size=too few]"} and "0.65, expected at most 0.6" in message
    assert "were all rejected of size few (20 texts): fewer than gate.min_texts = 60 each" in message
    facts = told.facts()
    assert facts["residual_noise_web_upper[size=too few]"] == pytest.approx(facts["residual_noise_web_upper"] + 20 / 90)
    assert "residual_noise_web_upper[size=few]" not in facts and "noise_web[size=few]" in facts


def test_the_noise_that_is_left_is_bound_by_slice(told):
    every, odd = {"column": "half", "max_residual_noise": 0.3}, {"column": "half", "value": "1", "max_residual_noise": 0.01}
    message = told.failure(slices=[every, odd])
    assert failed(message) == {"residual_noise_web_upper[half=1]"}
    assert "bound by all planted pairs, since 75 true and 225 false ones are its own" in message
    by_all, whole = told.facts()["residual_noise_web_upper[half=0]"], told.facts()["residual_noise_web_upper"]
    assert whole < by_all < 0.3, "half the texts say less"
    assert "by its own 300 planted pairs" in told.failure(slices=[every, odd], min_controls=70)
    assert told.facts()["residual_noise_web_upper[half=0]"] > by_all


def test_a_limit_of_a_value_that_no_text_has_stops(told):
    limits = [{"column": "place", "value": "d", "max_noise": {"web": 0.5}}]
    assert failed(told.failure(slices=limits)) == {"texts_web[place=d]"}
    with pytest.raises(ValueError, match="limits of place, d twice"):
        told.run(slices=limits * 2)
    with pytest.raises(ValueError, match=r"slices by plaice: no such column in .*web\.csv.*, nor among the tables' own \(image_id"):
        told.run(slices=[{"column": "plaice"}])


def judge(world: World, wrong: float, *, generation: str | None = None) -> None:
    """A person judged 60 kept texts of each source, the first `wrong` of them to be wrong."""
    rows = [r for r in read_table(world.generation / "web-00000.parquet").to_pylist() if r["reason"] == "kept"]
    about = {"version": 1, "sheet": "5" * 16, "generation": generation or content_hash(world.generation)[:16], "filter": "f"}
    about |= {"weight": 2.0, "reviewer": "ada", "time": "2026-01-02T03:04:05Z", "blind": True, "shard": "web-00000"}
    lines = []
    for source in ("web", "synthetic"):
        for i, r in enumerate([r for r in rows if r["source"] == source][:60]):
            pair = {name: r[name] for name in ("key", "image_id", "source", "round", "candidate", "text")}
            lines.append(json.dumps({**about, **pair, "verdict": "wrong" if i < wrong * 60 else "right"}))
    world.labels.mkdir(exist_ok=True)
    (world.labels / "ada.jsonl").write_text("\n".join(lines))


def test_where_people_judged_kept_texts_their_labels_bound_the_noise_of_each_source(world):
    assert world.assemble().run()["noise_bounded_by"] == {"web": "planted pairs"}
    judge(world, 0.1)
    verdict = world.run()
    assert verdict["noise_bounded_by"] == dict.fromkeys(("web", "synthetic"), "people's labels")
    checks = {c["name"]: c for c in verdict["checks"]}
    assert {"judged_noise_web_upper", "judged_noise_synthetic_upper"} <= set(checks) and "residual_noise_web_upper" not in checks
    assert "people's labels of 60 of them" in checks["judged_noise_web_upper"]["says"]
    facts = world.facts()
    assert facts["judged_texts_web"] == 60 and facts["judged_noise_web"] == pytest.approx(0.1)
    assert 0.15 < facts["judged_noise_synthetic_upper"] < 0.25 and "residual_noise_web_upper" in facts
    judge(world, 0.5)
    message = world.failure(max_residual_noise=0.4)
    assert failed(message) == {"judged_noise_web_upper", "judged_noise_synthetic_upper"}
    assert failed(world.failure(max_residual_noise=0.0, min_labels=61)) == {"residual_noise_web_upper"}, "too few labels bound nothing"
    judge(world, 0.5, generation="0" * 16)
    assert failed(world.failure(max_residual_noise=0.0)) == {"residual_noise_web_upper"}
    assert world.facts()["labels_elsewhere"] == 120 and world.facts()["labels"] == 0
