"""NoCaps, as it is published: its list of val is what is measured, by domain."""

import json

import numpy as np
import pytest
import simplejpeg

from blip_core.config.tasks import CaptioningConfig
from blip_core.evaluation.metrics import caption_scores
from blip_core.stages.evaluate_task import resampled, summary
from blip_core.tasks.kinds import KINDS
from blip_core.tasks.task import Measured
from blip_core.weights.checkpoint import new_model
from tests.support.small import small_params

DOMAINS = ("in-domain", "near-domain", "near-domain", "out-domain")
SAID = ["a red ball on grass", "a blue box", "a green star next to a box", "there is a photo of a ball"]


def caption(**changes) -> CaptioningConfig:
    optim = {"steps": 1, "batch_size": 4, "max_tokens": 20}
    measure = {"bootstrap": 20, "precision": "fp32", "slices": ["domain"]}
    return small_params(
        tasks={"t": {"kind": "caption", "optim": optim, "max_tokens": 8, "prompt": "", "measure": measure} | changes}
    ).tasks["t"]


@pytest.fixture
def folder(tmp_path):
    """The published form, and COCO's captions to learn from beside it."""
    images, captions = [], []
    for i, domain in enumerate(DOMAINS * 12):
        name = f"{i:016x}"
        (tmp_path / f"{name}.jpg").write_bytes(simplejpeg.encode_jpeg(np.full((20, 30, 3), 5 * i, np.uint8)))
        place = {"coco_url": f"https://example.org/{name}.jpg", "date_captured": "2018-11-06", "license": 0, "width": 30, "height": 20}
        images.append({"id": i, "file_name": f"{name}.jpg", "open_images_id": name, "domain": domain, **place})
        captions += [{"image_id": i, "id": 2 * i + n, "caption": f"{SAID[(i + n) % 4].capitalize()}."} for n in range(2)]
    published = {"licenses": [], "info": {"version": "0.1"}, "images": images, "annotations": captions}
    (tmp_path / "nocaps_val_4500_captions.json").write_text(json.dumps(published))
    learned = {"images": images[:1], "annotations": [{"image_id": 0, "id": 0, "caption": "A ball."}]}
    (tmp_path / "captions_train2014.json").write_text(json.dumps(learned))
    return tmp_path


def test_it_is_told_by_domain_with_the_weights_of_the_whole(folder, model_cfg, tokenizer):
    """A domain's CIDEr is the mean of its pictures' in the whole, so that the whole is the mean of the domains by their pictures."""
    cfg, kind = caption(), KINDS["caption"]
    examples, aside = kind.read(folder, "test", cfg)
    assert (len(examples), aside, len(kind.read(folder, "train", cfg)[0])) == (48, [], 1)
    network = new_model(model_cfg, tokenizer, seed=0).eval()
    results = kind.measure(network, tokenizer, folder, Measured(examples, network.cfg.vision.image_size, 10), cfg)
    found = summary(kind, results, resampled(kind, results, cfg.measure, 0), cfg.measure, 0)
    assert {d: found[f"cider[domain={d}]_examples"] for d in DOMAINS} == {"in-domain": 12, "near-domain": 24, "out-domain": 12}
    assert found["cider"] > 0 and "bleu4[domain=near-domain]_low" in found
    assert np.mean([found[f"cider[domain={d}]"] for d in DOMAINS]) == pytest.approx(found["cider"])
    own = [(e, r) for e, r in zip(examples, results, strict=True) if e.facts["domain"] == "in-domain"]
    alone = caption_scores({e.id: e.texts for e, _ in own}, {e.id: r.answer for e, r in own}).corpus["cider"]
    assert alone != pytest.approx(found["cider[domain=in-domain]"], rel=0.05), "with weights of its own it would be another number"
