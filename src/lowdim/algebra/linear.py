"""StructuredLinear: an Operator and a bias in the place of ``nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowdim.algebra.blast import Blast
from lowdim.algebra.operator import Operator
from lowdim.errors import ShapeError

__all__ = ["StructuredLinear", "is_linear", "weight_matrix"]


def is_linear(module: nn.Module) -> bool:
    """Return whether `module` is ``nn.Linear`` (exactly) or the Conv1D of GPT-2.

    Subclasses of ``nn.Linear`` (quantized layers, for example) store something
    else than a plain matrix and are refused.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    bool

    Examples
    --------
    >>> is_linear(nn.Linear(3, 2)), is_linear(nn.LayerNorm(3))
    (True, False)
    """
    return type(module) is nn.Linear or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    # Recognized by its look: importing transformers only to ask would take seconds.
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2


def weight_matrix(module: nn.Module) -> Tensor:
    """Return the matrix ``(m, n)`` with ``y = A x + bias`` of a linear layer.

    Parameters
    ----------
    module : nn.Linear, Conv1D or StructuredLinear
        Conv1D stores the transposed matrix.

    Raises
    ------
    ShapeError
        If the module is none of these.

    Examples
    --------
    >>> weight_matrix(nn.Linear(3, 2)).shape
    torch.Size([2, 3])
    """
    if isinstance(module, StructuredLinear):
        return module.weight
    if not is_linear(module):
        raise ShapeError(
            f"weight_matrix: {type(module).__module__}.{type(module).__name__} is no nn.Linear and no "
            "Conv1D; layers that are already quantized or adapted must be made plain first."
        )
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.mT if _is_conv1d(module) else weight


class StructuredLinear(nn.Module):
    """A linear layer ``y = A x + bias`` whose matrix is an Operator.

    Parameters
    ----------
    operator : Operator
        The map A.
    bias : Tensor of shape (m,), optional
        Copied into a parameter.

    Examples
    --------
    >>> import torch
    >>> layer = StructuredLinear(Blast(8, 4, rank=2, blocks=(2, 2)), torch.zeros(4))
    >>> layer(torch.ones(3, 8)).shape, layer.weight.shape
    (torch.Size([3, 4]), torch.Size([4, 8]))
    """

    bias: nn.Parameter | None

    def __init__(self, operator: Operator, bias: Tensor | None = None) -> None:
        super().__init__()
        if bias is not None and tuple(bias.shape) != (operator.out_features,):
            raise ShapeError(
                f"StructuredLinear: the bias must have shape ({operator.out_features},), "
                f"got {tuple(bias.shape)}."
            )
        self.operator = operator
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(bias.detach().clone())

    @property
    def in_features(self) -> int:
        """Length n of the inputs."""
        return self.operator.in_features

    @property
    def out_features(self) -> int:
        """Length m of the outputs."""
        return self.operator.out_features

    @property
    def weight(self) -> Tensor:
        """The dense matrix (m, n), computed anew at every access."""
        return self.operator.dense()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        *,
        structure: type[Operator] | str = Blast,
        keep: float | None = 0.5,
        rank: int | None = None,
        blocks: Any = "auto",
        second_moment: Tensor | None = None,
        **factorize_options: Any,
    ) -> StructuredLinear:
        """Approximate the weight of a linear layer within a structure.

        Parameters
        ----------
        linear : nn.Linear or Conv1D
            The layer; it is not changed.
        structure : type or str
            The structure, e.g. ``Blast`` or "lowrank".
        keep : float
            Fraction of the parameters to keep; ignored when `rank` is given.
        rank : int, optional
            The rank itself.
        blocks : "auto", int or pair of int
            Block rows and columns.
        second_moment : Tensor of shape (n, n), optional
            Mean of x x^T over the layer's inputs: the approximation then
            minimizes the output error instead of the weight error.
        **factorize_options
            Passed to :func:`lowdim.algebra.factorize`.

        Returns
        -------
        StructuredLinear
            In the dtype and on the device of the layer.
        """
        from lowdim.algebra.factorize import factorize

        matrix = weight_matrix(linear).detach()
        result = factorize(
            matrix,
            structure,
            rank=rank,
            keep=None if rank is not None else keep,
            blocks=blocks,
            second_moment=second_moment,
            **factorize_options,
        )
        bias: Tensor | None = getattr(linear, "bias", None)
        layer = cls(result.operator, bias)
        return layer.to(device=matrix.device, dtype=matrix.dtype)

    def densify(self) -> nn.Linear:
        """Return an ordinary ``nn.Linear`` that computes the same function (a copy)."""
        with torch.no_grad():
            matrix = self.weight
            layer = nn.Linear(
                self.in_features,
                self.out_features,
                bias=self.bias is not None,
                device="meta",
                dtype=matrix.dtype,
            )
            layer.weight = nn.Parameter(matrix.clone())
            if self.bias is not None:
                layer.bias = nn.Parameter(self.bias.clone())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x + bias`` on the last axis."""
        # Each look at an attribute of a module costs a small layer one percent of its time.
        operator, bias = self.operator, self.bias
        if bias is None:
            return operator(x)
        if operator.takes_bias:
            return operator(x, bias)
        y = operator(x)
        # Under autocast y is in half precision and stays so, as with nn.Linear.
        return y + bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Describe the sizes in ``repr``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
