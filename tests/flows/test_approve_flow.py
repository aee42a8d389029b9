"""A person's word on a candidate through Prefect: a suspended run, resumed with a decision, in processes that a real worker starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stages import test_register
from tests.stages.test_register import aliases, registered
from tests.support.processes import HANG

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
root = test_register.root  # a fixture


def prefect(*command: str, cwd: Path, server: str) -> str:
    env = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [Path(sys.executable).parent / "prefect", *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_suspended_run_makes_the_candidate_champion_when_a_person_says_so(server, root, monkeypatch):
    """The run leaves no process behind while it waits; an answer without a reason decides nothing; asking twice asks once."""
    from prefect.client.orchestration import get_client

    from flows import approve

    pool = f"people-{root.name}"
    (root / "prefect.yaml").write_text(
        f"pull:\n  - prefect.deployments.steps.set_working_directory: {{directory: {root}}}\n"
        f"deployments:\n  - {{name: candidate, entrypoint: flows.approve.approve, work_pool: {{name: {pool}}}}}\n"
    )
    prefect("work-pool", "create", pool, "--type", "process", cwd=root, server=server)
    prefect("--no-prompt", "deploy", "--all", cwd=root, server=server)

    def work() -> None:
        prefect("worker", "start", "--pool", pool, "--run-once", cwd=root, server=server)

    assert registered("first", approval=True)["candidate"] and "champion" not in aliases(root)
    verdict = json.loads((root / approve.COMPARISON).read_text())
    (root / approve.COMPARISON).write_text(json.dumps(verdict | {"baselines": {}}))
    monkeypatch.setattr(approve.deployment, "id", "of the run that asks", raising=False)
    told = [approve.ask_for_approval(root) for _ in range(2)]
    assert told[0] == told[1] and "; blip/1 waits for a person's approval: resume the run" in told[0]
    with get_client(sync_client=True) as client:
        (run,) = [r for r in client.read_flow_runs() if r.parameters.get("version") == "blip/1"]
        work()
        assert client.read_flow_run(run.id).state.is_paused() and client.read_flow_run(run.id).state.name == "Suspended"

        client.resume_flow_run(run.id, run_input={"approve": True, "reason": "", "by": "Ann"})
        assert client.read_flow_run(run.id).state.is_paused(), "an answer without a reason is refused"
        client.resume_flow_run(run.id, run_input={"approve": True, "reason": "looked at 50 captions", "by": "Ann"})
        work()
        state = client.read_flow_run(run.id).state
        assert state.is_completed() and "is champion now" in state.message, state
    assert aliases(root)["champion"] == 1 and "candidate" not in aliases(root)
    assert approve.ask_for_approval(root / "elsewhere") == ""
