"""The house rules that a tool can check: one home per service, imports that point down, code that DVC knows of, no shadowed MLflow."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from blip_core.stages import STAGES

ROOT = Path(__file__).parents[2]
# config: its values are tracked as params; runtime: it shows or limits a process and decides no number
UNTRACKED = ("config", "runtime")


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules that a file imports anywhere in it, by dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def own_files(path: Path) -> frozenset[Path]:
    """Files of blip_core that a file imports directly; `import blip_core` itself is a door that loads none of what it gives."""
    candidates = {
        ROOT / (name.replace(".", "/") + end) for name in imports(path) if name.startswith("blip_core.") for end in (".py", "/__init__.py")
    }
    return frozenset(c for c in candidates if c.exists())


def closure(path: Path) -> set[str]:
    """All files of blip_core behind a file, itself included."""
    seen, waiting = set(), [path]
    while waiting:
        if (file := waiting.pop()) not in seen:
            seen.add(file)
            waiting += own_files(file)
    found = {f.relative_to(ROOT) for f in seen if f.name != "__init__.py" or f.parent.name == "formats"}
    return {str(f) for f in found if f.parts[1] not in UNTRACKED}


def rooms() -> list[str]:
    """The packages of blip_core from top to bottom, as the table in docs/architecture.md has them."""
    table = (ROOT / "docs/architecture.md").read_text().split("<!-- rooms -->")[1]
    return re.findall(r"^\| `(\w+)/` ", table, flags=re.MULTILINE)


def test_imports_point_down_the_table_of_rooms():
    order = {room: place for place, room in enumerate(rooms())}
    for path in (ROOT / "blip_core").rglob("*.py"):
        own = path.relative_to(ROOT / "blip_core").parts
        if len(own) == 1:
            continue  # __init__ and __main__, the two doors
        used = {name.split(".")[1] for name in imports(path) if name.startswith("blip_core.")} - {own[0]}
        up = sorted(room for room in used if order.get(room, -1) <= order[own[0]])
        assert not up, f"{path.relative_to(ROOT)}: {own[0]}/ imports {up}, which stand above it in docs/architecture.md, or not at all"


def test_every_room_stands_in_the_table_and_says_what_it_is():
    """Its docstring: what enters, what leaves, which file to open first; and that file is there."""
    found = {p.name for p in (ROOT / "blip_core").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert found == set(rooms()) and len(rooms()) == len(found)
    assert {p.name for p in (ROOT / "blip_core").glob("*.py")} == {"__init__.py", "__main__.py"}
    for room in found:
        folder = ROOT / "blip_core" / room
        says = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert "In: " in says and "Out: " in says and "Open first: " in says, room
        first = re.findall(r"\b(\w+\.py)\b", says.split("Open first: ")[1])
        assert room == "stages" or (first and all((folder / name).exists() for name in first)), room


def test_tests_mirror_the_rooms():
    aside = {"support", "flows", "house", "benchmarks", "__pycache__"}
    assert {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} - aside <= set(rooms())


def stages() -> dict[str, dict]:
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: body.get("do", body) for name, body in raw.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_the_code_of_each_stage(stage):
    """A change in any module that a stage uses must rerun it: its whole import closure stands among its deps."""
    deps = [d for d in stages()[stage]["deps"] if d.startswith("blip_core")]
    missing = sorted(f for f in closure(ROOT / f"blip_core/stages/{stage}.py") if not any(f == d or f.startswith(f"{d}/") for d in deps))
    assert not missing, f"dvc.yaml: {stage}: add to deps: {missing}"
    assert all((ROOT / d).exists() for d in deps)


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_no_room_that_a_stage_does_not_use(stage):
    """A change there would run it again for nothing."""
    used = closure(ROOT / f"blip_core/stages/{stage}.py")
    deps = [d for d in stages()[stage]["deps"] if d.startswith("blip_core")]
    assert not [d for d in deps if not any(f == d or f.startswith(f"{d}/") for f in used)]


def test_what_only_shows_reruns_no_slow_stage():
    shows = ("blip_core/preview", "blip_core/explain", "blip_core/report", "blip_core/review", "blip_core/cli", "blip_core/serving")
    for stage in ("ingest", "pretrain", "tune_captioner", "tune_filter", "calibrate", "caption", "score", "evaluate"):
        assert not set(shows) & set(stages()[stage]["deps"]), stage


@pytest.mark.parametrize("stage,watched", [("caption", "caption"), ("score", "score"), ("calibrate", "score")])
def test_dvc_watches_every_value_but_who_computes(stage, watched):
    """A finished stage need not run again for another engine; for any other value it must."""
    from blip_core.config.params import load_params

    names = set(type(load_params(ROOT / "params.yaml").section(watched)).model_fields) - {"engine", "ray", "endpoint"}
    if stage == "calibrate":
        names.remove("controls_per_image")  # it has its own
    found = {p for p in stages()[stage]["params"] if p.startswith(f"{watched}.")}
    assert found == {f"{watched}.{name}" for name in names}


def test_a_stage_has_one_name_everywhere():
    from blip_core.config.params import load_params

    params = load_params(ROOT / "params.yaml")
    assert set(stages()) == set(STAGES)
    for stage in STAGES:
        assert f"def {stage}(" in (ROOT / f"blip_core/stages/{stage}.py").read_text()
        assert params.section(stage) is not None
        assert f"python -m blip_core stage {stage} " in stages()[stage]["cmd"]


@pytest.mark.parametrize(
    "package,homes",
    [
        ("great_expectations", {"blip_core/checks"}),
        ("mlflow", {"blip_core/tracking", "mlflow/serve.py"}),
        ("matplotlib", {"blip_core/report"}),
        ("prefect", {"flows"}),
        ("boto3", {"blip_core/remote"}),
        ("botocore", {"blip_core/remote"}),
        ("fastapi", {"blip_core/demo"}),
        ("uvicorn", {"blip_core/demo"}),
        ("gradio", {"blip_core/demo"}),
        ("dvc", {"flows", "blip_core/versions"}),
        ("ray", {"blip_core/capfilt", "blip_core/fetch/cluster.py"}),
        ("peft", {"blip_core/capfilt"}),
    ],
)
def test_each_service_has_one_home(package, homes):
    files = [f for folder in ("blip_core", "flows", "mlflow") for f in (ROOT / folder).rglob("*.py")]
    users = {str(f.relative_to(ROOT)) for f in files if any(n == package or n.startswith(f"{package}.") for n in imports(f))}
    strays = {u for u in users if not any(u == h or u.startswith(f"{h}/") for h in homes) and "TYPE_CHECKING" not in (ROOT / u).read_text()}
    assert users and not strays


def test_the_model_knows_tensors_and_its_sizes_only():
    for path in (ROOT / "blip_core/model").glob("*.py"):
        allowed = ("blip_core.model", "blip_core.config")
        assert all(n.startswith(allowed) for n in imports(path) if n.startswith("blip_core")), path


def test_nothing_of_the_house_leans_on_the_flows():
    for path in (ROOT / "blip_core").rglob("*.py"):
        assert not any(n.startswith("flows") for n in imports(path)), path


def test_files_that_the_code_speaks_of_are_there():
    """Five had moved, and their readers were sent to nothing. A name alone is that of a file of any room."""
    others = {"open_clip_train/data.py", "fiftyone/utils/data/importers.py", "example.py"}  # of other packages; that an export writes
    here = [path.relative_to(ROOT).as_posix() for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("[bfmt]*/**/*.py")])]
    known = {"/".join(path.split("/")[start:]) for path in here for start in range(path.count("/") + 1)} | others
    named = re.compile(r"(?<![\w/.{*-])(?:[\w-]+/)*[\w-]+\.py\b")
    for path in [p for p in here if p.startswith(("blip_core/", "flows/"))]:
        assert not (gone := {name for name in named.findall((ROOT / path).read_text()) if name not in known}), f"{path}: {gone}"


def test_our_mlflow_folder_does_not_hide_the_library():
    """A regular package named mlflow at the root would; so would tests or a conftest below it, or a wheel that ships it."""
    import mlflow

    assert "site-packages" in mlflow.__file__
    assert {p.name for p in (ROOT / "mlflow").rglob("*.py")} == {"serve.py"}
    assert "mlflow*" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]


def test_no_package_host_and_no_machine_path_is_named():
    files = [p for p in ROOT.iterdir() if p.suffix in (".toml", ".txt", ".md", ".yaml") or p.name == "Makefile"]
    files += [
        p
        for folder in ("blip_core", "flows", "mlflow", "docs", ".ci")
        for p in (ROOT / folder).rglob("*")
        if p.is_file() and p.suffix not in (".pyc", ".png")
    ]
    for path in files:
        text = path.read_text()
        assert not re.search(r"--(extra-)?index-url|files\.pythonhosted|pypi\.org|/root/|/home/\w", text), path


def test_prefect_server_imports_with_the_pinned_fastapi():
    """Prefect 3.8 declares fastapi < 1, but its server does not import with 0.155 and later."""
    import prefect.server.api.server  # noqa: F401
