"""Plan and profile of a BLIP-2: what is frozen and what learns, with work and memory as a step has them."""

import re

import pytest
import yaml

from blip_core.config.params import Params
from blip_core.preview.figures import scaled
from blip_core.preview.frozens import Frozens, no_features
from blip_core.preview.made_up import STAGE_2, made_up_tokenizer
from blip_core.preview.plan import plan, vit_flops
from blip_core.preview.plan_blip2 import counted, encoder_flops
from blip_core.preview.profile import profile
from blip_core.weights.checkpoint import new_model, save_model
from tests.support.blip2_chain import blip2_values
from tests.support.blip2s import language_folder
from tests.support.small import ROOT, small_values


@pytest.fixture(scope="module")
def small(model_cfg, tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, root / "encoder", prompt="", max_tokens=20, precision="fp32")
    values = blip2_values(small_values(yaml.safe_load((ROOT / "params.yaml").read_text())), root / "encoder")
    values["model"] |= {"language": {"folder": str(language_folder("opt", root / "language")), "end": None}}
    values["pretrain"]["stage_2"] = {"steps": 6, "batch_size": 8}
    return Params(**values)


def test_the_plan_tells_what_is_frozen_what_learns_and_what_features_take(small, tmp_path):
    frozens, tokenizer = Frozens.of(small), made_up_tokenizer(small.ingest.vocab_size)
    said = plan(small, tmp_path / "none", pictures=1000)
    learned = {stage: sum(p.numel() for p in frozens.trained(stage, small, tokenizer)[0].parameters()) for stage in ("pretrain", STAGE_2)}
    assert f"Q-Former: {scaled(learned['pretrain'])} parameters, which learn in stage 1" in said
    assert f"projection: {scaled(learned[STAGE_2])}, which learn in stage 2" in said and said.count(", frozen\n") == 2
    assert (
        f"5 x 32 numbers, 640 iB in fp32; {scaled(640_000, 1024)}iB of 1,000 pictures: made anew" in said
    )  # 4 patches and [CLS], 4 bytes each
    assert "pretrain: 12 steps of 16 images = 192" in said and "stage_2: 6 steps of 8 images = 48" in said
    assert said.count("two steps by the clock: ") == 4
    kept = small.model.model_copy(update={"features": small.model.features.model_copy(update={"cache": tmp_path / "kept"})})
    cached = plan(small.model_copy(update={"model": kept}), tmp_path / "none")
    assert "and 0.00 FLOP for its features" in cached and f"kept in {tmp_path / 'kept'}, 1 GiB at most" in cached


def test_work_and_memory_are_those_of_a_step(small, model_cfg):
    """A frozen language model is passed forward and backward, and keeps activations; its weights get no gradient."""
    frozens, tokenizer = Frozens.of(small), made_up_tokenizer(small.ingest.vocab_size)
    cfg = small.pretrain.stage_2.model_copy(update={"batch_size": 4, "accumulate": 1, "steps": 1})
    made = frozens.training(STAGE_2, small, tokenizer, cfg, no_features(frozens.encoder))
    flops, kept = counted(made, [frozens.language.model], "fp32")
    [batch] = made.batches.loader(0)
    weights = sum(p.numel() for p in frozens.language.model.model.decoder.layers.parameters() if p.ndim == 2)
    places = 4 * (batch.ids.shape[1] + small.model.qformer.num_queries)
    assert flops > 2 * 2 * weights * places
    assert kept > 2 * 4 * places * 32 and not any(p.grad is not None for p in frozens.language.model.parameters())
    assert encoder_flops(frozens) == pytest.approx(vit_flops(model_cfg), rel=0.01)


@pytest.mark.parametrize(("what", "real"), [("pretrain", True), (STAGE_2, True), (STAGE_2, False), ("score", True)])
def test_the_profile_names_the_parts(small, ingested, tmp_path, what, real):
    text = profile(what, small, artifacts=ingested if real else None, steps=1, batch_size=4, out=tmp_path)
    assert text.startswith(f"{what}: 4 images a step, Q-Former 24 x 2 upon {small.model.encoder}")
    parts = [line[:20].strip() for line in text.split("\n\n")[1].splitlines()]
    assert "image encoder" in parts and ("forward" if what in ("pretrain", STAGE_2) else "words") in parts
    assert float(re.search(r"image encoder +([\d.]+)", text)[1]) > 0


def test_where_nothing_follows_stage_1_no_stage_2_is_profiled(tmp_path):
    own = Params(**small_values(yaml.safe_load((ROOT / "params.yaml").read_text())))
    with pytest.raises(ValueError, match="pretrain.stage_2 is not set, so pretrain has one stage"):
        profile(STAGE_2, own, artifacts=None, steps=1, batch_size=None, out=tmp_path)
