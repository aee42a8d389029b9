"""The pages: short where they must be, true where a machine can tell, and asking no other host for anything."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from blip_core.stages import STAGES
from tests.support.processes import HANG

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "mlflow/README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHANGES = sorted((ROOT / "docs/adding").glob("*.diff"))
REPOSITORY = r"(?:blip_core|flows|mlflow|tests|benchmarks|configs|docs|\.github)/[\w./-]*\w"
MOST_WORDS = 900


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def code(page: Path) -> str:
    """What stands in fences and between backquotes, a piece a line."""
    fences, rest = [], page.read_text()
    for fence in re.findall(r"^```\w*\n(.*?)^```$", rest, flags=re.MULTILINE | re.DOTALL):
        fences.append(fence)
        rest = rest.replace(fence, "")
    return "\n".join([*fences, *re.findall(r"`([^`\n]+)`", rest)])


def section(page: Path, begin: str, end: str = "\n## ") -> str:
    return page.read_text().split(begin, 1)[1].split(end)[0]


def new_files(change: Path) -> set[str]:
    return set(re.findall(r"^--- /dev/null\n\+\+\+ b/(.+)$", change.read_text(), flags=re.MULTILINE))


# what the pages name


def test_the_readme_fits_a_tired_reader():
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    made = set().union(*map(new_files, CHANGES)) if page.name == "architecture.md" else set()
    named = set(re.findall(rf"(?<![\w/.-]){REPOSITORY}", code(page)))
    gone = sorted(name for name in named - made if not (ROOT / name).exists())
    assert not gone, f"{page.relative_to(ROOT)} names {gone}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "mlflow/README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert links and not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_verbs_that_the_pages_name_are_known():
    told = run(sys.executable, "-m", "blip_core", "--help", cwd=ROOT)
    verbs = set(re.findall(r"^ {2,4}([a-z][\w-]*)(?: {2,}|$)", told, flags=re.MULTILINE))
    stages = {*STAGES, "lengths"}  # that the page on the house adds
    for page in PAGES:
        named = re.findall(r"(?:(?<![\w/:.@-])blip|-m blip_core) (stage )?([a-z][\w-]*)", code(page))
        unknown = {verb for stage, verb in named if verb not in (stages if stage else verbs)}
        assert not unknown, f"{page.relative_to(ROOT)} names {sorted(unknown)}"


# the house


def test_functions_are_where_the_house_says():
    rows = re.findall(
        r"^\| \**(?:Where|Which|What|Does|Who) .*\?\** \| (.*) \| (.*) \|$",
        section(ROOT / "docs/architecture.md", "## Where is …"),
        re.MULTILINE,
    )
    assert len(rows) > 10
    for files, functions in rows:
        text = "\n".join((ROOT / name).read_text() for name in re.findall(r"`([^`]+)`", files))
        for name in re.findall(r"`([^`]+)`", functions):
            for part in name.split("."):
                assert re.search(rf"^\s*(def|class) {part}\b|^{part} = |^\s+{part}: ", text, flags=re.MULTILINE), (
                    f"{name} is not in {files}"
                )


def test_the_drawing_is_of_its_source_and_has_every_stage():
    source = section(ROOT / "docs/architecture.md", "```mermaid", "```")
    drawn = re.findall(r"<text.*?</text>", (ROOT / "docs/chain.svg").read_text(), flags=re.DOTALL)
    words = set(re.sub(r"<[^>]+>", " ", " ".join(drawn)).split())
    labels = re.findall(r'"([^"{}]+)"', source.split("%%\n")[1]) + ["ingest", "validate", "compare", "register", "report"]
    assert {word for label in labels for word in label.split()} == words
    assert set(STAGES) <= {word.split("@")[0] for word in words}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.stem)
def test_each_how_to_lists_every_file_of_its_change(change):
    """It applies, and what the page shows of it is a part of it."""
    run("git", "apply", "--check", change, cwd=ROOT)
    how = next(
        part for part in section(ROOT / "docs/architecture.md", "## How to add …").split("\n### ") if f"(adding/{change.name})" in part
    )
    text = change.read_text()
    touched = set(re.findall(r"^\+\+\+ b/(.+)$", text, flags=re.MULTILINE))
    rows = "\n".join(line for line in how.splitlines() if line.startswith("| `"))
    assert touched <= set(re.findall(r"`([^`]+)`", rows))
    added = "\n".join(line[1:] for line in text.splitlines() if line.startswith("+"))
    shown = re.findall(r"^```\w+\n(.*?)^```$", how, flags=re.MULTILINE | re.DOTALL)
    assert shown and all(snippet.strip("\n") in added for snippet in shown)


@pytest.mark.slow
def test_the_changes_of_the_how_tos_apply_together_and_pass_their_tests(tmp_path):
    for name in ("blip_core", "tests", "configs", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for change in CHANGES:
        run("git", "apply", change, cwd=tmp_path)
    tests = sorted(name for change in CHANGES for name in new_files(change) if name.startswith("tests/"))
    assert len(tests) == len(CHANGES)
    told = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=tmp_path)
    assert " passed" in told and "skipped" not in told


# the site


class Asked(HTMLParser):
    """What a browser fetches for a page without a click."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.classes |= set(given.get("class", "").split())
        self.found += [given[name] for name in ("src", "srcset", "poster", "data", "background") if name in given]
        if tag in ("link", "use", "image"):
            self.found += [given[name] for name in ("href", "xlink:href") if name in given]
        self.found += urls(given.get("style", ""))

    def handle_data(self, data):
        if self.get_starttag_text() and self.get_starttag_text().startswith("<style"):
            self.found += urls(data)


def urls(style: str) -> list[str]:
    """What a style sheet asks for."""
    return [first or second for first, second in re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", style)]


def test_the_site_has_a_page_for_each_of_ours(site):
    pages = {"index.html" if page.stem == "index" else f"{page.stem}/index.html" for page in PAGES[2:]}
    assert pages <= {path.relative_to(site).as_posix() for path in site.rglob("*.html")}


def test_no_page_asks_another_host_for_anything(site):
    asked: dict[str, list[str]] = {}
    for path in site.rglob("*"):
        if path.suffix in (".html", ".svg"):
            page = Asked()
            page.feed(path.read_text())
            asked[path.name] = page.found
            assert "mermaid" not in page.classes, f"{path}: the theme would fetch mermaid from another host for it"
        elif path.suffix == ".css":
            asked[path.name] = urls(path.read_text())
    assert any(asked.values())
    elsewhere = {name: [url for url in found if re.match(r"\s*(\w+:)?//", url)] for name, found in asked.items()}
    assert not {name: found for name, found in elsewhere.items() if found}
