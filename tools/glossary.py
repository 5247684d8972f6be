"""The glossary of the notebooks, made from their bold terms: each where a sentence explains it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from markdown import BOLD, anchor, headings, last_headings, masked
from nbformat import NotebookNode

LABELS = {"goal", "you will be able to", "needs / time", "predict", "answer", "next"}
EXERCISE_HEAD = re.compile(r"\d+\.")
# Where a paragraph or a list's entry begins and ends.
BLOCK_END = re.compile(r"\n\s*\n|\n(?=[ \t]*(?:[-*+]|\d+\.)[ \t])|\n(?=[|#<])")
SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][)\"”]))(?<!e\.g\.)(?<!i\.e\.)\s+(?=[^a-z\s])")
STARS = re.compile(r"\*\*")
LIST_MARK = re.compile(r"^(?:[-*+>]|\d+\.) ")

HEAD = """\
# Glossary

Made from the notebooks' bold terms by `make refresh`: do not edit.

| term | meaning | where |
|---|---|---|
"""


@dataclass(frozen=True)
class Definition:
    term: str
    sentence: str
    notebook: str  # the file's name
    cell: int
    heading: str

    @property
    def key(self) -> str:
        return self.term.replace("`", "").casefold()


def definitions(notebook: NotebookNode, name: str) -> Iterator[Definition]:
    """The bold terms of a notebook, each with its sentence, in order."""
    for index, source, before in last_headings(notebook):
        plain = masked(source)
        for found in BOLD.finditer(plain):
            term = _one_line(source[slice(*found.span(1))]).rstrip(":")
            if term.casefold() not in LABELS and not EXERCISE_HEAD.match(term):
                begin, end = _piece(plain, *found.span(), BLOCK_END)
                block, at = plain[begin:end], (found.start() - begin, found.end() - begin)
                first, last = (begin + where for where in _piece(block, *at, SENTENCE_END))
                stars = {
                    i for star in STARS.finditer(plain, first, last) for i in range(*star.span())
                }
                sentence = "".join(source[i] for i in range(first, last) if i not in stars)
                sentence = LIST_MARK.sub("", _one_line(sentence))
                heading = [before, *headings(source[: found.start()])][-1]
                yield Definition(term, sentence, name, index, heading)


def _piece(text: str, start: int, end: int, boundary: re.Pattern) -> tuple[int, int]:
    """Where the piece of the text begins and ends in which start:end lies."""
    cuts = [(0, 0), *(found.span() for found in boundary.finditer(text)), (len(text), len(text))]
    return (
        max(after for _, after in cuts if after <= start),
        min(before for before, _ in cuts if before >= end),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def glossary(paths: list[Path]) -> str:
    """The page: one table, sorted by term, of the terms of these notebooks."""
    found = [
        definition
        for path in paths
        for definition in definitions(nbformat.read(path, as_version=4), path.name)
    ]
    rows = []
    for one in sorted(found, key=lambda one: one.key):
        where = f"[{one.notebook[:2]} · {one.heading}]({one.notebook}#{anchor(one.heading)})"
        cells = (part.replace("|", "\\|") for part in (one.term, one.sentence, where))
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(rows)
