"""The API pages: every public name under the module it lives in, as its docstring describes it."""

import inspect
from importlib import import_module
from pathlib import Path

import unetlib

GROUPS = {
    "lesson": ("The lesson", "What the notebooks teach, in reading order."),
    "store": ("unetlib.store: runs on disk", "Train, keep, compare."),
    "deploy": ("unetlib.deploy: models at work", "Export, predict, measure."),
    "fetch": ("unetlib.fetch: data sets", "Find, check, download."),
    "support": ("unetlib.support: what all of it uses", "Folders, profiles, errors, exercises."),
}
GIVEN = {"Run": "store.runs"}  # not for import, but what `fit` returns
TABLE = 'Built-in names: {}. Register your own: ``{}["name"] = function``.'
# A constant has no docstring.
CONSTANTS = {
    "FILES": "The file name of each format in a folder of exported models.",
    "REPOSITORY": "The folder of this repository; installed without one, the current folder.",
    "TOLERANCE": "The largest difference in probability that a float format may have.",
}
# Where each name is described, by the ways in which a text may write it.
PLACES = {
    written: f"unetlib.{module}.{name}"
    for name, module in (unetlib._MODULES | GIVEN).items()
    for written in (name, f"{module}.{name}", f"unetlib.{module}.{name}")
}


def write_api(folder: Path) -> None:
    """Write a page per group and the page that lists them."""
    folder.mkdir()
    homes = unetlib._MODULES | GIVEN
    pages = {group: [] for group in GROUPS}
    for module in dict.fromkeys(homes.values()):
        group = module.split(".")[0] if "." in module else "lesson"
        names = [name for name, home in homes.items() if home == module]
        pages[group].append(_section(module, names))
    for group, sections in pages.items():
        title, what = GROUPS[group]
        text = "\n".join([_heading(title, "="), what, "", *sections])
        (folder / f"{group}.rst").write_text(text, encoding="utf-8")
    text = [
        _heading("API reference", "="),
        "All of these names come from the package itself: ``from unetlib import UNet, fit``.",
        "",
        ".. toctree::",
        "   :maxdepth: 2",
        "",
        *(f"   {group}" for group in GROUPS),
        "",
    ]
    (folder / "index.rst").write_text("\n".join(text), encoding="utf-8")


def _heading(title: str, line: str) -> str:
    return f"{title}\n{line * len(title)}\n"


def _section(module: str, names: list[str]) -> str:
    """A module: its docstring, then its public names."""
    parts = [_heading(module.rpartition(".")[2], "-"), f".. automodule:: unetlib.{module}\n"]
    for name in names:
        thing = getattr(import_module(f"unetlib.{module}"), name)
        if inspect.isclass(thing):
            kind = "autoexception" if issubclass(thing, Exception) else "autoclass"
        elif callable(thing):
            kind = "autofunction"
        else:
            parts.append(_constant(module, name, thing))
            continue
        members = "   :members:\n" if kind == "autoclass" else ""
        parts.append(f".. {kind}:: unetlib.{module}.{name}\n{members}")
    return "\n".join(parts)


def _constant(module: str, name: str, value: object) -> str:
    what = CONSTANTS.get(name) or TABLE.format(", ".join(f"``{key}``" for key in value), name)
    lines = [f".. py:data:: {name}", f"   :module: unetlib.{module}", "", f"   {what}"]
    if name in CONSTANTS and isinstance(value, dict):
        lines += ["", *(f"   - ``{key}``: ``{file}``" for key, file in value.items())]
    return "\n".join([*lines, ""])
