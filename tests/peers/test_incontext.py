"""In-context learning against numpy, scikit-learn, GPT-2 by itself, and two processes."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LinearRegression, Ridge

from lowdim.incontext import (
    LinearAttention,
    PromptTransformer,
    RandomFeatures,
    SubspaceTasks,
    best_low_rank_update,
    optimal_weights,
    risk,
)
from lowdim.incontext.baselines import least_squares, oracle, ridge

TASKS = SubspaceTasks(5, r=2, subspaces=2, noise=0.4, seed=0)


def test_the_risk_is_that_of_prompts_written_out_in_numpy():
    rng = np.random.default_rng(0)
    count, n, noise = 200_000, 3, 0.4
    W = rng.normal(size=(5, 5)) * 0.3
    L = np.tril(rng.normal(size=(5, 5))) * 0.6
    bases, which = TASKS.bases.numpy(), rng.integers(2, size=count)
    b = np.einsum("bdr,br->bd", bases[which], rng.normal(size=(count, 2)))
    X, xq = rng.normal(size=(count, n, 5)) @ L.T, rng.normal(size=(count, 5)) @ L.T
    y = np.einsum("bnd,bd->bn", X, b) + noise * rng.normal(size=(count, n))
    moment = np.einsum("bnd,bn->bd", X, y) / n
    errors = (np.einsum("bd,de,be->b", xq, W, moment) - (xq * b).sum(1)) ** 2
    theory = risk(
        torch.tensor(W), covariance=TASKS.covariance, n=n, noise=noise, inputs=torch.tensor(L @ L.T)
    )
    assert errors.mean() == pytest.approx(theory, abs=4 * errors.std() / count**0.5)


def test_the_best_update_is_the_one_that_alternating_least_squares_finds():
    rng = np.random.default_rng(1)
    S, n, noise, rank = TASKS.covariance.numpy(), 7, 0.4, 2
    G = (1 + 1 / n) * S + (np.trace(S) + noise**2) / n * np.eye(5)
    W0 = rng.normal(size=(5, 5))
    A = rng.normal(size=(rank, 5))
    for _ in range(500):
        # The risk is quadratic in each factor: E = S - W0 G is what B A G has to be.
        E = S - W0 @ G
        B = E @ A.T @ np.linalg.inv(A @ G @ A.T)
        A = np.linalg.inv(B.T @ B) @ B.T @ E @ np.linalg.inv(G)
    W = W0 + B @ A
    wanted = np.trace(S) - 2 * np.trace(W @ S) + np.trace(W @ G @ W.T)
    found = best_low_rank_update(torch.tensor(W0), covariance=TASKS.covariance, n=n, noise=noise, rank=rank)
    assert found.risk == pytest.approx(wanted, rel=1e-8)


def test_ridge_and_least_squares_are_those_of_scikit_learn():
    prompt = TASKS.sample(6, n=9, seed=0)
    for number in range(6):
        X, y, xq = (part[number].numpy() for part in (prompt.X, prompt.y, prompt.xq))
        plain = LinearRegression(fit_intercept=False).fit(X, y)
        assert float(least_squares(prompt, TASKS)[number]) == pytest.approx(plain.predict(xq[None])[0])
        bent = Ridge(alpha=0.16 * 5 / 2, fit_intercept=False).fit(X, y)
        assert float(ridge(prompt, TASKS)[number]) == pytest.approx(bent.predict(xq[None])[0])
        U = TASKS.bases[prompt.which[number]].numpy()
        knowing = Ridge(alpha=0.16, fit_intercept=False).fit(X @ U, y)
        assert float(oracle(prompt, TASKS)[number]) == pytest.approx(knowing.predict((xq @ U)[None])[0])


def test_the_oracle_of_random_features_is_gaussian_process_regression():
    tasks = SubspaceTasks(5, r=2, noise=0.3, family=RandomFeatures(scale=1.5), seed=0)
    prompt = tasks.sample(4, n=12, seed=0)
    U = tasks.bases[0].numpy()
    for number in range(4):
        X, y, xq = (part[number].numpy() for part in (prompt.X, prompt.y, prompt.xq))
        process = GaussianProcessRegressor(RBF(1.5 * 2**0.5), alpha=0.09, optimizer=None).fit(X @ U, y)
        wanted = process.predict((xq @ U)[None])[0]
        assert float(oracle(prompt, tasks)[number]) == pytest.approx(wanted, abs=1e-6)


def test_the_transformer_is_gpt2_with_a_linear_map_on_either_side():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = PromptTransformer(5, n_positions=5, n_layer=2, n_head=2, n_embd=8, seed=0).double()
    config = transformers.GPT2Config(
        vocab_size=1, n_positions=10, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    plain = transformers.GPT2Model(config).double().eval()
    plain.load_state_dict(model.trunk.state_dict())
    prompt = TASKS.sample(3, n=4, seed=0)
    tokens = []
    for i in range(4):
        label = torch.zeros(3, 5, dtype=torch.float64)
        label[:, 0] = prompt.y[:, i]
        tokens += [prompt.X[:, i], label]
    hidden = plain(inputs_embeds=model.read_in(torch.stack([*tokens, prompt.xq], 1))).last_hidden_state
    wanted = model.read_out(hidden[:, ::2]).squeeze(-1)
    torch.testing.assert_close(model.predictions(prompt), wanted)


def test_full_batch_descent_on_the_exact_risk_ends_at_the_best_weights():
    S, n, noise = TASKS.covariance, 20, 0.4
    G = (1 + 1 / n) * S + (torch.trace(S) + noise**2) / n * torch.eye(5, dtype=torch.float64)
    W = torch.zeros(5, 5, dtype=torch.float64)
    for _ in range(20000):
        W -= (W @ G - S) / torch.linalg.matrix_norm(G, 2)
    torch.testing.assert_close(optimal_weights(S, n=n, noise=noise), W, atol=1e-9, rtol=1e-7)


TWO = """
import sys, torch
from accelerate import Accelerator
from lowdim.incontext import LinearAttention, SubspaceTasks, train
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model, tasks = LinearAttention(4, merged=False, seed=0), SubspaceTasks(4, r=1, seed=0)
history = train(model, tasks, steps=20, n=6, batch=8, lr=1e-2, accelerator=accelerator)
torch.save((model.state_dict(), history.objective), f"{sys.argv[1]}/{accelerator.process_index}.pt")
"""


def test_two_processes_train_one_model_on_prompts_of_their_own(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    script = tmp_path / "two.py"
    script.write_text(TWO)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    (first, losses), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses != others
    # One process with the prompts of both, by hand.
    from lowdim.incontext.train import _Job

    model = LinearAttention(4, merged=False, seed=0)
    job = _Job(
        model,
        SubspaceTasks(4, r=1, seed=0).to(dtype=torch.float32),
        list(model.parameters()),
        *(6, 8, 20, 1e-2, "onecycle", 0),
    )
    for step in range(20):
        job.optimizer.param_groups[0]["lr"] = job.rate(step)
        loss = sum(model.loss(job.draw(step, rank)) for rank in (0, 1)) / 2
        job.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(job.trained, 1.0)
        job.optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, first[name], atol=1e-5, rtol=1e-4)
