"""Data Docs as a reader sees them: what failed comes first and says what to do, and the index has the newest first."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from blip_core.checks import docs as docs_module
from blip_core.checks.docs import Docs, write_docs
from blip_core.checks.expect import at_least, one_of, share_at_most
from blip_core.checks.expectations import check
from blip_core.checks.remedies import MISSPELT, REMEDIES, SLICE, TABLE
from blip_core.cli.parser import below, make_parser

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The rows of its tables, each the words of its cells, and the tags of the whole."""

    def __init__(self, path: Path):
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags, self.links, self.in_cell = set(), [], False
        self.feed(path.read_text())
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.in_cell |= tag in ("td", "th")
        self.links += [value for name, value in attrs if name == "href"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += f"{data} "


def write(docs: Path, *, title: str = "Gate of g1", enough: int = 1) -> list[dict]:
    sources = {"source": ["web", EVIL], "shard": ["web-00000"] * 2, "row": [0, 1], "key": ["web-0", "web-1"]}
    texts = [
        one_of("source", "source", ("web",), "rows of an unknown source"),
        share_at_most("noise_web", "rejected", 0.95, "share that the filter rejected", kind="noise"),
    ]
    facts = [at_least("images_human", enough, "human images with a kept text")]
    suites = {"texts": (pa.table(sources | {"rejected": [1.0, 0.0]}), texts), "facts": (pa.table({"images_human": [15971.0]}), facts)}
    return check(suites, docs=Docs(docs, title, "0" * 64, ["source web keeps nothing"]))


def test_a_failure_is_one_row_at_the_top_with_its_places_and_what_to_do(tmp_path):
    write(tmp_path / "gate-r1", enough=20000)
    head, first, second, *rest = Page(tmp_path / "gate-r1/index.html").rows
    assert head == ["status", "what was checked", "limit", "found", "what to do"]
    assert first[:4] == ["✗ failed", "rows of an unknown source source", "0 rows", "1 row"]
    assert (
        first[4].startswith("the tables are not as the stages leave them: blip contract FOLDER")
        and f"{EVIL} in web-00000.parquet, row 1, key web-1" in first[4]
    )
    assert second[:4] == ["✗ failed", "human images with a kept text images_human", "at least 20,000", "15,971"]
    assert second[4].startswith("bring more pictures, or lower validate.min_images ;")
    assert rest[1:] == [["✓ passed", "texts in all texts_rows", "at least 1", "2"],
                        ["✓ passed", "share that the filter rejected noise_web", "at most 0.95", "0.5"]]  # fmt: skip
    assert "source web keeps nothing" in (tmp_path / "gate-r1/index.html").read_text()


def test_what_to_do_names_verbs_and_values_that_there_are(params):
    verbs, values = below(make_parser("blip", stages=[])), params.model_dump(by_alias=True)
    for code in re.findall("`([^`]+)`", "".join([*REMEDIES.values(), MISSPELT, SLICE, TABLE])):
        program, *words = code.split()
        if words:
            assert program == "dvc" or words[0] in verbs, code
        else:
            found = values
            for name in code.split(".")[:2]:  # what follows is a source, which may have none
                found = found[name]


def test_the_pages_fetch_and_run_nothing_and_their_links_lead_somewhere(tmp_path):
    write(tmp_path / "gate-r1")
    for path in (tmp_path / "index.html", tmp_path / "gate-r1/index.html"):
        page = Page(path)
        assert not page.tags & {"script", "link", "img", "iframe"} and "url(" not in path.read_text()
        assert page.links and all((path.parent / link).exists() for link in page.links)


def test_they_replace_the_old_ones_and_great_expectations_answers_lie_beside(tmp_path):
    (tmp_path / "gate-r1/old").mkdir(parents=True)
    results = write(tmp_path / "gate-r1")
    assert {p.name for p in tmp_path.rglob("*")} == {"gate-r1", "index.html", "results.json"}
    found = json.loads((tmp_path / "gate-r1/results.json").read_text())
    assert found["checks"] == results and found["title"] == "Gate of g1"
    judged = [r for answer in found["great_expectations"].values() for r in answer["results"]]
    assert {r["expectation_config"]["meta"]["name"]: r["success"] for r in judged} == {r["name"]: r["passed"] for r in results}


def test_the_index_has_the_newest_first_and_says_what_failed(tmp_path):
    write(tmp_path / "validate", title="Validation of g0", enough=20000)
    older = json.loads((tmp_path / "validate/results.json").read_text()) | {"at": "2001-01-01T00:00:00+00:00"}
    (tmp_path / "validate/results.json").write_text(json.dumps(older))
    passed = {"name": "n", "says": "s", "limit": "at most 1", "observed": 0.5, "passed": True}
    write_docs(Docs(tmp_path / "gate-r1", "Gate of g1", ""), [passed], answers={})
    _, first, second = Page(tmp_path / "index.html").rows
    assert first[:3] == ["✓ passed", "Gate of g1", "0 of 1"]
    assert second[:2] == ["✗ failed", "Validation of g0"] and second[3] == "2001-01-01 00:00:00 UTC"
    assert second[2].startswith("2 of 4 rows of an unknown source: 1 row, expected 0 rows human images with a kept text: 15,971, expected")


@pytest.mark.parametrize("other", ["gate-r2", "validate"])
def test_a_validation_that_ends_while_the_index_is_written_stands_in_it(tmp_path, monkeypatch, other):
    """One that is new, and one that was there and ended otherwise."""
    result = {"name": "n", "says": "s", "limit": "at most 1", "observed": 0.5, "passed": False}

    def end(name: str, *, passed: bool) -> None:
        write_docs(Docs(tmp_path / name, f"The last of {name}", ""), [result | {"passed": passed}], answers={})

    end("validate", passed=False)
    render, others = docs_module._render, [lambda: end(other, passed=True)]

    def slow(template: str, **values) -> str:
        page = render(template, **values)
        if template == "index.html" and others:
            others.pop()()
        return page

    monkeypatch.setattr(docs_module, "_render", slow)
    end("gate-r1", passed=True)
    assert not others
    states = {row[1]: row[0] for row in Page(tmp_path / "index.html").rows}
    assert states["The last of gate-r1"] == states[f"The last of {other}"] == "✓ passed"


@pytest.mark.parametrize(
    ("observed", "shown"), [(0, "0 rows"), (1, "1 row"), (1234, "1,234 rows"), (0.73940, "0.7394"), ("error: x", "error: x")]
)
def test_what_was_found_reads(tmp_path, observed, shown):
    result = {"name": "n", "says": "s", "limit": "0 rows", "observed": observed, "passed": True}
    write_docs(Docs(tmp_path / "gate-r1", "Gate of g1", ""), [result], answers={})
    assert Page(tmp_path / "gate-r1/index.html").rows[1][3] == shown
