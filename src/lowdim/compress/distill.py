"""What a compressed model should imitate: targets from the original, and the loss against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdim.compress.evaluate import Batch, Task, _tensors, feed, pooled
from lowdim.errors import DataError

__all__ = ["Distillation"]

Targets = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Distillation:
    """The loss of a student against its teacher, per task.

    Let h_l be the teacher's hidden states after layer l = 1..L, and h'_l the student's. All tasks of
    transformers models share the term ``hidden * mean_l |h'_l - h_l|^2 / |h_l|^2`` over the tokens that are
    not padding; on top comes what the task is used for:

    - embedding: ``cosine * mean(1 - e . e')`` of the normalized sentence embeddings, and
      ``relation * mean (e_i . e_k - e'_i . e'_k)^2`` over the pairs of the batch, because embeddings are
      used by comparing them;
    - causal, masked, classifier: the Kullback-Leibler divergence of the student's distribution from the
      teacher's, mean over tokens (or texts);
    - generic: the relative squared error of the outputs.

    Parameters
    ----------
    task : {"embedding", "causal", "masked", "classifier", "generic"}
        What the model is used for.
    pooling : {"mean", "cls", "max", "lasttoken"}
        How tokens become an embedding.
    hidden, cosine, relation : float
        Weights of the terms.

    Raises
    ------
    DataError
        For an unknown task.

    Examples
    --------
    >>> net = nn.Linear(2, 2)
    >>> rule = Distillation("generic")
    >>> x = torch.ones(1, 2)
    >>> loss, residual = rule.loss(net, x, rule.targets(net, x))
    >>> float(loss)
    0.0
    """

    task: Task = "embedding"
    pooling: str = "mean"
    hidden: float = 1.0
    cosine: float = 2.0
    relation: float = 10.0

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise DataError(
                f"recover: task={self.task!r} is unknown. Use one of {', '.join(get_args(Task))}."
            )

    @torch.no_grad()
    def targets(self, teacher: nn.Module, batch: Batch) -> Targets:
        """Return what the loss needs from the teacher for one batch, detached."""
        hidden, outputs = self._observe(teacher, batch)
        return {"hidden": hidden, "outputs": outputs}

    def loss(self, student: nn.Module, batch: Batch, targets: Targets) -> tuple[Tensor, float]:
        """Return the loss (a scalar with gradient) and the relative error of the last state or output."""
        hidden, outputs = self._observe(student, batch)
        mask = token_mask(batch)
        terms = [relative_error(h, t.to(h), mask) for h, t in zip(hidden, targets["hidden"], strict=True)]
        total = self.hidden * torch.stack(terms).mean() if terms else outputs[0].new_zeros(())
        residual = terms[-1] if terms else None
        for output, target in zip(outputs, targets["outputs"], strict=True):
            target = target.to(output)
            if self.task == "embedding":
                total = total + self._embedding(output, target)
            elif self.task == "generic":
                error = relative_error(output, target, None)
                total = total + error / len(outputs)
                residual = error if residual is None else residual
            else:
                total = total + divergence(output, target, mask)
        return total, float(residual.detach().sqrt()) if residual is not None else float(total.detach())

    def _embedding(self, output: Tensor, target: Tensor) -> Tensor:
        """Cosine of each text with itself, and the cosines between the texts of the batch."""
        loss = self.cosine * (1 - (output * target).sum(-1)).mean()
        if len(output) > 1:
            gap = output @ output.T - target @ target.T
            loss = loss + self.relation * gap.square().mean()
        return loss

    def _observe(self, model: nn.Module, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Run the model; return hidden states after each layer and the outputs that the task compares."""
        if self.task == "generic" or not hasattr(model, "config"):
            return [], list(_tensors(feed(model, batch)))
        if not isinstance(batch, Mapping):
            raise DataError(
                f"recover: task={self.task!r} needs batches that are dictionaries of keyword tensors, "
                f"got {type(batch).__name__}. Use task='generic' for other inputs."
            )
        extra: dict[str, Any] = {"output_hidden_states": True}
        if self.task == "causal":
            extra["use_cache"] = False
        output = feed(model, {**batch, **extra})
        hidden = [h.float() for h in (getattr(output, "hidden_states", None) or ())[1:]]
        if self.task != "embedding":
            return hidden, [output.logits.float()]
        last = getattr(output, "last_hidden_state", None)
        return hidden, [pooled(next(_tensors(output)) if last is None else last, batch, self.pooling)]


def token_mask(batch: Batch) -> Tensor | None:
    """Return the attention mask (batch, seq) of a batch, if it has one."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def relative_error(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return |output - target|^2 / |target|^2 without the padding (rows where the mask is 0)."""
    if mask is not None and output.shape[:2] == mask.shape:
        keep = mask.to(output.device).bool()
        output, target = output[keep], target[keep]
    tiny = torch.finfo(target.dtype).tiny
    return (output - target).abs().square().sum() / target.abs().square().sum().clamp_min(tiny)


def divergence(logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of KL(teacher || student) over the tokens that are not padding, in nats."""
    if mask is not None and logits.shape[:2] == mask.shape:
        keep = mask.to(logits.device).bool()
        logits, target = logits[keep], target[keep]
    log_p, log_q = target.log_softmax(-1), logits.log_softmax(-1)
    return functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
