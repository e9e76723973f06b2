"""The mathematics of Hybrid-GRPO, exactly: every completion of a tiny policy is enumerated.

Tabular softmax policies over three tokens (the last ends a completion), at most three tokens: 15 completions.
Expectations over groups are sums over all multisets of completions with their multinomial weights.
"""

import itertools
import math

import pytest
import torch

from lowdim.policy import (
    clipped_surrogate,
    distillation_loss,
    effective_reward,
    effective_sample_size,
    group_advantages,
    select_extremes,
)

V, EOS, N, ALPHA = 3, 2, 3, 0.7


def _completions():
    finished = []
    for length in range(1, N + 1):
        for tokens in itertools.product(range(V), repeat=length):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or length == N):
                finished.append(tokens)
    return finished


COMPLETIONS = _completions()
PREFIXES = [p for length in range(N) for p in itertools.product(range(V - 1), repeat=length)]
MASK = torch.tensor([[float(t < len(o)) for t in range(N)] for o in COMPLETIONS], dtype=torch.float64)
STATE = torch.tensor([[PREFIXES.index(o[:t]) if t < len(o) else 0 for t in range(N)] for o in COMPLETIONS])
TOKEN = torch.tensor([[o[t] if t < len(o) else 0 for t in range(N)] for o in COMPLETIONS])


def token_logps(logits):
    """Log-probabilities of the tokens of all completions, ``(15, N)``, garbage at padding."""
    return logits.log_softmax(-1)[STATE, TOKEN]


def sequence_logps(logits):
    return (token_logps(logits) * MASK).sum(-1)


def instance(distance=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64)
    theta = phi + distance * torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64)
    reward = torch.randint(0, 2, (len(COMPLETIONS),), generator=generator).double()
    return phi.requires_grad_(), theta.requires_grad_(), reward


def kl(p, q):
    """KL(p || q) over completions."""
    return (p.exp() * (p - q)).sum()


def groups(probability, size):
    """Yield every multiset of `size` completions with its probability."""
    for rows in itertools.combinations_with_replacement(range(len(COMPLETIONS)), size):
        ways = math.factorial(size)
        weight = 1.0
        for row in set(rows):
            ways //= math.factorial(rows.count(row))
            weight *= probability[row] ** rows.count(row)
        yield list(rows), ways * weight


def expected_gradient(phi, reward, size, *, keep=None, scale="none"):
    """Expected gradient of the loss: a batch of all groups, each advantage times its probability."""
    every = list(groups(sequence_logps(phi).detach().exp().tolist(), size))
    rows = torch.tensor([group for group, _ in every]).flatten()
    weight = torch.tensor([weight for _, weight in every], dtype=torch.float64)
    if keep is not None:
        generator = torch.Generator().manual_seed(0)
        rows = rows[select_extremes(reward[rows], candidates=size, keep=keep, generator=generator)]
        size = keep
    advantage = group_advantages(reward[rows], group=size, scale=scale) * weight.repeat_interleave(size)
    logp = token_logps(phi)[rows]
    loss, _ = clipped_surrogate(logp, logp.detach(), advantage, MASK[rows], max_length=N, rows=size)
    return torch.autograd.grad(loss, phi)[0]


def relative(a, b):
    return float((a - b).norm() / b.norm())


def objective_gradient(phi, theta, reward):
    """Gradient of J = E[effective reward], the reward a constant of each completion."""
    r = effective_reward(
        reward, token_logps(theta).detach(), token_logps(phi).detach(), MASK, alpha=ALPHA, max_length=N
    )
    return torch.autograd.grad((sequence_logps(phi).exp() * r).sum(), phi)[0]


def surrogate(logp, reward, rows, scale="none"):
    advantage = group_advantages(reward[rows], group=len(rows), scale=scale)
    return clipped_surrogate(logp, logp.detach(), advantage, MASK[rows], max_length=N)[0]


def test_completions_are_the_fifteen_and_their_probabilities_sum_to_one():
    phi, _, _ = instance()
    assert len(COMPLETIONS) == 15
    assert float(sequence_logps(phi).detach().exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_theorem_1_the_effective_reward_is_reward_minus_divergence(seed):
    phi, theta, reward = instance(seed=seed)
    plain = (sequence_logps(phi).exp() * reward).sum()
    divergence = kl(sequence_logps(phi), sequence_logps(theta).detach())
    (expected,) = torch.autograd.grad(plain - ALPHA / N * divergence, phi)
    assert relative(objective_gradient(phi, theta, reward), expected) < 1e-10


@pytest.mark.parametrize("G", [2, 3, 4])
def test_lemma_1_the_loss_has_the_gradient_of_the_objective_times_its_factor(G):
    phi, theta, reward = instance()
    r = effective_reward(
        reward, token_logps(theta).detach(), token_logps(phi).detach(), MASK, alpha=ALPHA, max_length=N
    )
    gradient = -expected_gradient(phi, r, G)
    expected = (G - 1) / (G * N) * objective_gradient(phi, theta, reward)
    assert relative(gradient, expected) < 1e-10


def test_lemma_1_without_the_length_is_off_by_the_length():
    phi, theta, reward = instance()
    r = effective_reward(
        reward, token_logps(theta).detach(), token_logps(phi).detach(), MASK, alpha=ALPHA, max_length=N
    )
    gradient = expected_gradient(phi, r, 2)
    claimed = 1 / 2 * objective_gradient(phi, theta, reward)
    assert float(gradient.norm() / claimed.norm()) == pytest.approx(1 / N, abs=1e-10)


def distillation_gradient(phi, theta, estimator):
    """Expected gradient of the loss form, whole rollouts, over single completions."""
    total = torch.zeros_like(phi)
    for row, probability in enumerate(sequence_logps(phi).detach().exp()):
        loss = distillation_loss(
            token_logps(phi)[[row]],
            token_logps(theta)[[row]],
            MASK[[row]],
            max_length=N,
            estimator=estimator,
            level="sequence",
        )
        total += probability * torch.autograd.grad(loss, phi)[0]
    return N * total


def test_log_ratio_as_a_loss_teaches_nothing():
    phi, theta, _ = instance()
    weights = sequence_logps(phi).detach().exp()
    ratio = (sequence_logps(phi) - sequence_logps(theta).detach()) * weights
    (gradient,) = torch.autograd.grad(ratio.sum(), phi)
    assert float(gradient.norm()) < 1e-12


def test_k2_as_a_loss_is_the_divergence_from_small_to_large():
    phi, theta, _ = instance()
    (expected,) = torch.autograd.grad(kl(sequence_logps(phi), sequence_logps(theta).detach()), phi)
    assert relative(distillation_gradient(phi, theta, "k2"), expected) < 1e-10


def test_k3_as_a_loss_is_the_divergence_from_large_to_small():
    phi, theta, _ = instance()
    (expected,) = torch.autograd.grad(kl(sequence_logps(theta).detach(), sequence_logps(phi)), phi)
    assert relative(distillation_gradient(phi, theta, "k3"), expected) < 1e-10


def test_k2_per_token_is_the_sum_of_divergences_along_sampled_prefixes():
    phi, theta, _ = instance()
    total = torch.zeros_like(phi)
    reached = torch.zeros(len(PREFIXES), dtype=torch.float64)
    for row, probability in enumerate(sequence_logps(phi).detach().exp()):
        loss = distillation_loss(
            token_logps(phi)[[row]], token_logps(theta)[[row]], MASK[[row]], max_length=N
        )
        total += probability * torch.autograd.grad(loss, phi)[0]
        for t in range(len(COMPLETIONS[row])):
            reached[STATE[row, t]] += probability
    p, q = phi.log_softmax(-1), theta.log_softmax(-1).detach()
    (expected,) = torch.autograd.grad((reached[:, None] * p.exp() * (p - q)).sum() / N, phi)
    assert relative(total, expected) < 1e-10


def test_k1_in_the_reward_is_the_divergence_and_k3_is_not():
    phi, theta, _ = instance()
    zero = torch.zeros(len(COMPLETIONS), dtype=torch.float64)
    (expected,) = torch.autograd.grad(-kl(sequence_logps(phi), sequence_logps(theta).detach()) / N, phi)
    cosine = {}
    for estimator in ("k1", "k3"):
        r = effective_reward(
            zero,
            token_logps(theta).detach(),
            token_logps(phi).detach(),
            MASK,
            alpha=1.0,
            max_length=N,
            estimator=estimator,
        )
        (gradient,) = torch.autograd.grad((sequence_logps(phi).exp() * r).sum(), phi)
        cosine[estimator] = float((gradient * expected).sum() / gradient.norm() / expected.norm())
    assert cosine["k1"] == pytest.approx(1, abs=1e-10)
    assert cosine["k3"] < 0.95


def test_a_constant_added_to_the_rewards_of_a_group_changes_nothing():
    phi, _, reward = instance()
    rows = [0, 3, 3, 14]
    (one,) = torch.autograd.grad(surrogate(token_logps(phi)[rows], reward, rows), phi)
    (two,) = torch.autograd.grad(surrogate(token_logps(phi)[rows], reward + 5, rows), phi)
    assert float((one - two).abs().max()) < 1e-12


def test_selection_and_scaling_make_the_gradient_biased():
    """Documented, not wanted: who uses them should know. (With rewards of two values there is no bias.)"""
    phi, theta, reward = instance()
    r = effective_reward(
        reward, token_logps(theta).detach(), token_logps(phi).detach(), MASK, alpha=ALPHA, max_length=N
    )
    expected = objective_gradient(phi, theta, reward)
    for options in ({"scale": "group"}, {"keep": 2}):
        gradient = -expected_gradient(phi, r, 4, **options)
        cosine = float((gradient * expected).sum() / gradient.norm() / expected.norm())
        assert 0.5 < cosine < 0.9999


@pytest.mark.parametrize(("distance", "low", "high"), [(0.1, 0.97, 1.0), (2.0, 0.05, 0.8)])
def test_sample_size_tells_how_far_the_policies_are_apart(distance, low, high):
    phi, theta, _ = instance(distance)
    log_w = (sequence_logps(theta) - sequence_logps(phi)).detach()
    p = sequence_logps(phi).detach().exp()
    exact = float((p * log_w.exp()).sum() ** 2 / (p * (2 * log_w).exp()).sum())
    assert low < exact < high
    rows = torch.multinomial(p, 50_000, replacement=True, generator=torch.Generator().manual_seed(0))
    assert effective_sample_size(log_w[rows]) == pytest.approx(exact, rel=0.1)


def test_the_large_policys_gradient_without_clipping_is_right_for_sequences_only():
    """Off-policy, the per-token ratio is an approximation; its direction gets worse with the distance."""
    cosines = []
    for distance in (0.1, 1.0):
        phi, theta, reward = instance(distance)
        (expected,) = torch.autograd.grad((sequence_logps(theta).exp() * reward).sum(), theta)
        p = sequence_logps(phi).detach().exp()
        centered = reward - (p * reward).sum()
        logp, old = token_logps(theta), token_logps(phi).detach()
        total = torch.zeros_like(theta)
        for row in range(len(COMPLETIONS)):
            loss, _ = clipped_surrogate(
                logp[[row]], old[[row]], centered[[row]], MASK[[row]], max_length=N, clip=1e6
            )
            total -= p[row] * torch.autograd.grad(loss, theta, retain_graph=True)[0]
        cosines.append(float((total * expected).sum() / total.norm() / expected.norm()))
    assert cosines[0] > 0.99
    assert cosines[1] < cosines[0]
