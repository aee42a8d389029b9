"""The graph as DVC knows it, and which of its stages are out of date. Nothing here knows Prefect."""

import difflib
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    from dvc.stage import Stage

GPU = "gpu"  # the `meta.pool` of stages that want one
ALWAYS = ["always changed"]  # all that `dvc status` says of a stage with `always_changed` that is up to date


@dataclass(frozen=True)
class Node:
    """One stage of the plan."""

    name: str  # DVC's: ingest, pretrain@g0; data.dvc for the tracked collection itself
    pool: str  # `meta.pool` in dvc.yaml
    upstream: tuple[str, ...]
    dirty: bool  # it, or something it depends on, is out of date
    kept: bool = False  # its outputs are taken as they are, out of date or not
    deps: tuple[str, ...] = ()  # paths
    uncached: tuple[str, ...] = ()  # paths of the outputs that DVC does not keep
    outs: tuple[str, ...] = ()
    behind: int = 0  # how many stages come after it, one after the other, on the longest way


@dataclass(frozen=True)
class Choice:
    """What of the graph a run is about. `pretrain` means every `pretrain@…`; ValueError where a name is unknown."""

    stages: list[str] | None = None  # these and what they need; None is all
    from_stage: str | None = None  # it and what depends on it; all other stages are kept
    keep: list[str] | None = None  # not run: what they made is taken as it is, and what only they need is left alone
    force: bool = False  # run what is up to date too

    def nodes(self, graph: nx.DiGraph) -> tuple[set[str], set[str]]:
        """The stages that the run looks at, and those among them that it keeps."""
        kept = named(graph, self.keep or [])
        if self.from_stage:
            first = named(graph, [self.from_stage])
            kept |= set(graph) - first.union(*(nx.descendants(graph, name) for name in first))
        if self.stages and (both := named(graph, self.stages) & kept):
            raise ValueError(f"stages: {', '.join(sorted(both))} would have to run, but from_stage or keep says to leave it")
        cut = graph.edge_subgraph((up, down) for up, down in graph.edges if down not in kept).copy()
        cut.add_nodes_from(graph)
        names = up_to(cut, self.stages) if self.stages else up_to(cut, sorted(set(graph) - kept))
        return names, kept & names


def read_plan(root: Path, *, dvc: Path, env: dict[str, str], choice: Choice) -> list[Node]:
    """The chosen stages in an order in which each comes after those it depends on.

    ValueError when DVC cannot read the graph, a name is unknown, or a stage that is kept has made nothing yet.
    """
    graph = read_graph(root)
    names, kept = choice.nodes(graph)
    if missing := [out for name in sorted(kept) for out in graph.nodes[name]["outs"] if not (root / out).exists()]:
        raise ValueError(f"{', '.join(missing)}: to be taken as it is, but not in {root}; run what makes it, or `dvc checkout`")
    moving = graph.subgraph(names - kept)
    dirty = set(moving) if choice.force else out_of_date(moving, changed(root, dvc=dvc, env=env))
    upstream = {name: tuple(sorted(names.intersection(graph.predecessors(name)))) for name in names}
    order = [name for name in nx.lexicographical_topological_sort(graph) if name in names]
    behind: dict[str, int] = {}
    for name in reversed(order):
        behind[name] = max((1 + behind[down] for down in graph.successors(name) if down in behind), default=0)
    return [
        Node(
            name,
            graph.nodes[name]["pool"],
            upstream[name],
            name in dirty,
            name in kept,
            tuple(graph.nodes[name]["deps"]),
            tuple(graph.nodes[name]["uncached"]),
            tuple(graph.nodes[name]["outs"]),
            behind[name],
        )
        for name in order
    ]


def read_graph(root: Path) -> nx.DiGraph:
    """Edges point downstream; each node carries its `pool` and the paths of its `deps`, its `outs`, and those of them `uncached`."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    graph = nx.DiGraph()
    try:
        with Repo(str(root)) as repo:
            for stage in repo.index.graph:
                pool = (getattr(stage, "meta", None) or {}).get("pool", "cpu")
                paths = {
                    "deps": [dep.def_path for dep in stage.deps],
                    "outs": [os.path.relpath(out.fs_path, root) for out in stage.outs],
                    "uncached": [out.def_path for out in stage.outs if not out.use_cache],
                }
                graph.add_node(_address(stage, root), pool=pool, **paths)
            graph.add_edges_from((_address(up, root), _address(down, root)) for down, up in repo.index.graph.edges())
    except DvcException as e:
        raise ValueError(f"{root}: DVC cannot read the graph: {e}") from None
    return graph


def _address(stage: "Stage", root: Path) -> str:
    """The stage's name as `dvc` says it in `root`; its own `addressing` is as said in the current folder."""
    path, name = os.path.relpath(stage.path, root), getattr(stage, "name", None)
    return path if not name else name if path == "dvc.yaml" else f"{path}:{name}"


def changed(root: Path, *, dvc: Path, env: dict[str, str]) -> set[str]:
    """The stages whose command, parameters, inputs or outputs differ from dvc.lock.

    What DVC runs each time, as the stage that notes the package's version, is run here: only then is it known whether it writes the same.
    """
    found = json.loads(_dvc(["status", "--json"], root, dvc=dvc, env=env))
    if always := [name for name, how in found.items() if how == ALWAYS]:
        _dvc(["repro", "--quiet", "--single-item", *always], root, dvc=dvc, env=env)
        found = json.loads(_dvc(["status", "--json"], root, dvc=dvc, env=env))
    return {name for name, how in found.items() if how != ALWAYS}


def _dvc(arguments: list[str], root: Path, *, dvc: Path, env: dict[str, str]) -> str:
    command = [str(dvc), "--wait-for-lock", *arguments]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise ValueError(f"dvc {arguments[0]} failed in {root}:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def out_of_date(graph: nx.DiGraph, changed: Iterable[str]) -> set[str]:
    """What changed and all that depends on it: `dvc repro -s` trusts its inputs, so nothing below a change may be skipped."""
    seeds = set(changed) & set(graph)
    return seeds.union(*(nx.descendants(graph, name) for name in seeds))


def up_to(graph: nx.DiGraph, stages: list[str]) -> set[str]:
    """The named stages and all they depend on."""
    wanted = named(graph, stages)
    return wanted.union(*(nx.ancestors(graph, name) for name in wanted))


def named(graph: nx.DiGraph, stages: list[str]) -> set[str]:
    """Stages by name or group: `pretrain` is every `pretrain@…`."""
    wanted = set()
    for stage in stages:
        matches = {name for name in graph if name == stage or name.startswith(f"{stage}@")}
        if not matches:
            close = difflib.get_close_matches(stage, graph, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; it has {', '.join(sorted(graph))}"
            raise ValueError(f"stages: {stage!r} is not in dvc.yaml{hint}")
        wanted |= matches
    return wanted
