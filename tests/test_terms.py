"""No term is used before the sentence that explains it, in notebooks 01 to 06 read in order.

`python tests/test_terms.py` lists all that is wrong. Where a term is explained it is bold. Exempt
are each notebook's first cell, headings, what it says of the next notebook, code and links.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

if __name__ == "__main__":  # pytest knows this folder from pyproject.toml
    sys.path.append(str(Path(__file__).parent.parent / "tools"))

from glossary import definitions
from markdown import HEADING, LINK, masked

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("[0-9]*.ipynb"))

# How each term is written, in bold and elsewhere: phrases only, no everyday words.
TERMS = {
    # 01
    "mask": "masks?",
    "segmentation": "segmentation",
    "run-length encoding": "run[- ]length (?:encod(?:ing|ed)|codes?)|run[- ]lengths|RLE",
    "Dice": "Dice",
    "IoU": "IoU|intersection over union",
    "pixel accuracy": "pixel accuracy",
    "baseline": "baselines?",
    "palette": "palettes?",
    "mean mask": "mean mask",
    # 02
    "tensor": "tensors?",
    "batch": "batch(?:es)?",
    "training set": "training set",
    "validation set": "validation set",
    "leak": "leaks?|leakage",
    "soft mask": "soft masks?",
    "hard mask": "hard masks?",
    "augmentation": "augment(?:ation|ations|ed)",
    "standard deviation": "standard deviations?",
    "standard error": "standard errors?",
    "interpolation": "interpolat(?:ion|ed)",
    "area averaging": "area averag(?:ing|es?)",
    # 03
    "convolution": "convolutions?",
    "stride": "strides?",
    "gradient": "gradients?",
    "learning rate": "learning[- ]rates?",
    "gradient descent": "gradient descent",
    "max pooling": "(?:max )?pooling",
    "transposed convolution": "transposed convolutions?",
    "checkerboard": "checkerboards?",
    "receptive field": "receptive fields?",
    "ReLU": "ReLUs?",
    "batch normalisation": "batch[- ]norm(?:alisation)?",
    "train mode": "train(?:ing)? mode",
    "eval mode": "eval(?:uation)? mode",
    "encoder": "encoders?",
    "decoder": "decoders?",
    "skip connection": "skip connections?",
    "concatenation": "concatenat(?:ion|e|es|ed)",
    "logit": "logits?",
    "sigmoid": "sigmoid",
    "U-Net": "U-Net",
    "cross-correlation": "cross-correlation",
    # 04
    "binary cross-entropy": "binary cross-entropy|cross-entropy|BCE",
    "epoch": "epochs?",
    "optimizer": "optimizers?",
    "Adam": "Adam",
    "stochastic gradient": "stochastic gradients?",
    "learning-rate schedule": "(?:learning[- ]rate )?schedules?",
    "one-cycle": "one-cycle",
    "underfitting": "underfit(?:ting|s)?",
    "overfitting": "overfit(?:ting|s)?",
    "checkpoint": "(?:best )?checkpoints?",
    "soft Dice loss": "soft Dice(?: loss)?|Dice loss",
    "confidence interval": "confidence intervals?",
    "paired difference": "paired differences?",
    "boundary IoU": "boundary IoU",
    "ablation": "ablations?",
    "fine-tuning": "fine-tun(?:ing|e|es|ed)",
    "early stopping": "early stopping",
    "data parallel": "data[- ]parallel(?:ism)?",
    "all-reduce": "all-reduce",
    "world size": "world size",
    "Muon": "Muon",
    "weight decay": "weight decay",
    "AdamW": "AdamW",
    "bfloat16": "bfloat16|bf16",
    # 05
    "pickle": "pickles?|pickled",
    "state dict": "state dicts?",
    "TorchScript": "TorchScript",
    "tracing": "tracing|traced",
    "ONNX": "ONNX",
    "opset": "opsets?",
    "dynamic dimension": "dynamic dimensions?",
    "batch-norm folding": "batch[- ]norm(?:alisation)? folding|folding",
    "quantisation": "quantisation|quanti[sz]ed?",
    "int8": "int8",
    "zero point": "zero points?",
    "calibration": "calibration|calibrated?",
    "parity": "parity",
    "manifest": "manifests?",
    "SHA-256": "SHA-256",
    # 06
    "latency": "latency|latencies",
    "throughput": "throughput",
    "percentile": "percentiles?",
    "p95": "p95",
    "warm-up": "warm-up",
    "cold start": "cold starts?",
    "execution provider": "execution providers?",
    "resident memory": "resident memory|RSS",
    "test-time augmentation": "test-time augmentation|TTA",
    "tiling": "tiling",
}
# A term inside another one is not meant: "batch" in "batch normalisation". Longest first.
LONGEST_FIRST = sorted(TERMS, key=lambda term: -len(term))
ANY = re.compile(
    "|".join(rf"(?P<t{i}>(?<![\w-])(?:{TERMS[t]})(?!\w))" for i, t in enumerate(LONGEST_FIRST)),
    re.IGNORECASE,
)
SHOWN_ARGUMENTS = {"label", "title", "xlabel", "ylabel"}

Place = tuple[int, int]  # number of the notebook, number of the cell


def prose(source: str) -> str:
    """A Markdown cell without headings, code, link targets and the line on the next notebook."""
    text = LINK.sub(r"\2", masked(source, fill=" "))
    return re.sub(r"^\*\*Next:\*\*.*?(?:\n\s*\n|\Z)", "", HEADING.sub("", text), flags=re.M | re.S)


def shown_strings(source: str) -> Iterator[str]:
    """The strings of a code cell but for those that are names to code: keys and options."""
    tree = ast.parse(source)
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            names |= {id(part) for part in ast.walk(node.slice)}
        elif isinstance(node, ast.keyword) and node.arg not in SHOWN_ARGUMENTS:
            names.add(id(node.value))
        elif isinstance(node, ast.Compare):
            names |= {id(part) for part in node.comparators}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in names:
            yield node.value


def uses(text: str) -> set[str]:
    return {
        LONGEST_FIRST[int(found.lastgroup[1:])] for found in ANY.finditer(" ".join(text.split()))
    }


def read_through(notebooks) -> tuple[dict[str, list[Place]], dict[str, list[Place]]]:
    """The places where each term is explained and where it is used, in order of reading."""
    explained = {term: [] for term in TERMS}
    used = {term: [] for term in TERMS}
    for number, notebook in enumerate(notebooks):
        for one in definitions(notebook, ""):
            for term, pattern in TERMS.items():
                if re.fullmatch(pattern, one.term.replace("`", ""), re.IGNORECASE):
                    explained[term].append((number, one.cell))
        for index, cell in enumerate(notebook.cells[1:], start=1):
            is_code = cell.cell_type == "code"
            texts = shown_strings(cell.source) if is_code else [prose(cell.source)]
            for term in set().union(*map(uses, texts)):
                used[term].append((number, index))
    return explained, used


def problems(notebooks, names) -> Iterator[str]:
    """A line for each term that is explained twice, or used and not explained before."""
    explained, used = read_through(notebooks)

    def at(place: Place) -> str:
        return f"{names[place[0]]}, cell {place[1]} (id {notebooks[place[0]].cells[place[1]].id})"

    for term in TERMS:
        places = explained[term]
        if len(places) > 1:
            yield f"{term!r} is explained twice: {'; '.join(map(at, places))}"
        if not places and used[term]:
            yield f"{term!r} is used in {at(used[term][0])}, but nowhere explained (bold)"
        elif used[term] and used[term][0] < places[0]:
            yield f"{term!r} is used in {at(used[term][0])}, but explained in {at(places[0])}"


def test_a_term_that_comes_before_its_explanation_is_named():
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    def wrong(*cells):
        notebook = new_notebook(cells=[new_markdown_cell("# logits"), *cells])
        return [line for line in problems([notebook], ["03"]) if line.startswith("'logit'")]

    explained = new_markdown_cell("A **logit** is any number.")
    exempt = [
        new_markdown_cell("## Logits\nThe `logits`, see [here](logits.md)."),
        new_markdown_cell("**Next:** [04](04.ipynb) begins with\nlogits."),
        new_code_cell("logits = x['logits'] + f(loss='logits')  # logits"),
    ]
    assert wrong(explained, *exempt) == wrong(*exempt, explained) == []
    for early in (
        new_markdown_cell("See [logits](here.md)."),
        new_code_cell("print(f'{x} logits')"),
        new_code_cell("ax.plot(x, label='Logits of a car')"),
    ):
        (line,) = wrong(early, explained)
        assert "03, cell 1" in line and early.id in line
    (line,) = wrong(new_markdown_cell("See logits."))
    assert "nowhere" in line
    assert "twice" in wrong(explained, explained)[0]


@pytest.fixture(scope="module")
def stored():
    return list(
        problems([nbformat.read(path, 4) for path in NOTEBOOKS], [p.stem for p in NOTEBOOKS])
    )


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_explained_once_and_before_its_use(term, stored):
    wrong = [line for line in stored if line.startswith(repr(term) + " ")]
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    found = list(problems([nbformat.read(p, 4) for p in NOTEBOOKS], [p.stem for p in NOTEBOOKS]))
    print("\n".join(found) or "Every term is explained before it is used.")
    sys.exit(bool(found))
