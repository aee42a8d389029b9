"""The loss curves, as a section of the report."""

from blip_core.report import figures
from blip_core.report.findings import Findings
from blip_core.report.page import Picture, Section


def training_section(found: Findings) -> Section:
    return Section("Training", [], [Picture("losses", figures.loss_curves(found.histories), "Loss curves of every training")])
