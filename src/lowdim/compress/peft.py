"""LoRA adapters of peft on compressed layers.

After ``import lowdim``, ``peft.get_peft_model(model, LoraConfig(...))`` finds structured layers like linear
ones, also under ``target_modules="all-linear"``. Merging keeps the structure: the layer ``A`` with an adapter
``s B A'`` becomes the operator ``A + (s B) A'``, a sum of the structure and a low-rank matrix, which is saved
and loaded like any other.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import nn

from lowdim.algebra import LowRank, Operator, StructuredLinear
from lowdim.errors import DataError, Diverged, LowdimWarning, MissingExtra

try:
    from peft import LoraConfig
    from peft.tuners import tuners_utils
    from peft.tuners.lora.layer import Linear as LoraLinear
except ImportError as error:
    raise MissingExtra("peft", extra="transformers", purpose="train adapters on compressed layers") from error

__all__ = ["LoraStructuredLinear", "register"]

# Initializations of the adapter that leave the layer's own weight as it is.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


class LoraStructuredLinear(LoraLinear):
    """A `StructuredLinear` with LoRA adapters: ``y = A x + bias + s B (A' x)``.

    Built by peft; see ``peft.LoraConfig`` for the options. Plain LoRA, with rank stabilization, dropout and
    bias; variants that rewrite the dense weight (DoRA, PiSSA, OLoRA, ...) are refused.

    Parameters
    ----------
    base_layer : StructuredLinear
    adapter_name : str
    config : LoraConfig
    **kwargs
        As of peft's own layer.

    Raises
    ------
    DataError
        If the configuration asks for a variant that needs to rewrite the dense weight.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, config, **kwargs)
        self._before: list[tuple[Operator, torch.Tensor | None]] = []

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """Only plain LoRA."""
        return {(): None}

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, StructuredLinear)
        return module.in_features, module.out_features

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        """Add an adapter, after a look at its configuration; see peft."""
        start = config.init_lora_weights
        if start not in _PLAIN_STARTS:
            raise DataError(
                f"LoRA on a compressed layer: init_lora_weights={start!r} changes the dense weight, which a "
                "structured layer does not store. Use True, 'gaussian', 'orthogonal' or 'eva', or adapt the "
                "--dense export."
            )
        try:
            super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
        except ValueError as error:
            if "variant" not in str(error):
                raise
            raise DataError(
                f"LoRA on a compressed layer: this variant needs the dense weight ({error}). Use plain LoRA "
                "(use_dora=False, ...), or adapt the --dense export."
            ) from error

    def _delta(self, name: str) -> LowRank:
        # The scale goes into the left factor.
        left: Any = self.lora_B[name]
        right: Any = self.lora_A[name]
        U = self.scaling[name] * left.weight.detach()
        # In the dtype of the factors; an int8 layer has no floating-point ones, and takes the adapter's.
        base: Any = self.get_base_layer()
        like = next((p for p in base.operator.parameters() if p.is_floating_point()), U)
        return LowRank.from_factors(U.to(like), right.weight.detach().to(like))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the operator: ``A + (s B) A'``.

        Parameters
        ----------
        safe_merge : bool
            Refuse adapters that are not finite.
        adapter_names : list of str, optional
            By default all active ones.

        Raises
        ------
        Diverged
            With `safe_merge`, if an adapter holds NaN or infinity.
        """
        base: Any = self.get_base_layer()
        for name in tuners_utils.check_adapters_to_merge(self, adapter_names):
            if name not in self.lora_A:
                continue
            delta = self._delta(name)
            if safe_merge and not all(torch.isfinite(p).all() for p in delta.parameters()):
                raise Diverged(
                    f"LoRA: the adapter '{name}' holds NaN or infinity, so it was not merged. Train it "
                    "again with a "
                    "smaller learning rate."
                )
            bias: Any = self.lora_B[name].bias
            if bias is not None and base.bias is None:
                raise DataError(
                    "LoRA: lora_bias=True cannot be merged into a layer without a bias. Train with "
                    "lora_bias=False."
                )
            self._before.append((base.operator, None if base.bias is None else base.bias.detach().clone()))
            base.operator = base.operator + delta
            if bias is not None:
                base.bias.data += self.scaling[name] * bias.detach().to(base.bias)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take all merged adapters out again: the operator is the one from before, to the bit."""
        if not self.merged:
            warnings.warn(
                "LoRA: nothing is merged, so there is nothing to take out.", LowdimWarning, stacklevel=2
            )
        while self.merged_adapters:
            self.merged_adapters.pop()
            operator, bias = self._before.pop()
            base: Any = self.get_base_layer()
            base.operator = operator
            if bias is not None:
                base.bias.data.copy_(bias)


def _with_structured_layers(find: Any) -> Any:
    """Let ``target_modules="all-linear"`` include structured layers."""

    @functools.wraps(find)
    def all_linear(peft_config: Any, model: nn.Module) -> Any:
        before = getattr(peft_config, "target_modules", None)
        peft_config = find(peft_config, model)
        if not isinstance(before, str) or before.lower() != "all-linear":
            return peft_config
        names = {name for name, module in model.named_modules() if isinstance(module, StructuredLinear)}
        # A second adapter meets the layers inside those of the first, which peft has named already.
        names -= {name for name in names if name.endswith(".base_layer")}
        if names and not isinstance(peft_config, LoraConfig):
            warnings.warn(
                f"peft: {type(peft_config).__name__} with target_modules='all-linear' adapts the dense "
                "layers only; "
                f"{len(names)} compressed layers are left out. Use LoraConfig to adapt them.",
                LowdimWarning,
                stacklevel=2,
            )
        elif names:
            peft_config.target_modules = set(peft_config.target_modules) | names
        return peft_config

    all_linear._lowdim = True  # type: ignore[attr-defined]
    return all_linear


def register() -> None:
    """Teach peft our layers; done when this file is imported, harmless when repeated."""
    if getattr(tuners_utils._maybe_include_all_linear_layers, "_lowdim", False):
        return
    finish = LoraConfig.__post_init__

    @functools.wraps(finish)
    def finish_and_register(self: LoraConfig) -> None:
        finish(self)
        self._register_custom_module({StructuredLinear: LoraStructuredLinear})

    LoraConfig.__post_init__ = finish_and_register  # type: ignore[method-assign]
    tuners_utils._maybe_include_all_linear_layers = _with_structured_layers(
        tuners_utils._maybe_include_all_linear_layers
    )


register()
