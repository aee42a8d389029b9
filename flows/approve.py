"""A person decides about a candidate in Prefect's UI: a run of the deployment `approve/candidate` is suspended until somebody resumes it.

It does what the verbs `approve` and `reject` do, which need no Prefect. `bootstrap` asks for such a run when `register.approval` is on
and a candidate waits.
"""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from prefect.states import Completed, Failed
from pydantic import Field

from flows.publish import COMPARISON, comparison

DEPLOYMENT = "approve/candidate"
REGISTRATION = Path("artifacts/registration.json")
PATIENCE = timedelta(days=30)


class Decision(RunInput):
    """What the person who resumes the run says."""

    approve: bool
    reason: str = Field(min_length=1, description="kept with the version")
    by: str = Field(min_length=1, description="who decides")


@flow(name="approve", flow_run_name="approve {version}")
def approve(version: str, evidence: str = "") -> State:
    """Wait for a person's word on a candidate, then make it champion or turn it down.

    Args:
        version: of the registered model, as blip/3.
        evidence: what the person should know, in Markdown; `bootstrap` gives the comparison.
    """
    text = f"Shall {version} become champion? `blip lineage {version}` says what made it.\n\n{evidence}"
    decision = suspend_flow_run(wait_for_input=Decision.with_initial_data(description=text), timeout=int(PATIENCE.total_seconds()))
    verb = ["approve", version] if decision.approve else ["reject"]
    command = [sys.executable, "-m", "blip_core", *verb, "--reason", decision.reason, "--by", decision.by]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    told = (done.stdout if done.returncode == 0 else done.stderr).strip()
    return Completed(message=told) if done.returncode == 0 else Failed(message=told)


def ask_for_approval(root: Path) -> str:
    """Ask for a run that waits for a person where a candidate does and this is a deployment's run; what there is to say about it."""
    path = root / REGISTRATION
    registration = json.loads(path.read_text()) if path.exists() else {}
    if not registration.get("candidate"):
        return ""
    version = f"{registration['name']}/{registration['version']}"
    told = f"; {version} waits for a person's approval"
    if not deployment.id:
        return told
    evidence = comparison(json.loads((root / COMPARISON).read_text())) if (root / COMPARISON).exists() else ""
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return told
        parameters = {"version": version, "evidence": evidence}
        # one question for a version against a champion, however often the chain runs until it is answered
        question = f"approve {version} in place of {registration['champion_version']}"
        run = client.create_flow_run_from_deployment(found.id, parameters=parameters, idempotency_key=question, name=question)
    return f"{told}: resume the run {run.name} of {DEPLOYMENT}"
