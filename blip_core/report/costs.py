"""What each stage cost, as a section of the report; the verb `times` prints the same."""

from blip_core.report.page import Section, Table
from blip_core.runtime.times import StageTime

ABOUT = (
    "Of the last run of each stage in this folder; what DVC skips or restores keeps its own. Stages run side by side, so the seconds by "
    "the clock add up to more than the whole took; CPU seconds leave out what other programs took. Start-up is imports, parameters, "
    "tracking. Peak is resident memory of the stage's largest process. `blip times` tells the newest, the report's own too."
)


def cost_section(times: list[StageTime]) -> Section:
    """In the order in which the stages ended, and their sum."""
    gpu = any(t.gpu_peak_mib is not None for t in times)
    header = ["stage", "ended (UTC)", "seconds", "CPU\nseconds", "of these\nstart-up", "peak\nMiB", *(["GPU peak\nMiB"] if gpu else [])]
    rows = [_row(t, gpu) for t in times]
    sums = [f"{sum(getattr(t, name) for t in times):,.1f}" for name in ("seconds", "cpu_seconds", "overhead_cpu_seconds")]
    rows.append(["sum", "", *sums, *[""] * (len(header) - 5)])
    return Section("Where the time went", [Table(header, rows, left=2), ABOUT])


def _row(t: StageTime, gpu: bool) -> list[str]:
    seconds = [f"{v:,.1f}" for v in (t.seconds, t.cpu_seconds, t.overhead_cpu_seconds)]
    on_gpu = "" if t.gpu_peak_mib is None else f"{t.gpu_peak_mib:,.0f}"
    return [t.run, t.ended.removesuffix("+00:00").replace("T", " "), *seconds, f"{t.peak_mib:,.0f}", *([on_gpu] if gpu else [])]
