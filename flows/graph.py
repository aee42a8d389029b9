"""The graph as DVC knows it, and which of its stages are out of date. Nothing here knows Prefect."""

import difflib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx


@dataclass(frozen=True)
class Node:
    """One stage of the plan."""

    name: str  # DVC's: ingest, pretrain@g0; data.dvc for the tracked collection itself
    pool: str  # `meta.pool` in dvc.yaml
    upstream: tuple[str, ...]
    dirty: bool  # it, or something it depends on, is out of date


def read_plan(root: Path, *, dvc: Path, env: dict[str, str], stages: list[str] | None = None, force: bool = False) -> list[Node]:
    """The stages in an order in which each comes after those it depends on.

    `stages` keeps only these and what they need; `pretrain` means every `pretrain@…`. `force` calls all of them dirty.
    ValueError when DVC cannot read the graph or a name is unknown.
    """
    graph = read_graph(root)
    names = up_to(graph, stages) if stages else set(graph)
    dirty = names if force else out_of_date(graph, changed(root, dvc=dvc, env=env))
    return [
        Node(name, graph.nodes[name]["pool"], tuple(sorted(graph.predecessors(name))), name in dirty)
        for name in nx.lexicographical_topological_sort(graph)
        if name in names
    ]


def read_graph(root: Path) -> nx.DiGraph:
    """Edges point downstream; each node carries its `pool`."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    graph = nx.DiGraph()
    try:
        with Repo(str(root)) as repo:
            for stage in repo.index.graph:
                graph.add_node(stage.addressing, pool=(getattr(stage, "meta", None) or {}).get("pool", "cpu"))
            graph.add_edges_from((up.addressing, down.addressing) for down, up in repo.index.graph.edges())
    except DvcException as e:
        raise ValueError(f"{root}: DVC cannot read the graph: {e}") from None
    return graph


def changed(root: Path, *, dvc: Path, env: dict[str, str]) -> set[str]:
    """The stages whose command, parameters, inputs or outputs differ from dvc.lock."""
    command = [dvc, "--wait-for-lock", "status", "--json"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise ValueError(f"dvc status failed in {root}:\n{done.stderr.strip() or done.stdout.strip()}")
    return set(json.loads(done.stdout))


def out_of_date(graph: nx.DiGraph, changed: Iterable[str]) -> set[str]:
    """What changed and all that depends on it: `dvc repro -s` trusts its inputs, so nothing below a change may be skipped."""
    seeds = set(changed) & set(graph)
    return seeds.union(*(nx.descendants(graph, name) for name in seeds))


def up_to(graph: nx.DiGraph, stages: list[str]) -> set[str]:
    """The named stages and all they depend on."""
    wanted = set()
    for stage in stages:
        matches = {name for name in graph if name == stage or name.startswith(f"{stage}@")}
        if not matches:
            close = difflib.get_close_matches(stage, graph, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; it has {', '.join(sorted(graph))}"
            raise ValueError(f"stages: {stage!r} is not in dvc.yaml{hint}")
        wanted |= matches
    return wanted.union(*(nx.ancestors(graph, name) for name in wanted))
