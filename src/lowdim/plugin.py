"""Teach transformers and peft our layers at the moment somebody imports them.

``import lowdim`` must stay light, so it can load neither torch nor transformers; yet after it,
``AutoModel.from_pretrained(OUT)`` has to understand a compressed checkpoint. Both hold with a hook on the
import system: nothing is loaded here, and when (if ever) the foreign module has been executed, our file that
is named after it is imported and registers itself. A foreign module which is already there is served at once.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

__all__ = ["after_import", "register"]

# Foreign module -> our file, imported (and registering itself) once the foreign one has been executed. For
# transformers that is the inner module with the tables we extend: it is loaded late, and only when needed.
_OURS = {
    "transformers.quantizers.auto": "lowdim.compress.transformers",
    "peft": "lowdim.compress.peft",
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """A finder that finds nothing itself: it lets the others find, and appends a call to the execution."""

    def __init__(self) -> None:
        self.pending: dict[str, Callable[[], object]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of the other finders, with our call behind its execution."""
        action = self.pending.get(fullname)
        if action is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        if spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # Only after success: a module that failed to import may be tried again.
            if self.pending.pop(fullname, None) is not None:
                action()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_FINDER = _AfterImport()


def after_import(name: str, action: Callable[[], object]) -> None:
    """Call `action` once the module `name` has been executed: now, if it already has.

    Parameters
    ----------
    name : str
        Full name of a module, which need not be installed.
    action : callable
        Called without arguments, once.

    Examples
    --------
    >>> after_import("json", lambda: print("json is there"))
    json is there
    """
    if name in sys.modules:
        # Waits, by Python's lock per module, for another thread that is still executing it.
        importlib.import_module(name)
        action()
        return
    _FINDER.pending[name] = action
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def register() -> None:
    """Install the hooks; called by ``import lowdim``, and harmless when called again."""
    for foreign, ours in _OURS.items():
        # Our file enters itself in the foreign tables at its end; it may be what asked for the foreign one.
        after_import(foreign, partial(importlib.import_module, ours))
