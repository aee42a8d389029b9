"""The report of a chain that has not come to its end: it was run up to a stage, or a gate said no. What is there is drawn."""

from pathlib import Path

from blip_core.config.params import Params
from blip_core.files.atomic import new_folder
from blip_core.report.cards import examples_sections, near_sections
from blip_core.report.chain import chain_section
from blip_core.report.checks import checks_section, failed_sections
from blip_core.report.costs import cost_section
from blip_core.report.description import description_section
from blip_core.report.filters import filter_section
from blip_core.report.findings import Findings, read_findings
from blip_core.report.intake import intake_section
from blip_core.report.models import models_section
from blip_core.report.noise import kept_lines, noise_section
from blip_core.report.page import Section, write_report
from blip_core.report.rounds import rounds_section
from blip_core.report.slices import slices_sections
from blip_core.report.tasks import tasks_section
from blip_core.report.trainings import training_section
from blip_core.report.verdict import verdict_section
from blip_core.runtime.times import read_times

TITLE = "How far the chain came"
NEAR = 6  # texts on each side of a threshold


def interim(artifacts: Path, data: Path, out: Path, *, params: Params, outdated: frozenset[Path], work: Path, drawn: str | None) -> None:
    """Write `out`/index.html, `out`/table.txt and `out`/figures/ of what is there; `out` appears whole, by rename.

    What is `outdated`, since it was made of what has changed, counts as not there. ValueError when nothing is there at all, or a file is
    broken."""
    found = read_findings(artifacts, data, params, outdated=outdated)
    if not found.contents:
        raise ValueError(f"{artifacts}: holds no generation yet, so there is nothing to draw; `dvc repro` begins with the stage ingest")
    with new_folder(out) as temporary:
        write_report(TITLE, _sections(found, work), temporary, drawn=drawn)


def _sections(found: Findings, work: Path) -> list[Section]:
    """What failed comes first, then what helps to mend it."""
    sections = [*failed_sections(found), _in_short(found)]
    if found.rounds:
        sections.append(noise_section(found))
    if found.filters:
        sections.append(filter_section(found))
    sections += [section for r in found.rounds for section in near_sections(found, r, count=NEAR)]
    sections.append(checks_section(found))
    if found.models:
        sections.append(models_section(found))
    if found.tasks:
        sections.append(tasks_section(found.tasks, found.params))
    sections += slices_sections(found)
    if found.registration and _compared_as_it_is(found):
        sections.append(verdict_section(found))
    if found.decisions:
        sections.append(rounds_section(found))
    if found.descriptions:
        sections.append(description_section(found.descriptions, rare_images=found.params.describe.rare_images))
    if times := read_times(work):
        sections.append(cost_section(times))
    sections.append(chain_section(found))
    if found.ingest:
        sections.append(intake_section(found))
    sections += examples_sections(found)
    if found.histories:
        sections.append(training_section(found))
    return sections


def _compared_as_it_is(found: Findings) -> bool:
    """Whether the comparison is of these very models: it reads the evaluations as one folder, of which nobody notes when it changed."""
    compared, names = found.comparison, {found.comparison.get("challenger"), *found.comparison.get("baselines", {})}
    return names <= found.models.keys() and all(
        found.measured(compared["challenger"], metric) == values["challenger"] and found.measured(name, metric) == values["baseline"]
        for name, tests in compared["baselines"].items()
        for metric, values in tests.items()
    )


def _in_short(found: Findings) -> Section:
    lines = kept_lines(found)
    if found.missing:
        stages = list(dict.fromkeys(found.missing.values()))
        lines.append(f"Not there yet, or made of what has changed since: {', '.join(stages)}.")
    else:
        lines.append("Every stage has come to its end: artifacts/report has the whole report.")
    return Section("In short", ["\n".join(lines)])
