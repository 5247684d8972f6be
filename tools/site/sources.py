"""What Sphinx reads, made from the repository: notebooks, guides, API pages, the front page."""

import base64
import re
import shutil
import sys
from pathlib import Path
from textwrap import dedent

import nbformat
from api import write_api
from jinja2 import Environment
from nbformat import NotebookNode
from questions import WRONG

HERE = Path(__file__).parent
# The figure of each notebook that stands for it on the front page, by the cell that shows it.
FACES = {
    "01_exploration": "cell-12",
    "02_dataset": "cell-37",
    "03_model": "03-33",
    "04_training": "04-25",
    "05_export": "05-27",
    "06_inference_comparison": "06-22",
}
# Further files that the guides name, each a page of its own.
CARDS = {
    "data/README.md": ("Data card", "data-card"),
    "data/pretrained/README.md": ("Model card", "model-card"),
    "CHANGELOG.md": ("Changes", "changes"),
}
SECTION = re.compile(r"^## (.*)\n", re.MULTILINE)
SERIES_ROW = re.compile(r"^\| \[(\d\d) (.*?)\]\(notebooks/(\w+)\.ipynb\) \| (.*) \| (.*) \|$", re.M)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
COMMAND = re.compile(r"    (?:make|python|python3|conda|torchrun) ")
NOT_FOR_READERS = (
    "# NBVAL_CHECK_OUTPUT\n",
    "Made from the notebooks' bold terms by `make refresh`: do not edit.\n",
)


def write_sources(repository: Path, folder: Path) -> None:
    """Write everything into a new folder (SystemExit: a notebook lacks the front page's figure)."""
    shutil.copytree(HERE / "static", folder / "_static", dirs_exist_ok=True)
    notebooks = folder / "notebooks"
    notebooks.mkdir(parents=True)
    parts = sorted((repository / "notebooks").glob("[0-9]*.ipynb"))
    pictures = {}
    for path in parts:
        notebook = prepared(nbformat.read(path, as_version=4))
        nbformat.write(notebook, notebooks / path.name)
        if path.stem in FACES:
            pictures[path.stem] = write_face(notebook, path, notebooks / f"{path.stem}.png")
    shutil.copy(repository / "notebooks" / "results.png", notebooks)
    glossary = (repository / "notebooks" / "glossary.md").read_text(encoding="utf-8")
    (notebooks / "glossary.md").write_text(cleared(glossary), encoding="utf-8")

    intro, guides = split_readme((repository / "README.md").read_text(encoding="utf-8"))
    (folder / "guides").mkdir()
    for title, text in guides.items():
        text = INDENTED.sub(as_shell, text).replace("](notebooks/", "](../notebooks/")
        page = f"# {title}\n{text}"
        (folder / "guides" / f"{slug(title)}.md").write_text(page, encoding="utf-8")
    for source, (_, name) in CARDS.items():
        shutil.copy(repository / source, folder / "guides" / f"{name}.md")
    write_api(folder / "api")

    commands = INDENTED.search(guides["Two commands"])
    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((HERE / "index.md.j2").read_text(encoding="utf-8"))
    page = template.render(
        intro=intro,
        needs=guides["Two commands"][: commands.start()].strip(),
        commands=[re.split(r"\s+# ", line.strip()) for line in commands.group().splitlines()],
        parts=SERIES_ROW.findall(guides["The series"]),
        pictures=pictures,
        guides=[(title, slug(title)) for title in guides] + list(CARDS.values()),
    )
    (folder / "index.md").write_text(page, encoding="utf-8")


def as_shell(found: re.Match) -> str:
    """An indented block of README, as a fenced one of shell commands if it is of commands."""
    block = found.group()
    return f"```sh\n{dedent(block)}```\n" if COMMAND.search(block) else block


def cleared(text: str) -> str:
    """The text without what speaks to programs, or to those who work on the course."""
    for line in NOT_FOR_READERS:
        text = text.replace(line, "")
    return text


def slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.casefold()).strip("-")


def split_readme(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section without title and picture, and the sections by title."""
    before, *rest = SECTION.split(text)
    sections = {
        title: re.sub(r"^##(?=#)", "#", section, flags=re.MULTILINE)
        for title, section in zip(rest[::2], rest[1::2], strict=True)
    }
    paragraphs = before.split("\n\n")[1:]
    return "\n\n".join(one for one in paragraphs if not one.startswith("![")), sections


def prepared(notebook: NotebookNode) -> NotebookNode:
    """Say in myst-nb's words what the notebook says in JupyterLab's: hidden code, alt texts."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = WRONG.sub("", cell.source)
        else:
            cell.source = cleared(cell.source)
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
        if "alt" in cell.metadata:
            cell.metadata.mystnb = {"image": {"alt": cell.metadata.alt}}
    return notebook


def write_face(notebook: NotebookNode, path: Path, target: Path) -> str:
    """Write the figure that stands for a notebook on the front page; returns its alt text."""
    for cell in notebook.cells:
        if cell.id == FACES[path.stem]:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    target.write_bytes(base64.b64decode(output.data["image/png"]))
                    return cell.metadata.alt
    sys.exit(f"{path}: no cell {FACES[path.stem]} with a figure: name another in {__file__}.")
