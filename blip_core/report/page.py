"""A report as sections of paragraphs, tables and pictures, written as plain text for a terminal or as one HTML page.

The page holds its pictures and its style in itself and runs no script. Texts of the crawl are shown on it, so every string is escaped.
"""

import base64
import io
import textwrap
from dataclasses import dataclass, field
from html import escape

from PIL import Image

from blip_core.report.digest import Example, ExampleText

TEXT_WIDTH = 100
GAP = 2  # spaces between columns
MIN_COLUMN = 12  # characters; a column is not wrapped to less
THUMBNAIL = 192  # pixels of the longer side

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .8rem 0; } th, td { padding: .25rem .8rem; text-align: right; vertical-align: top; }
th { border-bottom: 1px solid #888; font-weight: 600; vertical-align: bottom; } tbody tr:nth-child(even) { background: #f6f6f6; }
.left { text-align: left; } p { max-width: 60rem; white-space: pre-line; } img.figure { max-width: 100%; display: block; margin: 1rem 0; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { width: 16rem; border: 1px solid #ddd; border-radius: 6px; padding: .7rem; overflow-wrap: anywhere; }
.card img { width: 9rem; height: 9rem; object-fit: contain; display: block; margin-bottom: .4rem; }
.card img.small { image-rendering: pixelated; }
.key { color: #666; font-size: .8rem; } .text { margin: .5rem 0 0; } .note { color: #555; font-size: .82rem; }
.badge { font-size: .75rem; border-radius: 4px; padding: .05rem .4rem; background: #e8e8e8; color: #444; }
.badge.kept { background: #d5f0e4; color: #00563c; }
"""


@dataclass(frozen=True)
class Table:
    """Cells are strings; a line break in a cell is kept. The first `left` columns hold words, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    left: int = 1


@dataclass(frozen=True)
class Picture:
    """A PNG, and what it shows for those who do not see it."""

    name: str
    png: bytes
    alt: str
    on_page: bool = True  # else in the folder of figures alone


@dataclass(frozen=True)
class Section:
    title: str
    parts: list[str | Table]  # on the page; the first `in_text` of them also in the text
    pictures: list[Picture] = field(default_factory=list)  # not in the text, nor are the examples
    examples: list[Example] = field(default_factory=list)
    in_text: int | None = None  # None: all


def as_text(title: str, sections: list[Section]) -> str:
    """The short form, lines of at most TEXT_WIDTH characters. Sections that are for the page alone are left out."""
    blocks = [[title.upper(), "=" * len(title)]]
    for section in sections:
        lines = [_table_lines(part) if isinstance(part, Table) else _paragraph_lines(part) for part in section.parts[: section.in_text]]
        if lines:
            blocks += [[section.title.upper(), "-" * len(section.title), *lines[0]], *lines[1:]]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks) + "\n"


def as_html(title: str, sections: list[Section]) -> str:
    """One self-contained page."""
    body = "\n".join(_section_html(section) for section in sections)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{CSS}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n'


def _paragraph_lines(text: str) -> list[str]:
    return [
        wrapped
        for line in text.split("\n")
        for wrapped in textwrap.wrap(line, TEXT_WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]
    ]


def _table_lines(table: Table) -> list[str]:
    widths = _fitted([max(_width(row[i]) for row in [table.header, *table.rows]) for i in range(len(table.header))])
    lines = [*_row_lines(table.header, widths, table.left), (" " * GAP).join("-" * w for w in widths)]
    for row in table.rows:
        lines += _row_lines(row, widths, table.left)
    return lines


def _row_lines(cells: list[str], widths: list[int], left: int) -> list[str]:
    wrapped = [
        [piece for line in cell.split("\n") for piece in textwrap.wrap(line, w) or [""]] for cell, w in zip(cells, widths, strict=True)
    ]
    height = max(map(len, wrapped))
    columns = [column + [""] * (height - len(column)) for column in wrapped]
    align = [str.ljust if i < left else str.rjust for i in range(len(cells))]
    return [(" " * GAP).join(align[i](column[line], widths[i]) for i, column in enumerate(columns)) for line in range(height)]


def _fitted(widths: list[int]) -> list[int]:
    """Widths that fit the line: the widest column gives way, and its cells wrap."""
    widths = list(widths)
    while sum(widths) + GAP * (len(widths) - 1) > TEXT_WIDTH and max(widths) > MIN_COLUMN:
        widths[widths.index(max(widths))] -= 1
    return widths


def _width(cell: str) -> int:
    return max(len(line) for line in cell.split("\n"))


def _section_html(section: Section) -> str:
    parts = [_table_html(p) if isinstance(p, Table) else f"<p>{escape(p)}</p>" for p in section.parts]
    parts += [f'<img class="figure" alt="{escape(p.alt)}" src="{_data_url(p.png)}">' for p in section.pictures if p.on_page]
    if section.examples:
        parts.append(f'<div class="cards">{"".join(map(_card_html, section.examples))}</div>')
    return f"<section><h2>{escape(section.title)}</h2>\n{chr(10).join(parts)}</section>"


def _table_html(table: Table) -> str:
    def row(cells: list[str], tag: str) -> str:
        marks = [' class="left"' if i < table.left else "" for i in range(len(cells))]
        inner = (escape(cell).replace("\n", "<br>") for cell in cells)
        return "<tr>" + "".join(f"<{tag}{mark}>{text}</{tag}>" for mark, text in zip(marks, inner, strict=True)) + "</tr>"

    return f"<table><thead>{row(table.header, 'th')}</thead><tbody>{''.join(row(r, 'td') for r in table.rows)}</tbody></table>"


def _card_html(example: Example) -> str:
    image = Image.fromarray(example.pixels)
    size = ' class="small"' if max(image.size) < THUMBNAIL else ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    texts = "".join(map(_example_text_html, example.texts))
    picture = f'<img{size} alt="{escape(example.key)}" src="{_data_url(buffer.getvalue())}">'
    return f'<div class="card">{picture}<div class="key">{escape(example.key)}</div>{texts}</div>'


def _example_text_html(text: ExampleText) -> str:
    """bdi: a text that is written from right to left, or pretends to be, must not turn its surroundings."""
    kept = " kept" if text.kept else ""
    badge = f'<span class="badge{kept}">{escape(text.source)}</span>'
    note = f'<div class="note">{escape(text.decision())}<br>{escape(text.scored())}</div>'
    return f'<div class="text">{badge} <bdi>{escape(text.text)}</bdi>{note}</div>'


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
