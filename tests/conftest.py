"""Shared fixtures: a tiny random model and its tokenizer. Everything runs on the CPU, offline, on data made here."""

import contextlib
import gc
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from blip_core.cli.main import QUIET
from tests.support.once import made_once
from tests.support.order import Times, longest_first
from tests.support.processes import HANG, warm_process

# all that the command line sets: what a verb starts would find another environment else than the warm process, and start cold
for name, value in QUIET.items():
    os.environ.setdefault(name, value)
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: threads of one would wait for cores that another has

# flows write to the server's one SQLite side by side; it sends back who comes in the middle, and on a busy machine five times are too few
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "8")
os.environ.setdefault("PREFECT_API_REQUEST_TIMEOUT", "600")
os.environ.setdefault("PREFECT_SERVER_DATABASE_TIMEOUT", "300")
os.environ.pop("OPENAI_API_KEY", None)  # a server of the tests gets none but theirs
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each program that a test starts compiles the project anew


def _leave_the_ends_of_others() -> None:
    """In a fork of the tests' process: what Prefect registered to end its threads has none to end here, and raises. A loading process that
    had done its work then ended with code 1, without a word. The pools' own stay, or their threads would never end."""
    ends = threading._threading_atexits  # type: ignore[attr-defined]
    ends[:] = [end for end in ends if end.func.__module__.startswith("concurrent.")]


os.register_at_fork(after_in_child=_leave_the_ends_of_others)

WORDS = "a red blue green ball box star on grass and next to there is photo of".split()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-times", action="store_true", help="write how long each file took to tests/support/seconds.json")


def pytest_configure(config: pytest.Config) -> None:
    """The warm process is one for all workers; it ends with the run."""
    if hasattr(config, "workerinput"):
        return
    stack = contextlib.ExitStack()
    stack.enter_context(warm_process())
    config.add_cleanup(stack.close)
    if config.option.write_times:
        config.pluginmanager.register(Times())


def pytest_collection() -> None:
    """Garbage is looked for among what the tests make, and not, time and again, among all modules and tests."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        longest_first(items)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("BLIP_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"shared reference data not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    from blip_core.tokenizer.build import build_vocab
    from blip_core.tokenizer.wordpiece import bert_tokenizer

    return bert_tokenizer(build_vocab([" ".join(WORDS)] * 2, 200))


@pytest.fixture(scope="session")
def model_cfg():
    from blip_core.config.model import ModelConfig

    return ModelConfig(
        vision=dict(
            image_size=16, patch_size=8, width=32, depth=2, heads=4, mlp_ratio=2.0, activation="gelu", norm_eps=1e-6, drop_path=0.0
        ),
        text=dict(width=24, depth=2, heads=3, mlp_width=48, max_positions=24, activation="gelu", norm_eps=1e-12, dropout=0.0),
        embed_dim=16,
        init=dict(weight=0.2, patch=0.2, image_position=0.2, token=0.2, text_position=0.2),
    )


@pytest.fixture
def model(model_cfg, tokenizer):
    from blip_core.weights.checkpoint import new_model

    return new_model(model_cfg, tokenizer, seed=0).eval()


@pytest.fixture(scope="session")
def params():
    """The project's own params.yaml, made small enough for a test."""
    from tests.support.small import small_params

    return small_params()


@pytest.fixture(scope="session")
def team(tmp_path_factory) -> Path:
    """A project of a team with two versions of g1 in git and DVC (tests/support/team.py), not to be changed."""
    from tests.support.team import copy_team, make_team

    made = made_once(tmp_path_factory, "team", make_team)
    return copy_team(made / "project", tmp_path_factory.mktemp("team"))  # whoever reads it takes locks of DVC in it


@pytest.fixture(scope="session")
def server():
    """A real Prefect server on a temporary database; yields its URL."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=int(HANG)):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def s3_session(tmp_path_factory):
    from tests.support.s3_server import NoServer, s3_server

    try:
        with s3_server(tmp_path_factory.mktemp("swift")) as server:
            yield server
    except NoServer as e:
        pytest.skip(str(e))


@pytest.fixture
def s3(s3_session, monkeypatch):
    """A real S3 server (tests/support/s3_server.py) as the environment names it, nothing broken yet."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_session.env.items():
        monkeypatch.setenv(name, value)
    s3_session.proxy.breaks()
    return s3_session


@pytest.fixture
def impatient(monkeypatch):
    """Waits between attempts, of boto3, of stamina and of our own, hardly take time."""
    from blip_core.remote import storage

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.02)))
    monkeypatch.setattr(storage, "_LONGEST_WAIT", 0.02)


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    """An empty database of MLflow with its schema, which takes seconds to make, to be copied."""
    from mlflow import MlflowClient

    def make(folder: Path) -> None:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    return made_once(tmp_path_factory, "schema", make) / "mlflow.db"


@pytest.fixture(scope="session")
def ingested(tmp_path_factory, params) -> Path:
    """A folder `artifacts` as ingest leaves it, of a small sample world, not to be changed."""
    from tests.support.small import ingest_small

    return made_once(tmp_path_factory, "ingested", lambda root: ingest_small(root, params)) / "artifacts"


@pytest.fixture(scope="session")
def served(tmp_path_factory, database, model_cfg, tokenizer):
    """A tiny model as a version of the registry with the alias champion; the folder and the model."""
    from blip_core.compute.precision import resolved
    from blip_core.config.params import load_params
    from blip_core.model.inference import for_inference
    from blip_core.stages.register import package
    from blip_core.tracking.registry import open_registry
    from blip_core.weights.checkpoint import new_model, save_model

    root, params = tmp_path_factory.mktemp("served"), load_params(Path(__file__).parents[1] / "params.yaml")
    shutil.copy(database, root)
    network = new_model(model_cfg, tokenizer, seed=0).eval()
    save_model(network, tokenizer, root / "model", prompt="a photo of", max_tokens=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root)
        with open_registry("blip", root) as registry:
            version = registry.add(tags={"model_hash": "x"}, files={}, **package(root / "model", params))
            registry.point("champion", version)
    return root, for_inference(network, resolved(params.evaluate.precision))


@pytest.fixture
def driver(tmp_path):
    from tests.support.browser import browser

    with browser(tmp_path) as found:
        yield found
