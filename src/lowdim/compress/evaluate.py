"""Compare a compressed model with its original: quality on held-out inputs, time, memory, size.

Everything is relative to the original model, so no labels are needed:

- embedding models: cosine between the two embeddings of a text, and whether texts keep their neighbors;
- causal and masked language models: perplexity of both, and the Kullback-Leibler divergence of the
  predictions;
- classifiers: how often both name the same class;
- any other module: relative error of the outputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdim.compress.calibrate import evaluation_mode
from lowdim.compress.loading import folder_of
from lowdim.compress.timing import Batch, feed, file_bytes, parameter_bytes, peak_activation_bytes, speed
from lowdim.errors import DataError, Diverged

__all__ = [
    "Batch",
    "Task",
    "evaluate",
    "feed",
    "file_bytes",
    "parameter_bytes",
    "peak_activation_bytes",
    "pooled",
    "pooling_of",
    "speed",
    "task_of",
]

Task = Literal["embedding", "causal", "masked", "classifier", "generic"]
"""What a model is used for, which decides the figures that matter."""


def task_of(model: nn.Module) -> Task:
    """Return what the model is used for, judged by its class name and outputs.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    {"embedding", "causal", "masked", "classifier", "generic"}
        "generic" for whatever is no transformers model of a known kind.

    Examples
    --------
    >>> task_of(nn.Linear(2, 2))
    'generic'
    """
    if not hasattr(model, "config") or not hasattr(model, "base_model_prefix"):
        return "generic"
    name = type(model).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if name.endswith("ForMaskedLM"):
        return "masked"
    if "Classification" in name:
        return "classifier"
    if "For" in name.removeprefix("For") and "Model" not in name:
        return "generic"
    return "embedding"


def _tensors(output: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in a (nested) output, in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point() or output.is_complex():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from _tensors(value)


def pooling_of(folder: str | Path | None) -> str:
    """Return how sentence-transformers pools tokens in this model folder: "mean" unless it says otherwise.

    Parameters
    ----------
    folder : path, optional
        A model folder, with ``1_Pooling/config.json`` or without.

    Returns
    -------
    {"mean", "cls", "max", "lasttoken"}

    Raises
    ------
    DataError
        If the folder asks for a pooling not known here.
    """
    path = Path(folder or "") / "1_Pooling" / "config.json"
    if not folder or not path.is_file():
        return "mean"
    config = json.loads(path.read_text(encoding="utf-8"))
    chosen = [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ] or [str(config.get("pooling_mode", "mean"))]
    if len(chosen) != 1 or chosen[0] not in {"mean", "cls", "max", "lasttoken"}:
        raise DataError(
            f"{path}: pooling {'+'.join(chosen)} is not known here. Use mean, cls, max or lasttoken, "
            "or evaluate through sentence-transformers."
        )
    return chosen[0]


def pooled(hidden: Tensor, batch: Batch, pooling: str = "mean") -> Tensor:
    """Return one normalized embedding per text or image.

    Parameters
    ----------
    hidden : Tensor
        (batch, tokens, hidden), feature maps (batch, hidden, height, width), or (batch, hidden) as it is.
    batch : Tensor, sequence or mapping
        The input; its attention mask tells padding.
    pooling : {"mean", "cls", "max", "lasttoken"}

    Returns
    -------
    Tensor
        (batch, hidden), float32, of norm 1.

    Examples
    --------
    >>> pooled(torch.tensor([[[3.0, 4.0], [0.0, 9.0]]]), {"attention_mask": torch.tensor([[1, 0]])})
    tensor([[0.6000, 0.8000]])
    """
    hidden = hidden.float()
    if hidden.dim() == 4:  # convolutional feature maps (batch, channels, height, width)
        hidden = hidden.flatten(2).transpose(1, 2)
    if hidden.dim() == 2:
        return functional.normalize(hidden, dim=-1)
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    mask = hidden.new_ones(hidden.shape[:2]) if mask is None else mask.to(hidden)
    if mask.shape != hidden.shape[:2]:  # images: the mask counts pixels, not tokens
        mask = hidden.new_ones(hidden.shape[:2])
    if pooling == "cls":
        summary = hidden[:, 0]
    elif pooling == "max":
        summary = hidden.masked_fill(mask.unsqueeze(-1) == 0, -math.inf).amax(1)
    elif pooling == "lasttoken":
        last = (mask.cumsum(1) * mask).argmax(1)
        summary = hidden[torch.arange(len(hidden), device=hidden.device), last]
    else:
        summary = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)
    return functional.normalize(summary, dim=-1)


def _embed(model: nn.Module, batch: Batch, pooling: str) -> Tensor:
    """Return normalized embeddings (texts, hidden)."""
    output = feed(model, batch)
    hidden = getattr(output, "last_hidden_state", None)
    return pooled(next(_tensors(output)) if hidden is None else hidden, batch, pooling)


def _neighbors(embeddings: Tensor, k: int) -> Tensor:
    similarity = embeddings @ embeddings.T
    similarity.fill_diagonal_(-math.inf)
    return similarity.topk(k, dim=1).indices


def _embedding(
    original: nn.Module, compressed: nn.Module, batches: Sequence[Batch], pooling: str
) -> dict[str, float]:
    before = torch.cat([_embed(original, batch, pooling).cpu() for batch in batches])
    after = torch.cat([_embed(compressed, batch, pooling).cpu() for batch in batches])
    cosine = (before * after).sum(-1).double()
    figures = {
        "cosine": cosine.mean().item(),
        "cosine_q05": cosine.quantile(0.05).item(),
        "inputs": float(len(before)),
    }
    if len(before) > 1:
        k = min(10, len(before) - 1)
        first, second = _neighbors(before, k), _neighbors(after, k)
        figures["top1"] = (first[:, 0] == second[:, 0]).double().mean().item()
        shared = (first.unsqueeze(2) == second.unsqueeze(1)).any(2)
        figures["top10"] = shared.double().mean().item()
    return figures


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    return (next(_tensors(output)) if logits is None else logits).float()


def _masked_inputs(
    batch: Mapping[str, Any], mask_token: int, generator: torch.Generator
) -> tuple[dict, Tensor]:
    """Hide 15 % of the tokens (never a text's first or last); return inputs and labels."""
    inputs = batch["input_ids"]
    alive = batch.get("attention_mask", torch.ones_like(inputs)).bool().clone()
    lengths = alive.sum(1)
    alive[:, 0] = False
    alive[torch.arange(len(inputs)), (lengths - 1).clamp(min=0)] = False
    draw = torch.rand(inputs.shape, generator=generator).masked_fill(~alive, 2.0)
    hidden = (draw < 0.15) | (draw == draw.amin(1, keepdim=True)) & alive
    labels = inputs.masked_fill(~hidden, -100)
    return {**batch, "input_ids": inputs.masked_fill(hidden, mask_token)}, labels


def _language(
    original: nn.Module,
    compressed: nn.Module,
    batches: Sequence[Batch],
    task: Task,
    mask_token: int | None,
    seed: int,
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    before = after = divergence = 0.0
    tokens = 0
    for batch in batches:
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise DataError(
                "evaluate: a language model is measured on dictionaries with 'input_ids'; got "
                f"{type(batch).__name__}. Tokenize the text first, or pass task='generic'."
            )
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if task == "masked":
            if "labels" in batch:
                labels = batch["labels"]
            elif mask_token is None:
                raise DataError(
                    "evaluate: a masked language model needs the id of the mask token to hide words. "
                    "Pass mask_token=tokenizer.mask_token_id, or batches with 'labels'."
                )
            else:
                inputs, labels = _masked_inputs(inputs, mask_token, generator)
            at = (labels != -100).flatten()
            first = _logits(feed(original, inputs)).flatten(0, 1).cpu()[at]
            second = _logits(feed(compressed, inputs)).flatten(0, 1).cpu()[at]
        else:
            labels = batch["input_ids"][:, 1:]
            alive = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            at = (alive[:, 1:] & alive[:, :-1]).flatten()
            first = _logits(feed(original, inputs))[:, :-1].flatten(0, 1).cpu()[at]
            second = _logits(feed(compressed, inputs))[:, :-1].flatten(0, 1).cpu()[at]
        target = labels.flatten().cpu()[at.cpu()]
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        before += functional.nll_loss(log_p, target, reduction="sum").item()
        after += functional.nll_loss(log_q, target, reduction="sum").item()
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
        tokens += len(target)
    if tokens == 0:
        raise DataError("evaluate: the batches hold no token to predict. Pass longer texts.")
    # exp overflows beyond 709; a model that bad is broken anyway, and its figure says so.
    perplexity = [math.exp(min(loss / tokens, 700.0)) for loss in (before, after)]
    return {
        "perplexity_before": perplexity[0],
        "perplexity_after": perplexity[1],
        "perplexity_increase": perplexity[1] / perplexity[0] - 1.0,
        "kl": divergence / tokens,
        "tokens": float(tokens),
    }


def _classifier(original: nn.Module, compressed: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    same = divergence = 0.0
    count = 0
    for batch in batches:
        if isinstance(batch, Mapping):
            batch = {key: value for key, value in batch.items() if key != "labels"}
        first, second = _logits(feed(original, batch)).cpu(), _logits(feed(compressed, batch)).cpu()
        log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
        same += (first.argmax(-1) == second.argmax(-1)).sum().item()
        divergence += (log_p.exp() * (log_p - log_q)).sum().item()
        count += first[..., 0].numel()
    return {"agreement": same / count, "kl": divergence / count, "inputs": float(count)}


def _generic(original: nn.Module, compressed: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    error = total = 0.0
    inputs = 0
    for batch in batches:
        pairs = list(zip(_tensors(feed(original, batch)), _tensors(feed(compressed, batch)), strict=True))
        if not pairs:
            raise DataError(
                "evaluate: the model returns no floating-point tensor, so there is nothing to compare."
            )
        inputs += pairs[0][0].shape[0] if pairs[0][0].dim() else 1
        for first, second in pairs:
            error += (first - second).abs().double().square().sum().item()
            total += first.abs().double().square().sum().item()
    return {"relative_error": math.sqrt(error / max(total, 1e-300)), "inputs": float(inputs)}


@torch.no_grad()
def evaluate(
    original: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task | Literal["auto"] = "auto",
    pooling: str | None = None,
    mask_token: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a compressed model with its original on held-out inputs.

    Parameters
    ----------
    original, compressed : nn.Module
        Called in evaluation mode; the mode of every module in them is restored afterwards.
    batches : iterable of Tensor, sequence or mapping
        Inputs, as `feed` takes them. Right-padded texts come with ``attention_mask``.
    task : str
        Which figures to compute; "auto" asks `task_of`.
    pooling : {"mean", "cls", "max", "lasttoken"}, optional
        How an embedding is made of tokens; by default what the model's folder says (`pooling_of`).
    mask_token : int, optional
        Token id that hides a word; needed for masked language models unless the batches hold ``labels``.
    seed : int
        Which 15 % of the words are hidden.

    Returns
    -------
    dict
        ``task`` and

        - embedding: ``cosine`` (mean), ``cosine_q05`` (5 % quantile), ``top1`` (same nearest neighbor among
          the inputs), ``top10`` (shared fraction of the ten nearest), ``inputs``, ``pooling``;
        - causal, masked: ``perplexity_before``, ``perplexity_after``, ``perplexity_increase`` (0.1 = 10 %),
          ``kl`` (nats per token), ``tokens``;
        - classifier: ``agreement``, ``kl``, ``inputs``;
        - generic: ``relative_error`` (Frobenius), ``inputs``.

    Raises
    ------
    DataError
        If there are no batches or they do not fit the task.
    Diverged
        If a model's outputs are not finite.

    Examples
    --------
    >>> layer = nn.Linear(4, 4)
    >>> evaluate(layer, layer, [torch.ones(2, 4)])["relative_error"]
    0.0
    """
    batches = list(batches)
    if not batches:
        raise DataError("evaluate: no held-out inputs. Pass at least one batch.")
    chosen: Task = task_of(original) if task == "auto" else task
    if chosen not in get_args(Task):
        raise DataError(
            f"evaluate: task={task!r} is unknown. Use one of {', '.join(get_args(Task))} or 'auto'."
        )
    with ExitStack() as stack:
        for model in (original, compressed):
            stack.enter_context(evaluation_mode(model))
        if chosen == "embedding":
            pooling = pooling_of(folder_of(original)) if pooling is None else pooling
            figures: dict[str, Any] = _embedding(original, compressed, batches, pooling)
            figures["pooling"] = pooling
        elif chosen in ("causal", "masked"):
            figures = dict(_language(original, compressed, batches, chosen, mask_token, seed))
        elif chosen == "classifier":
            figures = dict(_classifier(original, compressed, batches))
        else:
            figures = dict(_generic(original, compressed, batches))
    broken = [key for key, value in figures.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        raise Diverged(
            f"evaluate: {', '.join(broken)} came out as NaN or infinity: the outputs of "
            f"{type(compressed).__name__} "
            "or of its original are not finite. Use float32 or bfloat16 instead of float16, or a larger keep."
        )
    return {"task": chosen, **figures}
