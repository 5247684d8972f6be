"""Run, refresh and hand out the notebooks: `python tools/course.py COMMAND [NOTEBOOK...]`.

Not part of unetlib: a learner never needs to read this file. `make` calls it.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import address
import copies
import nbformat
from copies import write
from glossary import glossary
from jinja2 import FileSystemLoader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbclient.output_widget import OutputWidget
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tidying import KERNEL, tidy
from tqdm import tqdm

BUILD = Path("build")
NOTEBOOKS = Path("notebooks")
# The most seconds that a cell may take in each profile: one that takes longer hangs.
LONGEST = {"ci": 600, "laptop": 2 * 3600, "full": 48 * 3600}
COMMANDS = {
    "run": "run them and write copies and pages to build/",
    "refresh": "run them and write the outputs back",
    "glossary": "write notebooks/glossary.md from their bold terms",
    "address": "write the repository's address of pyproject.toml into them and README.md",
    "copies": f"write copies to work in to {copies.FOLDER}/, never over changed ones",
    "handout": "write copies without outputs and solutions to build/handout",
}


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


def write_html(notebook: NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exporter = HTMLExporter(
        embed_images=True,
        template_file="page.html.j2",
        extra_loaders=[FileSystemLoader(Path(__file__).parent)],
    )
    page, _ = exporter.from_notebook_node(
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
    from unetlib.support.code import label
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
            f"{name} {label(value) if name in BUILT_IN else value}"
            for name, value in vars(run.recipe).items()
            if value != baseline[name]
        ]
        print(
            f"  {run.best_dice:.4f}  {', '.join(changed) or 'the baseline recipe'} "
            f"({run.seconds / 60:.1f} min, {run.device}, {run.precision}; {run.folder})"
        )
    for model in sorted(models_dir().glob("[!.]*")):
        print(f"  {model.stat().st_size / 1e6:6.1f} MB  {model}")


def renew_copies(paths: list[Path]) -> None:
    print(
        f"Your notebooks lie in {copies.FOLDER}/: what you change there stays, also when the "
        "course is updated."
    )
    for path in copies.renew(paths, copies.FOLDER):
        print(f"You have changed yours, so the new edition lies beside it: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="\n".join(f"{name}: {what}" for name, what in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all six")
    arguments = parser.parse_args()
    paths = arguments.notebooks or sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    match arguments.command:
        case "glossary":
            (NOTEBOOKS / "glossary.md").write_text(glossary(paths), encoding="utf-8")
        case "address":
            address.renew(Path("pyproject.toml"), [*paths, Path("README.md")])
        case "copies":
            renew_copies(paths)
        case "handout":
            copies.hand_out(paths, BUILD / "handout")
            print(f"{len(paths)} notebooks without solutions: {BUILD / 'handout'}")
        case command:
            return run(paths, in_place=command == "refresh")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    sys.exit(main())
