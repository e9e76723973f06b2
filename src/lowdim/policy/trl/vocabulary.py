"""Two models of one tokenizer, padded to different sizes: equal supports of both policies."""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import Tensor, nn

__all__ = ["keep_tokens"]


class _Rows:
    """The first rows of a language-model head, with gradient."""

    def __init__(self, head: nn.Module, count: int) -> None:
        self.weight = _first(head.weight, count)
        self.bias = None if head.bias is None else _first(head.bias, count)


def _first(parameter: Any, count: int) -> Tensor:
    whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # a shard of FSDP2
    return whole[:count]


def keep_tokens(model: Any, count: int) -> None:
    """Let the log-probabilities of TRL's fused head be those over the first `count` token ids.

    Rows of the embedding beyond the tokenizer's ids are padding that never is a token; a softmax over them
    gives two models with different padding different supports, and their ratios a meaningless factor.

    Parameters
    ----------
    model : PreTrainedModel
        After ``trl.trainer.utils.add_fused_lm_head``.
    count : int
        Number of ids to keep.
    """
    fused = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return fused(*args, **kwargs)
        rows = _Rows(self.get_output_embeddings(), count)
        self.get_output_embeddings = lambda: rows
        try:
            return fused(*args, fused_lm_head=True, **kwargs)
        finally:
            del self.get_output_embeddings

    model.forward = types.MethodType(forward, model)
