"""Tell Prefect that there is new raw data: `dvc add data && git commit data.dvc && python -m flows.announce`.

The deployment `retrain` waits for this event (`triggers` in prefect.yaml) and runs the chain on the commit that it names.
"""

import argparse
import sys
from pathlib import Path

import httpx
import yaml

from flows.server import check_server

EVENT = "blip.data.changed"
RESOURCE = "blip.data"


def new_data(root: Path) -> dict[str, str | int]:
    """What the event carries: the last commit, and the md5, size and number of files of the raw data in it. ValueError if it has none."""
    from blip_core.tracking.provenance import git

    revision, tracked = git(root, "rev-parse", "--verify", "--quiet", "HEAD"), git(root, "show", "HEAD:./data.dvc")
    if not tracked:
        raise ValueError(f"{root}: no commit holds data.dvc; `dvc add data`, and commit it")
    if not (root / "data.dvc").exists() or tracked != (root / "data.dvc").read_text().strip():
        raise ValueError("data.dvc differs from the last commit, which is what a run would take: commit it")
    out = yaml.safe_load(tracked)["outs"][0]
    return {"revision": revision, **{key: out[key] for key in ("md5", "size", "nfiles") if key in out}}


def announce(payload: dict[str, str | int]) -> None:
    """Send the event. Any failure raises: an event that nobody got is a chain that nobody runs."""
    from prefect.client.orchestration import get_client
    from prefect.events import Event

    check_server(needed=True)
    event = Event(event=EVENT, resource={"prefect.resource.id": RESOURCE}, payload=payload)
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")])


def main() -> int:
    description = "Tell Prefect that the last commit has new raw data; the deployment retrain then runs its chain."
    argparse.ArgumentParser(prog="python -m flows.announce", description=description).parse_args()
    try:
        payload = new_data(Path.cwd())
        announce(payload)
    except (ValueError, httpx.HTTPError) as e:
        print(f"not announced: {e}", file=sys.stderr)
        return 1
    print(f"announced: {payload['md5']} in {payload['revision']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
