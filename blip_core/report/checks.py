"""What validate and the gates checked, as sections of a report: what failed stands first, with what to do."""

from typing import Any

from blip_core.checks.expect import measured
from blip_core.checks.remedies import remedy
from blip_core.report.findings import Findings, Verdict
from blip_core.report.page import Section, Table


def failed_sections(found: Findings) -> list[Section]:
    """One for each gate that said no."""
    return [_failed(verdict) for verdict in found.verdicts if verdict.failed]


def _failed(verdict: Verdict) -> Section:
    assert verdict.checks
    failed, generation = verdict.failed, f"artifacts/generations/{verdict.generation}"
    rows = [[c["name"], measured(c["observed"], c["limit"]), c["limit"]] for c in failed]
    told = [f"{c['name']}: {c['says']}{_examples(c)}. What to do: {remedy(c['name'])}." for c in failed]
    words = [f"{len(failed)} of {len(verdict.checks)} checks failed, so nothing trains on generation {verdict.generation}."]
    if verdict.stage != "validate":
        words.append(f"Judge its texts yourself: `blip review {generation} --out review.html`.")
        words.append(f"Why a text was kept or dropped: `blip explain KEY --generation {generation}`.")
    parts: list[str | Table] = [Table(["check", "value", "limit"], rows, left=3), *told, "\n".join(words)]
    return Section(f"Failed: {verdict.stage}", parts)


def checks_section(found: Findings) -> Section:
    """How each gate ended, and all of its checks for who wants them."""
    rows = [[v.stage, v.generation, _state(v), str(v.docs / "index.html") if v.checks else ""] for v in found.verdicts]
    tables = [
        Table(
            ["check", "value", "limit", "passed", "what it is of"],
            [
                [c["name"], measured(c["observed"], c["limit"]), c["limit"], "yes" if c["passed"] else "NO", c["says"]]
                for c in _failed_first(verdict.checks)
            ],
            left=5,
            folded=f"all {len(verdict.checks)} checks of {verdict.stage}",
        )
        for verdict in found.verdicts
        if verdict.checks
    ]
    return Section("Checks", [Table(["stage", "generation", "ended", "Data Docs"], rows, left=4), *tables], in_text=1)


def _failed_first(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(checks, key=lambda check: check["passed"])


def _state(verdict: Verdict) -> str:
    if verdict.checks is None:
        return "not checked as it is now"
    return f"FAILED: {len(verdict.failed)} of {len(verdict.checks)} checks" if verdict.failed else f"passed: {len(verdict.checks)} checks"


def _examples(check: dict[str, Any]) -> str:
    return f"; as {', '.join(check['examples'])}" if check.get("examples") else ""
