"""The glossary: how it is made, and that the stored one is that of the stored notebooks."""

import nbformat
import pytest
from glossary import definitions, glossary
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_notebooks import NOTEBOOKS

TEXT = """\
# 03 · The model

**Goal:** to know. **You will be able to** count.

## 2. What `fit` does (*twice*)
It walks. A **learning rate**, e.g. 0.1, says how
far it walks (see [the paper](https://example.org)). It is not `a.b`. More.

- **Loss**: one number. `print` it.
- the **mean |x|** of $a. B$ and `**not this**`

**1. An exercise.** Do it.

**Predict:** what?"""


def found(text):
    return list(definitions(new_notebook(cells=[new_code_cell("2**3**4"), text]), "03_model.ipynb"))


@pytest.fixture
def terms():
    return found(new_markdown_cell(TEXT))


def test_terms_are_the_bold_words_that_are_no_labels(terms):
    assert [one.term for one in terms] == ["learning rate", "Loss", "mean |x|"]
    assert all(one.heading == "2. What fit does (twice)" and one.cell == 1 for one in terms)


def test_a_term_belongs_to_the_heading_above_it_not_to_a_later_one_of_its_cell():
    first = new_markdown_cell(
        "## 1. Way\n\nA **step** is short.\n\n## 2. Aim\n\nA **mark** is far."
    )
    notebook = new_notebook(cells=[first, new_markdown_cell("A **leap** is long.")])
    headings = [one.heading for one in definitions(notebook, "03_model.ipynb")]
    assert headings == ["1. Way", "2. Aim", "2. Aim"]


def test_the_meaning_is_the_sentence_around_the_term(terms):
    assert [one.sentence for one in terms] == [
        "A learning rate, e.g. 0.1, says how far it walks (see [the paper](https://example.org)).",
        "Loss: one number.",
        "the mean |x| of $a. B$ and `**not this**`",
    ]


def test_the_page_is_a_table_sorted_by_term_that_links_to_the_section(tmp_path):
    path = tmp_path / "03_model.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell(TEXT)]), path)
    rows = [line for line in glossary([path]).splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| learning rate", "| Loss", r"| mean \|x\|"]
    assert all("](03_model.ipynb#2.-What-fit-does-%28twice%29) |" in row for row in rows)


def test_the_stored_glossary_is_up_to_date():
    stored = (NOTEBOOKS[0].parent / "glossary.md").read_text(encoding="utf-8")
    assert stored == glossary(NOTEBOOKS), "run `python tools/course.py glossary`"


def test_no_term_is_defined_twice():
    where, twice = {}, []
    for path in NOTEBOOKS:
        for one in definitions(nbformat.read(path, as_version=4), path.name):
            place = f"{path.name}, cell {one.cell}: {one.term}"
            if one.key in where:
                twice.append(f"{where[one.key]} and {place}")
            where[one.key] = place
    assert not twice, "\n".join(twice)
