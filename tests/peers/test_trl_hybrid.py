"""One step of Hybrid-GRPO, written down a second time in plain PyTorch: the same weights of both models."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

spec = importlib.util.spec_from_file_location(
    "tiny", Path(__file__).parents[1] / "unit" / "policy" / "tiny.py"
)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::lowdim.errors.LowdimWarning", "ignore::UserWarning"
)

N, M, G, RATE = 5, 14, 8, 0.5


def log_probs(model, prompt, completion):
    """Log-probability of each token of one completion, by one row without padding."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def objective(new, old, advantage, low=0.8, high=1.2):
    ratio = (new - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage).sum() / N


def by_hand(small, large, rollouts, rewards, *, alpha, updates):
    """Steps 5 to 11 for one prompt after the other; the order of the rollouts of a group does not matter."""
    with torch.no_grad():
        of_small = [log_probs(small, *rollout) for rollout in rollouts]
        of_large = [log_probs(large, *rollout) for rollout in rollouts]
    terms = [float((a - b).sum()) / N for a, b in zip(of_large, of_small, strict=True)]
    effective = [r + alpha * term for r, term in zip(rewards, terms, strict=True)]
    kept = []
    for first in range(0, len(rollouts), M):
        order = sorted(range(first, first + M), key=effective.__getitem__)
        kept.append(order[: G // 2] + order[-G // 2 :])
    for _ in range(updates):
        for model, values in ((small, effective), (large, rewards)):
            model.zero_grad()
            total = 0.0
            for group in kept:
                mean = sum(values[row] for row in group) / G
                for row in group:
                    new = log_probs(model, *rollouts[row])
                    total = total + objective(new, of_small[row], values[row] - mean) / (G * len(kept))
            (-total).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= RATE * parameter.grad


@pytest.mark.parametrize("updates", [1, 3])
def test_a_step_by_hand(tmp_path, updates):
    small, large = tiny.network(seed=5), tiny.network(24, seed=6)
    large.lm_head.weight.data *= 8  # far enough from the small one that ratios are clipped
    hand = copy.deepcopy(small), copy.deepcopy(large)
    seen = {}

    def watched(prompts, completion_ids, **columns):
        seen["ids"] = completion_ids
        seen["prompts"] = prompts
        seen["rewards"] = tiny.reward(prompts, **columns)
        return seen["rewards"]

    trainer = tiny.trainer(
        tmp_path,
        small=small,
        large=large,
        reward_funcs=watched,
        optim="sgd",
        lr_scheduler_type="constant",
        learning_rate=RATE,
        max_grad_norm=0.0,
        max_steps=updates,
        num_iterations=updates,
        alpha=0.7,
    )
    trainer.train()
    words = tiny.tokenizer()
    rollouts = [(words(p)["input_ids"], ids) for p, ids in zip(seen["prompts"], seen["ids"], strict=True)]
    by_hand(*hand, rollouts, seen["rewards"], alpha=0.7, updates=updates)
    assert trainer.state.log_history[0]["large/clip_ratio/high_mean"] > 0.05
    assert tiny.distance(tiny.network(seed=5), trainer.model) > 1e-3
    assert tiny.distance(hand[0], trainer.model) <= 2e-6
    assert tiny.distance(hand[1], trainer.large) <= 2e-6
