"""New operators of old ones: adjoints, multiples, sums and chains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from lowdim.algebra.operator import Operator
from lowdim.errors import ShapeError

__all__ = ["Adjoint", "Chain", "Scaled", "Sum"]


class Adjoint(Operator):
    """The adjoint of an operator; its parameters are the operator's own.

    Parameters
    ----------
    operator : Operator
        The map ``(..., n) -> (..., m)`` whose adjoint ``(..., m) -> (..., n)`` this is.

    Examples
    --------
    >>> from lowdim.algebra import Dense
    >>> A = Dense(3, 2)
    >>> A.adjoint().adjoint() is A
    True
    """

    structure = "adjoint"

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.out_features, operator.in_features)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A^H x``."""
        return self.operator.adjoint_forward(x)

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``A y``."""
        return self.operator(y)

    def adjoint(self) -> Operator:
        """Return the operator itself."""
        return self.operator

    def dense(self) -> Tensor:
        """Return the conjugate transpose of the operator's matrix."""
        return self.operator.dense().mH

    def flops(self) -> int:
        """Return the operator's flops."""
        return self.operator.flops()

    def config(self) -> dict[str, Any]:
        """Describe the operator inside."""
        return {**super().config(), "operator": self.operator.config()}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **factory: Any) -> Operator:
        return cls(Operator.from_config(config["operator"], **factory))


class Scaled(Operator):
    """A multiple ``c A`` of an operator.

    Parameters
    ----------
    operator : Operator
        The map A.
    factor : float
        The number c (fixed, not trained).

    Examples
    --------
    >>> import torch
    >>> from lowdim.algebra import Identity
    >>> (3 * Identity(2))(torch.ones(2))
    tensor([3., 3.])
    """

    structure = "scaled"

    def __init__(self, operator: Operator, factor: float) -> None:
        super().__init__(operator.in_features, operator.out_features)
        self.operator = operator
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return ``c A x``."""
        return self.factor * self.operator(x)

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``c A^H y``."""
        return self.factor * self.operator.adjoint_forward(y)

    def dense(self) -> Tensor:
        """Return the matrix ``c A``."""
        return self.factor * self.operator.dense()

    def flops(self) -> int:
        """Return the operator's flops and one product per output."""
        return self.operator.flops() + self.out_features

    def config(self) -> dict[str, Any]:
        """Describe the factor and the operator."""
        return {**super().config(), "factor": self.factor, "operator": self.operator.config()}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **factory: Any) -> Operator:
        return cls(Operator.from_config(config["operator"], **factory), config["factor"])


class _Composite(Operator):
    """Several operators in order."""

    def __init__(self, terms: tuple[Operator, ...], in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.terms = nn.ModuleList(terms)

    def _map(self, function: Callable[[Any], Any]) -> list[Any]:
        return [function(term) for term in self.terms]

    def config(self) -> dict[str, Any]:
        """Describe the terms, each by its own description."""
        return {**super().config(), "terms": self._map(lambda term: term.config())}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **factory: Any) -> Operator:
        return cls(*[Operator.from_config(term, **factory) for term in config["terms"]])  # type: ignore[arg-type]


def _flatten(terms: tuple[Operator, ...], kind: type[_Composite]) -> tuple[Operator, ...]:
    def parts() -> Iterator[Any]:
        for term in terms:
            yield from term.terms if isinstance(term, kind) else (term,)

    return tuple(parts())


class Sum(_Composite):
    """A sum ``A_1 + A_2 + ...`` of operators of the same sizes.

    Parameters
    ----------
    *terms : Operator
        The summands; sums among them are flattened.

    Raises
    ------
    ShapeError
        If there is no term or the sizes differ.

    Examples
    --------
    >>> import torch
    >>> from lowdim.algebra import Identity
    >>> (Identity(2) + Identity(2))(torch.ones(2))
    tensor([2., 2.])
    """

    structure = "sum"

    def __init__(self, *terms: Operator) -> None:
        flat = _flatten(terms, Sum)
        if not flat:
            raise ShapeError("Sum: at least one operator is needed.")
        sizes = {(term.in_features, term.out_features) for term in flat}
        if len(sizes) > 1:
            shapes = ", ".join(f"{term.out_features}x{term.in_features}" for term in flat)
            raise ShapeError(f"Sum: all operators must have the same sizes, got {shapes}.")
        super().__init__(flat, flat[0].in_features, flat[0].out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A_1 x + A_2 x + ...``."""
        first, *rest = self._map(lambda term: term(x))
        return sum(rest, start=first)

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``A_1^H y + A_2^H y + ...``."""
        first, *rest = self._map(lambda term: term.adjoint_forward(y))
        return sum(rest, start=first)

    def dense(self) -> Tensor:
        """Return the sum of the matrices."""
        first, *rest = self._map(lambda term: term.dense())
        return sum(rest, start=first)

    def flops(self) -> int:
        """Return the flops of all terms and of the additions."""
        return sum(self._map(lambda term: term.flops())) + (len(self.terms) - 1) * self.out_features


class Chain(_Composite):
    """A product ``A_1 A_2 ... A_k`` of operators; ``A_k`` acts first.

    Parameters
    ----------
    *terms : Operator
        The factors from left to right; chains among them are flattened.

    Raises
    ------
    ShapeError
        If there is no factor or neighbors do not fit.

    Examples
    --------
    >>> from lowdim.algebra import Dense
    >>> (Dense(3, 2) @ Dense(5, 3)).dense().shape
    torch.Size([2, 5])
    """

    structure = "chain"

    def __init__(self, *terms: Operator) -> None:
        flat = _flatten(terms, Chain)
        if not flat:
            raise ShapeError("Chain: at least one operator is needed.")
        for left, right in itertools.pairwise(flat):
            if left.in_features != right.out_features:
                raise ShapeError(
                    f"Chain: a factor with in_features={left.in_features} cannot follow one with "
                    f"out_features={right.out_features}."
                )
        super().__init__(flat, flat[-1].in_features, flat[0].out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A_1 (A_2 (... x))``."""
        for index in range(len(self.terms) - 1, -1, -1):
            x = self.terms[index](x)
        return x

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``A_k^H ... A_1^H y``."""
        for index in range(len(self.terms)):
            y = self.terms[index].adjoint_forward(y)  # type: ignore[operator]
        return y

    def flops(self) -> int:
        """Return the flops of all factors."""
        return sum(self._map(lambda term: term.flops()))
