"""The DVC stages of an arm, made from those of the chain: what an arm's values do not touch, the default chain has made already.

Start at `derive`. Stages are what DVC makes of dvc.yaml under the arm's values (cache.resolved): no `foreach`, no `${}`.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx

from blip_core.ablations.arms import Arm, rows

Stages = dict[str, dict[str, Any]]
ARTIFACTS = "artifacts/"
# of a stage in MLflow, which ablations leave alone, and the decision that may end the rounds: an ablation shows what the next one brings
DROPPED = ("--run", "--after")


@dataclass(frozen=True)
class Chain:
    stages: Stages
    values: dict[str, Any]  # of params.yaml


@dataclass(frozen=True)
class Own:
    """The stages that an arm adds to the chain, and where it has what the chain has elsewhere."""

    stages: Stages
    moved: dict[str, str]  # path of the chain to that of the arm
    measured_by: list[str]  # stages, of the chain or the arm, that measure the rows

    def path(self, path: str) -> str:
        return self.moved.get(path, path)


def derive(name: str, arm: Arm, *, default: Chain, under: Chain, file: str) -> Own:
    """The arm's own stages, from the default chain and from what it is `under` the arm's values, which lie in `file`.

    They are those of what measures its rows and behind it that differ from the default chain's, read a parameter that does, or what
    such a stage makes. Their outputs lie below artifacts/ablations/NAME.
    """
    chain, stages = ({n: _plain(s) for n, s in some.stages.items()} for some in (default, under))
    stages = {n: _redirected(s, arm.instead) for n, s in stages.items()}
    differ = {n for n, s in stages.items() if s != chain.get(n) or _read(s, default.values) != _read(s, under.values)} - set(arm.keep)
    graph = _graph(stages | arm.stages)
    graph.remove_edges_from([*graph.in_edges(arm.stages)])  # further stages read what the default chain made
    own = differ.union(*(nx.descendants(graph, n) for n in differ), arm.stages)
    by_model = [_measuring(stages, model) for model in rows(name, arm).values()]
    wanted = [n for names in by_model for n in names]
    own &= set(wanted).union(*(nx.ancestors(graph, n) for n in wanted))
    own = own.union(*(names for names in by_model if own.intersection(names)))  # what is measured of a model lies in one folder
    made = {n: s for n, s in (stages | arm.stages).items() if n in own}
    moved = {path: _below(name, path) for s in made.values() for path in outputs(s)}
    moved |= {path: moved[there] for path, there in arm.instead.items() if there in moved}
    found = Own({}, moved, wanted)
    ready = {n.replace("@", "-"): _moved(s, found, name, file, further=n in arm.stages) for n, s in made.items()}
    return replace(found, stages=ready)


def _measuring(stages: Stages, model: str) -> list[str]:
    """Those that measure the model, on tasks too."""
    return [name for name, stage in stages.items() if any(path.startswith(f"artifacts/metrics/models/{model}/") for path in outputs(stage))]


def outputs(stage: dict[str, Any]) -> list[str]:
    """All that it makes, metrics and plots too."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def _plain(stage: dict[str, Any]) -> dict[str, Any]:
    """Without the flags that an arm has no use for, and what they read."""
    kept, read, words = [], set(), shlex.split(stage["cmd"])
    for before, word in zip(["", *words], words, strict=False):
        if before in DROPPED:
            read.add(word)
        elif word not in DROPPED:
            kept.append(word)
    return {**stage, "cmd": shlex.join(kept), "deps": [d for d in stage["deps"] if d not in read]}


def _redirected(stage: dict[str, Any], instead: dict[str, str]) -> dict[str, Any]:
    """Reads what stands in place of a path; the stage that makes the path itself goes on doing so."""
    cmd = _replaced(stage["cmd"], reads=lambda path: instead.get(path, path), writes=lambda path: path)
    return {**stage, "cmd": cmd, "deps": [instead.get(d, d) for d in stage["deps"]]}


def _moved(stage: dict[str, Any], own: Own, name: str, file: str, *, further: bool) -> dict[str, Any]:
    """As the arm's dvc.yaml has it. A further stage reads what the default chain made, any other what the arm has of its own."""
    reads = (lambda path: path) if further else own.path
    cmd = _replaced(stage["cmd"], reads=reads, writes=lambda path: _below(name, path))
    return {
        "cmd": f"{cmd} --params {file}",
        "wdir": "../..",
        "params": [{file: stage["params"]}],
        "deps": [reads(d) for d in stage["deps"]],
        "outs": [_below(name, path) for path in outputs(stage)],
    }


def _below(name: str, path: str) -> str:
    """Where an arm has its own of what the chain makes."""
    return f"{ARTIFACTS}ablations/{name}/{path.removeprefix(ARTIFACTS)}"


def _replaced(cmd: str, *, reads: Callable[[str], str], writes: Callable[[str], str]) -> str:
    """The command with other paths: `writes` gives those that follow a flag --out…, `reads` all others."""
    words = shlex.split(cmd)
    return shlex.join((writes if flag.startswith("--out") else reads)(w) for flag, w in zip(["", *words[:-1]], words, strict=True))


def _read(stage: dict[str, Any], values: dict[str, Any]) -> list[object]:
    """The parameters that the stage reads."""
    return [_at(values, key) for key in stage.get("params", [])]


def _at(values: dict[str, Any], key: str) -> object:
    for part in key.split("."):
        values = values[part]
    return values


def _graph(stages: Stages) -> nx.DiGraph:
    """Edges point downstream."""
    graph = nx.DiGraph()
    graph.add_nodes_from(stages)
    makers = {path: n for n, s in stages.items() for path in outputs(s)}
    for n, s in stages.items():
        graph.add_edges_from((maker, n) for path, maker in makers.items() if any(_within(path, dep) for dep in s["deps"]))
    return graph


def _within(path: str, other: str) -> bool:
    """Whether one of the two is the other, or lies below it."""
    return f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/")
