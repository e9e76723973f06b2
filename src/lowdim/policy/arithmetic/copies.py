"""Copies: a small policy made from the large one, and healed on the large one's own samples."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdim.algebra import LowRank, Operator, factorize
from lowdim.algebra.linear import StructuredLinear
from lowdim.algebra.seeds import Seed, generator
from lowdim.errors import DataError
from lowdim.policy.arithmetic.addition import Addition
from lowdim.policy.arithmetic.decoder import Decoder, Rollouts
from lowdim.policy.arithmetic.train import weights_of

__all__ = ["compressed", "heal"]


def compressed(
    model: Decoder,
    *,
    structure: type[Operator] = LowRank,
    rank: int | None = None,
    keep: float | None = None,
    task: Addition | None = None,
    rows: int = 1280,
    seed: Seed = 0,
) -> Decoder:
    """Return a copy whose attention and MLP matrices are factorized; embeddings stay as they are.

    Parameters
    ----------
    model : Decoder
    structure : type of Operator
    rank : int, optional
        Of every matrix. Give this or `keep`.
    keep : float, optional
        Fraction of each matrix's weights.
    task : Addition, optional
        Factorize in the second moments of the inputs of each layer, seen on answers that the model finds
        likeliest on training prompts, rather than in the plain norm.
    rows : int
        Prompts for the second moments.
    seed : int, torch.Generator or None
        Of these prompts.

    Returns
    -------
    Decoder

    Examples
    --------
    >>> from lowdim.policy.arithmetic import large_decoder
    >>> sum(weight.numel() for weight in compressed(large_decoder(seed=0), rank=12).parameters())
    51293
    """
    out = copy.deepcopy(model)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    moments = {} if task is None else _second_moments(model, linears, task, rows, seed)
    for name, linear in linears.items():
        found = factorize(
            linear.weight.detach(), structure, rank=rank, keep=keep, second_moment=moments.get(name)
        )
        owner, _, attribute = name.rpartition(".")
        setattr(out.get_submodule(owner), attribute, StructuredLinear(found.operator, linear.bias))
    return out


def heal(
    small: Decoder,
    large: Decoder,
    task: Addition,
    *,
    steps: int = 100,
    fresh: int | None = None,
    writer: Literal["large", "small"] = "large",
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
) -> float:
    """Distil in place: KL(large || small) over the whole vocabulary, on the large model's own samples.

    Parameters
    ----------
    small, large : Decoder
    task : Addition
    steps : int
    fresh : int, optional
        Batches that are sampled; the steps go through them again and again. One for each step by default.
    writer : {"large", "small"}
        Who samples. The small one is cheaper and writes, at first, less to the point.
    batch : int
        Completions of a step, one of each of as many training prompts.
    lr : float
        Learning rate of AdamW at the start; it falls to 0 along a line.
    seed : int

    Returns
    -------
    float
        Work of sampling, in floating-point operations.

    Raises
    ------
    DataError
        If `fresh` is not between 1 and `steps`.

    Examples
    --------
    >>> from lowdim.policy.arithmetic import large_decoder
    >>> large, task = large_decoder(seed=0), Addition(seed=0)
    >>> small = compressed(large, rank=12)
    >>> heal(small, large, task, steps=4, fresh=2) > 1e8
    True
    """
    fresh = steps if fresh is None else fresh
    if not 1 <= fresh <= steps:
        raise DataError(f"heal: fresh={fresh} must be between 1 and steps={steps}.")
    source = generator(seed)
    optimizer = torch.optim.AdamW(small.parameters(), lr=lr, weight_decay=0.0, fused=True)
    work, seen = 0.0, []
    for step in range(steps):
        if step < fresh:
            prompts = task.prompt(task.train[torch.randint(len(task.train), (batch,), generator=source)])
            model = large if writer == "large" else small
            drawn = model.sample(prompts, group=1, max_length=task.max_length, seed=source)
            work += 2 * weights_of(model) * int(drawn.mask.sum())
            seen.append((prompts, drawn, _log_softmax(large, prompts, drawn)))
        prompts, drawn, wanted = seen[step % fresh]
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        found = small.logits(prompts, drawn.tokens)[drawn.mask].log_softmax(-1)
        functional.kl_div(found, wanted, log_target=True, reduction="batchmean").backward()
        nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimizer.step()
    return work


@torch.no_grad()
def _log_softmax(model: Decoder, prompts: Tensor, drawn: Rollouts) -> Tensor:
    return model.logits(prompts, drawn.tokens)[drawn.mask].log_softmax(-1)


@torch.no_grad()
def _second_moments(
    model: Decoder, linears: dict[str, nn.Linear], task: Addition, rows: int, seed: Seed
) -> dict[str, Tensor]:
    """Return the mean of x x^T over the inputs of each layer."""
    sums = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in linears.items()}
    counts = dict.fromkeys(linears, 0)

    def watch(name: str) -> object:
        def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].flatten(0, -2)
            sums[name] += x.mT @ x
            counts[name] += len(x)

        return linears[name].register_forward_pre_hook(see)

    handles = [watch(name) for name in linears]
    picked = task.train[torch.randint(len(task.train), (rows,), generator=generator(seed))]
    model.sample(task.prompt(picked), group=1, max_length=task.max_length, greedy=True)
    for handle in handles:
        handle.remove()  # type: ignore[attr-defined]
    moments = {name: sums[name] / counts[name] for name in linears}
    # Normalization leaves one direction without variance: a small ridge instead of a warning and a large one.
    return {
        name: moment + 1e-3 * moment.diagonal().mean() * torch.eye(len(moment))
        for name, moment in moments.items()
    }
