"""Nothing trains on a generation before its gate file says that this very one passed."""

import json
from pathlib import Path

from blip_core.tables.manifest import content_hash


def require_gate(gate: Path, generation: Path) -> None:
    """ValueError unless `gate` says that this very generation passed. Training and the next round call it first."""
    if not gate.exists():
        raise ValueError(
            f"{gate}: missing, so {generation} did not pass its gate; see the gate's report, mend the data or its limits, and run it again"
        )
    verdict, found = json.loads(gate.read_text()), content_hash(generation)
    if not verdict.get("passed") or verdict.get("generation") != found:
        raise ValueError(f"{gate}: passed generation {verdict.get('generation')}, but {generation} now is {found}; run the gate again")
