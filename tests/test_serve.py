"""The served captioner, loaded as a user loads it: from the registry, by alias."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from blip_core.capfilt import caption_images
from blip_core.checkpoint import new_model, save_model
from blip_core.config import load_params
from blip_core.images import admit, decode_rgb
from blip_core.stages.register import PACKAGES, example_image, package

PARAMS = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture(scope="module")
def served(tmp_path_factory, model_cfg, tokenizer):
    """A tiny model as a version of the registry with the alias champion; the folder and the model."""
    from blip_core.registry import open_registry

    root = tmp_path_factory.mktemp("root")
    network = new_model(model_cfg, tokenizer, seed=0).eval()
    save_model(network, tokenizer, root / "model", prompt="a photo of", max_tokens=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root)
        with open_registry("blip", root) as registry:
            version = registry.add(tags={"model_hash": "x"}, files={}, **package(root / "model", load_params(PARAMS)))
            registry.point("champion", version)
    return root, network


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


def test_captions_are_those_of_the_model(served, pyfunc, pictures, tokenizer):
    params = load_params(PARAMS)
    cfg, sampler = params.ingest, params.evaluate.sampler
    stored = [admit(p.read_bytes(), cfg.images, short_side=None, quality=cfg.quality, format=cfg.format).data for p in pictures]
    images = [decode_rgb(s) for s in stored]
    expected = caption_images(served[1], tokenizer, images, ["", "", ""], sampler, seed=0, prompt="a photo of", precision="bf16")
    captions = pyfunc.predict([str(p) for p in pictures])
    assert captions == [c[0] for c in expected] and all(isinstance(c, str) and c for c in captions)


def test_path_and_base64_give_the_same_caption_in_any_company(pyfunc, pictures):
    together = pyfunc.predict([str(p) for p in pictures])
    assert pyfunc.predict({"image": [text(p) for p in pictures]}) == together
    assert pyfunc.predict(pd.DataFrame({"image": [text(p) for p in pictures]})) == together
    assert [pyfunc.predict([text(p)])[0] for p in pictures] == together


def test_paths_can_be_switched_off(pyfunc, pictures):
    with pytest.raises(MlflowException, match="image 1: expected an image file as base64 text; paths are not taken here"):
        pyfunc.predict([text(pictures[0]), str(pictures[0])], params={"allow_path": False})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no/such/file.png", "image 1: expected an image file as base64 text, or the path of a file; got 'no/such/file.png'"),
        (base64.b64encode(b"plain text").decode(), "image 1: not_an_image"),
        ("\0", "image 1: expected an image file"),
    ],
)
def test_bad_image_is_named_by_its_row(pyfunc, pictures, value, message):
    with pytest.raises(MlflowException) as e:
        pyfunc.predict([str(pictures[0]), value])
    assert message in str(e.value)


def test_bomb_and_damage_are_refused(pyfunc, pictures):
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    with pytest.raises(MlflowException, match="image 0: .*bomb|image 0: .*too_large"):
        pyfunc.predict([base64.b64encode(bomb.getvalue()).decode()])
    with pytest.raises(MlflowException, match="image 0: truncated"):
        pyfunc.predict([base64.b64encode(pictures[1].read_bytes()[:-400]).decode()])


def test_scoring_server_takes_base64_and_no_paths(pyfunc, pictures, monkeypatch):
    """Its clients may send allow_path, but the files are the server's."""
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "")  # to be taken back after the test; the server sets it itself
    expected = pyfunc.predict([text(p) for p in pictures])
    client = TestClient(scoring_server.init(pyfunc), raise_server_exceptions=False)
    for kind in ("inputs", "instances"):
        assert client.post("/invocations", json={kind: [text(p) for p in pictures]}).json() == {"predictions": expected}
    assert client.post("/invocations", json={"dataframe_records": [{"image": text(pictures[0])}]}).json() == {"predictions": expected[:1]}
    answer = client.post("/invocations", json={"inputs": [str(pictures[0])], "params": {"allow_path": True}})
    assert answer.status_code == 400
    assert "image 0: expected an image file as base64 text; paths are not taken here" in answer.json()["message"]


def test_input_example_is_captioned(pyfunc):
    example = pyfunc.input_example
    assert [base64.b64decode(e) for e in example] == [example_image(32)]
    assert len(pyfunc.predict(example)) == 1


@pytest.mark.slow
def test_model_serves_itself_where_the_project_is_not(served, pictures, tmp_path):
    """A fresh process elsewhere: code and settings come with the model, and its requirements are what that code imports."""
    program = """
import sys, json, inspect, mlflow
from importlib.metadata import packages_distributions
captions = mlflow.pyfunc.load_model("models:/blip@champion").predict(sys.argv[1:])
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
