"""The papers behind what was used, as BibTeX.

Every class that implements a paper carries its keys in ``citation``; ``trueward.citations(sampler, denoiser)`` collects them
through everything the objects are made of (a guided denoiser cites its guidance, the model inside and the schedule under
it) and prints the entries of `references.bib`.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trueward.naming import look_up

_ENTRY = re.compile(r"^@\w+\{([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},?\s*$", re.MULTILINE)
_LEAVES = (str, bytes, int, float, complex, bool, type(None))


@functools.cache
def entries() -> Mapping[str, str]:
    """All known BibTeX entries by key."""
    text = Path(__file__).with_name("references.bib").read_text(encoding="utf-8")
    return {match[1]: match[0] for match in _ENTRY.finditer(text)}


def fields(key: str) -> dict[str, str]:
    """The fields of an entry (title, author, year, ...) with BibTeX's protecting braces taken out."""
    text = look_up("citation", key, entries())
    return {name: value.replace("{", "").replace("}", "") for name, value in _FIELD.findall(text)}


def citation_keys(*objects: Any) -> list[str]:
    """The citation keys of the objects and of what they hold, each once, in the order they are met."""
    found: dict[str, None] = {}
    for item in _walk(objects):
        found.update(dict.fromkeys(_own_keys(item)))
    return list(found)


def citations(*objects: Any) -> str:
    """BibTeX of the papers behind some objects; without any, how to cite trueward itself.

    Args:
        *objects: samplers, denoisers, schedules, grids, objectives, metrics, ...: instances, classes or functions. What they
            wrap is followed. A class of your own takes part with ``citation = ("karras2022elucidating",)``, or with a
            complete BibTeX entry in place of a key.

    Returns:
        The entries, separated by blank lines, each once; empty if nothing used has a paper of its own.

    Raises:
        ValueError: a key that is neither known nor a BibTeX entry.
    """
    keys = citation_keys(*objects) if objects else ["trueward"]
    return "\n\n".join(key if key.lstrip().startswith("@") else look_up("citation", key, entries()) for key in keys)


def _own_keys(item: Any) -> tuple[str, ...]:
    """Keys of the object's class, else those of the module of trueward that defines it."""
    keys = getattr(item, "citation", None)
    if keys is None:
        owner = item if inspect.isclass(item) or inspect.isroutine(item) else type(item)
        module = getattr(owner, "__module__", None) or ""
        if module.partition(".")[0] == "trueward":
            keys = getattr(sys.modules.get(module), "citation", None)
    return (keys,) if isinstance(keys, str) else keys if isinstance(keys, tuple) else ()


def _walk(objects: Any) -> Iterator[Any]:
    """The objects and, depth first, everything they hold; tensors and arrays are not looked into."""
    stack, seen = [objects], set()
    kept = []  # keeps temporaries alive, so that an id means one object
    while stack:
        item = stack.pop()
        if isinstance(item, _LEAVES) or id(item) in seen:
            continue
        seen.add(id(item))
        kept.append(item)
        yield item
        stack.extend(reversed(list(_parts(item))))


def _parts(item: Any) -> Iterator[Any]:
    if isinstance(item, Mapping):
        yield from item.values()
    elif isinstance(item, (list, tuple, set, frozenset)):
        yield from item
    elif isinstance(item, functools.partial):
        yield from (item.func, item.args, item.keywords)
    elif inspect.ismethod(item):
        yield item.__self__
    elif inspect.isclass(item) or inspect.isroutine(item) or inspect.ismodule(item):
        return
    elif type(item).__module__.partition(".")[0] in ("torch", "numpy"):
        yield from getattr(item, "_modules", {}).values()  # a container such as nn.Sequential; of a tensor, nothing
    else:
        yield from getattr(item, "__dict__", {}).values()
        for cls in type(item).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            yield from (getattr(item, slot, None) for slot in ([slots] if isinstance(slots, str) else slots))
