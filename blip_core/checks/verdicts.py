"""What the checks of validate and gate found, kept beside the Data Docs, passed or not: a gate file is there of those that passed alone."""

import json
from pathlib import Path
from typing import Any

from blip_core.files.content import write_json
from blip_core.tables.manifest import listed_hash


class ChecksFailed(ValueError):
    """The message lists each failed check with what was observed and its limit."""


def keep_verdict(results: list[dict[str, Any]], generation: Path, docs: Path) -> None:
    """`results` as `check` gives them; `docs`: the folder of the Data Docs, which need not be there."""
    write_json({"generation": listed_hash(generation), "checks": results}, verdict_file(docs))


def verdict_file(docs: Path) -> Path:
    return docs.with_name(f"{docs.name}.json")


def read_verdict(generation: Path, docs: Path, gate: Path) -> list[dict[str, Any]] | None:
    """The results of the last checks of this very generation; None where it was not checked. The gate file tells them as well, and may have
    come without the rest, as from DVC's remote; of a failure there is none."""
    for path in (gate, verdict_file(docs)):
        found = json.loads(path.read_text()) if path.exists() else {}
        if found.get("generation") == listed_hash(generation):
            return found["checks"]
    return None
