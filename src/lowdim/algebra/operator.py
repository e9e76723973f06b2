"""Operator: a linear map from R^n to R^m that is an ``nn.Module``.

A structure implements ``forward`` (and, for speed, ``adjoint_forward``,
``dense`` and ``config``); sums, chains, multiples, adjoints, the dense matrix
and the cost come for free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowdim.errors import DataError, ShapeError

__all__ = ["Cost", "Dense", "Identity", "Operator"]


@dataclass(frozen=True)
class Cost:
    """What an operator costs.

    Parameters
    ----------
    parameters : int
        Numbers stored.
    flops : int
        Floating-point operations per input vector (a multiply-add counts two).
    bytes : int
        Bytes of the stored numbers in their present dtype.

    Examples
    --------
    >>> from lowdim.algebra import LowRank
    >>> LowRank(6, 4, rank=2).cost()
    Cost(parameters=20, flops=40, bytes=80)
    """

    parameters: int
    flops: int
    bytes: int


class Operator(nn.Module):
    """A linear map ``x -> A x`` on the last axis of a tensor.

    Subclasses set the class attribute ``structure`` (the name under which
    ``from_config`` finds them) and implement ``forward``. Everything else has
    a correct default; structures override ``adjoint_forward`` and ``dense``
    where they know a faster way.

    Parameters
    ----------
    in_features : int
        Length n of the input vectors.
    out_features : int
        Length m of the output vectors.

    Raises
    ------
    ShapeError
        If a size is not a positive integer.

    Examples
    --------
    >>> import torch
    >>> from lowdim.algebra import Blast, LowRank
    >>> A = Blast(8, 4, rank=3, blocks=(2, 2)) + 2 * LowRank(8, 4, rank=1)
    >>> A(torch.ones(5, 8)).shape, A.adjoint()(torch.ones(4)).shape
    (torch.Size([5, 4]), torch.Size([8]))
    >>> A.cost().parameters
    60
    """

    structure: ClassVar[str] = ""
    #: Whether ``forward(x, bias)`` adds a bias (m,) at less cost than a sum afterwards.
    takes_bias: ClassVar[bool] = False
    _structures: ClassVar[dict[str, type[Operator]]] = {}

    in_features: int
    out_features: int

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ShapeError(f"{type(self).__name__}: {name}={size!r} must be a positive integer.")
        self.in_features = in_features
        self.out_features = out_features

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "structure" in vars(cls):
            Operator._structures[cls.structure] = cls

    # ----- what a structure implements ---------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to the last axis: ``(..., n) -> (..., m)``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward.")

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Apply the adjoint map to the last axis: ``(..., m) -> (..., n)``.

        The default pulls ``y`` back through ``forward`` (the vector-Jacobian
        product of a linear map is its adjoint, at any point).
        """
        zero = y.new_zeros((*y.shape[:-1], self.in_features))
        return torch.func.vjp(self.forward, zero)[1](y)[0]

    def config(self) -> dict[str, Any]:
        """Return the JSON-ready description from which ``from_config`` builds an empty twin."""
        return {
            "structure": self.structure,
            "in_features": self.in_features,
            "out_features": self.out_features,
        }

    @classmethod
    def _from_config(cls, config: dict[str, Any], **factory: Any) -> Operator:
        options = {key: value for key, value in config.items() if key != "structure"}
        return cls(options.pop("in_features"), options.pop("out_features"), **options, **factory)

    # ----- what every operator gets ------------------------------------------------------------------

    @staticmethod
    def from_config(
        config: dict[str, Any],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Operator:
        """Build an operator with the parameter names and shapes that `config` describes.

        Parameters
        ----------
        config : dict
            What ``Operator.config()`` returned (after a trip through JSON, if you like).
        device, dtype
            Where the parameters live; works under ``torch.device("meta")``.

        Returns
        -------
        Operator
            With fresh, not the original, values: load a state dict next.

        Raises
        ------
        DataError
            If the structure is unknown or an entry is missing.
        """
        name = config.get("structure") if isinstance(config, dict) else None
        if not isinstance(name, str) or name not in Operator._structures:
            raise DataError(
                f"Operator.from_config: unknown structure {name!r}. "
                f"Known are {', '.join(sorted(Operator._structures))}; a newer lowdim may have written this."
            )
        try:
            return Operator._structures[name]._from_config(config, device=device, dtype=dtype)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"Operator.from_config: bad description of a {name!r} operator: {error}."
            ) from error

    def adjoint(self) -> Operator:
        """Return the adjoint map; it shares the parameters."""
        from lowdim.algebra.compose import Adjoint

        return Adjoint(self)

    def dense(self) -> Tensor:
        """Return the matrix ``(m, n)`` (differentiable)."""
        parameter = next(self.parameters(), None)
        dtype = parameter.dtype if parameter is not None else torch.get_default_dtype()
        device = parameter.device if parameter is not None else None
        return self(torch.eye(self.in_features, dtype=dtype, device=device)).mT

    def flops(self) -> int:
        """Return the floating-point operations per input vector (every stored number is used once)."""
        return 2 * sum(p.numel() for p in self.parameters())

    def cost(self) -> Cost:
        """Return parameters, flops per input vector, and bytes in the present dtype."""
        parameters = list(self.parameters())
        return Cost(
            parameters=sum(p.numel() for p in parameters),
            flops=self.flops(),
            bytes=sum(p.numel() * p.element_size() for p in parameters),
        )

    def extra_repr(self) -> str:
        """Describe the sizes in ``repr``."""
        inside = ("structure", "operator", "terms")
        return ", ".join(f"{key}={value}" for key, value in self.config().items() if key not in inside)

    def _check_input(self, x: Tensor, size: int, name: str) -> None:
        if x.ndim == 0 or x.shape[-1] != size:
            raise ShapeError(
                f"{type(self).__name__}: the last axis of the input must have length {name}={size}, "
                f"got a tensor of shape {tuple(x.shape)}."
            )

    def __add__(self, other: Operator) -> Operator:
        from lowdim.algebra.compose import Sum

        return Sum(self, other) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: Operator) -> Operator:
        return self + (-other) if isinstance(other, Operator) else NotImplemented

    def __matmul__(self, other: Operator) -> Operator:
        from lowdim.algebra.compose import Chain

        return Chain(self, other) if isinstance(other, Operator) else NotImplemented

    def __rmul__(self, factor: float) -> Operator:
        from lowdim.algebra.compose import Scaled

        return Scaled(self, float(factor)) if isinstance(factor, int | float) else NotImplemented

    __mul__ = __rmul__

    def __neg__(self) -> Operator:
        return -1.0 * self


class Dense(Operator):
    """A matrix without structure: ``y = W x``.

    Parameters
    ----------
    in_features, out_features : int
        Sizes n and m.
    device, dtype
        Where the parameter lives.

    Attributes
    ----------
    weight : Parameter of shape (m, n)

    Examples
    --------
    >>> Dense(3, 2).cost().parameters
    6
    """

    structure = "dense"
    takes_bias: ClassVar[bool] = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the entries with the variance 1/(3n) of ``nn.Linear``."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> Dense:
        """Wrap a copy of a matrix ``(m, n)``."""
        if matrix.ndim != 2:
            raise ShapeError(f"Dense: a matrix (m, n) is expected, got shape {tuple(matrix.shape)}.")
        operator = cls(matrix.shape[1], matrix.shape[0], device="meta", dtype=matrix.dtype)
        operator.weight = nn.Parameter(matrix.detach().clone(memory_format=torch.contiguous_format))
        return operator

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``W x``, plus a bias if given."""
        self._check_input(x, self.in_features, "in_features")
        return nn.functional.linear(x, self.weight, bias)

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``W^H y``."""
        self._check_input(y, self.out_features, "out_features")
        return nn.functional.linear(y, self.weight.mH)

    def dense(self) -> Tensor:
        """Return the weight."""
        return self.weight


class Identity(Operator):
    """The map that changes nothing.

    Parameters
    ----------
    in_features : int
        Length n of the vectors.
    out_features : int, optional
        The same length again (so that all operators are built alike).
    device, dtype
        Accepted and unused: there are no parameters.

    Examples
    --------
    >>> Identity(3).cost()
    Cost(parameters=0, flops=0, bytes=0)
    """

    structure = "identity"

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, in_features if out_features is None else out_features)
        if self.in_features != self.out_features:
            raise ShapeError(
                f"Identity: in_features={in_features} and out_features={out_features} must agree."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        self._check_input(x, self.in_features, "in_features")
        return x

    def adjoint_forward(self, y: Tensor) -> Tensor:
        """Return ``y``."""
        return self.forward(y)
