"""Adapters of a transformer by peft: few directions of its attention are trained, the rest stays."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model

from lowdim.algebra.seeds import Seed, generator
from lowdim.errors import DataError, RankError
from lowdim.incontext.transformer import PromptTransformer

__all__ = ["add_adapters", "merge_adapters"]


def add_adapters(
    model: PromptTransformer,
    *,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = ("c_attn",),
    seed: Seed = None,
) -> PromptTransformer:
    """Return a copy of a transformer in which low-rank updates B A of some matrices are all that is trained.

    Parameters
    ----------
    model : PromptTransformer
        Stays as it is.
    rank : int
        Of every update.
    alpha : float, optional
        Updates are scaled by alpha / rank; by `rank`, to a scale of 1, by default.
    targets : sequence of str
        Names of matrices of the trunk; "c_attn" holds queries, keys and values.
    seed : int, torch.Generator or None
        Of the start of A; B starts at 0, so that predictions are those of `model`.

    Returns
    -------
    PromptTransformer

    Raises
    ------
    RankError
        If `rank` is below 1 or above the width of the model.
    DataError
        If the trunk has no matrix of a name in `targets`.

    References
    ----------
    .. [1] E. J. Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022.

    Examples
    --------
    >>> small = PromptTransformer(4, n_positions=5, n_layer=1, n_head=1, n_embd=8, seed=0)
    >>> adapted = add_adapters(small, rank=2, seed=0)
    >>> sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)  # (8 + 24) 2
    64
    """
    where, width = "add_adapters", int(model.sizes["n_embd"])
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= width:
        raise RankError(
            f"{where}: rank={rank!r} must be an integer from 1 to {width}, the width of the model."
        )
    names = {name.rpartition(".")[2] for name, _ in model.trunk.named_modules()}
    missing = [name for name in targets if name not in names]
    if missing or not targets:
        raise DataError(
            f"{where}: the trunk has no matrix {', '.join(missing) or '(none named)'}. Use c_attn, "
            "c_proj, c_fc."
        )
    adapted = copy.deepcopy(model)
    adapted.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=list(targets),
        fan_in_fan_out=True,  # GPT-2 keeps its matrices transposed
    )
    with torch.random.fork_rng(devices=[]):
        source = generator(seed)
        if source is not None:
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=source)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
            adapted.trunk = get_peft_model(adapted.trunk, config)
    return adapted


def merge_adapters(model: PromptTransformer) -> PromptTransformer:
    """Return a copy of an adapted transformer with its updates added to the matrices, as a plain transformer.

    Parameters
    ----------
    model : PromptTransformer
        From `add_adapters`.

    Returns
    -------
    PromptTransformer

    Raises
    ------
    DataError
        If it has no adapters.

    Examples
    --------
    >>> small = PromptTransformer(4, n_positions=5, n_layer=1, n_head=1, n_embd=8, seed=0)
    >>> plain = merge_adapters(add_adapters(small, rank=2, seed=0))
    >>> set(plain.state_dict()) == set(small.state_dict())
    True
    """
    if not hasattr(model.trunk, "merge_and_unload"):
        raise DataError("merge_adapters: the model has no adapters. Call add_adapters first.")
    merged = copy.deepcopy(model)
    merged.trunk = merged.trunk.merge_and_unload()
    return merged.requires_grad_(True)
