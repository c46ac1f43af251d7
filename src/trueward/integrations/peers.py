"""The libraries this room connects to are optional: they are imported when first needed, or their absence is explained."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {"diffusers": "diffusers", "transformers": "text"}


def peer(name: str) -> ModuleType:
    """The module `name` of an optional library.

    Raises:
        ValueError: saying what to install if it is missing.
    """
    library = name.split(".")[0]
    try:
        importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        install = f'pip install "trueward[{EXTRAS[library]}]"' if library in EXTRAS else f"pip install {library}"
        raise ValueError(f"This needs the package {library}: {install}.") from error
    return importlib.import_module(name)
