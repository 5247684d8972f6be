"""What code is: a hash of the Python objects that run, whatever the files on disk say by now.

Each object has a tag and parts, and its digest is made of its tag and its parts' digests: neither
addresses in memory nor the order of a set's elements can be seen in it.
"""

import copyreg
import dis
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, cached_property, partial
from hashlib import sha256
from importlib import import_module, metadata
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import NamedTuple

from unetlib.support.errors import RunError

_SCALARS = (str, bytes, int, float, complex, bool, type(None), type(...), type(NotImplemented))
_OF_A_MODULE = {"__name__", "__file__", "__doc__", "__spec__", "__package__", "__path__"}
_OF_A_BODY = {"__doc__", "__qualname__", "__firstlineno__", "__static_attributes__"}
# Of a class: where it stands, what it says, and what follows from the rest or is set by use.
_OF_A_CLASS = _OF_A_BODY | {"__module__", "__dict__", "__weakref__", "_abc_impl", "__slotnames__"}
_OF_A_CLASS |= {"__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"}
_OF_A_CLASS |= {
    "__dataclass_fields__",
    "__dataclass_params__",
    "__parameters__",
    "_value2member_map_",
}
_WRAPPERS = {
    MethodType: ("__func__", "__self__"),
    (staticmethod, classmethod): ("__func__",),
    property: ("fget", "fset", "fdel"),
    cached_property: ("func",),
}
_NAMED_BY_TORCH = {"dtype", "layout", "memory_format", "OpOverload", "OpOverloadPacket"}
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
# What counts of the library's own globals, beside what can be called: no registries, caches, locks.
_LASTING = (*_SCALARS, tuple, frozenset, ModuleType, property, staticmethod, classmethod)


class _Level(NamedTuple):
    step: str  # the name by which the level above knows the thing
    thing: object
    tag: str
    parts: Iterator[tuple[str, object]]
    digests: list[bytes]
    bare: bool  # in the library's own code, where installed packages count without their version
    key: tuple


def code_hash(thing, ours: str = "unetlib") -> str:
    """16 hexadecimal digits that change when the code or the state behind ``thing`` does.

    They cover what functions and classes do (not their comments, docstrings and annotations), their
    defaults, closures and the globals that they use, the state of instances, and installed packages
    by name and version. Code of the package ``ours`` counts as code; what that takes from installed
    packages counts by name. A text ``run_name`` of an object stands for all of it.

    Raises:
        RunError: a part cannot be hashed; names the way to it and the remedy.
    """
    known: dict[tuple, tuple] = {}  # holds the objects, as a dead one's id is used again
    levels = [_Level("", None, "", iter([("", thing)]), [], False, ())]
    while True:
        level = levels[-1]
        for step, part in level.parts:
            key = id(part), level.bare
            if type(part) in _SCALARS:
                level.digests.append(_digest(f"{type(part).__name__} {part!r}"))
            elif key in known:
                level.digests.append(known[key][1])
            else:
                try:
                    tag, parts, bare = _take_apart(part, ours, level.bare)
                except Exception as error:
                    chain = [*((above.step, above.thing) for above in levels[1:]), (step, part)]
                    raise RunError(_refusal(chain)) from error
                known[key] = part, _digest(f"above {len(levels)}")  # if its parts lead back to it
                levels.append(_Level(step, part, tag, iter(parts), [], bare, key))
                break
        else:
            levels.pop()
            if not levels:
                return level.digests[0].hex()[:16]
            unordered = level.tag in ("set", "frozenset")
            digest = _digest(level.tag, *(sorted if unordered else list)(level.digests))
            known[level.key] = level.thing, digest
            levels[-1].digests.append(digest)


def label(thing) -> str:
    """A short name for tables: ``focal_loss``, ``partial(Unet)``, ``Compose``; a text is itself."""
    if isinstance(thing, (str, partial)):
        return thing if isinstance(thing, str) else f"partial({label(thing.func)})"
    name = getattr(thing, "__name__", None)
    return name if isinstance(name, str) else type(thing).__name__


def _digest(tag: str, *parts: bytes) -> bytes:
    return sha256(sha256(tag.encode(errors="surrogatepass")).digest() + b"".join(parts)).digest()


def _refusal(chain: list[tuple[str, object]]) -> str:
    way = " of ".join(f"`{step}`" for step, _ in reversed(chain) if step)
    uses = f"{label(chain[0][1])} uses {way}, " if way else ""
    what = f"{uses}a {type(chain[-1][1]).__name__}, whose content cannot be named"
    holders = [thing for _, thing in chain if hasattr(thing, "__dict__")]
    own = [label(thing) for thing in holders if not _is_installed(_home(thing))]
    holder = (own or ["what uses it"])[-1]
    return f'{what}: give {holder} a run_name, a text such as "version 1" that changes with it.'


def _home(thing) -> str:
    """The module of a function, of a class, or of an instance's class."""
    if isinstance(thing, FunctionType):  # not its __module__, which decorators copy
        return thing.__globals__.get("__name__") or ""
    if isinstance(thing, ModuleType):
        return thing.__name__
    return str((thing if isinstance(thing, type) else type(thing)).__module__)


def _is_installed(home: str) -> bool:
    """Is a module of Python or of an installed package, not the user's own?"""
    top = home.partition(".")[0]
    found = sys.modules.get(top)
    if found is None or top == "__main__":
        return False
    path = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), None)
    if path is None:  # built in, Cython's types, or made by hand
        return getattr(found, "__spec__", None) is not None or top.startswith("_cython_")
    of_python = os.path.dirname(os.__file__) + os.sep
    return path.startswith(of_python) or "site-packages" in path or "dist-packages" in path


@cache
def _version(top: str) -> str:
    found = getattr(sys.modules.get(top), "__version__", None)
    if top in sys.stdlib_module_names or isinstance(found, str):
        return found or ""
    return " ".join(map(metadata.version, metadata.packages_distributions().get(top, ())))


def _take_apart(thing, ours: str, bare: bool) -> tuple[str, list[tuple[str, object]], bool]:
    """Tag and parts of anything but a scalar, and whether the parts are the library's own code."""
    kind, home = type(thing), _home(thing)
    for names in (getattr(thing, "__dict__", None) or {}, vars(kind)):
        if not isinstance(thing, ModuleType) and type(names.get("run_name")) is str:
            return f"named {label(thing)} {names['run_name']}", [], bare
    if kind in (tuple, list, set, frozenset):
        return kind.__name__, [("", part) for part in thing], bare
    if kind is dict:
        pairs = [(("", key), (str(key), value)) for key, value in thing.items()]
        return "dict", [part for pair in pairs for part in pair], bare
    if kind is CodeType:
        return *_read(thing)[:2], bare
    for wrapper, fields in _WRAPPERS.items():
        if isinstance(thing, wrapper):
            return kind.__name__, [("", getattr(thing, name)) for name in fields], bare
    is_ours = f"{home}.".startswith(f"{ours}.")
    installed = not is_ours and _is_installed(home)
    version = _version(home.partition(".")[0]) if installed and not bare else ""
    if isinstance(thing, ModuleType):
        if installed or is_ours:
            return f"module {home} {version}", [], bare
        return "module", sorted(p for p in vars(thing).items() if p[0][:2] != "__"), bare
    if isinstance(thing, FunctionType):
        if vars(thing).get("hooked") is True:  # torch wraps an optimizer's `step` on first use
            return _take_apart(thing.__wrapped__, ours, bare)
        if not installed:
            parts = [("", thing.__code__), *_held(thing), *_globals(thing, ours, is_ours)]
            return "function", parts, is_ours
        found = sys.modules.get(home)
        for name in thing.__qualname__.split("."):
            found = getattr(found, name, None)
        # One that a decorator or a call made holds objects of the user.
        parts = [] if found is thing else _held(thing)
        return f"{home} {thing.__code__.co_qualname} {version}", parts, bare
    if isinstance(thing, type):
        if installed:
            return f"class {home} {thing.__qualname__} {version}", [], bare
        parts = [("", base) for base in (kind, *thing.__bases__)]
        for name in sorted(vars(thing).keys() - _OF_A_CLASS):
            if not is_ours or _lasts(vars(thing)[name]):
                parts.append((name, vars(thing)[name]))
        return f"class {thing.__name__}", parts, is_ours
    if home.startswith("torch") and kind.__name__ in _NAMED_BY_TORCH:
        return f"{home} {thing} {version}", [], bare
    torch = sys.modules.get("torch")
    if torch and isinstance(thing, torch.Tensor):
        content = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        tag = f"tensor {thing.dtype} {tuple(thing.shape)} {thing.requires_grad}"
        return tag, [("", kind), ("", content)], bare
    reduce = copyreg.dispatch_table.get(kind)
    reduced = reduce(thing) if reduce else kind.__reduce_ex__(thing, 4)
    if isinstance(reduced, str):  # a name; what lru_cache made has one, too
        parts = [("", kind), ("", getattr(thing, "__wrapped__", None))]
        return f"{getattr(thing, '__module__', home)} {reduced}", parts, bare
    make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    if isinstance(state, dict):  # torch notes in it what was called before
        passing = {"training"} if "_parameters" in state else set()
        passing |= {name for name in state if home[:6] == "torch." and name[:4] == "prev"}
        state = {name: part for name, part in state.items() if name not in passing}
    parts = (make, arguments, state, list(items or ()), list(pairs or ()))
    return "instance", [("", part) for part in parts], bare


def _lasts(value) -> bool:
    return isinstance(value, _LASTING) or callable(value)


def _held(function: FunctionType) -> list[tuple[str, object]]:
    """Defaults, attributes and closure, but not the variables that the function itself sets."""
    parts = [("", function.__defaults__), ("", function.__kwdefaults__)]
    parts += [p for p in vars(function).items() if p[0][0] != "_" or p[0] == "__wrapped__"]
    changed = _read(function.__code__)[3]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            parts += [] if name in changed else [(name, cell.cell_contents)]
    return parts


def _globals(function: FunctionType, ours: str, is_ours: bool) -> Iterator[tuple[str, object]]:
    """The globals that a function uses; of modules that are not installed, the attributes."""
    scope, (_, _, names, changed) = function.__globals__, _read(function.__code__)
    for first, *attributes in names:
        step, module = first, first.removeprefix("import ")
        if module != first:
            if is_ours and not f"{module}.".startswith((f"{ours}.", ".")):
                continue  # by name, and without the time that importing it takes
            try:
                value = import_module(module, scope.get("__package__"))
            except ImportError:
                continue
        elif first in scope and first not in changed | _OF_A_MODULE:
            value = scope[first]
        else:  # built in, or not there yet
            continue
        while attributes and isinstance(value, ModuleType):
            home = value.__name__
            if _is_installed(home) and not f"{home}.".startswith(f"{ours}."):
                break
            step += f".{attributes[0]}"
            value = getattr(value, attributes.pop(0), None)
        if not is_ours or _lasts(value):
            yield step, value


@cache
def _read(code: CodeType) -> tuple[str, list[tuple[str, object]], list[tuple], set[str]]:
    """Tag and parts of a code object, the names that it reads with their attributes, those it sets.

    Arguments are resolved and jumps count instructions: no docstring shows in a shifted number.
    """
    listing, kept, names, changed, chain = dis.Bytecode(code), [], {}, set(), ()
    for instruction in listing:
        name, value = instruction.opname, instruction.argval
        if name in ("NOP", "EXTENDED_ARG"):
            continue
        if name == "STORE_NAME" and value in _OF_A_BODY:
            kept.pop()
            continue
        if name in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain = (*chain, value)
        else:
            names[chain] = None
            chain = (value,) if name in ("LOAD_GLOBAL", "LOAD_NAME") else ()
        if name == "IMPORT_NAME":
            module = f"import {'.' * kept[-2].argval}{value}"
            found = [(module, part) for part in kept[-1].argval or ()] or [(module,)]
            names |= dict.fromkeys(found)
        inner = name == "STORE_DEREF" and value in code.co_freevars
        if inner or name in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            changed.add(value)
        kept.append(instruction)
    offsets = [instruction.offset for instruction in kept]
    tag, parts = [code.co_name, *code.co_varnames, code.co_argcount, code.co_posonlyargcount], []
    tag += [code.co_kwonlyargcount, code.co_flags & 0b1100]  # *args, **kwargs
    for instruction in kept:
        value = instruction.argval
        if instruction.opcode in _JUMPS:
            value = bisect_left(offsets, value)
        elif type(value) not in _SCALARS:
            parts.append(("", value))
            value = ()
        tag += [instruction.opname, value]
    for entry in listing.exception_entries:
        ends = [bisect_left(offsets, end) for end in (entry.start, entry.end, entry.target)]
        tag += [*ends, entry.depth, entry.lasti]
    for nested in code.co_consts:
        if isinstance(nested, CodeType):
            _, _, more, set_there = _read(nested)
            names |= dict.fromkeys(more)
            changed |= set_there
    names.pop((), None)
    return repr(tag), parts, list(names), changed
