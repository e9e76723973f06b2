"""What is to be approximated, in which norm: the input of every factorization rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lowdim.algebra.history import History
from lowdim.algebra.operator import Operator
from lowdim.errors import DataError, LowdimWarning, ShapeError

__all__ = ["Problem", "Rule", "damp", "lower_root", "register", "rule_for"]

# Relative ridges: of an ordinary second moment, and of one that is rank-deficient.
_RIDGE = 1e-4
_RAISED_RIDGE = 1e-2
# A pivot of the Cholesky factorization of the correlations below this means "no data in this direction".
_SMALLEST_PIVOT = 1e-9


@dataclass(frozen=True)
class Problem:
    """Minimize ``||A - X||_F^2``, or ``tr((A - X) H (A - X)^T)`` when a second moment is given.

    Parameters
    ----------
    matrix : Tensor of shape (m, n)
        The matrix A, float32 or float64.
    second_moment : Tensor of shape (n, n), optional
        The damped second moment H, positive definite, in the dtype of A.
    notes : list of str
        Events worth telling, filled while the problem is prepared and solved.
    """

    matrix: Tensor
    second_moment: Tensor | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def weighted(self) -> Tensor:
        """The matrix ``A H`` (or A)."""
        return self.matrix if self.second_moment is None else self.matrix @ self.second_moment

    @cached_property
    def energy(self) -> float:
        """The squared norm of A in the problem's metric; 1 for a zero matrix, so that it can divide."""
        return float((self.matrix.double() * self.weighted.double()).sum()) or 1.0

    @cached_property
    def root(self) -> Tensor | None:
        """The lower Cholesky factor L of ``H = L L^T`` in float64."""
        return None if self.second_moment is None else lower_root(self.second_moment)

    def error(self, approximation: Tensor) -> float:
        """Return the relative error ``sqrt(f(X) / f(0))`` of an approximation ``(m, n)``."""
        difference = self.matrix - approximation
        other = difference if self.second_moment is None else difference @ self.second_moment
        squared = float((difference * other).sum(dtype=torch.float64))
        return (max(squared, 0.0) / self.energy) ** 0.5


def lower_root(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor in float64 of a positive definite matrix, or of a batch.

    Should rounding have spoiled definiteness, the smallest ridge among powers
    of ten that restores it is added.
    """
    wide = matrix.double()
    factor, info = torch.linalg.cholesky_ex(wide)
    mean = wide.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = 1e-6
    while bool((info > 0).any()) and ridge < 1.0:
        shift = torch.where(info > 0, ridge * mean, torch.zeros_like(mean))
        shifted = wide + shift[..., None, None] * torch.eye(
            wide.shape[-1], dtype=wide.dtype, device=wide.device
        )
        factor, info = torch.linalg.cholesky_ex(shifted)
        ridge *= 10
    return factor


def damp(second_moment: Tensor, *, size: int, dtype: torch.dtype, notes: list[str]) -> Tensor:
    """Check a second moment and add the ridge that makes it positive definite.

    Parameters
    ----------
    second_moment : Tensor of shape (n, n)
        Mean of x x^T.
    size : int
        The n expected.
    dtype : torch.dtype
        Working precision.
    notes : list of str
        A raised ridge is noted here.

    Returns
    -------
    Tensor of shape (n, n)
        ``(H + H^T)/2 + 1e-4 mean(diag H) I``; the ridge is 1e-2 when H is rank-deficient.

    Raises
    ------
    ShapeError
        If the shape is not (n, n).
    DataError
        If H has NaN or Inf, is not symmetric, is zero, or has a negative diagonal.
    """
    if second_moment.ndim != 2 or second_moment.shape[0] != size or second_moment.shape[1] != size:
        raise ShapeError(
            f"factorize: second_moment has shape {tuple(second_moment.shape)}, but the matrix has "
            f"{size} columns. Give the mean of x x^T over the layer's inputs, ({size}, {size})."
        )
    H = second_moment.detach().double()
    if not bool(torch.isfinite(H).all()):
        bad = int((~torch.isfinite(H)).sum())
        raise DataError(
            f"factorize: second_moment holds {bad} entries that are NaN or infinite. Look for overflow in "
            "the activations (float16?) and accumulate the second moment in float32."
        )
    scale = float(H.abs().max())
    if scale == 0.0 or float(H.diagonal().min()) < 0:
        raise DataError(
            "factorize: second_moment is zero or has a negative diagonal, so it is no mean of x x^T. "
            "Check that calibration inputs reached the layer."
        )
    skew = float((H - H.mT).abs().max())
    if skew > 1e-3 * scale:
        raise DataError(
            f"factorize: second_moment is not symmetric: entries differ by {skew:.3g} from their mirror "
            f"images (largest entry {scale:.3g}). Give the mean of x x^T."
        )
    H = (H + H.mT) / 2
    mean = H.diagonal().mean()
    # Judged on correlations, so that a few huge channels (usual in language models) do not hide the others;
    # channels that are always zero carry no information about the number of tokens.
    deviation = H.diagonal().sqrt()
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    correlation = H / deviation / deviation[:, None]
    correlation.diagonal()[H.diagonal() == 0] = 1.0
    factor, info = torch.linalg.cholesky_ex(correlation)
    deficient = int(info) > 0 or float(factor.diagonal().min()) ** 2 < _SMALLEST_PIVOT
    ridge = _RAISED_RIDGE if deficient else _RIDGE
    if deficient:
        text = (
            f"factorize: the second moment ({size} x {size}) is rank-deficient; its damping is raised to "
            f"{ridge:g} of the mean diagonal. Calibrate with at least {2 * size} tokens."
        )
        notes.append(text)
        warnings.warn(text, LowdimWarning, stacklevel=3)
    H.diagonal().add_(ridge * mean)
    return H.to(dtype)


Rule = Callable[..., list[tuple[Operator, History]]]
_RULES: dict[type[Operator], Rule] = {}


def register(structure: type[Operator], *, stacked: bool = False) -> Callable[[Any], Any]:
    """Register the rule that factorizes into `structure` (a decorator, as in ``functools.singledispatch``).

    The rule is called as ``rule(problem, keep=..., rank=..., blocks=..., method=..., sweeps=...,
    tol=..., seed=..., callback=..., **options)`` and returns ``(operator, history)``; a `stacked` one takes
    a list of problems of one shape and returns a list.

    Parameters
    ----------
    structure : type of Operator
        What the rule factorizes into.
    stacked : bool
        Whether it takes several problems at once. The others are called for each in turn.
    """

    def decorator(rule: Any) -> Any:
        def in_turn(problems: Sequence[Problem], **settings: Any) -> list[tuple[Operator, History]]:
            return [rule(problem, **settings) for problem in problems]

        _RULES[structure] = rule if stacked else in_turn
        return rule

    return decorator


def rule_for(structure: Any) -> Rule:
    """Return the rule of a structure, given as class or by name, for a list of problems of one shape.

    Subclasses inherit it.

    Raises
    ------
    DataError
        If nothing is registered for it.
    """
    if isinstance(structure, str):
        for cls, rule in _RULES.items():
            if cls.structure == structure:
                return rule
    elif isinstance(structure, type):
        for cls in structure.__mro__:
            if cls in _RULES:
                return _RULES[cls]
    known = ", ".join(sorted(cls.structure for cls in _RULES))
    raise DataError(f"factorize: no rule for structure={structure!r}. Known structures: {known}.")
