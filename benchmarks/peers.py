"""Research code that is not on a package registry, run from where LOWDIM_PEER_<NAME> points."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from benchmarks.harness import Skipped

__all__ = ["official_blast", "official_geodesic"]


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
    return _official("LOWDIM_PEER_BLAST", "changwoolee/BLAST", module)


def official_geodesic() -> ModuleType:
    """Import the solver of the official code for one geodesic.

    Returns
    -------
    module
        ``geodesic_solver``.

    Raises
    ------
    Skipped
        If LOWDIM_PEER_GEODESIC names no checkout, or the code does not import here.
    """
    repository = "soominkwon/Dynamic-Subspace-Tracking-with-a-Single-Geodesic-Model"
    return _official("LOWDIM_PEER_GEODESIC", repository, "geodesic_solver")


def _official(variable: str, repository: str, module: str) -> ModuleType:
    named = os.environ.get(variable)
    if not named:
        raise Skipped(f"{variable} does not name a checkout of the official code ({repository})")
    root = Path(named)
    if not root.joinpath(*module.split(".")).with_suffix(".py").is_file():
        raise Skipped(f"{variable}={named} has no {module.replace('.', '/')}.py")
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Skipped(f"the official code does not import here: {error}") from error
    finally:
        sys.path.remove(str(root))
