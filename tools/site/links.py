"""Links that Sphinx does not make by itself: headings as in JupyterLab, names in code."""

import re
from collections.abc import Iterator

from api import PLACES
from docutils import nodes
from markdown import anchor
from mdurl import decode
from sources import CARDS
from sphinx import addnodes
from sphinx.application import Sphinx

CALL = re.compile(r"(?<=\w)\(.*\)$", re.DOTALL)  # the arguments after a name


def jupyter_anchor(heading: str) -> str:
    """What follows the # in a notebook's link to a heading, as myst hands it on."""
    return decode(anchor(heading))


def link_code(app: Sphinx, doctree: nodes.document) -> None:
    """Let code in the text that is a public name, or a file with a page, lead there.

    On a page to read once, in the reference always.
    """
    if app.env.docname == app.config.root_doc:
        return  # there, a whole card leads to its notebook
    seen = set()
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext()
        name = CALL.sub("", text)
        inside = (nodes.title, nodes.reference, addnodes.pending_xref, addnodes.desc_signature)
        parents = (type(parent) for parent in _above(literal))
        if name in seen or any(issubclass(parent, inside) for parent in parents):
            continue
        if place := PLACES.get(name) or _member(name):
            link = addnodes.pending_xref(refdomain="py", reftype="obj", reftarget=place)
        elif text in CARDS:
            page = f"/guides/{CARDS[text][1]}"
            link = addnodes.pending_xref(refdomain="std", reftype="doc", reftarget=page)
            link["refexplicit"] = True
        else:
            continue
        if not app.env.docname.startswith("api/"):
            seen.add(name)
        link["refdoc"] = app.env.docname
        literal.replace_self(link)
        link += literal


def _member(name: str) -> str | None:
    """Where something of a public class is described, such as ``Recipe.few``."""
    owner, _, member = name.partition(".")
    return f"{PLACES[owner]}.{member}" if owner in PLACES else None


def _above(node: nodes.Node) -> Iterator[nodes.Node]:
    while node := node.parent:
        yield node


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
