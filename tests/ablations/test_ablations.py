"""Ablations: overlays and their faults, the stages that an arm has of its own, the texts of its own stages, tables from planted results;
and the command itself on tiny data."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml

from blip_core.ablations.arms import arm_values, chosen, read_arms
from blip_core.ablations.continued import continue_training
from blip_core.ablations.data import own_data, take_data
from blip_core.ablations.equal import equal_texts
from blip_core.ablations.graph import Chain, derive
from blip_core.ablations.oracle import oracle_texts
from blip_core.ablations.page import BEGIN, END, differences, section, show, write_page
from blip_core.ablations.results import METRICS, joined
from blip_core.ablations.shared import tune_shared
from blip_core.config.params import Params
from blip_core.config.reading import laid_over, read_values
from blip_core.files.content import write_json
from blip_core.sample.truth import load_truth, synthetic_noise
from blip_core.tables.captions import SCHEMA, caption_table, kept, read_table, read_tables, table_paths, write_table
from blip_core.tables.gates import require_gate
from blip_core.tables.manifest import content_hash, write_manifest
from blip_core.versions.cache import resolved
from tests.support.processes import HANG
from tests.support.small import small_values

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def arms():
    return read_arms(ROOT / "ablations.yaml")


def own_stages(tmp_path: Path, name: str, arms, **sections):
    """Of an arm of ablations.yaml, over the project's own dvc.yaml and params.yaml with these sections."""
    values, template = read_values(ROOT / "params.yaml") | sections, read_values(ROOT / "dvc.yaml")
    under = arm_values(name, arms.arms[name], values)
    chains = []
    for folder, own in ((tmp_path / "default", values), (tmp_path / "arm", under)):
        folder.mkdir(exist_ok=True)
        (folder / "params.yaml").write_text(yaml.safe_dump(own))
        chains.append(Chain(resolved(ROOT, folder, template), own))
    return derive(name, arms.arms[name], default=chains[0], under=chains[1], file="own.yaml")


def test_mappings_are_merged_and_all_else_is_replaced():
    values = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert laid_over(values, {"a": {"c": [9]}, "d": {"e": 4}}) == {"a": {"b": 1, "c": [9]}, "d": {"e": 4}}
    assert values == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_every_arm_is_whole_and_differs_from_the_default_chain(arms):
    values = read_values(ROOT / "params.yaml")
    merged = {name: Params(**arm_values(name, arm, values)) for name, arm in arms.arms.items()}
    assert merged["CF"] == Params(**values)
    assert {n for n, p in merged.items() if p == merged["CF"]} == {"none", "human", "CF", "equal", "continued"}, "the others change a value"
    assert merged["long"].pretrain.optim.steps == 2 * merged["CF"].pretrain.optim.steps
    assert merged["F"].assemble.sources == ("web",) and merged["F"].assemble.threshold == merged["CF"].assemble.threshold


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"arms": {"F": {"says": "x", "params": {"assemble": {"treshold": 1}}}}},
            "arms.F.params: assemble.treshold: unknown key; did you mean",
        ),
        ({"arms": {"F": {"says": "x", "params": {"assemble": 3}}}}, "arms.F.params: assemble: .*got 3"),
        ({"arms": {"F": {"says": "x", "rows": {"F": "g7"}}}}, "arms.F.rows: 'F' is of model 'g7'; models has"),
        ({"arms": {"F": {"says": "x", "times": {"pretrain.steps": 2}}}}, "arms.F.times: pretrain.steps: expected the path of a number"),
        ({"arms": {"F/x": {"says": "x"}}}, "arms.F/x.*: String should match pattern"),
        ({"arms": {"F": {"params": {}}}}, "arms.F.says: missing"),
        ({"arms": {"F": {"says": "x", "rows": {"none": "g1"}}}}, "has a row 'none', as F has"),
        ({"arms": {"A": {"says": "x", "against": ["F"]}, "F": {"says": "x"}}}, "arms.A.against: no arm above has a row F"),
        ({"baselines": ["nil"]}, "'nil' is no arm with one row of that name"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    own = {"baselines": ["none"], "arms": {"none": {"says": "x", "rows": {"none": "g0"}}}}
    (tmp_path / "ablations.yaml").write_text(yaml.safe_dump(laid_over(own, change)))
    with pytest.raises(ValueError, match=message):
        for name, arm in read_arms(tmp_path / "ablations.yaml").arms.items():
            arm_values(name, arm, read_values(ROOT / "params.yaml"))


def test_what_others_are_compared_with_runs_first_and_a_wrong_name_is_told(arms):
    assert list(chosen(arms, ["F", "CF"])) == ["none", "CF", "F"] and list(chosen(arms, None))[:2] == ["none", "CF"]
    with pytest.raises(ValueError, match="no arm 'baem'; did you mean 'beam'"):
        chosen(arms, ["baem"])


@pytest.mark.parametrize(
    "name, stages",
    [
        ("none", set()),
        ("CF", set()),
        ("F", {"assemble-r1", "gate-r1", "pretrain-g1", "evaluate-g1"}),
        ("beam", {"caption-r1", "score-r1", "assemble-r1", "gate-r1", "pretrain-g1", "evaluate-g1"}),
        ("equal", {"equal_texts", "pretrain-g0", "evaluate-g0"}),
        ("share-none", {"pretrain-g0", "evaluate-g0"}),
        ("long", {"pretrain-g0", "evaluate-g0"}),
        ("CF-long", {"pretrain-g1", "evaluate-g1"}),
        ("continued", {"continued", "evaluate-g1"}),
    ],
)
def test_an_arm_makes_what_its_values_touch_and_shares_the_rest(tmp_path, arms, name, stages):
    assert set(own_stages(tmp_path, name, arms).stages) == stages


def test_an_arm_writes_below_its_own_folder_and_reads_what_it_has_of_its_own(tmp_path, arms):
    own = own_stages(tmp_path, "shared", arms)
    made = {path for stage in own.stages.values() for path in stage["outs"]}
    assert all(path.startswith("artifacts/ablations/shared/") for path in made)
    calibrate, caption, tune = (own.stages[n] for n in ("calibrate-r1", "caption-r1", "tune_shared"))
    one = "artifacts/ablations/shared/rounds/r1/shared"
    assert f"--filter {one} " in calibrate["cmd"] and f"--captioner {one} " in caption["cmd"] and one in caption["deps"]
    assert "--base artifacts/models/g0 " in tune["cmd"] and tune["outs"] == [one] and "tune_captioner-r1" not in own.stages
    for stage in own.stages.values():
        words = stage["cmd"].split()
        assert "--run" not in words and "--after" not in words and words[-2:] == ["--params", "own.yaml"]
        outs = [word for flag, word in pairwise(words) if flag.startswith("--out")]
        assert outs and all(path.startswith("artifacts/ablations/shared/") for path in outs), "the page of the gate's checks too"
        assert stage["wdir"] == "../.." and [*stage["params"][0]] == ["own.yaml"]


def test_an_arm_measures_its_models_on_the_tasks_too(tmp_path, arms):
    """A task that another generation does not touch is that of the default chain; all of a model lies in one folder."""
    tasks = {"tasks": read_values(ROOT / "configs/tasks.yaml")["tasks"]}
    own = own_stages(tmp_path, "F", arms, **tasks)
    assert {"evaluate-g1", "tune_task-vqa-g1", "evaluate_task-vqa-g1"} <= own.stages.keys() and "evaluate_task-vqa-g0" not in own.stages
    assert own.path("artifacts/metrics/models/g1/task-vqa.json") == "artifacts/ablations/F/metrics/models/g1/task-vqa.json"
    none = own_stages(tmp_path, "none", arms, **tasks)
    assert not none.stages and {"evaluate@g0", "evaluate_task@nlvr-g0"} <= set(none.measured_by)


def test_further_rounds_share_the_first(tmp_path, arms):
    own = own_stages(tmp_path, "rounds", arms)
    assert not {"gate-r1", "pretrain-g1", "caption-r1"} & set(own.stages)
    assert "artifacts/models/g1" in own.stages["tune_filter-r2"]["deps"]
    assert "artifacts/ablations/rounds/models/g2" in own.stages["tune_filter-r3"]["deps"]
    assert "artifacts/ablations/rounds/generations/g2" in own.stages["assemble-r3"]["deps"]


def test_no_arm_is_in_the_default_graph():
    assert not [*ROOT.glob("ablations/**/dvc.yaml")] and "artifacts/ablations" not in (ROOT / "dvc.yaml").read_text().replace(
        "blip_core/ablations", ""
    )


def test_equal_texts_are_drawn_at_random_or_repeated(ingested, tmp_path):
    g0, gate, shards = (ingested / name for name in ("generations/g0", "gates/g0.json", "shards"))
    base = read_tables(g0)
    web = base.filter(pc.equal(base["source"], "web")).num_rows
    for wanted in (web // 3, web + 7):
        like, out, passed = (tmp_path / "generations" / f"{kind}{wanted}" for kind in ("like", "out", "gate"))
        rows = [{"key": str(i), "text": "x", "source": ("web", "synthetic", "fused")[i % 3], "reason": "kept"} for i in range(wanted)]
        like.mkdir(parents=True)
        others = [{"key": "h", "source": "human", "reason": "kept"}, {"key": "n", "source": "web", "reason": "duplicate"}]
        write_table(caption_table(rows + others), like / "x.parquet")
        write_manifest(like)
        equal_texts(g0, gate, like, out, passed, shards, seed=0)
        require_gate(passed, out)
        found = read_tables(out)
        drawn = found.filter(pc.equal(found["source"], "web"))
        assert drawn.num_rows == wanted and set(drawn["text"].to_pylist()) <= set(base["text"].to_pylist())
        per_image = pc.max(drawn.group_by("key").aggregate([([], "count_all")])["count_all"]).as_py()
        assert per_image == (1 if wanted < web else 2)
        assert found.num_rows - wanted == base.num_rows - web, "the human texts are all there"
        again = tmp_path / "generations" / f"again{wanted}"
        equal_texts(g0, gate, like, again, passed, shards, seed=1)
        assert content_hash(again) != content_hash(out), "another seed draws others"


def test_the_oracle_puts_true_captions_in_the_place_of_as_many_synthetic_ones(ingested, tmp_path):
    shards, data, base = ingested / "shards", ingested.parent / "data", ingested / "generations/g0"
    g1, out = (tmp_path / "generations" / name for name in ("g1", "oracle"))
    paths = [tmp_path / "gates" / name for name in ("g1.json", "oracle.json")]
    g1.mkdir(parents=True)
    for path in table_paths(base):
        table = read_table(path, SCHEMA.names)
        web = [row for row in table.to_pylist() if row["source"] == "web"]
        said = {"source": "synthetic", "round": "r1", "text": "a false one", "match": 0.9, "filter": "f"}
        synthetic = [{**row, **said, "reason": ("kept", "below_threshold")[i % 3 > 0]} for i, row in enumerate(web)]
        write_table(pa.concat_tables([table, caption_table(synthetic)]), g1 / path.name)
    write_manifest(g1)
    write_json({"passed": True, "generation": content_hash(g1)}, paths[0])
    oracle_texts(g1, paths[0], data, out, paths[1], shards, seed=0)
    require_gate(paths[1], out)
    before, after = read_tables(g1), read_tables(out)
    assert synthetic_noise(after, truth := load_truth(data)).after == 0.0
    of = {name: t.filter(pc.equal(t["source"], "synthetic")) for name, t in (("before", before), ("after", after))}
    assert of["after"].num_rows == kept(of["before"]).num_rows > 10 and set(of["after"]["reason"].to_pylist()) == {"kept"}
    assert of["after"]["match"].null_count == of["after"].num_rows, "no filter has scored these"
    assert not set(of["after"]["key"].to_pylist()) <= set(kept(of["before"])["key"].to_pylist()), "at pictures drawn at random"
    assert set(of["after"]["key"].to_pylist()) <= truth.keys()
    rest = [t.filter(pc.not_equal(t["source"], "synthetic")) for t in (before, after)]
    assert rest[0].equals(rest[1]), "all other texts stay"
    with pytest.raises(ValueError, match=r"no truth\.parquet"):
        oracle_texts(g1, paths[0], tmp_path, out, paths[1], shards, seed=0)


def test_one_model_is_tuned_to_write_and_to_judge(ingested, params, tmp_path):
    from blip_core.tokenizer.folders import load_tokenizer
    from blip_core.weights.checkpoint import load_model, new_model, save_model

    tokenizer = load_tokenizer(ingested / "tokenizer.json")
    save_model(new_model(params.model, tokenizer, seed=0), tokenizer, tmp_path / "base", prompt="", max_tokens=24)
    paths = (tmp_path / "base", ingested / "generations/g0", ingested / "shards", ingested / "gates/g0.json", tmp_path / "shared")
    tune_shared(*paths, cfg=params.tune_filter, language=params.tune_captioner.language, seed=0, work=tmp_path / "work")
    (before, _), (after, _) = (load_model(tmp_path / name) for name in ("base", "shared"))
    moved = {name for name, weights in after.state_dict().items() if not weights.equal(before.state_dict()[name])}
    for part in ("decoder_attention", "encoder_attention", "match_head", "text_projection"):
        assert any(part in name for name in moved), f"{part} of {sorted(moved)}"


def test_a_model_goes_on_from_its_weights(ingested, params, tmp_path):
    from blip_core.tokenizer.folders import load_tokenizer
    from blip_core.weights.checkpoint import load_model, new_model, save_model

    tokenizer = load_tokenizer(ingested / "tokenizer.json")
    save_model(new_model(params.model, tokenizer, seed=0), tokenizer, tmp_path / "base", prompt="", max_tokens=24)
    out, still = tmp_path / "out", params.pretrain.optim.model_copy(update={"steps": 1, "lr": 1e-9, "min_lr": 0.0})
    cfg = params.pretrain.model_copy(update={"optim": still})
    paths = (ingested / "shards", ingested / "gates/g0.json", out)
    continue_training(tmp_path / "base", ingested / "generations/g0", "human,web", *paths, cfg=cfg, seed=1, work=tmp_path / "work")
    (before, _), (after, _) = (load_model(folder) for folder in (tmp_path / "base", out))
    assert all(torch.allclose(w, before.state_dict()[name], atol=1e-5) for name, w in after.state_dict().items()), "a new one would differ"


def test_whose_data_the_arms_have(tmp_path):
    """The sample's where none is there or it is that itself; else the project's own, which DVC must keep."""
    assert own_data(tmp_path) == {}
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="does not keep this as it is; `dvc add data` first"):
        own_data(tmp_path)
    (tmp_path / "data/truth.parquet").write_bytes(b"")
    assert own_data(tmp_path) == {}


def test_data_that_was_left_half_drawn_is_not_taken_for_that_of_other_sizes(tmp_path):
    """Killed behind the drawing of other sizes: what the clone notes must not say that the first ones lie there."""

    def kill(*_: object) -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    (tmp_path / ".work").mkdir()
    (tmp_path / ".work/sample.yaml").write_text("num_web: 1\n")
    for num_web in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            take_data(tmp_path, tmp_path, {"num_web": num_web}, {}, kill)


@pytest.mark.slow  # six starts of DVC
def test_a_clone_takes_the_projects_own_data(tmp_path):
    root, clone = tmp_path / "root", tmp_path / "clone"
    (root / "data/web").mkdir(parents=True)
    (root / "data/web/a.txt").write_text("mine")
    for command in (("git", "init", "-q"), (sys.executable, "-m", "dvc", "init", "-q"), (sys.executable, "-m", "dvc", "add", "-q", "data")):
        subprocess.run(command, cwd=root, check=True)
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", "-c", "user.name=Ann", "-c", "user.email=a@example.org", "commit", "-qm", "start"], cwd=root, check=True)
    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    own = own_data(root)
    assert list(own) == ["data"] and own["data"].endswith(".dir")
    take_data(clone, root, {}, own, lambda *_: pytest.fail("nothing is drawn"))
    assert (clone / "data/web/a.txt").read_text() == "mine" and not (clone / ".dvc/cache").exists()
    (root / "data/web/a.txt").unlink()
    (root / "data/web/b.txt").write_text("changed")
    with pytest.raises(ValueError, match="dvc add data"):
        own_data(root)


def test_tables_of_own_data_say_so_and_set_the_papers_numbers_beside():
    results = planted()
    results["facts"]["data"] = {"data": "abc.dir"}
    for about, value in zip(results["rows"], (78.4, 79.1), strict=True):
        about["in_paper"] = dict.fromkeys(("tr_r1", "ir_r1", "cider"), value)
    text = section(results, figure=None)
    assert "the project's own data, data (`abc.dir`)" in text and "crawled images" not in text
    assert "| F | table 1 | 79.1 (+0.7) | 50.0 (+15.0) |" in text and "| none | table 1 | 78.4 | 35.0 |" in text
    assert "in brackets the difference" not in section(planted(), figure=None)


def planted() -> dict:
    """Two seeds, two arms; the second seed has no result of F yet."""

    def row(value: float, **against) -> dict:
        metric = {"value": value, "low": value - 0.1, "high": value + 0.1}
        texts = {"web": {"texts": 100, "kept": 40, "rejected": 0.6, "false_before": 0.6, "false_kept": 0.05}}
        return {"evaluation": "e", "metrics": dict.fromkeys(METRICS, metric), "true_captions": value, "texts": texts, "against": against}

    def gain(difference: float) -> dict:
        return {"none": {m: {"difference": difference, "low": difference - 0.05, "high": difference + 0.05} for m in METRICS}}

    facts = {"steps": 500, "batch_size": 64, "human_share": 0.4, "synthetic_share": 0.2, "bootstrap": 2000, "confidence": 0.95}
    sample = {"num_web": 16000, "num_train": 250, "num_val": 300, "num_test": 500}
    return {
        "arms": None,
        "facts": {**facts, "sample": sample},
        "rows": [{"row": row, "arm": row, "says": says, "paper": "table 1"} for row, says in (("none", "as it is"), ("F", "filter"))],
        "baselines": ["none"],
        "seeds": {
            "0": {"commit": "a" * 40, "machine": "x86_64, fp32", "rows": {"none": row(0.30), "F": row(0.50, **gain(0.20))}},
            "1": {"commit": "b" * 40, "machine": "x86_64, bf16", "rows": {"none": row(0.40)}},
        },
    }


def test_tables_from_planted_results():
    text = section(planted(), figure="x.png")
    assert "16,000 crawled images" in text and "![" in text
    told = "`blip ablate --seeds 0 1`, seed 0 of commit aaaaaaaaaa (x86_64, fp32); 1 of commit bbbbbbbbbb (x86_64, bf16)."
    assert told in text
    assert (
        "| none | as it is | table 1 | 40 (40 to 40) | 60.0% (60.0% to 60.0%) | 5.0% (5.0% to 5.0%) | - | - | - | 0.350 (0.300 to 0.400) |"
        in text
    )
    assert "| F | +0.200 (1 of 1 above) | +0.200 (1 of 1 above) |" in text
    assert "| F | 0 | +0.200 [+0.150, +0.250] |" in text and "| F | 1 |" not in text
    results = planted()
    results["seeds"]["0"]["rows"]["F"]["against"]["none"]["cider"] = {"difference": -0.01, "low": -0.05, "high": 0.03}
    results["baselines"].append("long")
    assert "Against long" not in section(results, figure="x.png"), "nothing was compared with it"
    assert "-0.010 (0 of 1) |" in section(results, figure="x.png"), "an interval over 0 shows nothing"


def test_words_of_ablations_yaml_make_no_cell_or_row_of_their_own():
    results = planted()
    results["rows"][1]["says"] = "P(x|y) of\nthe filter"
    assert "| F | P(x\\|y) of the filter | table 1 |" in section(results, figure=None)


def test_seeds_that_ran_elsewhere_are_joined(tmp_path):
    files = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, file in enumerate(files):
        file.write_text(json.dumps(planted() | {"seeds": {str(seed): planted()["seeds"][str(seed)]}}))
    assert joined(files) == joined([*files, files[1]]) == planted(), "named twice is known already"
    other = planted()["seeds"]["0"] | {"commit": "c" * 40}
    files[1].write_text(json.dumps(planted() | {"seeds": {"0": other}}))
    with pytest.raises(ValueError, match=r"1\.json: has other results of seed 0"):
        joined(files)
    files[1].write_text(json.dumps(planted() | {"arms": ["F"]}))
    with pytest.raises(ValueError, match=r"1\.json: its arms are \['F'\], those of .*0\.json are None; join what ran alike"):
        joined(files)
    files[1].write_text(json.dumps(planted() | {"facts": planted()["facts"] | {"steps": 100}}))
    with pytest.raises(ValueError, match=r"1\.json: its facts are {'steps': 100}, those of .*0\.json are {'steps': 500};"):
        joined(files)
    with pytest.raises(ValueError, match="no such file"):
        joined([*files[:1], tmp_path / "2.json"])


def test_a_figure_has_a_point_for_each_seed_that_has_one():
    from blip_core.report.figures import difference_rows

    found = differences(planted(), "none")
    assert found["tr_r1"] == {"F": [(0.20, pytest.approx(0.15), 0.25), None]}
    png = difference_rows(found, baseline="none")
    assert png.startswith(b"\x89PNG") and len(png) < 100_000 and png == difference_rows(found, baseline="none")


def test_a_page_keeps_what_stands_around_the_tables(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    write_page(page, "new")
    assert page.read_text() == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    page.write_text("# Title\n")
    with pytest.raises(ValueError, match="expected the lines"):
        write_page(page, "new")


@pytest.fixture(scope="module")
def ablated(tmp_path_factory) -> tuple[Path, str]:
    """A copy of the project in which an arm of the user's own was run on tiny data, and what the command printed."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("blip_core", "labels", "columns", ".dvc", "mlflow"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "data.dvc"):
        shutil.copy(ROOT / name, folder)
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    short = {"says": "half the steps", "rows": {"short": "g0"}, "params": {"pretrain": {"optim": {"steps": 6}}}}
    own = {"baselines": ["none"], "arms": {"short": short, "none": {"says": "all steps", "rows": {"none": "g0"}}}}
    (folder / "ablations.yaml").write_text(yaml.safe_dump(own))
    (folder / "page.md").write_text(f"{BEGIN}\n{END}\n")
    for command in (("init", "-q"), ("add", "-A"), ("-c", "user.name=Ann", "-c", "user.email=a@example.org", "commit", "-qm", "start")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder, run(folder, "--seeds", "3", "--arms", "short", "--page", "page.md")


def run(folder: Path, *flags: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "blip_core", "ablate", "--out", "results.json", *flags]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=HANG, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_command_runs_arms_in_a_clone_and_tells_what_came_of_them(ablated):
    folder, told = ablated
    results = json.loads((folder / "results.json").read_text())
    rows = results["seeds"]["3"]["rows"]
    assert list(rows) == ["none", "short"] and rows["short"]["evaluation"] == "artifacts/ablations/short/evaluations/g0"
    clone = folder / ".work/ablate/3"
    assert yaml.safe_load((clone / "params.yaml").read_text())["sample"]["seed"] == 3
    g0 = read_tables(clone / "artifacts/generations/g0")
    texts = rows["short"]["texts"]["web"]
    assert texts["kept"] == texts["texts"] == g0.filter(pc.equal(g0["source"], "web")).num_rows and 0.4 < texts["false_kept"] < 0.8
    test = rows["short"]["against"]["none"]["ir_r1"]
    assert test["low"] <= test["difference"] <= test["high"]
    assert test["difference"] == pytest.approx(rows["short"]["metrics"]["ir_r1"]["value"] - rows["none"]["metrics"]["ir_r1"]["value"])
    assert "| short | 3 |" in told and "| short | 3 |" in (folder / "page.md").read_text() and (folder / "ablations.png").exists()
    assert not (folder / "artifacts").exists(), "the project itself is left alone"
    assert not (clone / "artifacts/models/g1").exists(), "nothing is trained that no row needs"


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_says_the_same(ablated):
    folder, _ = ablated
    before = (folder / "results.json").read_bytes()
    again = run(folder, "--seeds", "3", "--arms", "short")
    assert "Running stage" not in again and (folder / "results.json").read_bytes() == before


def test_to_show_tables_writes_nothing(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(planted()))
    told = show(tmp_path / "results.json", None)
    assert told == section(planted(), figure=None) and "+0.200" in told and "![" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_nothing_to_show_yet_is_said(tmp_path):
    with pytest.raises(ValueError, match="no such file; `blip ablate` writes it"):
        show(tmp_path / "results.json", None)
