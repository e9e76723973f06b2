"""Research code that is not on a package registry, run from where LOWDIM_PEER_<NAME> points."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from benchmarks.harness import Skipped

__all__ = ["official_blast"]


def official_blast(module: str) -> ModuleType:
    """Import a module of the official BLAST repository (changwoolee/BLAST).

    Parameters
    ----------
    module : str
        Dotted name inside the checkout, such as ``"ops.blast_ops"``.

    Returns
    -------
    module
        The module.

    Raises
    ------
    Skipped
        If LOWDIM_PEER_BLAST names no checkout, or the code does not import here.
    """
    named = os.environ.get("LOWDIM_PEER_BLAST")
    if not named:
        raise Skipped("LOWDIM_PEER_BLAST does not name a checkout of the official code (changwoolee/BLAST)")
    root = Path(named)
    if not root.joinpath(*module.split(".")).with_suffix(".py").is_file():
        raise Skipped(f"LOWDIM_PEER_BLAST={named} has no {module.replace('.', '/')}.py")
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Skipped(f"the official code does not import here: {error}") from error
    finally:
        sys.path.remove(str(root))
