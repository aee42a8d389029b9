"""The stages on a GPU: the same functions, files and numbers as on a CPU. Skipped where there is none.

Nothing here needs Great Expectations or MLflow, so `python -m pytest tests/stages/test_cuda.py` runs on a bare machine with a GPU.
"""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from blip_core.files.content import write_json
from blip_core.tables.captions import read_table, read_tables
from blip_core.tables.manifest import content_hash
from tests.support.small import small_params

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PRECISIONS = ("fp32", "bf16")


@pytest.fixture(scope="module")
def params():
    """Small as elsewhere, but in bf16 and with enough steps to learn something."""
    found = small_params()

    def optim(stage, **changes):
        cfg = found.section(stage)
        return cfg.model_copy(update={"optim": cfg.optim.model_copy(update={"precision": "bf16", **changes})})

    stages = {s: optim(s, steps=60, batch_size=32, checkpoint_every=25) for s in ("pretrain", "tune_captioner", "tune_filter")}
    return found.model_copy(update=stages)


@pytest.fixture(scope="module")
def chain(params, tmp_path_factory) -> Path:
    """A folder `artifacts` up to the next generation and the evaluation of the first model, all on the GPU."""
    from blip_core.sample.write import write_sample
    from blip_core.stages.assemble import assemble
    from blip_core.stages.calibrate import calibrate
    from blip_core.stages.caption import caption
    from blip_core.stages.evaluate import evaluate
    from blip_core.stages.ingest import ingest
    from blip_core.stages.pretrain import pretrain
    from blip_core.stages.score import score
    from blip_core.stages.tune_captioner import tune_captioner
    from blip_core.stages.tune_filter import tune_filter

    root = tmp_path_factory.mktemp("cuda")
    write_sample(root / "data", params.sample)
    a, common = root / "artifacts", {"seed": 0, "work": root / "work"}
    shards, g0, heldout, gate, r1 = a / "shards", a / "generations/g0", a / "heldout", a / "gates/g0.json", a / "rounds/r1"
    outs = (shards, g0, heldout, a / "metadata", a / "tokenizer.json", a / "quarantine.parquet", a / "metrics/ingest.json")
    ingest(root / "data", *outs, cfg=params.ingest, work=root / "work")
    write_json({"passed": True, "generation": content_hash(g0)}, gate)

    def logs(name: str) -> tuple[Path, Path]:
        return a / f"history/{name}.csv", a / f"metrics/{name}.json"

    options = {"cfg": params.pretrain, "model_cfg": params.model, **common}
    pretrain(g0, "human,web", shards, gate, a / "tokenizer.json", a / "models/g0", *logs("pretrain"), **options)
    tune_captioner(a / "models/g0", g0, shards, gate, r1 / "captioner", *logs("captioner"), cfg=params.tune_captioner, **common)
    tune_filter(a / "models/g0", g0, shards, gate, r1 / "filter", *logs("filter"), cfg=params.tune_filter, **common)
    caption(r1 / "captioner", g0, shards, gate, r1 / "captions", round="r1", cfg=params.caption, **common)
    score(r1 / "filter", g0, r1 / "captions", shards, heldout, r1 / "scores", cfg=params.score, **common)
    (root / "labels").mkdir()
    outs = (r1 / "calibration.json", a / "metrics/calibration.json")
    calibrate(
        r1 / "filter", shards, heldout, root / "labels", *outs, cfg=params.calibrate, score_cfg=params.score, seed=0, work=root / "work"
    )
    assemble(g0, r1 / "scores", r1 / "calibration.json", a / "generations/g1", a / "metrics/assemble.json", cfg=params.assemble)
    evaluate(a / "models/g0", heldout, shards, a / "evaluations/g0", a / "metrics/evaluate.json", cfg=params.evaluate, seed=0)
    return a


def test_losses_fall_and_nothing_is_lost_on_the_way_to_the_next_generation(chain):
    for name in ("pretrain", "captioner", "filter"):
        lines = [line.split(",") for line in (chain / f"history/{name}.csv").read_text().splitlines()]
        loss = [float(line[lines[0].index("loss")]) for line in lines[1:]]
        assert all(map(math.isfinite, loss)) and np.mean(loss[-3:]) < np.mean(loss[:3]), name
    base, made = (read_tables(chain / "generations" / g) for g in ("g0", "g1"))
    web = pc.sum(pc.equal(base["source"], "web")).as_py()
    counts = {r["values"]: r["counts"] for r in pc.value_counts(made["source"]).to_pylist()}
    assert counts["web"] == counts["synthetic"] == web and not made.filter(pc.equal(made["source"], "web"))["match"].null_count
    found = json.loads((chain / "metrics/evaluate.json").read_text())
    assert 0 <= found["tr_r1"] <= found["tr_r10"] <= 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_and_captions_are_those_of_a_cpu(chain, params, precision):
    """The same weights, pictures and texts on both devices; captions by beam search, which draws nothing."""
    from blip_core.capfilt.med import caption_images, score_texts
    from blip_core.compute.pixels import read_resized
    from blip_core.tables.shards import ShardImages
    from blip_core.weights.checkpoint import load_model

    table = read_table(next(iter(sorted((chain / "rounds/r1/scores").glob("web-*.parquet")))))
    rows, images = table.slice(0, 64).to_pylist(), ShardImages(chain / "shards")
    shard = next(iter(sorted((chain / "rounds/r1/scores").glob("web-*.parquet")))).stem
    pictures = [read_resized(images, shard, row["key"], 48) for row in rows]
    judge, tokenizer = load_model(chain / "rounds/r1/filter")
    writer, _ = load_model(chain / "rounds/r1/captioner")
    sampler, keys = params.evaluate.sampler, [row["key"] for row in rows]
    texts, found = [[row["text"]] for row in rows], {}
    for where in ("cuda", "cpu"):
        with pytest.MonkeyPatch.context() as patched:
            if where == "cpu":
                patched.setattr(torch.cuda, "is_available", lambda: False)
            scores = score_texts(judge.to(where), tokenizer, pictures, texts, max_tokens=24, precision=precision)
            captions = caption_images(writer.to(where), tokenizer, pictures, keys, sampler, seed=0, precision=precision)
            found[where] = scores, [c[0] for c in captions]
    close = {"fp32": 1e-3, "bf16": 0.15}[precision]
    np.testing.assert_allclose(found["cuda"][0].itm_logit, found["cpu"][0].itm_logit, atol=close)
    np.testing.assert_allclose(found["cuda"][0].itc, found["cpu"][0].itc, atol=close)
    same = np.mean([a == b for a, b in zip(found["cuda"][1], found["cpu"][1], strict=True)])
    assert same >= {"fp32": 0.95, "bf16": 0.6}[precision]


def test_a_training_goes_on_from_its_checkpoint(chain, params, tmp_path):
    """Stopped behind step 30 of 60 and started again: the weights of an unbroken run, as far as the GPU's kernels repeat themselves."""
    from tests.support.trainings import Training

    class OnGpu(Training):
        pass

    whole = OnGpu(chain).fit(tmp_path / "whole")
    assert OnGpu(chain).fit(tmp_path / "broken", stop_at=7) == {}
    again = OnGpu(chain).fit(tmp_path / "broken")
    for name, value in whole["model"].items():
        torch.testing.assert_close(again["model"][name], value, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    assert next(iter(whole["model"].values())).device.type == "cuda"
