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
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from importlib import import_module, metadata
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import NamedTuple

from unetlib.support.errors import RunError

_SCALARS = (str, bytes, int, float, complex, bool, type(None), type(...), type(NotImplemented))
_OF_A_MODULE = {"__name__", "__file__", "__doc__", "__spec__", "__package__", "__path__"}
_OF_A_BODY = {"__doc__", "__qualname__", "__firstlineno__", "__static_attributes__"}
# Of a class: where it stands, what it says, and what follows from the rest or is set by use.
_OF_A_CLASS = _OF_A_BODY | set(
    "__module__ __dict__ __weakref__ __annotations__ __annotate__ __annotate_func__ __parameters__"
    " __annotations_cache__ _abc_impl __dataclass_fields__ __dataclass_params__"
    " _value2member_map_".split()
)
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
    (_, first), (_, last) = chain[0], chain[-1]
    way = " of ".join(f"`{step}`" for step, _ in reversed(chain) if step)
    uses = f"{label(first)} uses {way}, " if way else ""
    what = f"{uses}a {type(last).__name__}, whose content cannot be named"
    holders = [label(thing) for _, thing in chain if hasattr(thing, "__dict__")]
    own = [thing for _, thing in chain if not _is_installed(_home(thing))]
    holder = label(own[-1]) if own else "an object that holds it"
    return f'{what}: give a name that you change with it, {holder}.run_name = "version 1".'
