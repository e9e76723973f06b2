"""Measure: exact accuracies of a decoder, and how far apart two of them are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, generator
from lowdim.policy.arithmetic.addition import Addition
from lowdim.policy.arithmetic.decoder import Decoder, completion_mask
from lowdim.policy.diagnostics import effective_sample_size

__all__ = ["Closeness", "closeness", "greedy_accuracy", "sampled_accuracy"]


@dataclass(frozen=True)
class Closeness:
    """How near a large policy is to the small one that generates for it.

    Parameters
    ----------
    kl : float
        KL(small || large) in nats per completion.
    ess : float
        Effective sample size of the large policy's ratios, as a share of the rows.
    clipped : float
        Share of tokens whose ratio is outside of 1 +- 0.2.
    rows : int
        Completions that were drawn.

    Examples
    --------
    >>> Closeness(kl=0.06, ess=0.91, clipped=0.13, rows=4000).ess
    0.91
    """

    kl: float
    ess: float
    clipped: float
    rows: int


@torch.no_grad()
def sampled_accuracy(model: Decoder, task: Addition, *, which: Tensor | None = None) -> float:
    """Return the mean probability of the right completion at temperature 1.

    A sum has one right completion: one forward gives this without any sampling noise.

    Parameters
    ----------
    model : Decoder
    task : Addition
    which : Tensor of shape (n,), int64, optional
        Prompts; the held-out ones by default.

    Returns
    -------
    float

    Examples
    --------
    >>> from lowdim.policy.arithmetic import small_decoder
    >>> sampled_accuracy(small_decoder(seed=0), Addition(seed=0)) < 0.01
    True
    """
    which = task.held_out if which is None else which
    answers = task.answer(which)
    logp = model.logp(task.prompt(which), answers, completion_mask(answers))
    return float(logp.sum(-1).exp().mean())


@torch.no_grad()
def greedy_accuracy(model: Decoder, task: Addition, *, which: Tensor | None = None) -> float:
    """Return how often the likeliest token at every place makes the right completion.

    Parameters
    ----------
    model : Decoder
    task : Addition
    which : Tensor of shape (n,), int64, optional
        Prompts; the held-out ones by default.

    Returns
    -------
    float

    Examples
    --------
    >>> from lowdim.policy.arithmetic import small_decoder
    >>> greedy_accuracy(small_decoder(seed=0), Addition(seed=0)) < 0.05
    True
    """
    which = task.held_out if which is None else which
    # Greedy decoding is right exactly where every right token is the likeliest after right ones.
    answers = task.answer(which)
    right = model.logits(task.prompt(which), answers).argmax(-1) == answers
    # A count over a count: a mean in float32 can fall short of 0.03 by its rounding alone.
    return int((right | ~completion_mask(answers)).all(-1).sum()) / len(which)


@torch.no_grad()
def closeness(
    small: Decoder, large: Decoder, task: Addition, *, rows: int = 4000, clip: float = 0.2, seed: Seed = 0
) -> Closeness:
    """Measure the distance of two policies on completions that the small one draws.

    Parameters
    ----------
    small, large : Decoder
    task : Addition
    rows : int
        Completions, one of each of as many training prompts.
    clip : float
        Width eps of the clipping.
    seed : int, torch.Generator or None

    Returns
    -------
    Closeness

    Examples
    --------
    >>> from lowdim.policy.arithmetic import small_decoder
    >>> model = small_decoder(seed=0)
    >>> round(closeness(model, model, Addition(seed=0), rows=100).ess, 6)
    1.0
    """
    source = generator(seed)
    picked = task.train[torch.randint(len(task.train), (rows,), generator=source)]
    prompts = task.prompt(picked)
    drawn = small.sample(prompts, group=1, max_length=task.max_length, seed=source)
    log_ratio = large.logp(prompts, drawn.tokens, drawn.mask) - drawn.logp
    whole = log_ratio.sum(-1)
    outside = ((log_ratio.exp() - 1).abs() > clip) & drawn.mask
    return Closeness(
        kl=-float(whole.mean()),
        ess=float(effective_sample_size(whole)),
        clipped=float(outside.sum() / drawn.mask.sum()),
        rows=rows,
    )
