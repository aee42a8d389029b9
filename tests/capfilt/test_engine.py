"""Shards over the machines of a Ray cluster: the same bytes as one process makes, whatever dies meanwhile."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from blip_core.capfilt import engine
from blip_core.config.params import Params
from blip_core.stages.caption import caption
from blip_core.stages.ingest import ingest
from blip_core.stages.score import score
from blip_core.stages.validate import validate
from blip_core.tables.manifest import content_hash, read_manifest
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.weights.checkpoint import new_model, save_model
from tests.support.processes import HANG, wait_until
from tests.support.small import small_values
from tests.support.trainings import ROOT, environment

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")

# loopback alone, a token of this session alone, nothing in the home folder
RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}


class World:
    """A crawl in 24 shards, an untrained captioner and filter, and the stages as commands; slow enough to die in the middle."""

    def __init__(self, root: Path, values: dict):
        from blip_core.sample.write import write_sample

        self.root, self.params = root, Params(**values)
        write_sample(root / "data", self.params.sample)
        folders = ("shards", "generations/g0", "heldout", "metadata")
        outs = [root / name for name in (*folders, "tokenizer.json", "quarantine.parquet", "metrics.json")]
        ingest(root / "data", *outs, cfg=self.params.ingest, work=root / "work")
        judged = [
            root / name
            for name in ("generations/g0", "heldout", "shards", "gates/g0.json", "decisions/g0.json", "validate.json", "docs/validate")
        ]
        validate(*judged, cfg=self.params.section("validate"), gate_cfg=self.params.gate, score_cfg=self.params.score)
        tokenizer = load_tokenizer(root / "tokenizer.json")
        for seed, name in enumerate(("captioner", "filter")):
            save_model(new_model(self.params.model, tokenizer, seed=seed), tokenizer, root / name, prompt="", max_tokens=24)
        values = {**values, "caption": {**values["caption"], "engine": "ray"}, "score": {**values["score"], "engine": "ray"}}
        (root / "params.yaml").write_text(yaml.safe_dump(values))

    def inputs(self, stage: str) -> dict[str, Path]:
        own = {
            "caption": {"captioner": "captioner", "gate": "gates/g0.json"},
            "score": {"filter": "filter", "captions": "captions", "heldout": "heldout"},
        }
        return {k: self.root / v for k, v in {"generation": "generations/g0", "shards": "shards", **own[stage]}.items()}

    def local(self, stage: str, out: Path | None = None) -> str:
        """Hash of what this process makes, taking up what another began."""
        out = out or self.root / f"local-{stage}"
        common = {"seed": self.params.seed, "work": out.with_suffix(".work"), "out": out}
        if stage == "caption":
            caption(**self.inputs(stage), round="r1", cfg=self.params.caption, **common)
        else:
            score(**self.inputs(stage), cfg=self.params.score, **common)
        return content_hash(out)

    def start(self, stage: str, out: Path, address: str, **changes: Path) -> subprocess.Popen:
        """The stage as a user runs it, in the folder of this world."""
        flags = self.inputs(stage) | {"out": out, "work": out.with_suffix(".work"), "params": self.root / "params.yaml"} | changes
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)] + ["--round", "r1"] * (stage == "caption")
        env = environment(RAY_ADDRESS=address, **RAY)
        return subprocess.Popen(
            [sys.executable, "-m", "blip_core", "stage", stage, *words], cwd=self.root, env=env, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    values["sample"] |= {"num_web": 192, "num_train": 50, "num_val": 30, "num_test": 30}
    values["ingest"]["shard_images"] = 8
    values["caption"]["batch_size"] = 1
    values["caption"]["writers"][0] |= {"num_candidates": 5}
    return World(tmp_path_factory.mktemp("world"), values)


@pytest.fixture(scope="module")
def cluster():
    """A head that computes nothing and two machines with a core each, all of them this one."""
    before = dict(os.environ)
    os.environ.update(RAY)
    from ray.cluster_utils import Cluster  # reads the environment when it is imported

    few = {"object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": {"health_check_period_ms": 1000}, **few})
    try:
        made.machines = [made.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
        yield made
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


def workers(cluster) -> list[int]:
    """Processes of the cluster's machines that hold a model."""
    import psutil

    raylets = [psutil.Process(info.process.pid) for machine in cluster.machines for info in machine.all_processes["raylet"]]
    return [p.pid for r in raylets for p in r.children(recursive=True) if "Worker" in "".join(p.cmdline()) and p.name().startswith("ray::")]


def wait_for_tables(process: subprocess.Popen, out: Path, number: int) -> None:
    wait_until(lambda: len(list(out.parent.glob(f"{out.name}.work/*/web-*.parquet"))) >= number or process.poll() is not None, pause=0.02)
    assert process.poll() is None, process.communicate()[1]


@pytest.mark.slow
def test_a_killed_worker_and_a_lost_machine_change_no_byte(world, cluster):
    """Of two machines one stays; the tables that the dead were at are made by it."""
    expected, out = world.local("caption"), world.root / "captions"
    process = world.start("caption", out, cluster.address)
    wait_for_tables(process, out, 2)
    os.kill(workers(cluster)[0], signal.SIGKILL)
    wait_for_tables(process, out, 8)
    cluster.remove_node(cluster.machines.pop(), allow_graceful=False)
    assert process.poll() is None
    said = process.communicate(timeout=HANG)[1]
    assert process.returncode == 0, said
    assert content_hash(out) == expected and len(read_manifest(out)["files"]) == 24


@pytest.mark.slow
def test_a_faulty_shard_is_named_and_all_others_are_made(world, cluster):
    """Once it is mended, a run makes that one alone, here by the other engine, and ends with what one process makes."""
    expected, out = world.local("score"), world.root / "scores"
    tar = world.root / "shards/web-00003.tar"
    whole = tar.read_bytes()
    tar.write_bytes(bytes(len(whole)))
    said = (failed := world.start("score", out, cluster.address)).communicate(timeout=HANG)[1]
    assert failed.returncode == 1 and "score: no table of 1 of 25 shards; those that are made stay" in said
    assert "web-00003: " in said and "can't be decoded" in said and "Traceback" not in said
    made = {p.name: p.stat().st_mtime_ns for p in out.parent.glob("scores.work/score-*/*.parquet")}
    assert len(made) == 24 and "web-00003.parquet" not in made and not out.exists()
    tar.write_bytes(whole)
    assert world.local("score", out) == expected and {n: (out / n).stat().st_mtime_ns for n in made} == made


@pytest.mark.slow
def test_what_a_worker_can_not_begin_with_is_said(world, cluster):
    """Not tried for ever: a model whose weights are cut, a machine that does not see the folder."""
    broken = world.root / "broken"
    shutil.copytree(world.root / "captioner", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    process = world.start("caption", world.root / "none", cluster.address, captioner=broken)
    said = process.communicate(timeout=HANG)[1]
    assert process.returncode == 1 and "broken" in said and not (world.root / "none").exists()
    with pytest.raises(ValueError, match="sees no .*all machines of the cluster must see the project's folder"):
        engine._Worker(None, world.root / "elsewhere", world.root, world.params.caption.ray)


def test_a_table_that_a_worker_wrote_elsewhere_is_missed(tmp_path, monkeypatch):
    """What an engine returns proves nothing: a machine with a folder of its own under that path would say that all went well."""
    monkeypatch.setattr(engine, "_SETTLES", 0)
    (tmp_path / "web-00000.parquet").touch()
    with pytest.raises(ValueError, match=r"lacks 1 tables that workers say they wrote \(web-00001.parquet\).* all of them share"):
        engine._require_made(["web-00000.parquet", "web-00001.parquet"], [], tmp_path, "caption")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_said(world):
    """At once: Ray alone would try for minutes."""
    said = (process := world.start("caption", world.root / "none", "127.0.0.1:9")).communicate(timeout=HANG)[1]
    assert process.returncode == 1 and "RAY_ADDRESS is 127.0.0.1:9: no Ray cluster answers there" in said


@pytest.mark.slow
def test_without_an_address_this_machine_is_the_cluster_and_must_have_room(world):
    """Else the run would wait without a word for what this machine does not have."""
    values = yaml.safe_load((world.root / "params.yaml").read_text())
    values["caption"]["ray"]["gpus"] = 99
    (world.root / "greedy.yaml").write_text(yaml.safe_dump(values))
    said = (process := world.start("caption", world.root / "none", "", params=world.root / "greedy.yaml")).communicate(timeout=HANG)[1]
    assert process.returncode == 1 and "a worker takes 1 CPUs and 99 GPUs, and no machine of the cluster has as many" in said
