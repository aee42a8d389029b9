"""What a worker does for a stage of a chain that runs elsewhere (remote.py): the flow behind the deployment stage/gpu.

It needs a clone of the project (the folder BLIP_PROJECT, or else the one that this code lies in), git's remote, DVC's remote and
Prefect's server, and nothing of the machine that asks. Each stage has a work tree of git below .work/stages, where its unfinished work
waits for the next try; all share the clone's cache.
"""

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from blip_core.runtime.cores import available_cores
from flows.gpus import gpu_locks, locked
from flows.proc import end_with_worker
from flows.progress import Narrator
from flows.remote import MADE
from flows.repro import reproduce, run_dvc, tail
from flows.slots import Slots
from flows.told import tell_once, told
from flows.watch import STAGE_LOG
from flows.workspace import Workspace
from flows.worktree import make_stage_tree, resolve, stage_lock, tracking_store


def project() -> Path:
    """The clone that the worker makes stages in. ValueError where none is."""
    clone = Path(os.environ.get("BLIP_PROJECT", Path(__file__).parents[1]))
    if not (clone / "dvc.yaml").exists():
        raise ValueError(f"{clone}: no dvc.yaml; start the worker with BLIP_PROJECT set to a clone of the project whose stages it makes")
    return clone


@flow(name="stage", flow_run_name="{stage}")
def run_stage_here(stage: str, revision: str, params: str, lock: str, upstream: list[str], force: bool = False) -> State:
    """Make one stage's outputs and push them.

    Args:
        stage: DVC's name of it.
        revision: a commit that this clone has or can fetch.
        params: the text of params.yaml.
        lock: of dvc.lock, what it says of `upstream`.
        upstream: the stages (and .dvc files) whose outputs it reads.
        force: run it also when the run cache has its outputs, and hand over what dvc.lock then says of it.
    """
    tell_once()
    end_with_worker()
    return told(make_in_tree(stage, revision, params, lock, upstream, force=force))


def make_in_tree(stage: str, revision: str, params: str, lock: str, upstream: list[str], *, force: bool) -> State:
    """In the stage's work tree, at the commit and with the values and the lines of dvc.lock of who asked."""
    from dvc.utils.serialize import load_yaml

    log = get_run_logger().getChild(STAGE_LOG)
    clone = project()
    workspace = Workspace(clone, slots=Slots(1), cores=available_cores())
    try:
        with locked([stage_lock(clone, stage)], stopped=lambda: workspace.children.stopped, say=log.info) as locks:
            workspace.root = make_stage_tree(clone, stage, resolve(clone, revision))
            workspace.tracking = tracking_store(clone)
            (workspace.root / "params.yaml").write_text(params)
            (workspace.root / "dvc.lock").write_text(lock)
            state = make(stage, upstream, force=force, workspace=workspace, log=log, locks=locks)
            if force and state.is_completed():
                create_markdown_artifact(key=MADE, markdown=json.dumps(load_yaml(workspace.root / "dvc.lock")["stages"][stage]))
            return state
    except ValueError as e:
        return Failed(message=f"on {socket.gethostname()}: {e}")
    finally:
        workspace.children.stop()


def make(
    stage: str, upstream: list[str], *, force: bool, workspace: Workspace, log: logging.LoggerAdapter[Any], locks: tuple[int, ...]
) -> State:
    """Pull, run, push. What the stage itself says of its failure is the failure."""
    if upstream and (failure := transfer(["pull", "--force", *upstream], "what it reads could not be pulled", workspace=workspace)):
        return failure
    narrator = Narrator(log.info, lambda _: None, interval=10.0)
    with locked(gpu_locks(), stopped=lambda: workspace.children.stopped, say=log.info) as gpus:
        state = reproduce(stage, ["-f" if force else "--pull"], workspace=workspace, narrator=narrator, locks=(*locks, *gpus))
    if not state.is_completed():
        return state
    failure = transfer(["push", "--run-cache", stage], "its outputs are there, but could not be pushed", workspace=workspace)
    return failure or Completed(name=state.name, message=f"made on {socket.gethostname()}")


def transfer(command: list[str], failed: str, *, workspace: Workspace) -> State | None:
    """Between the clone's cache and DVC's remote; None when all went well."""
    lines: list[str] = []
    if run_dvc(command, workspace=workspace, on_line=lines.append, env={}) == 0:
        return None
    return Failed(message=f"on {socket.gethostname()}: {failed}:\n{tail(lines)}")
