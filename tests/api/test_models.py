"""Models at the door: from every source, with the captions and scores of the functions beneath."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import blip_core
from blip_core.capfilt.med import caption_images, score_texts
from blip_core.config.capfilt import SamplerConfig
from blip_core.selection.calibration import Calibrated, Calibration, write_calibrations
from blip_core.tables.stopped import write_stopped
from blip_core.weights.checkpoint import load_model, model_hash, new_model, save_model
from tests.capfilt.test_plugins import clip_folder
from tests.support.peers import peer, save

TEXTS = ["a red ball", "blue star on grass", "there is a photo of a green box"]
BEAM = SamplerConfig(name="beam", p=0.9, top_k=0, temperature=1.0, beams=3, min_tokens=5, max_tokens=16, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_cfg, tokenizer):
    path = tmp_path_factory.mktemp("models") / "g1"
    save_model(new_model(model_cfg, tokenizer, seed=0), tokenizer, path, prompt="a photo of", max_tokens=12)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return blip_core.load(folder, precision="fp32")


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8))


def test_a_folder_of_ours(model, folder):
    network = model.captioner.model
    assert network is model.filter.model and not network.training and model.captioner.prompt == "a photo of"
    assert model.captioner.tokenizer.encode("a red ball", max_tokens=9) == load_model(folder)[1].encode("a red ball", max_tokens=9)
    assert model.filter.identity == blip_core.load(str(folder)).captioner.identity


def test_captions_are_those_of_the_functions_beneath(model, folder, pictures):
    network, tokenizer = load_model(folder)
    expected = caption_images(network, tokenizer, pictures, ["k"] * 5, BEAM, seed=0, num_candidates=2, prompt="a photo of")
    found = model.captions(pictures, num_candidates=2, max_tokens=16, batch_size=2)
    assert found == expected and len({c[0] for c in found}) > 1
    bare = caption_images(network, tokenizer, pictures, ["k"] * 5, BEAM, seed=0)
    assert model.captions(pictures, prompt="", max_tokens=16) == bare != [c[:1] for c in expected]


def test_a_sampled_caption_is_the_picture_s_own(model, pictures, tmp_path):
    """In whichever form it comes, and whatever stands beside it."""
    options = {"sampler": "nucleus", "num_candidates": 2, "max_tokens": 9, "min_tokens": 1}
    together = model.captions(pictures, seed=3, **options)
    forms = [tmp_path / "0.png", str(tmp_path / "1.png"), Image.fromarray(pictures[2]), pictures[3]]
    for number in (0, 1, 4):
        Image.fromarray(pictures[number]).save(tmp_path / f"{number}.png")
    forms.append((tmp_path / "4.png").read_bytes())
    assert model.captions(forms, seed=3, batch_size=2, **options) == together
    assert model.captions(pictures[3:4], seed=3, **options) == together[3:4]
    assert model.captions(pictures, seed=4, **options) != together


def test_pictures_are_seen_upright_and_opaque(model, pictures, tmp_path):
    """As ingest stores them: turned by EXIF, transparency on white."""
    image, exif = Image.fromarray(pictures[0]), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    clear = Image.fromarray(np.dstack([pictures[1], np.zeros((40, 48), np.uint8)]), "RGBA")
    white = np.full((40, 48, 3), 255, np.uint8)
    upright = np.ascontiguousarray(np.rot90(pictures[0], -1))
    features = model.image_features([tmp_path / "turned.png", Image.open(tmp_path / "turned.png"), upright, clear, white, pictures[1]])
    assert np.allclose(features[0], features[2]) and np.allclose(features[1], features[2]) and np.allclose(features[3], features[4])
    assert not np.allclose(features[4], features[5])


def test_scores_have_the_shape_of_the_texts(model, folder, pictures):
    network, tokenizer = load_model(folder)
    expected = score_texts(network, tokenizer, pictures, [TEXTS] * 5, max_tokens=12)
    matrix = model.match(pictures, [TEXTS] * 5, batch_size=7)
    assert matrix.itm.shape == matrix.itc.shape == (5, 3)
    assert matrix.itm == pytest.approx(expected.itm.reshape(5, 3), abs=1e-5)
    assert matrix.itc == pytest.approx(expected.itc.reshape(5, 3), abs=1e-5)
    pairs = model.match(pictures[:3], TEXTS)
    assert pairs.itm.shape == (3,) and pairs.itm == pytest.approx(np.diag(matrix.itm), abs=1e-5)
    assert np.std(matrix.itm) > 1e-3


def test_one_picture_is_asked_in_one_line(model, pictures, tmp_path):
    """In whichever form it comes; numbers for a text, an array for a list of them."""
    Image.fromarray(pictures[0]).save(tmp_path / "0.png")
    forms = [pictures[0], Image.fromarray(pictures[0]), tmp_path / "0.png", str(tmp_path / "0.png"), (tmp_path / "0.png").read_bytes()]
    [[expected]] = model.captions(pictures[:1], max_tokens=16)
    assert [model.caption(form, max_tokens=16) for form in forms] == [expected] * len(forms)
    alone, several = model.match(forms[1], TEXTS[0]), model.match(forms[2], TEXTS)
    assert np.ndim(alone.itm) == 0 and several.itm.shape == (3,) and several.itm[0] == pytest.approx(alone.itm, abs=1e-5)
    assert alone.match is None
    with pytest.raises(ValueError, match=r"image: expected one picture.*`captions` takes a list"):
        model.caption(pictures)
    with pytest.raises(ValueError, match="texts: expected a list"):
        model.match(pictures[:3], "abc")


def test_a_filter_of_a_round_gives_its_calibrated_match(folder, pictures, tmp_path):
    shutil.copytree(folder, tmp_path / "filter")
    calibration = Calibration(itm_logit=1.0, itc=2.0, bias=-0.5)
    write_calibrations([Calibrated(model_hash(folder), "tuned", calibration, 0.5)], tmp_path / "calibration.json", facts={})
    found = blip_core.load(tmp_path / "filter").match(pictures, TEXTS + TEXTS[:2])
    assert found.match == pytest.approx(1 / (1 + np.exp(-(found.itm_logit + 2 * found.itc - 0.5))), abs=1e-6)


def test_features_are_those_whose_cosine_itc_is(model, pictures):
    images, texts = model.image_features(pictures, batch_size=2), model.text_features(TEXTS, batch_size=2)
    assert images.dtype == np.float32 and np.linalg.norm(images, axis=1) == pytest.approx(1, abs=1e-5)
    assert images @ texts.T == pytest.approx(model.match(pictures, [TEXTS] * 5).itc, abs=1e-5)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_a_clip_scores_and_writes_nothing(kind, tokenizer, pictures, tmp_path):
    model = blip_core.load(clip_folder(kind, tmp_path / "clip", tokenizer), precision="fp32")
    scores = model.match(pictures, [TEXTS] * 5)
    assert model.captioner is None and np.isnan(scores.itm).all()
    assert model.image_features(pictures) @ model.text_features(TEXTS).T == pytest.approx(scores.itc, abs=1e-5)
    with pytest.raises(ValueError, match="clip: can't write captions, for it has no decoder"):
        model.captions(pictures)


def test_a_folder_of_transformers(tokenizer, pictures, tmp_path):
    theirs = save(peer("BlipForImageTextRetrieval", "equal", tokenizer), tokenizer, tmp_path / "judges")
    judge = blip_core.load(theirs, precision="fp32")
    assert np.isfinite(judge.match(pictures, TEXTS + TEXTS[:2]).itm).all()
    with pytest.raises(ValueError, match="judges: can't write captions"):
        judge.captions(pictures, max_tokens=8)
    (theirs / "vocab.txt").rename(tmp_path / "words.txt")
    (theirs / "tokenizer.json").unlink(missing_ok=True)
    side = judge.filter.model.cfg.vision.image_size
    larger = blip_core.load(theirs, vocab=tmp_path / "words.txt", image_size=2 * side)
    assert larger.filter.model.cfg.vision.image_size == 2 * side and larger.match(pictures[:1], TEXTS[:1]).itm.shape == (1,)


def test_a_version_of_the_registry(served, pictures, monkeypatch):
    root, network = served
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model = blip_core.load("models:/blip@champion", project=root)
    expected = {k: v.float() for k, v in network.state_dict().items()}
    assert all(torch.equal(v.float(), expected[k]) for k, v in model.filter.model.state_dict().items())
    assert model.captioner.prompt == "a photo of"
    assert blip_core.load("models:/blip/1", project=root).filter.identity == model.filter.identity
    assert [*root.glob(".work/models/blip-1-*/config.json")]
    with pytest.raises(ValueError, match="no version of blip has the alias 'nobody'"):
        blip_core.load("models:/blip@nobody", project=root)


def test_where_there_is_no_registry_none_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="models:/blip/3: no registry in .*: name the project's folder"):
        blip_core.load("models:/blip/3", project=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_told(folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder or file; expected a model folder"):
        blip_core.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no config.json"):
        blip_core.load(tmp_path)
    write_stopped("no gain", tmp_path / "g2")
    with pytest.raises(ValueError, match="the rounds stopped before it: no gain"):
        blip_core.load(tmp_path / "g2")
    with pytest.raises(ValueError, match="loads as it is"):
        blip_core.load(folder, image_size=32)


@pytest.mark.parametrize(
    "images,options,message",
    [
        ("a.jpg", {}, r"expected a list of one or more pictures, got 'a.jpg'"),
        ([], {}, "expected a list of one or more pictures"),
        (["no/such.jpg"], {}, r"images\[0\]: no/such.jpg: no such file"),
        (["https://example.org/a.jpg"], {}, "a URL is not fetched"),
        ([np.zeros((8, 8, 3), np.uint8), b"\x89PNG\r\n\x1a\n"], {}, r"images\[1\]: (corrupt|truncated)"),
        ([b"<html>"], {}, r"images\[0\]: not_an_image: .* \(no JPEG, PNG, WebP or GIF\)"),
        ([np.zeros((8, 8), np.uint8)], {}, r"array uint8 \(height, width, 3\); got uint8 \(8, 8\)"),
        ([np.zeros((8, 8, 3))], {}, "got float64"),
        ([None], {}, "got NoneType"),
        ([np.zeros((8, 8, 3), np.uint8)], {"beam": 3}, "caption: sampler.beam: unknown key; did you mean 'beams'?"),
        ([np.zeros((8, 8, 3), np.uint8)], {"p": 2}, "sampler.p: .* less than or equal to 1, got 2"),
        ([np.zeros((8, 8, 3), np.uint8)], {"sampler": "greedy"}, "sampler.name: .*'nucleus' or 'beam', got 'greedy'"),
        ([np.zeros((8, 8, 3), np.uint8)], {"num_candidates": 4}, "num_candidates is 4, but a search with 3 beams"),
        ([np.zeros((8, 8, 3), np.uint8)], {"max_tokens": 30}, "max_tokens: 30, this model writes 20 at most after the prompt"),
        ([np.zeros((8, 8, 3), np.uint8)], {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_can_not_be_captioned_is_told(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        model.captions(images, **options)


@pytest.mark.parametrize(
    "texts,message",
    [
        (TEXTS[:2], "5 pictures and texts for 2"),
        ([TEXTS] * 4 + [TEXTS[:1]], r"texts\[4\]: 1 texts, texts\[0\] has 3"),
        ([[]] * 5, r"texts\[0\]: 0 texts"),
        ([*TEXTS, "a", None], r"texts\[4\]: expected strings, got \[None\]"),
    ],
)
def test_texts_that_do_not_fit_are_told(model, pictures, texts, message):
    with pytest.raises(ValueError, match=message):
        model.match(pictures, texts)
