"""tests/FAULTS.md lists the faults that the tests try."""

import subprocess
import sys
from pathlib import Path

from faults import TESTS, Fault, as_markdown

PRINT = "import faults; print(faults.as_markdown(faults.collect()), end='')"


def test_the_list_of_faults_is_the_one_in_the_tests():
    """In a process of its own: pytest cannot collect the tests while it runs them."""
    tools = Path(__file__).parent.parent / "tools"
    made = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=tools, capture_output=True, text=True, encoding="utf-8"
    )
    assert made.returncode == 0, made.stderr
    stored = (TESTS / "FAULTS.md").read_text(encoding="utf-8")
    assert made.stdout == stored, "run `make faults` and commit tests/FAULTS.md"


def test_faults_are_grouped_and_counted():
    faults = [
        Fault("an empty file", "named", "test_carvana", "test_files[empty|odd]"),
        Fault("a cut connection", "continued", "test_download", "test_cut"),
        Fault("a full disk", "said", "test_runs", "test_full"),
        Fault("a text", "named", "test_dataset", "test_text"),
    ]
    text = as_markdown(faults)
    assert "4 faults are tried" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Bad data: 2", "## Bad archives and downloads: 1", "## Broken runs: 1"]
    assert r"| an empty file | named | `test_carvana::test_files[empty\|odd]` |" in text
