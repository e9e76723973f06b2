"""Int8: an operator whose factors are stored as 8-bit integers with one scale per row.

The integers and scales come from torchao (`lowdim.compress.torchao`); computing with them needs torch alone.
The couplings S of BLAST are few and stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowdim.algebra import Cost, Operator
from lowdim.errors import DataError

__all__ = ["Int8"]


def _quantized_names(operator: Operator) -> list[str]:
    return [name for name, _ in operator.named_parameters() if name.rsplit(".", 1)[-1] != "S"]


class Int8(Operator):
    """An operator with its factors in 8-bit integers: ``U ~= scale * U_int8``, one scale per row of a factor.

    The factors are widened at every call, so memory shrinks fourfold against float32 while the products run
    in the dtype of the scales. Meant for inference: integers have no gradient.

    Parameters
    ----------
    operator : Operator
        Gives the structure; its values are not taken (see `lowdim.compress.torchao.quantize`). May be on
        "meta".
    names : list of str, optional
        Parameters to hold as integers; by default all but the couplings S.
    device, dtype
        Of the buffers, and of the scales; by default those of `operator`.

    Attributes
    ----------
    integers, scales : nn.Module
        Hold the buffers by parameter name; scales have the factor's shape with a last axis of length 1.
    kept : nn.Module
        Holds what stays in floating point.

    Examples
    --------
    >>> from lowdim.algebra import LowRank
    >>> small = Int8(LowRank(64, 32, rank=8))
    >>> small.cost().bytes < LowRank(64, 32, rank=8).cost().bytes / 2
    True
    """

    structure = "int8"

    def __init__(
        self,
        operator: Operator,
        names: list[str] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(operator.in_features, operator.out_features)
        parameters = dict(operator.named_parameters())
        self.names = _quantized_names(operator) if names is None else list(names)
        if unknown := [name for name in self.names if name not in parameters]:
            raise DataError(
                f"Int8: {operator.structure} has no parameter {unknown[0]!r}; it has {', '.join(parameters)}."
            )
        self.integers, self.scales, self.kept = nn.Module(), nn.Module(), nn.Module()
        for name, parameter in parameters.items():
            options: dict[str, Any] = {
                "device": parameter.device if device is None else device,
                "dtype": parameter.dtype if dtype is None else dtype,
            }
            key = self._key(name)
            if name in self.names:
                integer = torch.zeros(parameter.shape, device=options["device"], dtype=torch.int8)
                self.integers.register_buffer(key, integer)
                self.scales.register_buffer(key, torch.ones(*parameter.shape[:-1], 1, **options))
            else:
                value = torch.zeros(parameter.shape, **options)
                self.kept.register_parameter(key, nn.Parameter(value, requires_grad=False))
        # The structure without numbers; in a tuple, so that it is no submodule with parameters of its own.
        self._form = (Operator.from_config(operator.config(), device="meta"),)

    @staticmethod
    def _key(name: str) -> str:
        # Parameters of sums are called "terms.0.U"; a buffer's name may hold no dot.
        return name.replace(".", "_")

    def values(self) -> dict[str, Tensor]:
        """Return all parameters of the structure in floating point, by name."""
        result = {}
        for name, _ in self._form[0].named_parameters():
            key = self._key(name)
            if name in self.names:
                scale = getattr(self.scales, key)
                result[name] = getattr(self.integers, key).to(scale.dtype) * scale
            else:
                result[name] = getattr(self.kept, key)
        return result

    def widened(self) -> Operator:
        """Return an ordinary operator of the same structure and values, in floating point."""
        values = {name: nn.Parameter(value) for name, value in self.values().items()}
        operator = Operator.from_config(self._form[0].config(), device="meta")
        operator.load_state_dict(values, assign=True)
        return operator

    def forward(self, x: Tensor) -> Tensor:
        """Return ``A x`` with the factors widened for this call."""
        return functional_call(self._form[0], self.values(), (x,))

    def dense(self) -> Tensor:
        """Return the matrix (m, n) in the dtype of the scales."""
        return self.widened().dense().detach()

    def flops(self) -> int:
        """Return the flops of the products; widening costs once per call, not per vector."""
        return self._form[0].flops()

    def cost(self) -> Cost:
        """Return the numbers held, the flops, and the bytes as stored."""
        stored = [*self.parameters(), *self.buffers()]
        return Cost(
            parameters=sum(parameter.numel() for parameter in self._form[0].parameters()),
            flops=self.flops(),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in stored),
        )

    def config(self) -> dict[str, Any]:
        """Describe the structure inside and which of its parameters are integers."""
        return {**super().config(), "operator": self._form[0].config(), "names": list(self.names)}

    @classmethod
    def _from_config(cls, config: dict[str, Any], **factory: Any) -> Operator:
        form = Operator.from_config(config["operator"], device="meta", dtype=factory.get("dtype"))
        # Without a device the ambient one is meant (torch.device("meta") as a context, for example).
        device = factory.get("device") or torch.get_default_device()
        return cls(form, config["names"], device=device, dtype=factory.get("dtype"))
