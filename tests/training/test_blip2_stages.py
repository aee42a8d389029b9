"""Both stages of BLIP-2 through the training loop: a run that was stopped goes on bit for bit."""

import pytest
import torch

from blip_core.config.model import FeatureConfig
from blip_core.config.training import LanguageConfig
from blip_core.model.blip2 import Prompter
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.training.batches import Rows, batch_shares
from blip_core.training.features import PLAIN, Frozen, QueryBatches
from blip_core.training.loop import fit
from blip_core.training.prompt_objective import PromptBatches, PromptObjective
from blip_core.weights.encoders import of_vit
from blip_core.weights.language import load_language
from tests.support.blip2s import language_folder
from tests.support.plain_qformer import tiny_qformer
from tests.support.query_steps import objective
from tests.support.small import small_params
from tests.support.trainings import Stopped


def training(stage: str, artifacts, folder, blip):
    """Model, objective and batches, made anew for each run; with dropout, which must follow from the step."""
    rows, tokenizer = Rows.of(artifacts / "generations/g0", ["human", "web"]), load_tokenizer(artifacts / "tokenizer.json")
    changes = {"steps": 6, "batch_size": 8, "log_every": 2, "checkpoint_every": 2, "workers": 0, "augment": PLAIN, "precision": "fp32"}
    cfg = small_params().pretrain.optim.model_copy(update=changes)
    options = dict(shares=batch_shares(rows, human=0.4, synthetic=0.2), cfg=cfg, seed=0)
    inputs = (rows, ShardImages(artifacts / "shards"), Frozen(of_vit(blip.vit, "a"), "fp32"))
    qformer = tiny_qformer(tokenizer, dropout=0.1, image_width=32)
    if stage == "1":
        batches = QueryBatches(*inputs, FeatureConfig(cache=None, max_gib=1), tokenizer=tokenizer, prompt="", **options)
        return qformer, objective(), batches, cfg
    torch.manual_seed(0)
    kind = "opt" if stage == "2" else "t5"
    said = load_language(language_folder(kind, folder / f"language-{kind}"), precision="fp32")
    prompt = {"prompt": "a photo of", "split": said.reads}
    batches = PromptBatches(*inputs, FeatureConfig(cache=folder / "features", max_gib=1), language=said, **prompt, **options)
    return Prompter(qformer, said.width), PromptObjective(said, LanguageConfig(label_smoothing=0.0, prompt="a photo of")), batches, cfg


@pytest.mark.parametrize("stage", ["1", "2", "2 that reads a first part"])
def test_a_stopped_training_goes_on_bit_for_bit(stage, ingested, model, tmp_path):
    runs = {}
    for name, ends in (("whole", [None]), ("stopped", [3, None])):
        for end in ends:
            network, learned, batches, cfg = training(stage, ingested, tmp_path, model)
            source = batches if end is None else Stopped(batches, end)
            try:
                history = fit(network, learned, source, cfg, name="test", folder=tmp_path / name, seed=0, report=None)
            except InterruptedError:
                assert [p.name for p in (tmp_path / name).glob("*.pt")] == ["step-00000002.pt"]
        runs[name] = history, network.state_dict(), learned.state_dict()
    assert runs["whole"][0] == runs["stopped"][0] and len(runs["whole"][0]) == 3
    for part in (1, 2):
        for key, value in runs["whole"][part].items():
            assert torch.equal(value, runs["stopped"][part][key]), key
    assert not any("language" in key for key in runs["whole"][1])
