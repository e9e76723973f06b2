"""Warm up: a decoder learns sums from noisy answers until it is right now and then."""

from __future__ import annotations

import torch
from torch.nn import functional

from lowdim.algebra.seeds import Seed, generator
from lowdim.errors import Diverged
from lowdim.policy.arithmetic.addition import Addition
from lowdim.policy.arithmetic.decoder import Decoder, completion_mask
from lowdim.policy.arithmetic.measure import sampled_accuracy

__all__ = ["warm_up"]


def warm_up(
    model: Decoder,
    task: Addition,
    *,
    until: float,
    noise: float = 0.5,
    batch: int = 128,
    lr: float = 2e-3,
    rising: int = 30,
    every: int = 10,
    most: int = 6000,
    seed: Seed = 0,
) -> int:
    """Train in place on answers with noise, until the sampled accuracy is reached.

    Parameters
    ----------
    model : Decoder
    task : Addition
    until : float
        Sampled accuracy on held-out prompts at which to stop.
    noise : float
        Probability that an answer has one digit replaced by a random one. It keeps the entropy of a base
        model; without it two models are too far apart to learn from each other.
    batch : int
        Prompts per step.
    lr : float
        Learning rate of AdamW, reached after `rising` steps.
    rising : int
        Steps in which the rate rises.
    every : int
        Steps between two measurements of accuracy.
    most : int
        Steps after which to give up.
    seed : int, torch.Generator or None

    Returns
    -------
    int
        Steps that it took.

    Raises
    ------
    Diverged
        If the accuracy is not reached in `most` steps.

    Examples
    --------
    >>> from lowdim.policy.arithmetic import small_decoder
    >>> steps = warm_up(small_decoder(seed=0), Addition(1, held_out=20), until=0.05, lr=5e-3)
    >>> 0 < steps <= 200
    True
    """
    source = generator(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    accuracy = 0.0
    for step in range(1, most + 1):
        which = task.train[torch.randint(len(task.train), (batch,), generator=source)]
        answers = task.noisy_answer(which, probability=noise, seed=source)
        mask = completion_mask(answers)
        loss = functional.cross_entropy(model.logits(task.prompt(which), answers)[mask], answers[mask])
        for group in optimizer.param_groups:
            group["lr"] = lr * min(step / rising, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            accuracy = sampled_accuracy(model, task)
            if accuracy >= until:
                return step
    raise Diverged(
        f"warm_up: sampled accuracy {accuracy:.3f} after {most} steps, {until} wanted. "
        "Give more steps or a wider model.",
        step=most,
    )
