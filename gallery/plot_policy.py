"""
A large model that learns from a small one's writing
====================================================

Two policies, one that writes and one that only reads. How much of the second
one's learning survives that, and when does it break?
"""

# %%
# A prompt of the laboratory has 64 possible completions of three tokens, and one of them is right. The large
# policy starts near the small one, or farther and farther away.

import matplotlib.pyplot as plt
import torch

from lowdim.policy import (
    clipped_surrogate,
    effective_reward,
    effective_sample_size,
    group_advantages,
    log_weights,
    select_rows,
)

TOKENS, LENGTH, PROMPTS, M, G = 4, 3, 32, 14, 8


def log_probabilities(logits, completions):
    """Of each token, given those before it: logits are (prompts, 1 + 4 + 16, 4), one row per prefix."""
    prefix = torch.zeros(len(completions), dtype=torch.long)
    found = []
    for t in range(LENGTH):
        start = sum(TOKENS**s for s in range(t))
        rows = logits[torch.arange(len(completions)) // M, start + prefix].log_softmax(-1)
        found.append(rows.gather(1, completions[:, t : t + 1]))
        prefix = prefix * TOKENS + completions[:, t]
    return torch.cat(found, dim=1)


def write(logits, source):
    """Let a policy write M completions of each prompt."""
    rows = torch.arange(PROMPTS * M) // M
    prefix, tokens = torch.zeros(len(rows), dtype=torch.long), []
    for t in range(LENGTH):
        start = sum(TOKENS**s for s in range(t))
        tokens.append(torch.multinomial(logits[rows, start + prefix].softmax(-1), 1, generator=source)[:, 0])
        prefix = prefix * TOKENS + tokens[-1]
    return torch.stack(tokens, dim=1)


# %%
# One step: the small policy writes, the effective reward adds what the large one thinks of it, the best and
# the worst are kept, and both learn, the large one with ratios against the small one's probabilities.


def train(distance, steps=150, seed=0):
    source = torch.Generator().manual_seed(seed)
    small = torch.randn(PROMPTS, 21, TOKENS, generator=source)
    large = small + distance * torch.randn(small.shape, generator=source)
    small.requires_grad_(), large.requires_grad_()
    answer = write(torch.zeros_like(small), source).view(PROMPTS, M, LENGTH)[:, :1]
    optimizers = [torch.optim.Adam([logits], lr=0.05) for logits in (small, large)]
    mask = torch.ones(PROMPTS * M, LENGTH)
    right, sizes = [], []
    for _ in range(steps):
        completions = write(small.detach(), source)
        reward = (completions.view(PROMPTS, M, LENGTH) == answer).all(-1).float().flatten()
        with torch.no_grad():
            old, other = log_probabilities(small, completions), log_probabilities(large, completions)
        effective = effective_reward(reward, other, old, mask, alpha=1.0, max_length=LENGTH)
        rows = select_rows(effective, candidates=M, keep=G, generator=source)
        sizes.append(effective_sample_size(log_weights(other, old, mask)))
        for logits, given, optimizer in zip((small, large), (effective, reward), optimizers, strict=True):
            advantage = group_advantages(given[rows], group=G)
            now = log_probabilities(logits, completions)[rows]
            loss, _ = clipped_surrogate(now, old[rows], advantage, mask[rows], max_length=LENGTH)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            best = answer.expand(PROMPTS, M, LENGTH).reshape(-1, LENGTH)
            right.append([float(log_probabilities(x, best).sum(1).exp().mean()) for x in (small, large)])
    return torch.tensor(right), sizes


runs = {distance: train(distance) for distance in (0.3, 1.0, 2.0)}

# %%
# Left: how probable the right completion becomes. Right: the effective sample size, the share of the small
# policy's rollouts that count for the large one. The distillation term brings the two together on the way.

fig, (left, middle) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for number, (distance, (right, sizes)) in enumerate(runs.items()):
    left.plot(right[:, 0], color=f"C{number}", label=f"small, distance {distance:g}")
    left.plot(right[:, 1], color=f"C{number}", linestyle="--", label="large")
    middle.plot(sizes, color=f"C{number}")
left.set(xlabel="step", ylabel="probability of the right completion", ylim=(0, 1))
middle.set(xlabel="step", ylabel="effective sample size", ylim=(0, 1))
left.legend(fontsize="small")
plt.show()
