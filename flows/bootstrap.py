"""The whole chain as a Prefect flow: `python -m flows.bootstrap`. No server needs to be started for it.

dvc.yaml is the one definition of the graph and `dvc repro` the first door to it. This is the second: it runs what is out
of date, several stages at a time, and shows it in Prefect. After either door the other has nothing to do.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # before Prefect is imported: it reads its settings then
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    LINE = "%(asctime)s  %(task_run_name)-18s  %(message)s"
    SETTINGS = {
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
        "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "CRITICAL",  # main says it at the end
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": LINE,
    }
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})

import signal
import subprocess
from collections import Counter
from functools import partial

from prefect import allow_failure, flow
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from blip_core.runtime.cores import available_cores
from blip_core.tables.stopped import stopped
from blip_core.tracking.provenance import git
from flows.approve import ask_for_approval
from flows.graph import Choice, Node, read_plan
from flows.proc import end_with_worker
from flows.publish import publish
from flows.remote import Remote, find_workers
from flows.server import check_server
from flows.slots import Slots
from flows.stage import run_stage
from flows.told import NOT_RUN, tell_once, told
from flows.values import add_set, run_name
from flows.workspace import Workspace, only_one
from flows.worktree import fill, make_worktree, record, tracking_store


def name_of_run() -> str:
    """By what was asked for; Prefect's own name for it, as golden-wasp, says nothing."""
    parameters = dict(flow_run.parameters)
    if parameters.get("revision"):
        parameters["revision"] = git(Path.cwd(), "rev-parse", "--verify", "--quiet", parameters["revision"]) or parameters["revision"]
    return run_name(deployment.name or "bootstrap", parameters)


@flow(name="bootstrap", flow_run_name=name_of_run)
def bootstrap(
    stages: list[str] | None = None,
    from_stage: str | None = None,
    keep: list[str] | None = None,
    force: bool = False,
    revision: str | None = None,
    params: dict[str, Any] | None = None,
    max_workers: int | None = None,
    gpu: Literal["here", "pool"] = "here",
    gpu_wait: float = 600.0,
) -> State:
    """Bring the chain up to date, in the current folder.

        data ─ ingest ─ g0 ─ validate ─ pretrain@g0 ─┬─ tune_captioner@r1 ─ caption@r1 ─┐
                                                     └─ tune_filter@r1 ─┬───────────────┴─ score@r1 ─┐
                                                                        └─ calibrate@r1 ─────────────┴─ assemble@r1 ─ g1
        g1 ─ gate@r1 ─ pretrain@g1 ─ evaluate@g1 ─ decide@r1 (… r2 …) ─ compare ─ register ─ report
        g1 ─ describe@r1
        pretrain@g1 ─ tune_task@vqa-g1 ─ evaluate_task@vqa-g1 ─ compare, and register ─ register_task@vqa, where params.yaml names tasks

    Args:
        stages: only these and what they need; `pretrain` means every `pretrain@…`. None is all.
        from_stage: only this and what depends on it; what it needs is taken as it is, up to date or not.
        keep: stages whose outputs are taken as they are, up to date or not; what only they need is not looked at.
        force: run also what is up to date.
        revision: a commit of git. It runs in a work tree of its own below .work/runs, and this folder stays as it is.
        params: values by dotted key, {"assemble.threshold.web": 0.7}, laid over params.yaml in such a work tree and committed there.
        max_workers: stages at a time, which share the cores. None is two, or one on a single core: what more would need is memory.
        gpu: where the stages with `meta.pool: gpu` run: "here", or on the workers of the work pool that the deployment stage/gpu names.
        gpu_wait: seconds without any worker of that pool online, after which a stage that waits for one fails.
    """
    tell_once()
    if deployment.id:
        end_with_worker()
    choice = Choice(stages, from_stage, keep, force)
    return told(chain_in_folder(choice, revision, params or {}, max_workers, gpu_wait if gpu == "pool" else None))


def chain_in_folder(choice: Choice, revision: str | None, params: dict[str, Any], max_workers: int | None, gpu_wait: float | None) -> State:
    """Run the chain here, or beside this folder where a commit or values are named. Its artifacts follow, and a question to a person."""
    here = Path.cwd()
    try:
        slots, cores = side_by_side(max_workers, available_cores())
        root = make_worktree(here, revision=revision, params=params) if revision or params else here
        with only_one(root):
            workspace = Workspace(root, slots=Slots(slots), cores=cores)
            if root != here:
                fill(root, here, params=params, with_lock=revision is None)
                workspace.tracking = tracking_store(here)
            states, stopped_before = run_chain(choice, workspace, gpu_wait=gpu_wait)
            state = summary(states, stopped_before)
            if state.is_completed():
                elsewhere = f"; in {record(root)}" if root != here else ""
                asked = ask_for_approval(root) if ran("register", states) else ""
                state = Completed(message=f"{state.message}{elsewhere}{asked}")
    except ValueError as e:
        return Failed(message=str(e))
    publish(root, here, states)
    return state


def run_chain(choice: Choice, workspace: Workspace, *, gpu_wait: float | None) -> tuple[dict[str, State], dict[str, str]]:
    """How each of the chosen stages ended, and why those left only placeholders that did so, since the rounds stopped before them.

    `gpu_wait` None: all run here. ValueError when something is wrong before any starts.
    """
    check_params(workspace)
    check_data(workspace.root)
    workspace.mend_locks()
    plan = read_plan(workspace.root, dvc=workspace.dvc, env=workspace.env, choice=choice)
    check_links(plan, workspace.root)
    remote = find_workers(plan, workspace, force=choice.force, wait=gpu_wait) if gpu_wait is not None else None
    states = run_plan(plan, workspace, force=choice.force, remote=remote)
    reasons = {node.name: left_out(node, workspace.root) for node in plan if states[node.name].is_completed()}
    return states, {name: reason for name, reason in reasons.items() if reason}


def left_out(node: Node, root: Path) -> str | None:
    """Why a stage left nothing but placeholders; None of any other. A history, which has no place for the reason, says nothing."""
    reasons = [stopped(root / out) for out in node.outs if not out.endswith(".csv")]
    return reasons[0] if reasons and all(reasons) else None


def side_by_side(wanted: int | None, cores: int) -> tuple[int, int]:
    """How many stages run at a time, and how many cores each of them may use."""
    if wanted is not None and wanted < 1:
        raise ValueError(f"max_workers is {wanted}; expected 1 or more")
    slots = wanted or min(2, cores)
    return slots, max(1, cores // slots)


def check_params(workspace: Workspace) -> None:
    """The whole of params.yaml, before any stage starts."""
    command = [sys.executable, "-m", "blip_core", "params"]
    done = subprocess.run(command, cwd=workspace.root, env=workspace.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise ValueError(done.stderr.strip() or done.stdout.strip())


def check_data(root: Path) -> None:
    if not (root / "data").exists():
        raise ValueError(f"{root / 'data'} is missing: `blip sample --out data` draws a sample; your own collection goes there too")


def check_links(plan: list[Node], root: Path) -> None:
    """DVC calls `ingest` up to date though files behind a link have changed; where it runs, it finds that itself."""
    idle = any(node.name == "ingest" and not node.dirty and not node.kept for node in plan)
    noted = any((root / "data").glob("*.files.json"))
    if idle and noted and root == Path.cwd():  # elsewhere the data of a commit is taken as it was
        from blip_core.config.params import load_params
        from blip_core.intake.unseen import require_noted

        require_noted(Path("data"), load_params(Path("params.yaml")).ingest)


def run_plan(plan: list[Node], workspace: Workspace, *, force: bool, remote: Remote | None) -> dict[str, State]:
    """Run each stage when those it depends on are done. Whatever ends this call, even Ctrl-C, ends the stages too."""
    futures: dict[str, Any] = {}
    with ThreadPoolTaskRunner(max_workers=len(plan) + 1) as runner:  # stages that wait for others take no slot
        try:
            for node in plan:
                upstream = {name: futures[name] for name in node.upstream}
                arguments = {
                    "node": node,
                    "missing": partial(unfinished, upstream),
                    "force": force,
                    "workspace": workspace,
                    "remote": remote,
                }
                named = run_stage.with_options(name=node.name, tags=[node.pool])
                futures[node.name] = runner.submit(named, arguments, wait_for=[allow_failure(future) for future in upstream.values()])
            wait(list(futures.values()))
        finally:
            workspace.children.stop()
    return {name: future.state for name, future in futures.items()}


def unfinished(futures: dict[str, Any]) -> list[str]:
    """Those that ended otherwise than they should."""
    return [name for name, future in futures.items() if not future.state.is_completed()]


def ran(stage: str, states: dict[str, State]) -> bool:
    return stage in states and states[stage].name == "Completed"


def summary(states: dict[str, State], stopped_before: dict[str, str]) -> State:
    """One state for the chain: Completed with the counts, and why the rounds stopped, or Failed with each failed stage's own message."""
    failed = {name: state.message for name, state in states.items() if (state.is_failed() or state.is_crashed()) and state.name != NOT_RUN}
    waiting = [name for name, state in states.items() if not state.is_completed() and name not in failed]
    if failed or waiting:
        told = [f"{name} failed: {message}" for name, message in failed.items()]
        return Failed(message="\n".join(told + ([f"not run because of it: {', '.join(waiting)}"] if waiting else [])))
    num = Counter(state.name for state in states.values())
    counted = f"{num['Completed']} stages run, {num['Restored']} restored from the cache, {num['Unchanged']} unchanged"
    counted += f", {num['Kept']} kept as they are" if num["Kept"] else ""
    for reason in dict.fromkeys(stopped_before.values()):
        names = [name for name, why in stopped_before.items() if why == reason]
        counted += f"\nthe rounds stopped: {reason}; of these stages nothing was to be done: {', '.join(names)}"
    return Completed(message=counted)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.bootstrap", description="Bring the chain up to date.")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="only these and what they need: pretrain, pretrain@g0 …")
    parser.add_argument("--from-stage", metavar="STAGE", help="only this and what depends on it; what it needs is taken as it is")
    parser.add_argument("--keep", nargs="+", metavar="STAGE", help="take what these made as it is, up to date or not")
    parser.add_argument("--force", action="store_true", help="run also what is up to date")
    parser.add_argument("--revision", metavar="COMMIT", help="run this commit in a work tree of its own, below .work/runs")
    add_set(parser, "as assemble.threshold.web=0.7: lay values over params.yaml, in such a work tree")
    parser.add_argument("--max-workers", type=int, help="stages at a time (default: 2, or 1 on a single core)")
    parser.add_argument("--gpu", choices=("here", "pool"), default="here", help="where GPU stages run (default: here)")
    parser.add_argument("--gpu-wait", type=float, default=600.0, metavar="SECONDS", help="for a worker of the pool (default: %(default)g)")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    try:
        check_server(needed=False)
    except ValueError as e:
        print(f"{e}; without PREFECT_API_URL this starts one for itself", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else Prefect's temporary server would stay behind
    try:
        state = bootstrap(**(vars(args) | {"stages": args.stages or None}), return_state=True)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept: run the same command again", file=sys.stderr)
        return 130
    if not state.is_completed():
        print(f"\n{state.message}\nWhat was finished is kept: put it right and run the same command again.", file=sys.stderr)
        return 1
    elsewhere, table = args.revision or args.params, Path("artifacts/report/table.txt")
    if table.exists() and not elsewhere and (not args.stages or "report" in args.stages):  # else it is an older run's
        print(table.read_text())
    print(state.message)
    return 0


if __name__ == "__main__":
    sys.exit(main())
