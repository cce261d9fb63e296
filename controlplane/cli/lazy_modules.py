"""Modules that are imported when they are first used.

The generated code and gRPC take longer to load than everything else, and `--help` needs neither. A module of commands
names them once, for the type checker as an import and at run time as one of these.
"""

import importlib
from types import ModuleType


class _ImportedOnUse(ModuleType):
    """A module that imports another when one of its names is asked for."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


def imported_on_use(name: str) -> ModuleType:
    """Return a stand-in for the module of that name, which behaves like it."""
    return _ImportedOnUse(name)
