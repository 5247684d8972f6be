"""Markdown cells as text: what is code, where a heading leads, which words are bold."""

import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

from nbformat import NotebookNode

FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
MATH = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)[^)]*\)")
HEADING = re.compile(r"^#{1,6}[ \t]+(.*?)[ \t]*#*$", re.MULTILINE)
BOLD = re.compile(r"\*\*(?=\S)((?:(?!\n\s*\n).)+?)(?<=\S)\*\*", re.DOTALL)


def masked(text: str, fill: str = "X") -> str:
    """The text, equally long, with `fill` for code, formulas and comments."""
    for pattern in (FENCE, COMMENT, CODE, MATH):
        text = pattern.sub(lambda found: re.sub(r"[^\n]", fill, found.group()), text)
    return text


def headings(source: str) -> list[str]:
    """The headings of a cell or file as they are shown."""
    found = HEADING.finditer(masked(source))
    return [_shown(source[one.start(1) : one.end(1)]) for one in found]


def _shown(text: str) -> str:
    return re.sub(r"[*`]", "", LINK.sub(r"\2", text))


def anchor(heading: str) -> str:
    """What follows the # in a link to a heading, in JupyterLab and in nbconvert's pages."""
    return quote(heading.replace(" ", "-"), safe="")


def local_links(source: str) -> Iterator[tuple[str, str]]:
    """(file, or nothing for the same one; anchor as the heading has it) of each local link."""
    for _, _, target in LINK.findall(masked(source)):
        if "://" not in target and not target.startswith(("mailto:", "attachment:")):
            file, _, fragment = target.partition("#")
            yield file, unquote(fragment)


def last_headings(notebook: NotebookNode) -> Iterator[tuple[int, str, str]]:
    """(index, source, last heading before it) of each markdown cell."""
    last = ""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            yield index, cell.source, last
            last = (headings(cell.source) or [last])[-1]
