"""Write tests/FAULTS.md, the list of all faults that the tests try: `python tools/faults.py`.

A test that tries a fault carries `@pytest.mark.fault("what is wrong", "what happens")`, or one of
its parameters does. Nothing is run here.
"""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent / "tests"
# The rest of the tests is about runs, models and caches.
HEADINGS = {
    "Bad data": [
        "test_carvana",
        "test_config",
        "test_dataset",
        "test_faults_data",
        "test_fuzz",
        "test_inference",
    ],
    "Bad archives and downloads": ["test_download", "test_faults_download"],
    "Broken runs": [],
    "Cells in any order": ["test_any_order", "test_jupyterlab"],
    "Every environment": ["test_environment", "test_faults_environment"],
}
INTRODUCTION = """\
# Faults: what can go wrong, and what happens then

Made by `make faults` from the `fault` marks of the tests; do not edit. Each row is a test that
does the damage for real and fails unless what happens is what the second column says.
"""


@dataclass(frozen=True)
class Fault:
    """One row: what is wrong, what happens, and the test (file, name and parameter)."""

    what: str
    outcome: str
    file: str
    test: str

    @property
    def heading(self) -> str:
        found = [heading for heading, files in HEADINGS.items() if self.file in files]
        return found[0] if found else "Broken runs"


class Collector:
    """A pytest plugin that keeps the marks of the collected tests."""

    def __init__(self):
        self.faults: list[Fault] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            # A parameter's own mark comes first and stands for the whole row.
            mark = next(item.iter_markers("fault"), None)
            if mark:
                self.faults.append(Fault(*mark.args, item.path.stem, item.name))


def collect() -> list[Fault]:
    """All faults, in the order of the tests.

    Raises:
        RuntimeError: pytest cannot collect the tests.
    """
    collector, shown = Collector(), io.StringIO()
    files = sorted(TESTS.glob("test_*.py"))
    marked = [path for path in files if "mark.fault(" in path.read_text(encoding="utf-8")]
    options = ["--collect-only", "-qq", "-p", "no:cacheprovider"]
    with contextlib.redirect_stdout(shown):
        status = pytest.main([*options, *map(str, marked)], plugins=[collector])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest cannot collect the tests:\n{shown.getvalue()[-2000:]}")
    return collector.faults


def as_markdown(faults: list[Fault]) -> str:
    """The whole of FAULTS.md."""
    tables = []
    for heading in HEADINGS:
        rows = [fault for fault in faults if fault.heading == heading]
        lines = [f"## {heading}: {len(rows)}", ""]
        lines += ["| fault | what happens | test |", "|---|---|---|"]
        lines += [
            f"| {_cell(row.what)} | {_cell(row.outcome)} | `{row.file}::{_cell(row.test)}` |"
            for row in rows
        ]
        if rows:
            tables.append("\n".join(lines))
    count = f"{len(faults)} faults are tried."
    return "\n\n".join([INTRODUCTION.strip(), count, *tables]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    (TESTS / "FAULTS.md").write_text(as_markdown(collect()), encoding="utf-8")
