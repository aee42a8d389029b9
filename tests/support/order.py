"""Files of tests in the order of their measured time, longest first, so that side by side they end together: seconds.json.

`pytest --write-times` measures anew; whoever adds a long file runs it once.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

SECONDS = Path(__file__).with_name("seconds.json")


class Times:
    """Adds up, by file, what its tests took."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        known = json.loads(SECONDS.read_text()) | {name: round(seconds) for name, seconds in self.seconds.items()}
        there = {name: known[name] for name in sorted(known) if known[name] and Path(name).exists()}
        SECONDS.write_text(json.dumps(there, indent=1) + "\n")


def longest_first(items: list[pytest.Item]) -> None:
    """The tests of a file stay together and in their order. A file that was never measured counts as a quick one."""
    seconds = json.loads(SECONDS.read_text())
    items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0))
