"""Ask a Prefect server for a run, wait for its end, tell what came of it: `python -m flows.ask bootstrap/retrain --revision COMMIT`.

What CI does. Needs Prefect alone, PREFECT_API_URL, and PREFECT_API_AUTH_STRING where the server wants it.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from flows.server import check_server
from flows.values import add_set, run_name

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

SHOWN = ("comparison", "results")  # the run's artifacts (flows/publish.py)
_HINTS = {
    "Late": ": no worker has taken it; is one there? (`prefect worker start --pool cpu` in the folder where the chain runs)",
    "AwaitingConcurrencySlot": ": another run of the deployment comes first",
}


def ask(client: "SyncPrefectClient", deployment: str, parameters: dict[str, Any], *, timeout: float, pause: float = 5.0) -> "FlowRun":
    """Start a run of the deployment and wait for its final state.

    However the wait ends, no run stays behind that nobody waits for: after `timeout` seconds, or when this is stopped, it is cancelled.
    """
    name = run_name(deployment.rpartition("/")[2], parameters)
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name(deployment).id, parameters=parameters, name=name)
    print(f"{deployment}: {run.name}, id {run.id}", flush=True)
    deadline, said = time.monotonic() + timeout, None
    try:
        while not (run.state and run.state.is_final()) and time.monotonic() < deadline:
            time.sleep(pause)
            run = _look(client, run)
            if run.state and run.state.name != said:
                said = run.state.name
                print(f"{run.name}: {said}{_HINTS.get(said, '')}", flush=True)
    finally:
        if not (run.state and run.state.is_final()):
            _cancel(client, run.id)
    return run


def told(client: "SyncPrefectClient", run: "FlowRun") -> str:
    """The run's end and its tables, in Markdown."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    final = run.state and run.state.is_final()
    lines = [f"### {run.name}: {run.state.name if final else 'cancelled, it took too long'}"]
    if run.state and run.state.message:
        lines += ["", "```", run.state.message, "```"]
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id])))
    tables = {artifact.key: artifact.data for artifact in found}
    return "\n".join(lines + [f"\n{tables[key]}" for key in SHOWN if key in tables]) + "\n"


def _look(client: "SyncPrefectClient", run: "FlowRun") -> "FlowRun":
    """The run as it is now; as it was, while the server is away for a moment of these hours."""
    try:
        return client.read_flow_run(run.id)
    except httpx.TransportError as e:
        print(f"the server does not answer ({e}); asking again", flush=True)
        return run


def _cancel(client: "SyncPrefectClient", run_id: UUID) -> None:
    from prefect.client.schemas.objects import StateType
    from prefect.states import State

    client.set_flow_run_state(run_id, State(type=StateType.CANCELLING))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.ask", description="Run a deployment, wait, and exit with 1 unless it completed.")
    parser.add_argument("deployment", help="as bootstrap/retrain")
    parser.add_argument("--revision", required=True, help="the commit to run")
    add_set(parser, "values laid over params.yaml, as assemble.threshold.web=0.7")
    parser.add_argument("--timeout", type=float, default=20000, metavar="SECONDS", help="then the run is cancelled (default %(default)s)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="append what came of it, in Markdown")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("stopped; the run is cancelled, and asking again goes on from where it was"))

    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectException

    try:
        check_server(needed=True)
        with get_client(sync_client=True) as client:
            parameters = {"revision": args.revision, "params": args.params}
            run = ask(client, args.deployment, parameters, timeout=args.timeout)
            text = told(client, run)
    except ValueError as e:
        sys.exit(f"{args.deployment}: {e}")
    except ObjectNotFound:
        sys.exit(f"{args.deployment}: the server has no such deployment: `prefect deploy --all` in the folder where the chain runs")
    except (PrefectException, httpx.HTTPError) as e:
        sys.exit(f"{args.deployment}: {type(e).__name__}: {e}")
    print(text)
    if args.summary:
        with args.summary.open("a") as f:
            f.write(text)
    return 0 if run.state and run.state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
