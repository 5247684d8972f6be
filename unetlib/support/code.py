"""What code is: a hash of the Python objects that run, whatever the files on disk say by now."""

import copyreg
import dis
import os
import sys
from contextlib import suppress
from functools import cache, cached_property, partial
from glob import glob
from hashlib import sha256
from importlib import import_module, metadata
from itertools import pairwise
from threading import Lock, RLock
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType

from unetlib.support.errors import RunError

_OURS = __name__.partition(".")[0]
_SCALARS = (str, bytes, int, float, complex, bool, slice, type(None), type(...))
_NAMED = (FunctionType, BuiltinFunctionType, type, ModuleType)
_LOCKS = (type(Lock()), type(RLock()))
_GLOBAL, _ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
_WRAPPERS = (MethodType, staticmethod, classmethod, property, cached_property)
_WRAPPED = ("__func__", "__self__", "fget", "fset", "fdel", "func")
# Of a class: where it stands, what it says, and what follows from the rest or is set by use.
_NO_BEHAVIOUR = ("__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_", "__annot")
_NO_BEHAVIOUR += ("__dict__", "__weakref__", "__slotn", "__dataclass_", "_abc_impl", "_value2mem")


def code_hash(thing) -> str:
    """16 hexadecimal digits that change when the code or the state behind ``thing`` does.

    They cover what functions and classes do (not their own names, nor comments and docstrings)
    with all they use, the state of instances, and installed packages by name and version; but by
    name alone in functions of this package. The text ``unetlib_name`` of an object stands for it.
    RunError: a part cannot be hashed; names the way to it and the remedy.
    """
    found, numbers = [], {}  # the objects stay alive, as a dead one's id is used again

    def written(step, part, above) -> str:
        kind = type(part).__name__
        if type(part) in _SCALARS:
            return f"{kind} {sha256(part).hexdigest() if kind == 'bytes' else repr(part)}"
        if type(part) is tuple:  # not by number: whether equal constants are one is an accident
            return f"({', '.join(written(step, item, above) for item in part)})"
        if type(part) in (set, frozenset):
            return f"{kind} {sorted(map(code_hash, part))}"
        if id(part) not in numbers:
            numbers[id(part)] = len(found)
            found.append((step, part, above))
        return f"#{numbers[id(part)]}"

    content = sha256(written("", thing, None).encode())
    for way in found:  # and what is found on it
        try:
            tag, parts = _take_apart(way[1])
            texts = [(step, written(step, part, way)) for step, part in parts]
            content.update(repr((tag, texts)).encode())
        except Exception as error:
            raise RunError(_refusal(*way)) from error
    return content.hexdigest()[:16]


def label(thing) -> str:
    """A short name for tables: ``focal_loss``, ``partial(Unet)``, ``Compose``; a text is itself."""
    if isinstance(thing, (str, partial)):
        return thing if isinstance(thing, str) else f"partial({label(thing.func)})"
    return str(getattr(thing, "__name__", type(thing).__name__))


def _is_dunder(name: str) -> bool:
    return name[:2] == "__" == name[-2:]


def _refusal(step: str, thing, above) -> str:
    what, steps = f"a {type(thing).__name__}, whose content cannot be named", [step]
    while above:
        step, thing, above = above
        steps.append(step)
    way = " of ".join(f"`{step}`" for step in steps if step)
    what = f"{label(thing)} uses {way}, {what}" if way else what
    return f'{what}: give what holds it a unetlib_name, a text like "v1" that changes with it.'


@cache
def _package(module: str) -> str:
    """Python or the installed package that a module is of, with its version; "" for own code."""
    top = module.partition(".")[0]
    found = sys.modules.get(top)
    # What has neither a file nor a folder is built in, or a place for Cython's types.
    path = getattr(found, "__file__", None) or str(getattr(found, "__path__", "site-packages"))
    places = ("site-packages", "dist-packages", os.path.dirname(os.__file__) + os.sep)
    root = os.path.dirname(path.removesuffix(os.sep + "__init__.py"))  # of pip install --target
    installed = any(place in path for place in places) or glob(os.path.join(root, "*.dist-info"))
    if not found or top in ("__main__", _OURS) or not installed:
        return ""
    with suppress(metadata.PackageNotFoundError):
        return f"{top} {getattr(found, '__version__', None) or metadata.version(top)}"
    return top


def _take_apart(thing) -> tuple[str, list[tuple[str, object]]]:
    """Tag and parts, each after the name by which it is known, of what is found by number."""
    kind = type(thing)
    for names in (getattr(thing, "__dict__", None) or {}, vars(kind)):
        if type(names.get("unetlib_name")) is str:
            return f"named {label(thing)} {names['unetlib_name']}", []
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
        own = thing.__qualname__ + "."  # torch also puts a wrapped `step` of a base class here
        its = [one for one in sorted(vars(thing).items()) if not one[0].startswith(_NO_BEHAVIOUR)]
        its = [(n, p) for n, p in its if not hasattr(p, "hooked") or p.__qualname__.startswith(own)]
        return "class", [("", kind), ("", thing.__bases__), *its]
    if hasattr(kind, "untyped_storage"):  # a tensor
        raw = thing.detach().cpu().contiguous().reshape(-1).view(sys.modules["torch"].uint8).numpy()
        return f"{thing.dtype} {thing.shape} {thing.requires_grad}", [("", kind), ("", raw)]
    reduced = copyreg.dispatch_table.get(kind, lambda it: kind.__reduce_ex__(it, 4))(thing)
    if isinstance(reduced, str):  # a name; what lru_cache made has one, too
        home = getattr(thing, "__module__", home)
        return f"{home} {reduced}", [("", kind), ("", getattr(thing, "__wrapped__", None))]
    make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    if isinstance(state, dict):  # torch notes in it how it was used, and numbers hooks
        noted = {"prev", "prev_cache_enabled", "prev_fastdtype"} if package else set()
        kept = [(name, part) for name, part in state.items() if name not in noted]
        hooks = {name for name, part in kept if "_hooks" in str(name) and isinstance(part, dict)}
        kept = [(name, [*part.values()] if name in hooks else part) for name, part in kept]
        pairs = [*(pairs or ()), *kept]
    parts = (make, arguments, None if isinstance(state, dict) else state, *(items or ()))
    return "", [("", part) for part in parts] + [(label(k), (k, v)) for k, v in pairs or ()]


def _take_function(function: FunctionType) -> tuple[str, list[tuple[str, object]]]:
    steps, scope = _read(function.__code__), function.__globals__
    stored = {n for kind, n in steps if kind in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF")}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    parts = [("", function.__defaults__), ("", function.__kwdefaults__)]
    parts += [part for part in vars(function).items() if not _is_dunder(part[0])]
    parts += [(name, cell.cell_contents) for name, cell in cells if name not in stored]
    home = str(scope.get("__name__"))
    if package := _package(home):  # what its decorators and factories make holds the user's code
        made = "<locals>" in function.__qualname__ or not _package(str(function.__module__))
        return f"{home} {function.__code__.co_qualname} {package}", parts if made else []
    ours = home.partition(".")[0] == _OURS
    read = {n for kind, n in steps if kind in _GLOBAL and not _is_dunder(n)}
    found = [(name, scope[name]) for name in sorted(read - stored) if name in scope]
    for (_, dots), (kind, name) in zip(steps, steps[2:], strict=False):
        if kind == "IMPORT_NAME" and not ours:
            with suppress(ImportError):  # of what need not be there
                found.append((name, import_module("." * dots + name, scope.get("__package__"))))
    names, seen = {n for kind, n in steps if kind in _ATTRIBUTE and not _is_dunder(n)}, []
    passed = {n for (k, n), (then, _) in pairwise(steps) if k in _GLOBAL and then not in _ATTRIBUTE}
    for step, value in found:
        if isinstance(value, ModuleType) and not _package(value.__name__):
            used = names if step not in passed else {n for n in vars(value) if not _is_dunder(n)}
            inside = [(f"{step}.{n}", getattr(value, n)) for n in sorted(used) if hasattr(value, n)]
            found += [] if value in seen else inside
            seen.append(value)
        elif not ours:
            parts.append((step, value))
        elif not isinstance(value, (dict, *_LOCKS)):  # the library's registries do not count
            of = isinstance(value, _NAMED) and _package(getattr(value, "__module__", 0) or "os")
            # What is of a package, by that alone: tqdm has other names in a notebook.
            parts.append((step, of.partition(" ")[0] if of else value))
    return "function", [*parts, *(("", part) for step in steps for part in step)]


@cache
def _read(code: CodeType) -> list[tuple[str, object]]:
    """Instructions, of nested code too, with what they load, store or jump to; no docstrings."""
    head = (code.co_varnames, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    steps = [("", (*head, code.co_flags & 0b1100, code.co_exceptiontable))]
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME" and step.argval.startswith(_NO_BEHAVIOUR):
            steps.pop()
        elif isinstance(step.argval, CodeType):
            steps += _read(step.argval)
        else:  # Python 3.11 does not say which names of arguments KW_NAMES means
            named = step.opname == "KW_NAMES"
            steps.append((step.opname, code.co_consts[step.arg] if named else step.argval))
    return steps
