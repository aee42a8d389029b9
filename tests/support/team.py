"""A small project of a team: git, DVC with a remote, dvc.lock committed with each generation. Stages are quick, their files real."""

import shutil
from pathlib import Path

import yaml

from tests.stages.test_chain import run
from tests.support.small import small_values

ROOT = Path(__file__).parents[2]
NUM = 6  # images of the crawl, in two shards

STAGES = """
stages:
  ingest:
    cmd: python team_stages.py ingest
    deps: [data, team_stages.py]
    outs: [artifacts/generations/g0, artifacts/shards]
  assemble:
    cmd: python team_stages.py assemble
    params: [assemble]
    deps: [artifacts/generations/g0]
    outs: [artifacts/generations/g1]
  gate:
    cmd: python team_stages.py gate
    deps: [artifacts/generations/g1]
    outs: [artifacts/gates/g1.json]
  pretrain:
    foreach: {g0: {generation: g0, sources: "human,web"}, g1: {generation: g1, sources: "human,web,synthetic"}}
    do:
      cmd: python team_stages.py pretrain --sources ${item.sources} ${key}
      params: [seed]
      deps: ["artifacts/generations/${item.generation}"]
      outs: ["artifacts/models/${key}"]
  register:
    cmd: python team_stages.py register
    deps: [artifacts/models/g1]
    outs:
      - artifacts/registration.json: {cache: false}
"""

# web text n has the score n / 6; the synthetic text of an even image has 0.9, of an odd one 0.1
MAKE = """
import hashlib, json, sys
from pathlib import Path

A = Path("artifacts")


def tables(name, rows):
    from blip_core.tables.captions import caption_table, write_table
    from blip_core.tables.manifest import write_manifest

    for shard in {row["shard"] for row in rows}:
        own = [{k: v for k, v in row.items() if k != "shard"} for row in rows if row["shard"] == shard]
        write_table(caption_table(own), A / "generations" / name / f"{shard}.parquet")
    write_manifest(A / "generations" / name)


def base():
    for n, text in enumerate(Path("data/texts.txt").read_text().split("\\n")[:-1]):
        key = f"web-{n}"
        yield {"shard": f"web-{n // 3}", "key": key, "image_id": key, "text": text, "source": "web", "candidate": 0, "reason": "kept"}
    yield {"shard": "train-0", "key": "h", "image_id": "h", "text": "a man", "source": "human", "candidate": 0, "reason": "kept"}


def ingest():
    tables("g0", list(base()))
    (A / "shards").mkdir()
    (A / "shards/web-0.tar").write_bytes(b"shard")
    from blip_core.tables.manifest import write_manifest

    write_manifest(A / "shards")


def assemble():
    import yaml

    limit, rows = yaml.safe_load(Path("params.yaml").read_text())["assemble"]["threshold"], []
    for n, row in enumerate(base()):
        if row["source"] == "web":
            score = 0.9 if n % 2 == 0 else 0.1
            made = {**row, "source": "synthetic", "round": "r1", "text": f"a drawing of {n}", "model": "c0ffee", "filter": "f117e5"}
            made["match"] = score
            rows.append(made | {"reason": "kept" if score >= limit["synthetic"] else "below_threshold"})
            row |= {"match": n / 6, "filter": "f117e5", "reason": "kept" if n / 6 >= limit["web"] else "below_threshold"}
        rows.append(row)
    tables("g1", rows)


def gate():
    manifest = json.loads((A / "generations/g1/manifest.json").read_text())
    lines = "".join(f"{n} {manifest['files'][n]['sha256']}\\n" for n in sorted(manifest["files"]))
    (A / "gates/g1.json").parent.mkdir(exist_ok=True)
    verdict = {"passed": True, "generation": hashlib.sha256(lines.encode()).hexdigest(), "checks": [{"name": "texts", "passed": True}]}
    (A / "gates/g1.json").write_text(json.dumps(verdict))


def pretrain():
    folder = A / "models" / sys.argv[-1]
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(json.dumps({"file": name, "of": (A / "generations" / sys.argv[-1] / "manifest.json").read_text()}))


def register():
    (A / "registration.json").write_text("{}")


globals()[sys.argv[1]]()
"""


def done(*command: str, cwd: Path) -> str:
    """What a command prints that must succeed."""
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def verb(*args: str, cwd: Path) -> str:
    return done("python", "-m", "blip_core", *args, cwd=cwd)


def refused(*args: str, cwd: Path) -> str:
    """What a verb says that must fail for a reason the user can mend."""
    result = run("python", "-m", "blip_core", *args, cwd=cwd)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr[-3000:]
    return result.stderr


def change(folder: Path, *, web: float) -> None:
    """Another threshold for web texts."""
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["assemble"]["threshold"] = {"web": web, "synthetic": 0.5}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def commit(folder: Path, message: str) -> None:
    done("dvc", "repro", "-q", cwd=folder)
    done("git", "add", "-A", cwd=folder)
    done("git", "commit", "-qm", message, cwd=folder)


def make_team(folder: Path) -> Path:
    """A project at folder/project with g1 in two versions: web texts from 0.1 on (tag ds/g1), then from 0.5 on; all is pushed."""
    project = folder / "project"
    project.mkdir(parents=True)
    (project / "team_stages.py").write_text(MAKE)
    (project / "dvc.yaml").write_text(STAGES)
    (project / ".gitignore").write_text("/artifacts/\n/data\n/.work/\n/mlflow.db*\n/mlruns/\n/blip_core\n")
    (project / "params.yaml").write_text(yaml.safe_dump(small_values(yaml.safe_load((ROOT / "params.yaml").read_text()))))
    (project / "blip_core").symlink_to(ROOT / "blip_core")  # so that it is the package under test
    (project / "data").mkdir()
    (project / "data/texts.txt").write_text("".join(f"picture number {n}\n" for n in range(NUM)))
    done("git", "init", "-q", "-b", "main", cwd=project)
    for key, value in (("user.name", "Ann"), ("user.email", "ann@example.org")):
        done("git", "config", key, value, cwd=project)
    done("dvc", "init", "-q", cwd=project)
    done("dvc", "remote", "add", "-q", "-d", "store", str(folder / "store"), cwd=project)
    done("dvc", "add", "-q", "data", cwd=project)
    change(project, web=0.1)
    commit(project, "first")
    done("git", "tag", "ds/g1", cwd=project)
    done("dvc", "push", "-q", cwd=project)
    change(project, web=0.5)
    commit(project, "second")
    done("dvc", "push", "-q", cwd=project)
    return project


def copy_team(project: Path, folder: Path) -> Path:
    """The same project elsewhere, to be changed."""
    return Path(shutil.copytree(project, folder / "project", symlinks=True))
