"""The chain in Spanish and in Chinese: the sample world's texts as people write them, learned, written, judged and scored."""

import json

import pytest
import yaml

from blip_core.config.params import Params
from blip_core.explain.describe import describe_round
from blip_core.files.content import write_json
from blip_core.sample.scene_texts import claims
from blip_core.sample.write import write_sample
from blip_core.stages.assemble import assemble
from blip_core.stages.calibrate import calibrate
from blip_core.stages.caption import caption
from blip_core.stages.evaluate import evaluate
from blip_core.stages.ingest import ingest
from blip_core.stages.pretrain import pretrain
from blip_core.stages.score import score
from blip_core.tables.captions import read_table, read_tables
from blip_core.tables.manifest import content_hash
from tests.support.small import ROOT, small_values


def small_chain(folder, params: Params) -> None:
    """A round with one model in the place of those that its stages would tune."""
    a, data, work, seed = folder / "artifacts", folder / "data", folder / "work", params.seed
    g0, shards, heldout, gate, vocab, model = (a / n for n in ("g0", "shards", "heldout", "gate.json", "tokenizer.json", "model"))
    ingest(data, shards, g0, heldout, a / "metadata", vocab, a / "quarantine.parquet", a / "ingest.json", cfg=params.ingest, work=work)
    write_json({"passed": True, "generation": content_hash(g0)}, gate)
    outs = (model, a / "history.csv", a / "pretrain.json")
    pretrain(g0, "human,web", shards, gate, vocab, *outs, cfg=params.pretrain, model_cfg=params.model, seed=seed, work=work)
    caption(model, g0, shards, gate, a / "captions", round="r1", cfg=params.caption, seed=seed, work=work)
    score(model, g0, a / "captions", shards, heldout, a / "scores", cfg=params.score, seed=seed, work=work)
    (folder / "labels").mkdir()
    outs = (a / "calibration.json", a / "calibrate.json")
    calibrate(model, shards, heldout, folder / "labels", *outs, cfg=params.calibrate, score_cfg=params.score, seed=seed, work=work)
    assemble(g0, a / "scores", outs[0], a / "g1", a / "assemble.json", cfg=params.assemble)
    evaluate(model, heldout, shards, a / "evaluation", a / "evaluate.json", cfg=params.evaluate, seed=seed, columns=folder / "columns")


@pytest.mark.slow  # trains for half a minute
@pytest.mark.parametrize(
    ("language", "kind", "letters", "tokenization"), [("es", "accents", "áo", "ptb"), ("zh", "bytes", "色的在", "characters")]
)
def test_a_round_in_another_language(language, kind, letters, tokenization, tmp_path):
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    values["sample"] |= {"language": language, "num_train": 200}
    values["ingest"] |= {"vocab_kind": kind, "vocab_size": 400}
    values["model"]["vision"] |= {"width": 64, "depth": 2}
    values["model"]["text"] |= {"width": 64, "mlp_width": 128}
    values["pretrain"]["optim"] |= {"steps": 300, "batch_size": 32, "lr": 2e-3, "checkpoint_every": 300, "log_every": 100}
    params = Params(**values)
    write_sample(tmp_path / "data", params.sample)
    small_chain(tmp_path, params)
    a = tmp_path / "artifacts"
    captions = read_table(a / "evaluation/captions.parquet").to_pylist()
    written = [row["caption"] for row in captions]
    metrics = json.loads((a / "evaluate.json").read_text())
    assert metrics["tokenization"] == tokenization and 0.2 < metrics["cider"] and 0.1 < metrics["bleu4"] < 1
    assert all(letter in "".join(written) for letter in letters), written[:20]
    assert sum(bool(claims(text).things) for text in written) > 0.9 * len(written), "they name things of the world"
    g1 = read_tables(a / "g1").to_pylist()
    assert {row["source"] for row in g1} == {"human", "web", "synthetic"}
    planted = read_table(a / "scores/controls.parquet").to_pylist()
    assert {row["kind"] for row in planted} == {"true", "mismatched", "crawled", "perturbed"}
    found = describe_round(a / "g0", a / "g1", params.describe)
    assert found["diversity"]["synthetic"]["vocabulary"] > 5
