"""Moments of prompts, sampled without the prompts: the same distribution, in whatever way they are drawn."""

import pytest
import torch
from scipy.stats import ks_2samp

from lowdim.errors import DataError
from lowdim.incontext import Linear, SubspaceTasks, moment_covariance, sample_gram, sample_moments

COUNT = 20000
INPUTS = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=torch.float64)


def explicit(tasks, n, seed):
    prompt = tasks.sample(COUNT, n=n, seed=seed)
    return torch.einsum("bnd,bn->bd", prompt.X, prompt.y) / n, prompt


def gram(tasks, n, seed):
    return sample_gram(tasks, COUNT, n=n, seed=seed)[1] / n


WAYS = {"moments": lambda tasks, n, seed: sample_moments(tasks, COUNT, n=n, seed=seed).b_hat, "gram": gram}


@pytest.mark.parametrize("inputs", [None, INPUTS], ids=["standard", "colored"])
@pytest.mark.parametrize(
    ("way", "n"), [("moments", 1), ("moments", 3), ("moments", 40), ("gram", 3), ("gram", 40)]
)
def test_they_are_distributed_like_those_of_prompts(way, n, inputs):
    tasks = SubspaceTasks(3, r=1, subspaces=2, weights=[0.8, 0.2], noise=0.6, inputs=inputs, seed=0)
    wanted, _ = explicit(tasks, n, 1)
    found = WAYS[way](tasks, n, 2)
    # Entries, and the length, which no linear map of them tells.
    for one, other in [(wanted[:, i], found[:, i]) for i in range(3)] + [
        (wanted.norm(dim=1), found.norm(dim=1))
    ]:
        assert ks_2samp(one.numpy(), other.numpy()).pvalue > 1e-4
    second = found.mT @ found / COUNT
    theory = moment_covariance(tasks.covariance, n=n, noise=0.6, inputs=inputs)
    outer = found.unsqueeze(-1) * found.unsqueeze(-2)
    assert bool(((second - theory).abs() < 5 * outer.std(0) / COUNT**0.5).all())


@pytest.mark.parametrize("vectors", ["gaussian", "sphere"])
def test_the_moment_goes_with_its_task_and_query(vectors):
    tasks = SubspaceTasks(3, r=2, noise=0.2, family=Linear(vectors), seed=0)
    found = sample_moments(tasks, COUNT, n=4, seed=0)
    torch.testing.assert_close((found.xq * found.b).sum(-1), found.yq)
    # E b_hat b^T = S, whatever n.
    cross = found.b_hat.mT @ found.b / COUNT
    torch.testing.assert_close(cross, tasks.covariance, atol=0.06, rtol=0)
    # The query is independent of the moment.
    assert float((found.xq * found.b_hat).sum(-1).mean()) == pytest.approx(0, abs=0.06)


def test_bartlett_gives_wishart_matrices_and_their_moments():
    tasks = SubspaceTasks(3, r=1, noise=0.5, inputs=INPUTS, seed=0)
    n = 6
    G, moment, b = sample_gram(tasks, COUNT, n=n, seed=0)
    torch.testing.assert_close(G.mean(0) / n, INPUTS, atol=0.05, rtol=0)
    # Variance of a diagonal entry of a Wishart matrix: 2 n S_ii^2.
    torch.testing.assert_close(
        G.diagonal(dim1=1, dim2=2).var(0), 2 * n * INPUTS.diagonal() ** 2, rtol=0.06, atol=0
    )
    noise = moment - (G @ b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(noise.mT @ noise / COUNT, 0.25 * n * INPUTS, atol=0.15, rtol=0.06)


def test_without_noise_and_with_many_examples_the_moment_is_the_task():
    tasks = SubspaceTasks(5, r=2, seed=0)
    found = sample_moments(tasks, 10, n=10**9, seed=0)
    torch.testing.assert_close(found.b_hat, found.b, atol=1e-3, rtol=0)


def test_refusals():
    tasks = SubspaceTasks(3, r=1, seed=0)
    for sample in (sample_moments, sample_gram):
        with pytest.raises(DataError, match="not linear in the input"):
            sample(SubspaceTasks(3, r=1, family="relu", seed=0), 2, n=5)
        with pytest.raises(DataError, match="n=0"):
            sample(tasks, 2, n=0)
        with pytest.raises(DataError, match="batch=0"):
            sample(tasks, 0, n=5)
    with pytest.raises(DataError, match="n=2 must be at least d=3"):
        sample_gram(tasks, 2, n=2)
