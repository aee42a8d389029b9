"""One page and one table of what the chain did. Every number comes from a file that a stage wrote."""

from pathlib import Path

from blip_core.config.delivery import ReportConfig
from blip_core.config.params import Params
from blip_core.evaluation.alarms import alarms
from blip_core.files.atomic import new_folder
from blip_core.report.cards import examples_sections
from blip_core.report.chain import chain_section
from blip_core.report.costs import cost_section
from blip_core.report.description import description_section
from blip_core.report.filters import filter_section
from blip_core.report.findings import Findings, read_findings
from blip_core.report.intake import intake_section
from blip_core.report.models import models_section
from blip_core.report.noise import kept_lines, noise_section
from blip_core.report.page import Section, Table, write_report
from blip_core.report.rounds import rounds_section
from blip_core.report.slices import slices_sections
from blip_core.report.tasks import tasks_section
from blip_core.report.trainings import training_section
from blip_core.report.verdict import instead_words, registration_words, verdict_section, verdict_words
from blip_core.report.wording import MISSING
from blip_core.review.sheet import write_sheet
from blip_core.runtime.times import read_times

TITLE = "What the bootstrapping did"


def report(
    artifacts: Path,
    data: Path,
    ablations: Path,
    out: Path,
    *,
    cfg: ReportConfig,
    params: Params,
    work: Path | None = None,
    drawn: str | None = None,
) -> None:
    """Write `out`/index.html, `out`/table.txt, `out`/figures/ and a review sheet of each round; `out` appears whole, by rename.

    What the stages cost is read from `work`, and what the filter alone would have made from `ablations`, as far as they are known there;
    nothing depends on either. `drawn` stands below the title: when, and by which code. `data` is read for truth.parquet alone, which a
    real crawl does not have. ValueError names each file that is missing and the stage that makes it."""
    found = read_findings(artifacts, data, params, ablations=ablations)
    if found.missing:
        lines = (f"{path}: missing; stage {stage} makes it: run `dvc repro {stage}`" for path, stage in found.missing.items())
        raise ValueError("\n".join([*lines, "`blip interim` draws what is there"]))
    tasks = [tasks_section(found.tasks, params)] if found.tasks else []
    texts = description_section(found.descriptions, rare_images=params.describe.rare_images)
    facts = [_in_short(found), noise_section(found), filter_section(found), models_section(found), verdict_section(found)]
    times = read_times(work) if work is not None else []
    costs = [cost_section(times)] if times else []
    further = [
        *slices_sections(found),
        rounds_section(found),
        chain_section(found),
        texts,
        *costs,
        _places(found, out),
        intake_section(found),
    ]
    with new_folder(out) as temporary:
        sections = [*facts, *tasks, *further, *examples_sections(found), training_section(found)]
        write_report(TITLE, sections, temporary, drawn=drawn)
        for r in found.rounds if cfg.review else ():
            sheet = temporary / f"review-{r}.html"
            write_sheet(found.generation(params.rounds[r].next), artifacts / "shards", sheet, count=cfg.review, seed=params.seed)


def _in_short(found: Findings) -> Section:
    lines = [*kept_lines(found), verdict_words(found), *instead_words(found), registration_words(found.registration)]
    lines += [f"ALARM, {name}: {words}." for name, metrics in found.models.items() for words in alarms(metrics).values()]
    return Section("In short", ["\n".join(lines)])


def _places(found: Findings, out: Path) -> Section:
    docs = sorted(found.artifacts.glob("docs/*/index.html"))
    rows = [["this report with figures", str(out / "index.html")]]
    if found.params.report.review:
        rows += [[f"texts of {r} for a person to judge", str(out / f"review-{r}.html")] for r in found.rounds]
    rows += [[f"Data Docs of {path.parent.name}", str(path)] for path in docs] or [["Data Docs", MISSING]]
    rows.append(
        [
            "runs and models in MLflow",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 --backend-store-uri sqlite:///mlflow.db",
        ]
    )
    return Section("Where things are", [Table(["what", "where"], rows, left=2)])
