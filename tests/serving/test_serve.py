"""The served model, loaded as a user loads it: from the registry, by alias. What a server answers is in test_scoring_server.py."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from blip_core.capfilt.med import caption_images, score_texts
from blip_core.config.params import load_params
from blip_core.model.nlvr import nlvr_of
from blip_core.model.vqa import vqa_of
from blip_core.pictures.images import admit, decode_rgb
from blip_core.selection.calibration import Calibrated, Calibration, write_calibrations
from blip_core.serving.options import BadRequest, choose, packed_settings
from blip_core.serving.rows import read_rows
from blip_core.serving.service import Service, calibration_of, open_service
from blip_core.stages.register import PACKAGES, example_image, package
from blip_core.tasks.network import save_tuned
from blip_core.weights.checkpoint import model_hash, save_model

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def pyfunc(served, monkeypatch):
    """What a user's program holds after load_model."""
    import mlflow

    monkeypatch.chdir(served[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{served[0]}/mlflow.db")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return mlflow.pyfunc.load_model("models:/blip@champion")


@pytest.fixture
def pictures(tmp_path):
    """Files of every kind, each with other pixels."""
    paths = []
    for i, suffix in enumerate((".png", ".jpg", ".webp")):
        paths.append(tmp_path / f"picture{suffix}")
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def text(path):
    return base64.b64encode(path.read_bytes()).decode()


def table(*rows):
    return pd.DataFrame([row if isinstance(row, dict) else {"image": row} for row in rows])


def stored(pictures):
    """The pictures as training saw them."""
    cfg = load_params(PARAMS).ingest
    return [decode_rgb(admit(p.read_bytes(), cfg.images, short_side=None, quality=cfg.quality, format=cfg.format).data) for p in pictures]


def captions(answers):
    return [answer["captions"][0] for answer in answers]


def test_captions_are_those_of_the_model(served, pyfunc, pictures, tokenizer):
    sampler = load_params(PARAMS).evaluate.sampler
    expected = caption_images(served[1], tokenizer, stored(pictures), ["", "", ""], sampler, seed=0, prompt="a photo of", precision="auto")
    answers = pyfunc.predict(table(*map(str, pictures)))
    assert [answer["captions"] for answer in answers] == expected and all(captions(answers))


def test_path_and_base64_give_the_same_caption_in_any_company(pyfunc, pictures):
    together = pyfunc.predict(table(*map(str, pictures)))
    assert pyfunc.predict({"image": [text(p) for p in pictures]}) == together
    assert pyfunc.predict([{"image": text(p)} for p in pictures]) == together
    assert [pyfunc.predict(table(text(p)))[0] for p in pictures] == together


@pytest.mark.parametrize("form", [Path.read_bytes, Image.open, lambda path: np.asarray(Image.open(path).convert("RGB")), Path])
def test_a_program_may_give_bytes_images_and_arrays(pyfunc, pictures, form):
    """And mixed with others; as rows, as columns and as a table."""
    forms, expected = [form(path) for path in pictures], pyfunc.predict(table(*map(str, pictures)))
    assert pyfunc.predict([{"image": picture} for picture in forms]) == expected
    assert pyfunc.predict({"image": forms}) == expected
    assert pyfunc.predict(table(forms[0], text(pictures[1]), forms[2])) == expected


@pytest.mark.parametrize(
    "value,message",
    [
        (np.zeros((4, 4)), r"row 1: image: expected an array uint8 .height, width, 3., got float64"),
        (7, "a PIL image or an array; got int '7'"),
    ],
)
def test_what_is_no_picture_is_told(pyfunc, pictures, value, message):
    with pytest.raises(MlflowException, match=message):
        pyfunc.predict(table(str(pictures[0]), value))


def test_sampling_is_chosen_by_params(pyfunc, pictures):
    ask = {"sampler": "nucleus", "p": 0.95, "num_captions": 3, "seed": 4, "max_tokens": 6}
    answers = pyfunc.predict(table(*map(str, pictures)), params=ask)
    assert [len(set(answer["captions"])) for answer in answers] == [3, 3, 3]
    assert pyfunc.predict(table(str(pictures[1])), params=ask) == answers[1:2]  # whatever stands beside it
    assert pyfunc.predict(table(str(pictures[1])), params={**ask, "seed": 5}) != answers[1:2]


def test_match_scores_are_those_of_the_filter(served, pyfunc, pictures, tokenizer):
    texts = ["a red ball", "a blue box on grass", "star"]
    found = pyfunc.predict(table(*({"image": str(p), "text": t} for p, t in zip(pictures, texts, strict=True))), params={"task": "match"})
    scores = score_texts(served[1], tokenizer, stored(pictures), [[t] for t in texts], max_tokens=12, precision="auto")
    assert [set(answer) for answer in found] == [{"itm", "itc"}] * 3  # no calibration, so no `match`
    np.testing.assert_allclose([answer["itm"] for answer in found], scores.itm, atol=1e-6)
    np.testing.assert_allclose([answer["itc"] for answer in found], scores.itc, atol=1e-6)


def test_embeddings_have_unit_length_and_the_cosine_of_itc(pyfunc, pictures):
    pairs = [{"image": str(pictures[0]), "text": "a red ball"}, {"image": str(pictures[1])}, {"text": "a star"}]
    both, image, words = pyfunc.predict(table(*pairs), params={"task": "embed"})
    assert set(image) == {"image_embedding"} and set(words) == {"text_embedding"}
    vectors = np.array([both["image_embedding"], both["text_embedding"], image["image_embedding"], words["text_embedding"]])
    assert vectors.shape == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    [match] = pyfunc.predict(table(pairs[0]), params={"task": "match"})
    assert vectors[0] @ vectors[1] == pytest.approx(match["itc"], abs=1e-3)
    only_texts = pyfunc.predict([{"text": "a star"}], params={"task": "embed"})
    np.testing.assert_allclose(only_texts[0]["text_embedding"], vectors[3], atol=2e-3)  # in bf16 padding changes the last bits


def test_calibrated_probability_comes_with_a_filter(served, tmp_path, pictures):
    """Written beside it by its round; what was found for another filter is none of its own."""
    shutil.copytree(served[0] / "model", tmp_path / "filter")
    own = Calibrated(model_hash(tmp_path / "filter"), "tuned", Calibration(itm_logit=1.0, itc=2.0, bias=-0.5), 0.5)
    other = Calibrated("f" * 16, "other", Calibration(itm_logit=9.0, itc=9.0, bias=9.0), 0.5)
    write_calibrations([other, own], tmp_path / "calibration.json", facts={})
    assert package(tmp_path / "filter", load_params(PARAMS))["artifacts"]["calibration"] == str(tmp_path / "calibration.json")
    service = Service(tmp_path / "filter", packed_settings(tmp_path / "filter", load_params(PARAMS)))
    rows = read_rows([text(pictures[0])], ["a red ball"], "match", service.settings, paths=False)
    [answer] = service.answer(rows, choose({"task": "match"}, service.settings))
    logit = np.log(answer["itm"] / (1 - answer["itm"])) + 2 * answer["itc"] - 0.5
    assert answer["match"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    write_calibrations([other], tmp_path / "calibration.json", facts={})
    assert calibration_of(tmp_path / "filter") is None


def test_a_task_that_the_model_has_no_weights_for_is_refused(served, tmp_path, pictures, tokenizer):
    served[1].missing = frozenset({"match"})
    save_model(served[1], tokenizer, tmp_path / "captioner", prompt="", max_tokens=12)
    served[1].missing = frozenset()
    service = Service(tmp_path / "captioner", packed_settings(tmp_path / "captioner", load_params(PARAMS)))
    rows = read_rows([text(pictures[0])], ["a"], "match", service.settings, paths=False)
    with pytest.raises(BadRequest, match="task match is beyond this model: match .the head of ITM."):
        service.answer(rows, choose({"task": "match"}, service.settings))


def overlaid(maps: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(maps["overlay"])))


def test_a_match_and_each_caption_are_explained_on_demand(pyfunc, pictures):
    """The same answers, and maps beside them: words with a number for each of 2 x 2 patches, and the whole drawn over the picture."""
    rows = table(*({"image": str(p), "text": t} for p, t in zip(pictures, ("a red ball", "star", "Box, on grass"), strict=True)))
    plain, found = (pyfunc.predict(rows, params={"task": "match", "explain": explain}) for explain in (False, True))
    assert [{k: v for k, v in answer.items() if k != "maps"} for answer in found] == plain
    assert [word["word"] for word in found[2]["maps"]["words"]] == ["Box", ",", "on", "grass"]
    for maps in (answer["maps"] for answer in json.loads(json.dumps(found))):
        assert maps["layer"] == 1 and {np.shape(word["map"]) for word in maps["words"]} == {np.shape(maps["whole"])} == {(2, 2)}
        assert np.max(maps["whole"]) > 0 and overlaid(maps).size == (288, 240)  # of a picture of 48 x 40
    ask = {"num_captions": 3, "explain": True}
    [captioned] = pyfunc.predict(table(str(pictures[0])), params=ask)
    words = ["".join(word["word"] for word in maps["words"]) for maps in captioned["maps"]]
    assert words == [caption.replace(" ", "") for caption in captioned["captions"]] and len(words) == 3
    with pytest.raises(MlflowException, match="params: explain: 17 rows with 4 captions each; at most 64 maps are drawn"):
        pyfunc.predict(table(*[str(pictures[0])] * 17), params={"num_captions": 4, "beams": 4, "explain": True})
    with pytest.raises(MlflowException, match="params: explain: task embed says nothing of a pair"):
        pyfunc.predict(rows, params={"task": "embed", "explain": True})


def test_a_model_tuned_for_questions_answers_and_says_where_it_looked(served, tmp_path, pictures, tokenizer):
    torch.manual_seed(0)
    save_tuned(vqa_of(served[1]), tokenizer, tmp_path / "vqa", kind="vqa", set_aside=[])
    settings = packed_settings(tmp_path / "vqa", load_params(PARAMS))
    service, asked = open_service(tmp_path / "vqa", settings), ["What is on the grass?", "Is there a star?", "photo"]
    rows = read_rows([text(p) for p in pictures], asked, "answer", settings, paths=False)
    found = service.answer(rows, choose({"task": "answer", "explain": True}, settings))
    assert [a["answer"] for a in found] == [
        a["answer"] for row in rows for a in service.answer([row], choose({"task": "answer"}, settings))
    ]
    assert [[word["word"] for word in a["maps"]["words"]][-2:] for a in found] == [["grass", "?"], ["star", "?"], ["photo"]]
    with pytest.raises(BadRequest, match="task caption is beyond this model: it was tuned for questions; expected task answer"):
        service.answer(rows, choose({}, settings))
    other = Service(served[0] / "model", settings)
    with pytest.raises(BadRequest, match="task answer is beyond this model: it was not tuned for questions"):
        other.answer(rows, choose({"task": "answer"}, settings))
    with pytest.raises(BadRequest, match="row 0: no text; task answer needs image and text in every row"):
        read_rows([text(pictures[0])], [None], "answer", settings, paths=False)


def test_a_model_tuned_for_two_pictures_is_not_served(served, tmp_path, tokenizer):
    save_tuned(nlvr_of(served[1]), tokenizer, tmp_path / "nlvr", kind="nlvr")
    settings = packed_settings(tmp_path / "nlvr", load_params(PARAMS))
    with pytest.raises(ValueError, match="tuned for nlvr, which is not served; expected a model folder, or one tuned for vqa"):
        open_service(tmp_path / "nlvr", settings)


def test_paths_can_be_switched_off(pyfunc, pictures):
    with pytest.raises(MlflowException, match="row 1: image: expected .* as base64 text; paths are not taken here"):
        pyfunc.predict(table(text(pictures[0]), str(pictures[0])), params={"allow_path": False})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no/such/file.png", "or the path of a file; got 'no/such/file.png'"),
        (base64.b64encode(b"plain text").decode(), "not_an_image"),
        ("", "not_an_image"),
        ("\0", "expected a JPEG, PNG, WebP or GIF file as base64 text"),
    ],
)
def test_bad_image_is_named_by_its_row(pyfunc, pictures, value, message):
    with pytest.raises(MlflowException) as e:
        pyfunc.predict(table(str(pictures[0]), value))
    assert "row 1: image: " in str(e.value) and message in str(e.value)


def test_damage_is_refused(pyfunc, pictures):
    with pytest.raises(MlflowException, match="row 0: image: truncated"):
        pyfunc.predict(table(base64.b64encode(pictures[1].read_bytes()[:-400]).decode()))


def test_a_model_whose_own_defaults_are_beyond_the_limits_is_not_packed(served):
    params = load_params(PARAMS)
    limits = params.register_.serving.model_copy(update={"max_captions": 2})
    params = params.model_copy(update={"register_": params.register_.model_copy(update={"serving": limits})})
    with pytest.raises(ValueError, match="beams: 3, at most 2 are allowed"):
        package(served[0] / "model", params)


def test_signature_tells_columns_params_and_answers(pyfunc):
    signature = pyfunc.metadata.signature
    assert signature.inputs.input_names() == ["image", "text"] and not signature.inputs.required_input_names()
    sampler = load_params(PARAMS).evaluate.sampler
    assert {p.name: p.default for p in signature.params.params} == {
        **{k: v for k, v in sampler.model_dump().items() if k != "name"},
        **{"task": "caption", "sampler": sampler.name, "num_captions": 1, "seed": 0, "explain": False, "allow_path": True},
    }
    assert {"captions", "itm", "itc", "match", "image_embedding", "text_embedding", "answer", "maps"} == set(
        signature.outputs.input_names()
    )


def test_input_example_is_a_pair_to_match(pyfunc):
    [row] = pyfunc.input_example
    assert base64.b64decode(row["image"]) == example_image(32)
    [answer] = pyfunc.predict(pyfunc.input_example, params={"task": "match"})
    assert set(answer) == {"itm", "itc"}


def test_model_serves_itself_where_the_project_is_not(served, pictures, tmp_path):
    """A fresh process elsewhere: code and settings come with the model, and its requirements are what that code imports."""
    program = """
import sys, json, inspect, mlflow
from importlib.metadata import packages_distributions
captions = mlflow.pyfunc.load_model("models:/blip@champion").predict([{"image": path} for path in sys.argv[1:]])
import blip_core
names, used = packages_distributions(), set()
for module in [m for n, m in sys.modules.items() if n.startswith("blip_core.")]:
    for value in vars(module).values():
        origin = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) or ""
        used |= {n.lower() for n in names.get(origin.split(".")[0], []) if not origin.startswith("blip_core")}
print(json.dumps([captions, blip_core.__file__, sorted(used)]))
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{served[0]}/mlflow.db", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-P", "-c", program, *map(str, pictures)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    captions, code, used = json.loads(done.stdout.splitlines()[-1])
    assert len(captions) == 3 and Path(code).is_relative_to(served[0] / "mlruns")
    assert set(used) - {"pydantic_core"} == set(PACKAGES)


def test_only_the_registry_and_the_served_model_import_mlflow():
    """The folder mlflow/ is no package: with an __init__.py it would hide the real one."""
    import mlflow

    root = PARAMS.parent
    assert "site-packages" in mlflow.__file__
    assert [p.name for p in (root / "mlflow").rglob("*.py")] == ["serve.py"]
