"""Whose tokens hints are: how the updates treat the tokens that the large policy put in front."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lowdim.errors import DataError

__all__ = ["HintRatio", "hint_mask", "sampling_log_probs"]

HintRatio = Literal["small", "large", "ignore"]


def hint_mask(mask: Tensor, hint_tokens: int) -> Tensor:
    """Mark the tokens of the completions that the large policy wrote.

    Parameters
    ----------
    mask : Tensor
        One for tokens of the completion, shape ``(rows, tokens)``.
    hint_tokens : int
        T, tokens that the large policy wrote in front of each completion (fewer where it ended there).

    Returns
    -------
    Tensor
        Boolean, shape ``(rows, tokens)``.

    Examples
    --------
    >>> import torch
    >>> hint_mask(torch.tensor([[1, 1, 1], [1, 0, 0]]), 2)
    tensor([[ True,  True, False],
            [ True, False, False]])
    """
    position = torch.arange(mask.shape[-1], device=mask.device)
    return mask.bool() & (position < hint_tokens)


def sampling_log_probs(
    logp_small: Tensor, logp_large: Tensor, mask: Tensor, *, hint_tokens: int, ratio: HintRatio = "small"
) -> tuple[Tensor, Tensor]:
    """Denominator of the ratios, and the tokens that carry a loss, with hints in front of the completions.

    Parameters
    ----------
    logp_small, logp_large : Tensor
        Log-probabilities at generation under the small and the large policy, shape ``(rows, tokens)``.
    mask : Tensor
        One for tokens of the completion, shape ``(rows, tokens)``.
    hint_tokens : int
        T; 0 for no hints.
    ratio : {"small", "large", "ignore"}
        "small" treats hints as if the small policy had written them (the paper's); "large" divides by the
        large policy's probability there (equation 12); "ignore" takes hints out of the loss.

    Returns
    -------
    logp_old : Tensor
        Shape ``(rows, tokens)``.
    loss_mask : Tensor
        Shape ``(rows, tokens)``, the dtype of `mask`.

    Raises
    ------
    DataError
        If `ratio` is unknown.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, section 3.1, equation 12 and figure 8.

    Examples
    --------
    >>> import torch
    >>> old, loss_mask = sampling_log_probs(torch.tensor([[-3.0, -1.0]]), torch.tensor([[-0.5, -0.7]]),
    ...                                     torch.tensor([[1, 1]]), hint_tokens=1, ratio="large")
    >>> old, loss_mask
    (tensor([[-0.5000, -1.0000]]), tensor([[1, 1]]))
    """
    if ratio not in ("small", "large", "ignore"):
        raise DataError(f"sampling_log_probs: ratio={ratio!r}. Give 'small', 'large' or 'ignore'.")
    if hint_tokens == 0 or ratio == "small":
        return logp_small, mask
    hint = hint_mask(mask, hint_tokens)
    if ratio == "large":
        return torch.where(hint, logp_large, logp_small), mask
    return logp_small, mask * (~hint).to(mask.dtype)
