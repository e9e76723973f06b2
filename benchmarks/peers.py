"""Research code that is not on a package registry, run from where LOWDIM_PEER_<NAME> points."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy

from benchmarks.harness import Skipped

__all__ = [
    "official_blast",
    "official_geodesic",
    "official_tensor_classifier",
    "official_tucker",
    "pyhessian",
]


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


def official_tensor_classifier(kind: str) -> type:
    """Import a classifier of the official code for tensor-structured predictors.

    Its starts are matrices, which the minimizer of SciPy 1.11 and later refuses: in the copy that is imported
    they are laid flat on the way to it. Nothing else is changed.

    Parameters
    ----------
    kind : {"logistic_regression", "linear_svm"}

    Returns
    -------
    type
        Its class.

    Raises
    ------
    Skipped
        If LOWDIM_PEER_TENSORML names no checkout, or the code does not import here.
    """
    from scipy.optimize import minimize

    repository = "soominkwon/Machine-Learning-with-Tensor-Factorizations"
    module = _official("LOWDIM_PEER_TENSORML", repository, f"cp_{kind}")

    def flat(function: Any, start: Any, **options: Any) -> Any:
        return minimize(function, start.ravel(), **options)

    module.minimize = flat  # type: ignore[attr-defined]
    return getattr(
        module, {"logistic_regression": "CP_LogisticRegression", "linear_svm": "CP_LinearSVM"}[kind]
    )


@contextmanager
def official_tucker() -> Iterator[ModuleType]:
    """Import the official code for Tucker-structured phase retrieval, with a name that numpy has dropped.

    Yields
    ------
    module
        ``tucker_phase_retrieval``; `numpy.complex`, which it uses for Python's type, exists as long.

    Raises
    ------
    Skipped
        If LOWDIM_PEER_TUCKER names no checkout, or the code does not import here.
    """
    repository = "soominkwon/Tucker-Structured-Phase-Retrieval"
    module = _official("LOWDIM_PEER_TUCKER", repository, "tucker_phase_retrieval")
    vars(numpy)["complex"] = complex
    try:
        yield module
    finally:
        del vars(numpy)["complex"]


def pyhessian() -> ModuleType:
    """Import the module of PyHessian (GPL-3: run beside us, never a dependency).

    Returns
    -------
    module
        ``pyhessian.hessian``.

    Raises
    ------
    Skipped
        If LOWDIM_PEER_PYHESSIAN names no checkout, or the code does not import here.
    """
    return _official("LOWDIM_PEER_PYHESSIAN", "amirgholami/PyHessian", "pyhessian.hessian")


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
