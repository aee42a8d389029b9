"""A report as sections of paragraphs, tables and pictures, written as plain text for a terminal or as one HTML page.

The page holds its pictures and its style (page.css) in itself and runs no script. Texts of the crawl are shown on it, so every string is
escaped. It is light or dark as the reader's screen is, and no wider: what is too wide is moved by itself.
"""

import base64
import io
import re
import textwrap
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from blip_core.report.examples import Example, ExampleText

TEXT_WIDTH = 100
GAP = 2  # spaces between columns
MIN_COLUMN = 12  # characters; a column is not wrapped to less
THUMBNAIL = 192  # pixels of the longer side

LONG = 40  # characters from which a cell is given room of its own


@dataclass(frozen=True)
class Table:
    """Cells are strings; a line break in a cell is kept. The first `left` columns hold words, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    left: int = 1
    folded: str = ""  # on the page it opens by a click on these words


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


def write_report(title: str, sections: list[Section], folder: Path, *, drawn: str | None) -> None:
    """index.html, table.txt and figures/NAME.png in a folder that is there. `drawn`: when, and by which code; below the title."""
    (folder / "figures").mkdir()
    for picture in (p for section in sections for p in section.pictures):
        (folder / "figures" / f"{picture.name}.png").write_bytes(picture.png)
    (folder / "index.html").write_text(as_html(title, sections, drawn), encoding="utf-8")
    (folder / "table.txt").write_text(as_text(title, sections, drawn), encoding="utf-8")


def as_text(title: str, sections: list[Section], drawn: str | None = None) -> str:
    """The short form, lines of at most TEXT_WIDTH characters. Sections that are for the page alone are left out."""
    blocks = [[title.upper(), "=" * len(title), *([drawn] if drawn else [])]]
    for section in sections:
        lines = [_table_lines(part) if isinstance(part, Table) else _paragraph_lines(part) for part in section.parts[: section.in_text]]
        if lines:
            blocks += [[section.title.upper(), "-" * len(section.title), *lines[0]], *lines[1:]]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks) + "\n"


def as_html(title: str, sections: list[Section], drawn: str | None = None) -> str:
    """One self-contained page."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{style}</style>'
    top = f"<h1>{escape(title)}</h1>" + (f'<p class="drawn">{escape(drawn)}</p>' if drawn else "")
    links = "".join(f'<li><a href="#s{i}">{escape(section.title)}</a></li>' for i, section in enumerate(sections))
    body = "\n".join(_section_html(section, f"s{i}") for i, section in enumerate(sections))
    page = f'<header>{top}<nav aria-label="contents"><ul>{links}</ul></nav></header>\n<main>{body}</main>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{page}\n</body></html>\n'


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


def _section_html(section: Section, anchor: str) -> str:
    parts = [_table_html(p) if isinstance(p, Table) else f"<p>{_words(p)}</p>" for p in section.parts]
    parts += [_wide(f'<img alt="{escape(p.alt)}" src="{_data_url(p.png)}">', "figure") for p in section.pictures if p.on_page]
    if section.examples:
        parts.append(f'<div class="cards">{"".join(map(_card_html, section.examples))}</div>')
    return f'<section id="{anchor}"><h2>{escape(section.title)}</h2>\n{chr(10).join(parts)}</section>'


def _words(text: str) -> str:
    """What stands in backticks is code."""
    return re.sub("`([^`\n]+)`", r"<code>\1</code>", escape(text))


def _wide(inner: str, kind: str) -> str:
    """tabindex: so that the arrow keys move it as well."""
    return f'<div class="wide {kind}" tabindex="0">{inner}</div>'


def _table_html(table: Table) -> str:
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{_classes(i, cell)}>{_lines(cell)}</{tag}>" for i, cell in enumerate(cells)) + "</tr>"

    def _classes(column: int, cell: str) -> str:
        names = [name for name, holds in (("left", column < table.left), ("long", _width(cell) > LONG)) if holds]
        return f' class="{" ".join(names)}"' if names else ""

    rows = "".join(row(r, "td") for r in table.rows)
    found = _wide(f"<table><thead>{row(table.header, 'th')}</thead><tbody>{rows}</tbody></table>", "table")
    return f"<details><summary>{escape(table.folded)}</summary>{found}</details>" if table.folded else found


def _lines(cell: str) -> str:
    return escape(cell).replace("\n", "<br>")


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
