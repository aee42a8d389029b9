"""Run the arms of an ablation, for each seed in a clone of its own: initial weights, draws and the sample's data take the seed, nothing
else changes. The project's own data is the same for all seeds.

Start at `ablate`. DVC runs the stages, so what is there is not made again, and a training that was stopped goes on.
"""

import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from blip_core.ablations.arms import Arm, arm_values, chosen, read_arms, rows
from blip_core.ablations.data import own_data, take_data
from blip_core.ablations.graph import Chain, Own, derive
from blip_core.ablations.results import Compare, facts_of, measure_row
from blip_core.config.params import check_params
from blip_core.config.reading import read_values
from blip_core.files.atomic import new_file, new_folder
from blip_core.files.content import write_json
from blip_core.runtime.guardian import guarded
from blip_core.tracking.provenance import git
from blip_core.versions.cache import resolved
from blip_core.versions.inputs import take_unkept

log = logging.getLogger(__name__)
FILE = "ablations.yaml"


def ablate(
    root: Path, params: Path, *, seeds: list[int], names: list[str] | None, out: Path, work: Path, compare: Compare, file: Path = Path(FILE)
) -> list[str]:
    """Run the named arms of `file` (below `root`, or anywhere), all where none is named; `out` is written anew behind each. Returns those
    that failed, as by their gate, and why.

    Before anything runs, ValueError says which name, key or value does not fit.
    """
    arms, values = read_arms(root / file), read_values(params)
    known = check_params(values, params)
    wanted, own = chosen(arms, names), own_data(root)
    for name, arm in wanted.items():
        arm_values(name, arm, values)
    results: dict[str, Any] = {
        "arms": names,
        "facts": facts_of(known, own),
        "rows": _about({name: arm for name, arm in arms.arms.items() if name in wanted}),
        "baselines": list(dict.fromkeys([*(b for b in arms.baselines if b in wanted), *(r for a in wanted.values() for r in a.against)])),
        "seeds": {},
    }
    failed = []
    for seed in seeds:
        clone = prepare(root, work / "ablate" / str(seed), values, seed=seed, own=own)
        made_on = {"commit": git(clone, "rev-parse", "HEAD"), "machine": _machine(known.pretrain.optim.precision)}
        found: dict[str, Any] = {**made_on, "rows": {}}
        results["seeds"][str(seed)] = found
        for name, arm in wanted.items():
            log.info("seed %d: %s (%s)", seed, name, arm.says)
            try:
                found["rows"] |= run_arm(clone, name, arm, baselines=arms.baselines, done=found["rows"], compare=compare)
            except ValueError as e:
                log.error("seed %d: %s: %s", seed, name, e)
                failed.append(f"{name} at seed {seed} ({e})")
            write_json(results, out)
    return failed


def _machine(precision: str) -> str:
    import torch

    from blip_core.compute.precision import resolved

    return f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, {resolved(precision)}"


def _about(wanted: dict[str, Arm]) -> list[dict[str, Any]]:
    told = {n: {"arm": n, "says": arm.says, "paper": arm.paper} for n, arm in wanted.items()}
    numbers = {n: {"in_paper": arm.in_paper.model_dump()} for n, arm in wanted.items() if arm.in_paper}
    return [{"row": row, **told[name], **numbers.get(name, {})} for name, arm in wanted.items() for row in rows(name, arm)]


def prepare(root: Path, clone: Path, values: dict[str, Any], *, seed: int, own: dict[str, str]) -> Path:
    """The seed's clone of the last commit, with its values, its data (`own` of the project, else the seed's sample) and the tasks' files;
    one that is there is taken up."""
    if not clone.exists():
        _clone(root, clone)
    head, there = (git(folder, "rev-parse", "HEAD") for folder in (root, clone))
    if head != there:
        log.info("%s is of commit %s, here is %s; delete it to start anew from here", clone, there[:10], head[:10])
    values = values | {"seed": seed, "sample": values["sample"] | {"seed": seed}}
    _write_yaml(values, clone / "params.yaml")
    take_data(clone, root, values["sample"], own, _call)
    take_unkept(clone, root)
    return clone


def run_arm(
    clone: Path, name: str, arm: Arm, *, baselines: tuple[str, ...], done: dict[str, Any], compare: Compare
) -> dict[str, dict[str, Any]]:
    """Run the stages of an arm, and of the default chain what they need; returns what came of its rows."""
    own = write_stages(clone, name, arm)
    models = rows(name, arm)
    targets = [f"ablations/{name}/dvc.yaml"] if own.stages else []
    targets += [stage for stage in own.measured_by if stage.replace("@", "-") not in own.stages]
    _call([sys.executable, "-m", "dvc", "repro", *targets], clone)
    params = check_params(read_values(_values_path(clone, name)), name)
    found: dict[str, dict[str, Any]] = {}
    for row, model in models.items():
        known = done | found
        against = {b: known[b] for b in (*baselines, *arm.against) if b in known and b != row}
        found[row] = measure_row(clone, model, own, params, against=against, compare=compare)
    return found


def write_stages(clone: Path, name: str, arm: Arm) -> Own:
    """Write the arm's values and its own stages (dvc.yaml, where there are any) to ablations/NAME of the clone."""
    path, values = _values_path(clone, name), read_values(clone / "params.yaml")
    own_values = arm_values(name, arm, values)
    _write_yaml(own_values, path)
    template, file = read_values(clone / "dvc.yaml"), path.with_name("dvc.yaml")
    file.unlink(missing_ok=True)  # DVC reads all of them
    default, under = (Chain(resolved(clone, f, template), v) for f, v in ((clone, values), (path.parent, own_values)))
    own = derive(name, arm, default=default, under=under, file=str(path.relative_to(clone)))
    if own.stages:
        _write_yaml({"stages": own.stages}, file)
    return own


def _values_path(clone: Path, name: str) -> Path:
    return clone / "ablations" / name / "params.yaml"


def _clone(root: Path, clone: Path) -> None:
    if not git(root, "rev-parse", "--verify", "--quiet", "HEAD"):
        raise ValueError(f"{root.resolve()}: ablations run in clones, and this is no repository of git with a commit in it")
    if changed := git(root, "diff", "--name-only", "HEAD"):
        log.info("the clone is of the last commit, without what has changed since: %s", ", ".join(changed.split()))
    with new_folder(clone) as temporary:
        _call(["git", "clone", "--quiet", str(root.resolve()), "."], temporary)


def _write_yaml(values: dict[str, Any], path: Path) -> None:
    with new_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=140))


def _call(command: list[str], folder: Path) -> None:
    """Run a command whose output the user sees. It ends with this process, and all that it has started; ValueError where it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])  # `python` of dvc.yaml is this one
    env = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "PYTHONPATH")} | {"PATH": path}
    guardian = subprocess.Popen(guarded(command), cwd=folder, env=env, stdin=subprocess.PIPE)
    assert guardian.stdin
    try:
        failed = guardian.wait() != 0
    finally:
        guardian.stdin.close()
        guardian.wait()
    if failed:
        raise ValueError(f"{' '.join(command)} failed in {folder}: see above; running ablate again goes on behind what is done")
