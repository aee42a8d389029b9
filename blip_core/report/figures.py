"""The figures of the report, each as the bytes of a PNG. The only home of matplotlib.

Figures are drawn without pyplot, so nothing global is touched, and hold no date or version: equal values are equal bytes.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blip_core.report.examples import Example

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"  # told apart by colour-blind eyes too
COLOURS = {"true": BLUE, "false": ORANGE, "unknown": GREY, "mismatched": ORANGE, "crawled": GREEN, "perturbed": PURPLE}
LOSSES = {
    "loss": ("sum", "#222222"),
    "itc": ("ITC", BLUE),
    "itm": ("ITM", ORANGE),
    "lm": ("LM", GREEN),
    "ncd": ("NCD", PURPLE),
    "distil_itc": ("teacher's ITC", "#56B4E9"),
    "distil_itm": ("teacher's ITM", "#E69F00"),
    "distil_lm": ("teacher's LM", "#8CCFB9"),
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DPI = 110
NAME = 18  # characters of a model's name beside its bar
SHEET_COLUMNS, SHEET_TEXTS, SHEET_LINES = 3, 3, 4.5  # images in a row, texts of an image, lines of a text
SHEET_WIDTH, LINE, TITLE = 4.3, 0.135, 0.5  # inches: of an image with its texts, of a line, of the title


def loss_curves(histories: dict[str, list[dict[str, float]]]) -> bytes:
    """One panel per training: the sum of the losses and its parts over the steps."""
    with _panels(len(histories), columns=3, size=(4.0, 2.8)) as (figure, panels):
        for panel, (name, rows) in zip(panels, histories.items(), strict=True):
            parts = [c for c in LOSSES if c in rows[0]]
            for column in parts[1:] if len(parts) == 2 else parts:  # a sum of one part is that part
                label, colour = LOSSES[column]
                panel.plot([r["step"] for r in rows], [r[column] for r in rows], color=colour, label=label, linewidth=1.4)
            _label(panel, name, "step", "loss (nats)")
            panel.set_ylim(bottom=0)
            panel.legend(fontsize=8, ncols=4, columnspacing=0.9, handlelength=1.1)
        return _png(figure)


def score_histograms(rounds: dict[str, dict[str, dict[str, np.ndarray]]], *, thresholds: dict[str, dict[str, float]]) -> bytes:
    """A row of panels per round, a panel per group of texts (web, synthetic, controls), an outline per truth.

    `rounds`: round -> group -> truth -> counts in equal bins from 0 to 1. `thresholds` by round and group; absent ones are not drawn.
    """
    groups = [(r, group, counts) for r, by_group in rounds.items() for group, counts in by_group.items() if counts]
    with _panels(len(groups), columns=3, size=(4.0, 2.9)) as (figure, panels):
        for panel, (r, group, counts) in zip(panels, groups, strict=True):
            for truth, values in counts.items():
                edges = np.linspace(0, 1, len(values) + 1)
                panel.stairs(values, edges, color=COLOURS[truth], label=f"{truth} ({int(values.sum()):,})", fill=False, linewidth=1.6)
                panel.stairs(values, edges, color=COLOURS[truth], fill=True, alpha=0.12)
            if group in thresholds[r]:
                panel.axvline(thresholds[r][group], color="#222222", linestyle="--", linewidth=1, label="threshold")
            panel.set_yscale("symlog", linthresh=1)
            _label(panel, f"{r}: {group}", "calibrated P(match)", "texts (log scale)")
            panel.set(xlim=(0, 1), ylim=(0, 20 * max(1, *(v.max() for v in counts.values()))))
            panel.legend(
                fontsize=8, ncols=2, columnspacing=0.9, handlelength=1.2, loc="upper center", frameon=True, edgecolor="none", framealpha=1
            )
        return _png(figure)


def precision_recall(
    curves: dict[str, tuple[list[float], list[float]]], points: dict[str, dict[float, tuple[float | None, float]]]
) -> bytes:
    """A line per filter of a round, from held-out pairs of known truth, true and false ones weighing the same.

    `points`: by threshold in use, precision and recall; where nothing is kept, there is no precision and no point.
    """
    with _panels(1, columns=1, size=(5.2, 4.0)) as (figure, panels):
        for (name, (precision, recall)), colour in zip(curves.items(), _cycle(), strict=False):
            panels[0].plot(recall, precision, color=colour, label=name, linewidth=1.6)
            for (threshold, (y, x)), marker in zip(points[name].items(), "os^v", strict=False):
                if y is not None:
                    panels[0].plot(x, y, marker, color=colour, label=f"{name}: P(match) $\\geq$ {threshold:.3g}, in use")
        _label(panels[0], "Filter on held-out pairs of known truth", "recall (true pairs kept)", "precision (kept pairs that are true)")
        panels[0].set(xlim=(0, 1.02), ylim=(0, 1.03))
        panels[0].legend(fontsize=9, loc="lower left")
        return _png(figure)


def metric_bars(metrics: dict[str, dict[str, tuple[float, float, float] | None]]) -> bytes:
    """A panel per metric, a bar per model with its bootstrap interval. Values are (value, low, high); None leaves a gap."""
    models = list(next(iter(metrics.values())))
    with _panels(len(metrics), columns=3, size=(4.0, 0.9 + 0.42 * len(models))) as (figure, panels):
        for panel, (title, values) in zip(panels, metrics.items(), strict=True):
            for place, (name, colour) in enumerate(zip(models, _cycle(), strict=False)):
                if (interval := values[name]) is not None:
                    _bar(panel, place, *interval, colour=colour, percent=title.endswith("%"))
            panel.set_yticks(range(len(models)), [n if len(n) <= NAME else f"{n[: NAME - 1]}…" for n in models])
            panel.set_ylim(len(models) - 0.4, -0.6)
            panel.set_xlim(0, 1.3 * max([v[2] for v in values.values() if v is not None] + [1e-9]))
            panel.grid(axis="y", visible=False)
            _label(panel, title, "", "")
        return _png(figure)


def difference_rows(panels_of: dict[str, dict[str, list[tuple[float, float, float] | None]]], *, baseline: str) -> bytes:
    """A panel per metric, a row per arm, in it a point with its interval per seed: (difference, low, high); None leaves a gap."""
    arms = list(next(iter(panels_of.values())))
    with _panels(len(panels_of), columns=3, size=(3.6, 0.9 + 0.42 * len(arms))) as (figure, panels):
        for panel, (title, values) in zip(panels, panels_of.items(), strict=True):
            for place, arm in enumerate(arms):
                tests = values[arm]
                for i, (test, colour) in enumerate(zip(tests, _cycle(), strict=False)):
                    if test is not None:
                        at = place + 0.7 * ((i + 0.5) / len(tests) - 0.5)
                        panel.plot(test[1:], [at, at], color=colour, linewidth=1.4)
                        panel.plot(test[0], at, "o", color=colour, markersize=4)
            panel.axvline(0, color="#222222", linewidth=1)
            panel.set_yticks(range(len(arms)), arms)
            panel.set_ylim(len(arms) - 0.4, -0.6)
            panel.grid(axis="y", visible=False)
            _label(panel, title, f"difference to {baseline}", "")
        return _png(figure)


def spent_and_reached(panels_of: dict[str, dict[str, tuple[float, list[float]]]], *, spent: str) -> bytes:
    """A panel per metric, a point per arm: what it spent in all, and the mean of what it reached, with the range over its seeds."""
    with _panels(len(panels_of), columns=3, size=(4.2, 3.4)) as (figure, panels):
        for panel, (title, arms) in zip(panels, panels_of.items(), strict=True):
            for (name, (cost, values)), colour in zip(arms.items(), _cycle(), strict=False):
                mean = sum(values) / len(values)
                panel.plot([cost, cost], [min(values), max(values)], color=colour, linewidth=1.4)
                panel.plot(cost, mean, "o", color=colour, markersize=5)
                panel.annotate(name, (cost, mean), xytext=(6, 4), textcoords="offset points", fontsize=9, color=colour)
            panel.set_xlim(0, 1.2 * max(cost for cost, _ in arms.values()))
            _label(panel, title, spent, "")
        return _png(figure)


def example_sheet(examples: list[Example], *, title: str) -> bytes:
    """Pictures with their texts, decisions and scores. Glyphs that the font lacks are boxes here; the page shows them."""
    most = min(SHEET_TEXTS, max(len(e.texts) for e in examples))
    height = 0.25 + most * SHEET_LINES * LINE  # inches
    rows = math.ceil(len(examples) / SHEET_COLUMNS)
    figure = Figure(figsize=(SHEET_WIDTH * SHEET_COLUMNS, height * rows + TITLE), dpi=DPI)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", y=1 - 0.3 * TITLE / (height * rows + TITLE), va="top")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for i, example in enumerate(examples):
            top = height * (rows - i // SHEET_COLUMNS)
            _example(figure, example, left=SHEET_WIDTH * (i % SHEET_COLUMNS) + 0.1, top=top, side=height - 0.25)
        return _png(figure)


def _example(figure: Figure, example: Example, *, left: float, top: float, side: float) -> None:
    """One picture, and to its right the web text and the best synthetic ones, kept ones in colour. Places in inches."""
    width, height = figure.get_size_inches()
    side = min(side, 1.2)
    panel = figure.add_axes((left / width, (top - side) / height, side / width, side / height), anchor="N")
    panel.imshow(example.pixels, interpolation="nearest")
    panel.set_axis_off()
    for text in example.texts[:SHEET_TEXTS]:
        lines = textwrap.wrap(f"{text.source}: {text.text}", 40, max_lines=2, placeholder=" ...")
        for line, weight in [*((line, "bold") for line in lines), (text.decision(), "normal"), (text.scored(), "normal")]:
            place = {"x": (left + side + 0.1) / width, "y": top / height, "color": GREEN if text.kept else GREY}
            figure.text(s=line, **place, va="top", fontsize=7.5, fontweight=weight, parse_math=False)  # a web text may hold dollar signs
            top -= LINE
        top -= LINE / 2


def _bar(panel: Axes, place: int, value: float, low: float, high: float, *, colour: str, percent: bool) -> None:
    panel.barh(place, value, color=colour, height=0.62, alpha=0.85)
    if low < high:
        panel.errorbar(value, place, xerr=[[max(0, value - low)], [max(0, high - value)]], color="#222222", capsize=3, linewidth=1.1)
    panel.annotate(
        f"{value:.1f}" if percent else f"{value:.2f}", (high, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9
    )


def _cycle() -> Iterable[str]:
    """Colours without end."""
    while True:
        yield from (BLUE, ORANGE, GREEN, PURPLE, GREY)


def _label(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_title(title, loc="left", parse_math=False)
    panel.set(xlabel=x, ylabel=y)


@contextmanager
def _panels(count: int, *, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure and `count` axes in rows of at most `columns`, each `size` inches."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=DPI, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for unused in panels[count:]:
            unused.set_axis_off()
        yield figure, list(panels[:count])


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
