"""The neural bandit: three questions answered at once by a shared network, whose reward is known exactly.

196 questions with 50 answers each; a prompt is three questions, its reward 1 if all three answers are right.
The policy is a small network over questions, warmed up on noisy labels so that it knows some answers, half
knows others, and hardly knows the rest. All seeds are trained side by side along the first axis.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdim.claims.declare import Measurement, Trial

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Curves", "Setting", "World", "against", "first_reach", "mean_of", "train"]

QUESTIONS, ANSWERS, WIDTH, HIDDEN = 196, 50, 32, 64
TRAINING, HELD_OUT, WARM_UP, BUDGET, SEEDS = 512, 2000, 500, 12_000, 8
#: A world whose network starts near the expected reward of the design.
WORLD = 3


@dataclass(frozen=True)
class Setting:
    """How rollouts are made: `prompts` of `group` each, staged after `first` (None: all at once)."""

    group: int
    prompts: int
    rate: float
    first: int | None = None
    random_stop: bool = False


@dataclass(frozen=True)
class Curves:
    """Rollouts made and exact held-out reward after each step, both ``(steps, seeds)``."""

    rollouts: Tensor
    reward: Tensor

    @property
    def final(self) -> Tensor:
        """Held-out reward at the end, of each seed."""
        return self.reward[-1]


class World:
    """Questions, prompts and the warmed-up network.

    The same for all seeds, which differ in what they sample: `weights` has a copy of the network for each.
    """

    def __init__(self, number: int, seeds: int) -> None:
        import torch

        self.source = torch.Generator().manual_seed(number)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=self.source)

        self.answers = torch.randint(ANSWERS, (QUESTIONS,), generator=self.source)
        kind, middle = uniform(QUESTIONS), 0.15 + 0.55 * uniform(QUESTIONS)
        # How often the network is told the right answer while it warms up; else it is told any.
        self.told = torch.where(kind < 0.55, 1.0, torch.where(kind < 0.87, middle, 0.05))
        self.training = torch.randint(QUESTIONS, (TRAINING, 3), generator=self.source)
        self.held_out = torch.randint(QUESTIONS, (HELD_OUT, 3), generator=self.source)

        def layer(rows: int, columns: int, bound: float) -> Tensor:
            return bound * (2 * uniform(1, rows, columns) - 1)

        inner, outer = 1 / math.sqrt(WIDTH), 1 / math.sqrt(HIDDEN)
        self.weights = [
            torch.randn(1, QUESTIONS, WIDTH, generator=self.source),
            layer(WIDTH, HIDDEN, inner),
            layer(1, HIDDEN, inner),
            layer(HIDDEN, ANSWERS, outer),
            layer(1, ANSWERS, outer),
        ]
        self._warm_up()
        self.weights = [weight.detach().repeat(seeds, 1, 1).requires_grad_() for weight in self.weights]

    def log_policy(self) -> Tensor:
        """Log-probabilities of all answers, ``(seeds, questions, answers)``."""
        from torch.nn.functional import gelu

        E, V, b, U, c = self.weights
        return (gelu(E @ V + b) @ U + c).log_softmax(-1)

    def _warm_up(self) -> None:
        import torch

        optimizer = torch.optim.AdamW([weight.requires_grad_() for weight in self.weights], lr=4e-3)
        for _ in range(WARM_UP):
            # Four labels for each question: with one, the network starts from the last noise it saw.
            any_answer = torch.randint(ANSWERS, (4, QUESTIONS), generator=self.source)
            told = torch.rand(4, QUESTIONS, generator=self.source) < self.told
            label = torch.where(told, self.answers, any_answer)
            loss = -self.log_policy()[0].gather(-1, label.T).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def reward(self, log_policy: Tensor) -> Tensor:
        """Exact mean reward on the held-out prompts, ``(seeds,)``."""
        import torch

        right = log_policy[:, torch.arange(QUESTIONS), self.answers]
        return right[:, self.held_out].sum(-1).exp().mean(-1)


def train(setting: Setting, *, seeds: int = SEEDS, number: int = WORLD) -> Curves:
    """Train all seeds by GRPO until each has made its rollouts.

    Parameters
    ----------
    setting : Setting
        Rollouts and learning rate.
    seeds : int
        How many seeds, side by side.
    number : int
        Which world.

    Returns
    -------
    Curves
        A seed that is done stands still while the others finish.
    """
    import torch

    world = World(number, seeds)
    optimizer = torch.optim.AdamW(world.weights, lr=setting.rate)
    G, N = setting.group, setting.prompts
    seed = torch.arange(seeds)[:, None, None]
    spent = torch.zeros(seeds)
    rollouts, rewards = [spent.clone()], [world.reward(world.log_policy().detach())]
    while bool((spent < BUDGET).any()):
        running = spent < BUDGET
        log_policy = world.log_policy()
        chosen = torch.rand(seeds, TRAINING, generator=world.source).argsort(-1)[:, :N]
        prompts = world.training[chosen]  # (seeds, N, 3)
        of_prompt = log_policy[seed, prompts]  # (seeds, N, 3, answers)
        uniform = torch.rand(seeds, N, 3, G, generator=world.source)
        # Inverse of the distribution function; the last bin takes what rounding leaves.
        answer = torch.searchsorted(of_prompt.detach().exp().cumsum(-1), uniform).clamp(max=ANSWERS - 1)
        logp = of_prompt.gather(-1, answer).sum(2)  # (seeds, N, G)
        right = world.answers[prompts][..., None] == answer
        reward = right.all(2).float()
        made = _made(setting, reward, world.source)
        A = _advantages(reward.masked_fill(~made, torch.nan))
        loss = -(A * logp).sum((1, 2)) / (N * G)
        optimizer.zero_grad()
        loss.sum().backward()
        _step(world.weights, optimizer, running)
        spent = spent + running * made.sum((1, 2))
        rollouts.append(spent.clone())
        rewards.append(world.reward(world.log_policy().detach()))
    return Curves(torch.stack(rollouts), torch.stack(rewards))


def _made(setting: Setting, reward: Tensor, source: object) -> Tensor:
    """Which rollouts are made; the library decides, or chance with its rate."""
    import torch

    from lowdim.policy.stages import Decision, solved

    if setting.first is None:
        return torch.ones_like(reward, dtype=torch.bool)
    stop = solved(reward[..., : setting.first].flatten(0, 1)).view(reward.shape[:2])
    if setting.random_stop:
        order = torch.rand(stop.shape, generator=source).argsort(-1)  # type: ignore[call-overload]
        stop = stop.gather(-1, order)
    decision = Decision(~stop.flatten(), stop.flatten(), torch.zeros_like(stop).flatten())
    return decision.made(first=setting.first, group=setting.group).view(reward.shape)


def _advantages(reward: Tensor) -> Tensor:
    from lowdim.policy import group_advantages

    return group_advantages(reward.flatten(), group=reward.shape[-1], scale="group").view(reward.shape)


def _step(weights: list[Tensor], optimizer: object, running: Tensor) -> None:
    """One step of AdamW, each seed with its own gradient norm clipped to one; finished seeds stand still."""
    import torch

    grads = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
    factor = (1 / (norm + 1e-6)).clamp(max=1)
    for grad in grads:
        grad *= factor[:, None, None]
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()  # type: ignore[attr-defined]
    with torch.no_grad():
        for weight, old in zip(weights, before, strict=True):
            weight[~running] = old[~running]


def first_reach(curves: Curves, level: float) -> Tensor:
    """Rollouts until the held-out reward reaches a level, of each seed; infinite where it never does.

    Parameters
    ----------
    curves : Curves
        Of a training.
    level : float
        The reward.

    Returns
    -------
    Tensor
        Shape ``(seeds,)``.
    """
    import torch

    reached = curves.reward >= level
    first = reached.int().argmax(0)
    there = curves.rollouts.gather(0, first[None])[0]
    return torch.where(reached.any(0), there, torch.inf)


def mean_of(trial: Trial, setting: Setting, figure: str, *, number: int = WORLD) -> tuple[float, float]:
    """Return the mean over the seeds of what a training gave, and its standard error.

    Parameters
    ----------
    trial : Trial
        Of the claim; trainings are shared among claims.
    setting : Setting
        Of the training.
    figure : str
        ``"0.7"``, ``"0.8"`` or ``"0.9"``, rollouts to that reward; ``"final"``, the reward at the end.
    number : int
        Which world.

    Returns
    -------
    tuple of float
        Infinite and NaN where a seed never reached the reward.
    """

    def compute() -> dict[str, Any]:
        curves = train(setting, seeds=2 if trial.quick else SEEDS, number=number)
        reached = {str(level): first_reach(curves, level).tolist() for level in (0.7, 0.8, 0.9)}
        # JSON has no infinity: None is a seed that never got there.
        finite = {level: [x if math.isfinite(x) else None for x in each] for level, each in reached.items()}
        return {**finite, "final": curves.final.tolist()}

    name = "-".join(str(part) for part in (number, *vars(setting).values()))
    found: dict[str, Any] = trial.share(f"economies-bandit-{name}", compute, seeded=False)
    values = [math.inf if value is None else value for value in found[figure]]
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return mean, math.nan
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def against(trial: Trial, ours: Setting, other: Setting, figure: str, *, number: int = WORLD) -> Measurement:
    """Compare two trainings: ratio of rollouts, or difference of the rewards at the end.

    Parameters
    ----------
    trial : Trial
        Of the claim.
    ours, other : Setting
        Of the trainings.
    figure : str
        See :func:`mean_of`.
    number : int
        Which world.

    Returns
    -------
    Measurement
        With means, their standard errors, and how many of them the difference is.
    """
    (a, e), (b, f) = (mean_of(trial, setting, figure, number=number) for setting in (ours, other))
    details = {"ours": [a, e], "other": [b, f], "sigma": abs(a - b) / math.hypot(e, f)}
    return Measurement(a - b if figure == "final" else a / b, details, judged=not trial.quick)
