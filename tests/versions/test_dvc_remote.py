"""A project of several machines: the crawl in S3, DVC's remote in S3, a generation that one machine makes and another gets."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.stages.test_chain import ran, run
from tests.stages.test_ingest import SPLITS, digest
from tests.support.archives import karpathy_image, sample, tar_bytes, write_img2dataset, write_karpathy
from tests.support.fault_proxy import Rule
from tests.support.small import small_values

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def done(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result


def project(folder: Path, web: str) -> None:
    """The project with the one stage ingest, its crawl in S3, in git."""
    folder.mkdir()
    shutil.copytree(ROOT / "blip_core", folder / "blip_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    for name in (".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    ingest = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["ingest"]
    ingest["cmd"] = ingest["cmd"].replace("--run base/ingest ", "")  # MLflow has no part here
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"ingest": ingest}}))
    values = small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))
    values["ingest"] |= {"web": web, "max_rejected": 1.0}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    write_karpathy(folder / "data/clean", [karpathy_image(f"n{i}", i, split) for i, split in enumerate(SPLITS)])


def test_push_and_pull_through_a_bucket_that_fails(s3, tmp_path, monkeypatch):
    """DVC sees a change of the bucket by the listing; a fresh clone gets the generation without the crawl."""
    for name, value in (("GIT_AUTHOR_NAME", "t"), ("GIT_AUTHOR_EMAIL", "t@t"), ("GIT_COMMITTER_NAME", "t"), ("GIT_COMMITTER_EMAIL", "t@t")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")  # the remote names its own
    endpoint = f"http://127.0.0.1:{s3.proxy.port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    web, store = f"s3://{s3.bucket()}/crawl", f"s3://{s3.bucket()}/dvc"
    write_img2dataset(tmp_path / "crawl", "00000", [f"a{i}" for i in range(5)])
    s3.put_folder(web, tmp_path / "crawl")
    first = tmp_path / "first"
    project(first, web)
    done("git", "init", "-q", cwd=first)
    done("python", "-m", "blip_core", "list", cwd=first)
    done("dvc", "add", "-q", "data", cwd=first)
    assert ran(done("dvc", "repro", cwd=first)) == ["ingest"]
    assert ran(done("dvc", "repro", cwd=first)) == []

    s3.put(f"{web}/00001.tar", tar_bytes(sample("new")))
    assert "1 new" in done("python", "-m", "blip_core", "list", cwd=first).stdout
    done("dvc", "add", "-q", "data", cwd=first)
    assert ran(done("dvc", "repro", cwd=first)) == ["ingest"]

    done("dvc", "remote", "add", "-d", "store", store, cwd=first)
    done("dvc", "remote", "modify", "store", "endpointurl", endpoint, cwd=first)
    s3.proxy.breaks(Rule("503", match=".*", every=5))
    done("dvc", "push", cwd=first)
    assert s3.proxy.rules[0].hits
    done("git", "add", "-A", cwd=first)
    done("git", "commit", "-qm", "g0", cwd=first)
    assert "testing" not in (first / ".dvc/config").read_text()

    second = tmp_path / "second"
    done("git", "clone", "-q", str(first), str(second), cwd=tmp_path)
    s3.proxy.breaks(Rule("cut", match="GET .*/dvc/.*", every=5))
    done("dvc", "pull", cwd=second)
    for name in ("data", "artifacts"):
        assert digest(second / name) == digest(first / name)
    assert ran(done("dvc", "repro", cwd=second)) == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    shutil.rmtree(second / ".dvc/cache")
    shutil.rmtree(second / "artifacts")
    refused = run("dvc", "pull", cwd=second)
    assert refused.returncode != 0 and "wrong" not in refused.stderr
    assert not (second / "artifacts/generations/g0").exists()
