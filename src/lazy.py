"""Public names of a package that are imported on first use, so that its config can be read before torch is loaded."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any


def reexport(package: str, **modules: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package, whose modules and their names are had without an import of their own.

    ``reexport(__name__, data="datasets split")`` re-exports two names of its module ``data``.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        if importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
