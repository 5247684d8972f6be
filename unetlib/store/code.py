"""What code is: a hash of the Python objects that run, whatever the files on disk say by now.

Objects are taken apart and numbered in the order in which they are found: neither addresses in
memory nor the order of a set's elements can be seen in the hash.
"""

import copyreg
import dis
import os
import sys
from contextlib import suppress
from functools import cache, cached_property, partial
from hashlib import sha256
from importlib import import_module, metadata
from types import CodeType, FunctionType, MethodType, ModuleType

from unetlib.support.errors import RunError

_OURS = __name__.partition(".")[0]
_SCALARS = (str, bytes, int, float, complex, bool, type(None), type(...), type(NotImplemented))
_WRAPPERS = (MethodType, staticmethod, classmethod, property, cached_property)
_WRAPPED = ("__func__", "__self__", "fget", "fset", "fdel", "func")
# Of a class: where it stands, what it says, and what follows from the rest or is set by use.
_NO_BEHAVIOUR = set(
    "__doc__ __module__ __qualname__ __firstlineno__ __static_attributes__ __annotations__ "
    "__annotate__ __annotate_func__ __annotations_cache__ __dict__ __weakref__ __slotnames__ "
    "__parameters__ __dataclass_fields__ __dataclass_params__ _abc_impl _value2member_map_".split()
)


def code_hash(thing) -> str:
    """16 hexadecimal digits that change when the code or the state behind ``thing`` does.

    They cover what functions and classes do (not their names, comments, docstrings, annotations),
    their defaults, closures and the globals that they use, the state of instances, and installed
    packages by name and version; functions of this package take from those by name alone. A text
    ``run_name`` of an object stands for all of it.

    Raises:
        RunError: a part cannot be hashed; names the way to it and the remedy.
    """
    content, found, numbers = sha256(), [], {}

    def written(step, part, above) -> str:
        if type(part) in _SCALARS:
            return f"{type(part).__name__} {part!r}"
        if type(part) is tuple:  # not by number: whether equal constants are one is an accident
            return f"({', '.join(written(step, item, above) for item in part)})"
        if type(part) in (set, frozenset):
            return f"{type(part).__name__} {sorted(map(code_hash, part))}"
        number = numbers.setdefault(id(part), len(found))
        if number == len(found):
            found.append((step, part, above))
        return f"#{number}"

    content.update(written("", thing, None).encode(errors="surrogatepass"))
    for way in found:  # and what is found on it
        try:
            tag, parts = _take_apart(way[1])
            text = repr((tag, *(written(*part, way) for part in parts)))
        except Exception as error:
            raise RunError(_refusal(*way)) from error
        content.update(text.encode())
    return content.hexdigest()[:16]


def label(thing) -> str:
    """A short name for tables: ``focal_loss``, ``partial(Unet)``, ``Compose``; a text is itself."""
    if isinstance(thing, (str, partial)):
        return thing if isinstance(thing, str) else f"partial({label(thing.func)})"
    name = getattr(thing, "__name__", None)
    return name if isinstance(name, str) else type(thing).__name__


def _refusal(step: str, thing, above) -> str:
    what, steps, holder = f"a {type(thing).__name__}, whose content cannot be named", [step], None
    while above:
        step, thing, above = above
        steps.append(step)
        method = "." in getattr(thing, "__qualname__", "").rpartition("<locals>.")[2]
        if hasattr(thing, "__dict__") and not method:
            holder = holder or label(thing)
    if way := " of ".join(f"`{step}`" for step in steps if step):
        what = f"{label(thing)} uses {way}, {what}"
    remedy = f'give {holder or "it"} a run_name, a text such as "version 1" that changes with it'
    return f"{what}: {remedy}."


@cache
def _package(module: str) -> str:
    """Name and version of the installed package, or of Python's, that has it; "" for own code."""
    top = module.partition(".")[0]
    found = sys.modules.get(top)
    # What has neither a file nor a folder is built in, or a place for Cython's types.
    path = getattr(found, "__file__", None) or str(getattr(found, "__path__", "site-packages"))
    places = ("site-packages", "dist-packages", os.path.dirname(os.__file__) + os.sep)
    if not found or top in ("__main__", _OURS) or not any(place in path for place in places):
        return ""
    version = getattr(found, "__version__", None)
    with suppress(metadata.PackageNotFoundError):
        version = version if isinstance(version, str) else metadata.version(top)
    return f"{top} {version}"


def _take_apart(thing) -> tuple[str, list[tuple[str, object]]]:
    """Tag and parts, each after the name by which it is known, of what is found by number."""
    kind = type(thing)
    for names in (getattr(thing, "__dict__", None) or {}, vars(kind)):
        if type(names.get("run_name")) is str:
            return f"named {label(thing)} {names['run_name']}", []
    if kind is list:
        return "list", [("", part) for part in thing]
    if kind is dict:
        return "dict", [part for k, v in thing.items() for part in (("", k), (str(k), v))]
    if kind is CodeType:
        head = thing.co_argcount, thing.co_posonlyargcount, thing.co_kwonlyargcount
        head += thing.co_varnames, thing.co_flags & 0b1100, thing.co_exceptiontable
        return f"code {head}", [("", part) for step in _read(thing) for part in step]
    if isinstance(thing, _WRAPPERS):
        return kind.__name__, [("", getattr(thing, name, None)) for name in _WRAPPED]
    if isinstance(thing, FunctionType):  # torch wraps an optimizer's `step` on first use
        return _take_function(thing.__wrapped__ if hasattr(thing, "hooked") else thing)
    if isinstance(thing, ModuleType) and (package := _package(thing.__name__)):
        return f"module {thing.__name__} {package}", []
    home = str((thing if isinstance(thing, type) else kind).__module__)
    package = _package(home)
    if isinstance(thing, type):
        if package:
            return f"class {home} {thing.__qualname__} {package}", []
        members = [(name, vars(thing)[name]) for name in sorted(vars(thing).keys() - _NO_BEHAVIOUR)]
        return "class", [("", kind), ("", thing.__bases__), *members]
    torch = sys.modules.get("torch")
    if torch and isinstance(thing, torch.Tensor):
        data = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        tag = f"{thing.dtype} {thing.shape} {thing.requires_grad} {sha256(data).hexdigest()}"
        return tag, [("", kind)]
    reduced = copyreg.dispatch_table.get(kind, lambda it: kind.__reduce_ex__(it, 4))(thing)
    if isinstance(reduced, str):  # a name; what lru_cache made has one, too
        home = getattr(thing, "__module__", home)
        return f"{home} {reduced}", [("", kind), ("", getattr(thing, "__wrapped__", None))]
    make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    if isinstance(state, dict):  # torch notes in it how it was used
        noted = {"training"} if "_parameters" in state else set()
        noted |= {name for name in state if package and name[:4] == "prev"}
        state = {name: part for name, part in state.items() if name not in noted}
    parts = (make, arguments, state, tuple(items or ()), tuple(pairs or ()))
    return "instance", [("", part) for part in parts]


def _take_function(function: FunctionType) -> tuple[str, list[tuple[str, object]]]:
    scope, codes = function.__globals__, [function.__code__]
    for code in codes:  # and what is found in it
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
    steps = [step for code in codes for step in _read(code)]
    stored = {n for kind, n in steps if kind in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF")}
    cells = zip(codes[0].co_freevars, function.__closure__ or (), strict=True)
    parts = [("", function.__defaults__), ("", function.__kwdefaults__)]
    parts += [part for part in vars(function).items() if part[0][0] != "_"]
    parts += [(name, cell.cell_contents) for name, cell in cells if name not in stored]
    home = str(scope.get("__name__"))
    if package := _package(home):  # what its decorators and factories make holds the user's code
        made = "<locals>" in function.__qualname__ or not _package(str(function.__module__))
        return f"{home} {codes[0].co_qualname} {package}", parts if made else []
    read = dict.fromkeys(n for kind, n in steps if kind in ("LOAD_GLOBAL", "LOAD_NAME"))
    found = [(n, scope[n]) for n in read if n in scope and n not in stored and n[:2] != "__"]
    ours = home.partition(".")[0] == _OURS
    for (_, dots), (kind, name) in zip(steps, steps[2:], strict=False):
        if kind == "IMPORT_NAME" and not ours:
            found.append((name, import_module("." * dots + name, scope.get("__package__"))))
    names, modules = dict.fromkeys(name for code in codes for name in code.co_names), set()
    for step, value in found:
        if isinstance(value, ModuleType) and not _package(value.__name__):
            if value not in modules:  # of modules that are not installed, what may be used of them
                modules.add(value)
                found += [(f"{step}.{n}", vars(value)[n]) for n in names if n in vars(value)]
        elif not ours or isinstance(value, (*_SCALARS, tuple, frozenset)):
            parts.append((step, value))
        elif callable(value) and not _package(str(value.__module__)):  # no registry, cache or lock
            parts.append((step, value))
    return "function", [("", codes[0]), *parts]


@cache
def _read(code: CodeType) -> list[tuple[str, object]]:
    """Instructions with what they load, store or jump to; in them no docstring nor line shows."""
    steps = []
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME" and step.argval in _NO_BEHAVIOUR:
            steps.pop()
        else:
            steps.append((step.opname, step.argval))
    return steps
