"""Run, refresh and hand out the notebooks: `python tools/course.py run|refresh|handout FILE...`.

Not part of unetlib: a learner never needs to read this file. `make` calls it.
"""

import argparse
import html
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbclient.output_widget import OutputWidget
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tqdm import tqdm

BUILD = Path("build")
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# By this, nbconvert makes a .py file of a notebook. No version: it differs from machine to machine.
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
}
# The most seconds that a cell may take in each profile: one that takes longer hangs.
LONGEST = {"ci": 600, "laptop": 2 * 3600, "full": 48 * 3600}
# Colours and the cursor movements of nested progress bars.
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
UNFINISHED_BAR = re.compile(r"(.*: )?\s*\d{1,2}%\|")

UNTOUCHED = re.compile(r"^answer = \.\.\.[ \t]*(?:#.*)?$", re.MULTILINE)
SOLUTION = re.compile(r"<details>\s*<summary>Solution</summary>.*?</details>\s*", re.DOTALL)
SOLUTION_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
WRONG = re.compile(r"<!--\s*wrong:\s*(answer = .*?)\s*-->\s*", re.DOTALL)


@dataclass(frozen=True)
class Exercise:
    """A self-checking cell, its folded solution and a plausible wrong answer (both code)."""

    source: str
    solution: str
    wrong: str

    def answered(self, answer: str) -> str:
        """The cell as a learner leaves it who replaced `answer = ...` by this code."""
        return UNTOUCHED.sub(lambda _: answer, self.source)


def exercise_at(notebook: NotebookNode, index: int) -> Exercise | None:
    """The exercise whose code cell is the notebook's cell `index`; None if it is another cell.

    Raises:
        ValueError: the cell is tagged as an exercise but does not follow the convention.
    """
    cell = notebook.cells[index]
    if cell.cell_type != "code" or "exercise" not in cell.metadata.get("tags", []):
        return None
    after = notebook.cells[index + 1].source if index + 1 < len(notebook.cells) else ""
    folded, wrong = SOLUTION.search(after), WRONG.search(after)
    solution = SOLUTION_CODE.search(folded.group()) if folded else None
    if len(UNTOUCHED.findall(cell.source)) != 1:
        raise ValueError(f"cell {index} needs exactly one line `answer = ...`")
    if not solution or "answer = " not in solution.group(1):
        raise ValueError(
            f"cell {index + 1} needs <details><summary>Solution</summary> with a ```python block "
            "that assigns answer"
        )
    if not wrong:
        raise ValueError(f"cell {index + 1} needs a comment like <!-- wrong: answer = 42 -->")
    return Exercise(cell.source, solution.group(1).rstrip(), wrong.group(1))


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """The notebook as a learner gets it: no outputs, no folded solutions, no wrong answers."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = WRONG.sub("", SOLUTION.sub("", cell.source)).rstrip()
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    return notebook


def tidy(notebook: NotebookNode, widgets: dict[str, dict]) -> NotebookNode:
    """Drop what differs from machine to machine and write progress bars as one finished line.

    Args:
        widgets: the last state of each widget by its id, as nbclient collects them.
    """
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info=LANGUAGE)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = _joined(_without_bars(_joined(cell.outputs), widgets))
    return notebook


def _without_bars(outputs: list[NotebookNode], widgets: dict[str, dict]) -> Iterable[NotebookNode]:
    for output in outputs:
        if output.output_type == "stream":
            text = _as_shown(output.text, drop_blank_lines=output.name == "stderr")
            if text:
                yield nbformat.v4.new_output("stream", name=output.name, text=text)
        elif WIDGET in output.get("data", {}) and "image/png" in output.data:
            del output.data[WIDGET]  # the still picture stays for readers without a kernel
            yield output
        elif WIDGET in output.get("data", {}):
            line = _bar_line(output.data[WIDGET]["model_id"], widgets)
            if line:
                yield nbformat.v4.new_output("stream", name="stderr", text=line + "\n")
        else:
            yield output


def _as_shown(text: str, drop_blank_lines: bool) -> str:
    """What a terminal shows at the end: no codes, no overwritten text, no bar half-way."""
    lines = TERMINAL_CODES.sub("", text).split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    shown = [line for line in shown if not UNFINISHED_BAR.match(line)]
    if drop_blank_lines:  # left by bars that removed themselves
        shown = [line.rstrip() for line in shown if line.strip()] + [""]
    return "\n".join(shown) if any(shown) else ""


def _bar_line(model_id: str, widgets: dict[str, dict]) -> str | None:
    """The text of a tqdm bar (a box of label, bar, label); None if it removed itself when done."""
    children = widgets.get(model_id, {}).get("children", [])
    parts = [widgets.get(child.removeprefix("IPY_MODEL_"), {}) for child in children]
    if len(parts) != 3 or parts[1].get("bar_style") not in ("success", "danger"):
        return None
    left, right = (html.unescape(parts[i].get("value", "")) for i in (0, 2))
    filled = round(10 * parts[1].get("value", 0) / (parts[1].get("max") or 1))
    # tqdm pads with figure spaces, which no search for the text would find.
    return f"{left}|{'█' * filled:<10}|{right}".replace("\u2007", " ")


def _joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of one stream become one, so that the file does not depend on timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


class OneWayOutput(OutputWidget):
    """The output of a widget, of which the kernel is not told.

    nbclient would tell it on the channel where it awaits the cell's end, and may miss that then.
    """

    def sync_state(self) -> None:
        pass


def execute(path: Path, bar: tqdm) -> tuple[NotebookNode, str | None]:
    """Run a notebook in its own folder; returns it with its outputs, and what went wrong if so."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None  # of an earlier run
    longest = LONGEST.get(os.environ.get("UNETLIB_PROFILE", "").strip() or "laptop")
    client = NotebookClient(
        notebook,
        timeout=longest,
        kernel_name=KERNEL["name"],
        record_timing=False,
        extra_arguments=["--log-level=40"],  # errors only: the kernel warns about its transport
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: bar.update(),
    )
    client.widget_registry["@jupyter-widgets/output"]["OutputModel"] = OneWayOutput
    problem = None
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as error:
        # The cell that raised it is the last one with a number: nothing ran after it.
        index = max(cell.get("execution_count") or 0 for cell in notebook.cells)
        what = f"no answer within {longest} seconds: the kernel hangs, so run it again"
        if isinstance(error, CellExecutionError):
            what = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
        problem = f"{path}, cell [{index}]: {what}"
    except DeadKernelError:
        problem = f"{path}: the kernel died, often for want of memory: close other programs."
    return tidy(notebook, client.widget_state), problem


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook so that an interruption leaves the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(path)


def write_html(notebook: NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(
        notebook, {"metadata": {"name": path.stem, "path": "notebooks"}}
    )
    path.write_text(page, encoding="utf-8")


def run(paths: list[Path], in_place: bool) -> int:
    """Run notebooks in order and write them back (`in_place`, if no cell failed) or to build/."""
    cells = [
        cell
        for path in paths
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    ]
    minutes, problems = {}, []
    with tqdm(total=len(cells), unit="cell") as bar:
        for path in paths:
            bar.set_description(path.stem)
            start = time.monotonic()
            notebook, problem = execute(path, bar)
            minutes[path] = (time.monotonic() - start) / 60
            if problem:
                problems.append(problem)
            if not in_place:
                write(notebook, BUILD / "notebooks" / path.name)
                write_html(notebook, BUILD / "html" / f"{path.stem}.html")
            elif not problem:
                write(notebook, path)
    print(f"\n{'notebook':<28}{'minutes':>8}")
    for path, spent in minutes.items():
        print(f"{path.stem:<28}{spent:>8.1f}")
    print(f"{'together':<28}{sum(minutes.values()):>8.1f}\n")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if not in_place:
        print_results()
        print(f"Where to look: {BUILD / 'html'} (pages), {BUILD / 'notebooks'} (executed copies)")
    return 1 if problems else 0


def print_results() -> None:
    """What the runs of this data set and profile learned, and what was exported."""
    import unetlib
    from unetlib import Recipe, data_dir, find_runs, find_samples, models_dir, split_by_group
    from unetlib.recipe import BUILT_IN
    from unetlib.store.question import name_of
    from unetlib.support.memory import fingerprint

    _, val = split_by_group(find_samples())
    profile, data = unetlib.profile(), fingerprint(val)
    baseline = vars(profile.scale(Recipe()))
    print(f"Learned from {data_dir()}, {profile}.")
    print(f"Validation Dice (mean over {len(val)} images, {val['group'].nunique()} unseen groups):")
    for run in find_runs():
        if run.details["profile"] != profile.name or not run.details["data"].endswith(data):
            continue
        changed = [
            f"{name} {name_of(value) if name in BUILT_IN else value}"
            for name, value in vars(run.recipe).items()
            if value != baseline[name]
        ]
        print(
            f"  {run.best_dice:.4f}  {', '.join(changed) or 'the baseline recipe'} "
            f"({run.seconds / 60:.1f} min, {run.device}, {run.precision}; {run.folder})"
        )
    for model in sorted(models_dir().glob("[!.]*")):
        print(f"  {model.stat().st_size / 1e6:6.1f} MB  {model}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "refresh", "handout"])
    parser.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "handout":
        for path in arguments.notebooks:
            notebook = without_solutions(nbformat.read(path, as_version=4))
            write(tidy(notebook, {}), BUILD / "handout" / path.name)
        print(f"{len(arguments.notebooks)} notebooks without solutions: {BUILD / 'handout'}")
        return 0
    return run(arguments.notebooks, in_place=arguments.command == "refresh")


if __name__ == "__main__":
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    sys.exit(main())
