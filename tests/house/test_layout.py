"""The house rules that a tool can check: one home per service, imports that point down, code that DVC knows of, no shadowed MLflow."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from blip_core.stages import STAGES

ROOT = Path(__file__).parents[2]
# values of config are tracked as params; the others show or record a run and decide nothing
UNTRACKED = {
    "blip_core/__init__.py",
    "blip_core/stages/__init__.py",
    "blip_core/report/__init__.py",
    "blip_core/public/__init__.py",
    "blip_core/config/config.py",
    "blip_core/runtime/progress.py",
    "blip_core/runtime/cores.py",
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, by dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_files(path: Path) -> set[Path]:
    """Files of blip_core that a file imports directly."""
    candidates = {
        ROOT / (name.replace(".", "/") + end) for name in imports(path) if name.startswith("blip_core") for end in (".py", "/__init__.py")
    }
    return {c for c in candidates if c.exists()}


def closure(path: Path) -> set[str]:
    """All files of blip_core behind a file, itself included."""
    seen, waiting = set(), [path]
    while waiting:
        if (file := waiting.pop()) not in seen:
            seen.add(file)
            waiting += own_files(file)
    return {str(f.relative_to(ROOT)) for f in seen} - UNTRACKED


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


@pytest.mark.parametrize("stage,watched", [("caption", "caption"), ("score", "score"), ("calibrate", "score")])
def test_dvc_watches_every_value_but_who_computes(stage, watched):
    """A finished stage need not run again for another engine; for any other value it must."""
    from blip_core.config.config import load_params

    names = set(type(load_params(ROOT / "params.yaml").section(watched)).model_fields) - {"engine", "ray"}
    if stage == "calibrate":
        names.remove("controls_per_image")  # it has its own
    found = {p for p in stages()[stage]["params"] if p.startswith(f"{watched}.")}
    assert found == {f"{watched}.{name}" for name in names}


def test_a_stage_has_one_name_everywhere():
    from blip_core.config.config import load_params

    params = load_params(ROOT / "params.yaml")
    assert set(stages()) == set(STAGES)
    for stage in STAGES:
        assert f"def {stage}(" in (ROOT / f"blip_core/stages/{stage}.py").read_text()
        assert params.section(stage) is not None
        assert f"python -m blip_core {stage} " in stages()[stage]["cmd"]


@pytest.mark.parametrize(
    "package,homes",
    [
        ("great_expectations", {"blip_core/checks/expectations.py"}),
        ("mlflow", {"blip_core/tracking/runs.py", "blip_core/tracking/delivery.py", "blip_core/tracking/registry.py", "mlflow/serve.py"}),
        ("matplotlib", {"blip_core/report/figures.py"}),
        ("prefect", {"flows"}),
        ("boto3", {"blip_core/remote/storage.py"}),
        ("botocore", {"blip_core/remote/storage.py"}),
        ("fastapi", {"blip_core/demo/app.py"}),
        ("uvicorn", {"blip_core/demo/verb.py"}),
        ("gradio", {"blip_core/demo/app.py", "blip_core/demo/page.py"}),
        ("dvc", {"flows", "blip_core/versions/cache.py"}),
        ("ray", {"blip_core/capfilt/engine.py"}),
    ],
)
def test_each_service_has_one_home(package, homes):
    files = [f for folder in ("blip_core", "flows", "mlflow") for f in (ROOT / folder).rglob("*.py")]
    users = {str(f.relative_to(ROOT)) for f in files if any(n == package or n.startswith(f"{package}.") for n in imports(f))}
    strays = {u for u in users if not any(u == h or u.startswith(f"{h}/") for h in homes) and "TYPE_CHECKING" not in (ROOT / u).read_text()}
    assert users and not strays


def test_the_model_knows_tensors_and_its_sizes_only():
    for path in (ROOT / "blip_core/model").glob("*.py"):
        allowed = ("blip_core.model", "blip_core.config.config")
        assert all(n.startswith(allowed) for n in imports(path) if n.startswith("blip_core")), path


def test_lower_modules_do_not_import_stages_or_flows():
    for path in (ROOT / "blip_core").rglob("*.py"):
        if path.parent.name != "stages" and path.name not in ("__main__.py", "verbs.py"):
            assert not any(n.startswith(("blip_core.stages", "flows")) for n in imports(path)), path


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
