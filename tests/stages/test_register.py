"""The registry: what a version carries, when the champion changes, and what is refused."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from blip_core.config.evaluation import CompareConfig
from blip_core.config.params import load_params
from blip_core.files.content import write_json
from blip_core.model.vqa import vqa_of
from blip_core.stages.compare import evaluation_hash
from blip_core.stages.register import PACKAGES, register
from blip_core.stages.register_task import register_task
from blip_core.tables.captions import caption_table, write_table
from blip_core.tables.manifest import content_hash, write_manifest
from blip_core.tasks.kinds import KINDS
from blip_core.tasks.network import load_network, save_tuned
from blip_core.tracking.provenance import chain_id
from blip_core.tracking.registry import fetch_model
from blip_core.tracking.runs import stage_run
from blip_core.weights.checkpoint import load_model, model_hash, new_model, save_model

PARAMS = Path(__file__).parents[2] / "params.yaml"
COMPARE = CompareConfig(metrics=("cider",), margin={}, bootstrap=200, confidence=0.95)
MD5 = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture
def root(tmp_path, monkeypatch, database, model_cfg, tokenizer):
    """A project after its last comparison: two models, the second better than the first, and a generation that passed its gate."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("BLIP_EXPERIMENT", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(database, tmp_path)
    shutil.copy(PARAMS, tmp_path)
    generation, shards = Path("artifacts/generations/g1"), Path("artifacts/shards")
    write_table(caption_table([{"key": "web-a", "text": "a ball", "reason": "kept"}]), generation / "web-00000.parquet")
    write_manifest(generation)
    shards.mkdir(parents=True)
    (shards / "web-00000.tar").write_bytes(b"shard")
    write_manifest(shards)
    write_json({"passed": True, "generation": content_hash(generation)}, Path("artifacts/gates/g1.json"))
    outs = {"assemble@r1": generation, "ingest": shards}
    lock = {"stages": {stage: {"outs": [{"path": str(path), "md5": MD5}]} for stage, path in outs.items()}}
    Path("dvc.lock").write_text(json.dumps(lock))
    for seed, name in enumerate(("first", "second")):
        save_model(new_model(model_cfg, tokenizer, seed=seed), tokenizer, Path("artifacts/models") / name, prompt="", max_tokens=12)
        evaluation(name, cider=1.0 + 0.2 * seed)
    return tmp_path


def evaluation(name, *, cider, images=40):
    """What evaluate leaves: per-item values around `cider`, other items for another number of images."""
    folder = Path("artifacts/evaluations") / name
    folder.mkdir(parents=True, exist_ok=True)
    values = cider + np.random.default_rng(0).normal(0, 0.3, images)
    keys = [f"test-{images}-{i}" for i in range(images)]
    items = {"metric": ["cider"] * images, "item": keys, "image": keys, "value": values}
    write_table(pa.table(items), folder / "items.parquet")
    captions = {"key": keys, "caption": ["a ball"] * images, "references": [["a red ball"]] * images}
    write_table(pa.table(captions), folder / "captions.parquet")
    write_json({"cider": cider, "cider_low": cider - 0.1, "cider_high": cider + 0.1, "images": images}, folder / "metrics.json")
    return folder


def registered(name, better=True, approval=False):
    """Compare (with this outcome) and register one of the models; the result."""
    verdict = {"challenger": name, "better": better, "reasons": [f"cider {'+0.2' if better is True else '+0.0'} over g0"]}
    verdict["evaluation"] = evaluation_hash(Path("artifacts/evaluations") / name)
    write_json(verdict, Path("artifacts/compare.json"))
    return register_again(approval=approval)


def register_again(approval=False):
    params, artifacts = load_params(PARAMS), Path("artifacts")
    params.models.update(dict.fromkeys(("first", "second", "third"), params.models["g1"]))
    folders = {
        **{kind: artifacts / kind for kind in ("models", "evaluations", "generations", "gates")},
        "shards": Path("artifacts/shards"),
        "measured": Path("artifacts/metrics/models"),
        "comparison": Path("artifacts/compare.json"),
        "out": Path("artifacts/registration.json"),
    }
    cfg = params.register_.model_copy(update={"approval": approval})
    register(**folders, cfg=cfg, compare_cfg=COMPARE, params=params, seed=0)
    return json.loads(folders["out"].read_text())


def client(root):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def aliases(root):
    return {alias: int(v) for alias, v in client(root).get_registered_model("blip").aliases.items()}


def test_first_version_says_what_made_it_and_how_good_it_is(root):
    result = registered("first")
    identity = model_hash(Path("artifacts/models/first"))
    facts = {"name": "blip", "version": 1, "promoted": True, "champion_version": 1, "model_hash": identity, "model": "first"}
    assert facts.items() <= result.items() and result.keys() - facts.keys() == {"reasons", "run_id", "candidate"}
    version = client(root).get_model_version("blip", "1")
    expected = {
        "model_hash": identity,
        "git_rev": "",
        "generation": "g1",
        "generation_hash": content_hash(Path("artifacts/generations/g1")),
        "generation_dvc_md5": MD5,
        "shards_hash": content_hash(Path("artifacts/shards")),
        "shards_dvc_md5": MD5,
        "metric.cider": "1 [0.9, 1.1]",
        "better": "yes",
        "chain": chain_id(root),
    }
    assert expected.items() <= version.tags.items()
    assert "| cider | 1 [0.9, 1.1] |" in version.description and "+0.2" in version.description
    run = client(root).get_run(result["run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics["cider"] == 1.0
    assert "cider_low" not in run.data.metrics, "an interval would be a chart of its own"
    assert client(root).search_logged_models(["1"], "metrics.cider > 0.99")[0].model_id == version.tags["model_id"]
    assert {f.path for f in client(root).list_artifacts(result["run_id"], "evaluation")} == {
        f"evaluation/{n}" for n in ("items.parquet", "captions.parquet", "metrics.json")
    }


def test_the_model_hangs_on_its_training_and_the_pages_lead_there(root):
    with stage_run("r1/pretrain-first", stage="pretrain", params={}, inputs=[], root=root) as training:
        training.tag("model_hash", model_hash(Path("artifacts/models/first")))
    version = client(root).get_model_version("blip", str(registered("first")["version"]))
    model = client(root).get_logged_model(version.tags["model_id"])
    assert model.source_run_id == training.run_id
    assert [out.model_id for out in client(root).get_run(training.run_id).outputs.model_outputs] == [model.model_id]
    trained, own = (client(root).get_run(run_id).data.tags["mlflow.parentRunId"] for run_id in (training.run_id, version.run_id))
    assert trained == own, "both are of one pass"
    registered("second", better=False)
    rows = client(root).get_registered_model("blip").description.splitlines()[-2:]
    assert [row.split(" | ")[:2] for row in rows] == [["| 2", "challenger"], ["| 1", "champion"]]


def test_package_holds_weights_and_code_but_no_pickle(root):
    registered("first")
    [folder] = [p.parent for p in (root / "mlruns").rglob("MLmodel")]
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {f"artifacts/first/{name}" for name in ("model.safetensors", "tokenizer.json")} <= names
    assert {"code/blip_core/weights/checkpoint.py", "serve.py"} <= names
    assert not [n for n in names if n.endswith((".pkl", ".pt", ".pyc"))]
    required = (folder / "requirements.txt").read_text().split()
    assert {r.split("==")[0] for r in required} == {"mlflow", *PACKAGES} and all("==" in r and "+" not in r for r in required)


def test_registering_again_keeps_the_version(root):
    once, again = registered("first"), registered("first")
    assert (again["version"], again["run_id"], again["promoted"]) == (1, once["run_id"], True)
    assert len(client(root).search_model_versions("name = 'blip'")) == 1


def test_better_challenger_becomes_champion(root):
    registered("first")
    result = registered("second")
    assert (result["version"], result["promoted"], aliases(root)) == (2, True, {"challenger": 2, "champion": 2})


def test_champion_stays_when_the_challenger_does_not_beat_it(root):
    """Better than its baselines is not enough: the champion may come from another chain."""
    registered("second")
    result = registered("first")
    assert (result["version"], result["promoted"], result["champion_version"]) == (2, False, 1)
    assert aliases(root) == {"challenger": 2, "champion": 1}
    assert "not better than the champion, version 1" in result["reasons"][0]


def test_champion_stays_when_the_challenger_is_a_copy_in_quality(root):
    registered("first")
    evaluation("second", cider=1.0)
    assert not registered("second")["promoted"]


@pytest.mark.parametrize("better", [False, None, "true", 1])
def test_not_better_than_the_baselines_is_never_champion(root, better):
    result = registered("first", better)
    assert (result["promoted"], result["champion_version"], aliases(root)) == (False, None, {"challenger": 1})
    assert result["reasons"] == ["not better than the baselines", "cider +0.0 over g0"]


def test_other_evaluation_items_are_not_comparable(root):
    registered("first")
    evaluation("second", cider=5.0, images=41)
    result = registered("second")
    assert not result["promoted"] and result["champion_version"] == 1
    assert "not comparable with the champion, version 1" in result["reasons"][0]


def test_champion_that_was_evaluated_anew_is_comparable_again(root):
    registered("first")
    evaluation("first", cider=1.5, images=41)
    evaluation("second", cider=2.0, images=41)
    assert not registered("second")["promoted"]
    assert registered("first")["version"] == 1
    assert client(root).get_model_version("blip", "1").tags["metric.cider"] == "1.5 [1.4, 1.6]"
    assert registered("second")["promoted"]


def test_champion_without_an_evaluation_stays(root):
    """Someone made a version by hand."""
    made = client(root).create_registered_model("blip")
    client(root).create_model_version("blip", str(root))
    client(root).set_registered_model_alias("blip", "champion", "1")
    result = registered("first")
    assert made.name == "blip" and not result["promoted"] and result["champion_version"] == 1
    assert "no evaluation is kept with it" in result["reasons"][0]


def test_generation_that_did_not_pass_its_gate_is_refused(root):
    gate = Path("artifacts/gates/g1.json")
    generation = content_hash(Path("artifacts/generations/g1"))
    for passed, named in ((False, generation), (True, "other")):
        write_json({"passed": passed, "generation": named}, gate)
        with pytest.raises(ValueError, match="g1.json"):
            registered("first")
    gate.unlink()
    with pytest.raises(ValueError, match="did not pass its gate"):
        registered("first")
    assert client(root).search_registered_models() == [] and not Path("artifacts/registration.json").exists()


@pytest.mark.parametrize("missing", ["artifacts/compare.json", "artifacts/evaluations/first/metrics.json"])
def test_missing_input_is_named(root, missing):
    registered("first")
    Path(missing).unlink()
    with pytest.raises(ValueError, match=Path(missing).name):
        register_again()


def test_comparison_of_an_unknown_model_is_refused(root):
    registered("first")
    write_json({**json.loads(Path("artifacts/compare.json").read_text()), "challenger": "g7"}, Path("artifacts/compare.json"))
    with pytest.raises(ValueError, match="compares 'g7'; models has .*run compare again"):
        register_again()


def test_unreachable_registry_fails_with_its_address(root, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(ValueError, match=uri):
            registered("first")


def test_a_tuned_network_gets_a_version_beside_the_model_that_it_is_tuned_from(root):
    """It is champion as the model is, and opens by its alias; what tunes nothing gets none."""
    registration = registered("first")
    base, tokenizer = load_model(Path("artifacts/models/first"))
    network = vqa_of(base)
    network.kept = {"answers": ["yes", "no"]}
    folder, measured = Path("artifacts/tasks/vqa/first"), Path("artifacts/metrics/models")
    save_tuned(network, tokenizer, folder / "model", kind="vqa", kept=network.kept)
    write_json({"accuracy": 0.5}, folder / "evaluation/metrics.json")
    metrics = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "of": "x", "draws": {"accuracy": [0.4, 0.6]}}
    write_json(metrics, measured / "first/task-vqa.json")
    outs = [Path("artifacts/registration.json"), Path("out.json")]
    for _ in range(2):  # again it keeps its version
        told = register_task("vqa", Path("artifacts/tasks/vqa"), measured, *outs, params=load_params(PARAMS))
    assert told == "Version 1 of blip-vqa, tuned from blip/1, is champion."
    version = client(root).get_model_version("blip-vqa", "1")
    expected = {"base": "blip/1", "task": "vqa", "generation": "g1", "gate": "passed", "metric.vqa.accuracy": "0.5 [0.4, 0.6]"}
    assert expected.items() <= version.tags.items() and version.tags["model_hash"] != registration["model_hash"]
    fetched = fetch_model("models:/blip-vqa@champion", root, root / "fetched")
    again, _ = load_network(fetched, KINDS["vqa"], None)
    assert again.kept == network.kept and all(torch.equal(v, network.state_dict()[k]) for k, v in again.state_dict().items())
    client(root).create_model_version("blip-vqa", "somewhere")
    with pytest.raises(ValueError, match="models:/blip-vqa/2: has no tag model_hash, so `register` did not make it"):
        fetch_model("models:/blip-vqa/2", root, root / "fetched")
    shutil.copytree("artifacts/models/first", "artifacts/tasks/shapes/first/model")
    told = register_task("shapes", Path("artifacts/tasks/shapes"), measured, *outs, params=load_params(PARAMS))
    assert told == "shapes tunes nothing: its model is blip/1."
