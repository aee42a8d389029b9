"""Shared fixtures: a tiny random model and its tokenizer. Everything runs on the CPU, offline, on data made here."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "DVC_NO_ANALYTICS"):
    os.environ.setdefault(name, "true")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: threads of one would wait for cores that another has

WORDS = "a red blue green ball box star on grass and next to there is photo of".split()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("BLIP_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"shared reference data not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    from blip_core.tokenizer import Tokenizer, build_vocab

    return Tokenizer(build_vocab([" ".join(WORDS)] * 2, 200))


@pytest.fixture(scope="session")
def model_cfg():
    from blip_core.config import ModelConfig

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
    from blip_core.checkpoint import new_model

    return new_model(model_cfg, tokenizer, seed=0).eval()


@pytest.fixture(scope="session")
def params():
    """The project's own params.yaml, made small enough for a test."""
    return small_params()


def heed_interrupts() -> None:
    """As `preexec_fn` of a child that is to be sent Ctrl-C: what a shell starts in the background, as a run of the tests, ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_tree(pid: int) -> None:
    """A process and all below it at once, as when the power fails."""
    import psutil

    root = psutil.Process(pid)
    for process in [*root.children(recursive=True), root]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended just now
            process.kill()


def gone(pid: int) -> bool:
    """Whether a process has ended; its parent need not have noticed."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition, *, seconds: float = 60):
    """Its first value that is true; fails where there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert value
    return value


def sample_config(**sizes):
    """The sample of params.yaml, of other sizes or another seed."""
    import yaml

    from blip_core.config import SampleConfig

    return SampleConfig(**yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())["sample"] | sizes)


def small_params(**changes):
    """params.yaml with few images and few steps; `changes` replace whole sections."""
    import yaml

    from blip_core.config import Params

    return Params(**(small_values(yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())) | changes))


def small_values(values: dict) -> dict:
    """Few images and few steps: the plumbing is real, the quality is not."""
    values["sample"] |= {"num_web": 240, "num_train": 60, "num_val": 60, "num_test": 60}
    values["model"]["vision"] |= {"width": 32, "depth": 1, "heads": 2}
    values["model"]["text"] |= {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}
    for stage in ("pretrain", "tune_captioner", "tune_filter"):
        values[stage]["optim"] |= {"steps": 12, "batch_size": 16, "checkpoint_every": 5, "log_every": 4, "precision": "fp32"}
    for stage in ("caption", "score", "evaluate"):
        values[stage] |= {"precision": "fp32"}
    values["evaluate"] |= {"bootstrap": 50}
    values["calibrate"] |= {"bootstrap": 20}
    values["compare"] |= {"bootstrap": 50}
    values["validate"] |= {"min_heldout_images": 20}
    # an untrained filter tells nothing apart: let what it does pass
    values["assemble"]["threshold"] = {"web": 0.3, "synthetic": 0.3}
    values["gate"] |= {"max_noise": {"web": 1.0, "synthetic": 1.0}, "max_residual_noise": 1.0, "min_coverage": 0.0, "min_controls": 20}
    values["gate"] |= {"max_degenerate": 1.0, "min_distinct": 0.0}
    return values


@pytest.fixture(scope="session")
def team(tmp_path_factory) -> Path:
    """A project of a team with two versions of g1 in git and DVC (tests/team.py), not to be changed."""
    from team import make_team

    return make_team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="session")
def server():
    """A real Prefect server on a temporary database; yields its URL."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def s3_session(tmp_path_factory):
    from s3_server import NoServer, s3_server

    try:
        with s3_server(tmp_path_factory.mktemp("swift")) as server:
            yield server
    except NoServer as e:
        pytest.skip(str(e))


@pytest.fixture
def s3(s3_session, monkeypatch):
    """A real S3 server (tests/s3_server.py) as the environment names it, nothing broken yet."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_session.env.items():
        monkeypatch.setenv(name, value)
    s3_session.proxy.breaks()
    return s3_session


@pytest.fixture
def impatient(monkeypatch):
    """Waits between attempts, of boto3 and of our own, hardly take time."""
    from blip_core import storage

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.02)))
    monkeypatch.setattr(storage, "_LONGEST_WAIT", 0.02)


@pytest.fixture(scope="session")
def ingested(tmp_path_factory, params) -> Path:
    """A folder `artifacts` as ingest leaves it, of a small sample world."""
    from blip_core.sample import write_sample
    from blip_core.stages.ingest import ingest
    from blip_core.stages.validate import validate

    root = tmp_path_factory.mktemp("ingested")
    write_sample(root / "data", params.sample)
    a = root / "artifacts"
    outs = (a / "shards", a / "generations/g0", a / "heldout", a / "vocab.txt", a / "quarantine.parquet", a / "metrics/ingest.json")
    ingest(root / "data", *outs, cfg=params.ingest, work=root / "work")
    validate(
        a / "generations/g0",
        a / "heldout",
        a / "shards",
        a / "gates/g0.json",
        a / "decisions/g0.json",
        a / "metrics/validate.json",
        a / "docs",
        cfg=params.section("validate"),
    )
    return a


@pytest.fixture(scope="session")
def served(tmp_path_factory, model_cfg, tokenizer):
    """A tiny model as a version of the registry with the alias champion; the folder and the model."""
    from blip_core.checkpoint import new_model, save_model
    from blip_core.config import load_params
    from blip_core.model.inference import for_inference
    from blip_core.precision import resolved
    from blip_core.registry import open_registry
    from blip_core.stages.register import package

    root, params = tmp_path_factory.mktemp("served"), load_params(Path(__file__).parents[1] / "params.yaml")
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
    from browser import NoBrowser, start_browser

    try:
        found = start_browser(tmp_path)
    except NoBrowser as e:
        pytest.skip(str(e))
    yield found
    found.quit()
