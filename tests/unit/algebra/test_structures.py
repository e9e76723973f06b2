"""Exact small cases of the structures: special cases of Blast, budgets, initialization, refusals."""

# ruff: noqa: E501 (the table of refusals has one case per line)

import pytest
import torch
from torch import nn

from lowdim.algebra import Blast, BlockDiagonal, Dense, Identity, LowRank, Monarch, Operator
from lowdim.errors import BudgetError, DataError, RankError, ShapeError

STRUCTURES = {
    "dense": lambda m, n: Dense(n, m),
    "lowrank": lambda m, n: LowRank(n, m, rank=n // 4),
    "blockdiag": lambda m, n: BlockDiagonal(n, m, blocks=4),
    "monarch": lambda m, n: Monarch(n, m, rank=n // 32, blocks=(4, 4)),
    "blast b=4": lambda m, n: Blast(n, m, rank=n // 4, blocks=4),
    "blast b=16": lambda m, n: Blast(n, m, rank=n // 4, blocks=16),
}


def randn(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


# ----- blast.md 2.1: what Blast contains -------------------------------------------------------------


@pytest.mark.parametrize("b", [1, 2, 4])
def test_blast_with_unit_couplings_is_low_rank(b):
    U, V = randn(8, 3), randn(3, 12)
    blast = Blast.from_factors(
        U.reshape(b, 8 // b, 3), torch.ones(3, b, b).double(), V.reshape(3, b, 12 // b).transpose(0, 1)
    )
    torch.testing.assert_close(blast.dense(), U @ V, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("p", "q"), [(3, 2), (2, 5), (4, 4)])
def test_blast_with_diagonal_couplings_is_block_diagonal(p, q):
    b, r = 3, min(p, q)
    blocks = randn(b, p, q)
    U = blocks if q <= p else torch.eye(p).double().expand(b, p, p)
    V = torch.eye(q).double().expand(b, q, q) if q <= p else blocks
    S = torch.eye(b).double().expand(r, b, b)
    torch.testing.assert_close(
        Blast.from_factors(U, S, V).dense(), BlockDiagonal.from_factors(blocks).dense(), rtol=0, atol=1e-12
    )


def test_blast_with_latin_square_couplings_is_monarch():
    b, t, p, q = 4, 2, 3, 5
    monarch = Monarch.from_factors(randn(b, p, b, t), randn(b, b, t, q))
    U, V, S = torch.zeros(b, p, b, t), torch.zeros(b, b, t, q), torch.zeros(b, t, b, b)
    U, V, S = U.double(), V.double(), S.double()
    for i in range(b):
        for j in range(b):
            group = (i + j) % b
            S[group, :, i, j] = 1
            U[i, :, group] = monarch.L[i, :, j].detach()
            V[j, group] = monarch.R[j, i].detach()
    blast = Blast.from_factors(
        U.reshape(b, p, b * t), S.reshape(b * t, b, b), V.reshape(b, b * t, q), frozen=True
    )
    torch.testing.assert_close(blast.dense(), monarch.dense(), rtol=0, atol=1e-12)
    assert blast.cost().parameters == monarch.cost().parameters + b * b * b * t


def test_blocks_are_what_the_equation_says():
    blast = Blast(12, 8, rank=3, blocks=(2, 4), dtype=torch.float64)
    monarch = Monarch(12, 8, rank=2, blocks=(2, 4), dtype=torch.float64)
    for i in range(2):
        for j in range(4):
            rows, columns = slice(4 * i, 4 * i + 4), slice(3 * j, 3 * j + 3)
            block = blast.U[i] @ torch.diag(blast.S[:, i, j]) @ blast.V[j]
            torch.testing.assert_close(blast.dense()[rows, columns], block)
            torch.testing.assert_close(monarch.dense()[rows, columns], monarch.L[i, :, j] @ monarch.R[j, i])


def test_frozen_couplings_get_no_gradient():
    blast = Blast(8, 8, rank=2, blocks=2, frozen=True)
    blast(torch.ones(3, 8)).sum().backward()
    assert blast.S.grad is None
    assert blast.U.grad is not None
    assert blast.config()["frozen"] is True


def test_padding_is_invisible():
    blast = Blast(10, 7, rank=3, blocks=(4, 3), pad=True)
    assert blast.U.shape == (4, 2, 3)
    assert blast.V.shape == (3, 3, 4)
    assert blast.dense().shape == (7, 10)
    assert blast(torch.ones(10)).shape == (7,)
    again = Blast.from_factors(blast.U, blast.S, blast.V, in_features=10, out_features=7)
    assert again.config() == blast.config()
    torch.testing.assert_close(again.dense(), blast.dense())


# ----- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", [LowRank, Monarch, Blast])
@pytest.mark.parametrize(("m", "n"), [(384, 384), (1536, 384), (128, 96)])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8, 1.0])
def test_rank_uses_the_budget_and_no_more(structure, m, n, keep):
    blocks = structure.blocks_for(m, n)
    rank = structure.rank_for(keep, m, n, blocks)
    used = structure.parameters_for(rank, m, n, blocks)
    assert used <= keep * m * n
    options = {} if structure is LowRank else {"blocks": blocks}
    assert structure(n, m, rank=rank, device="meta", **options).cost().parameters == used
    if structure is not Monarch:
        step = rank & -rank  # the largest power of two in the rank
        assert structure.parameters_for(rank + min(step, 8), m, n, blocks) > keep * m * n
        exact = int(keep * m * n / structure.parameters_for(1, m, n, blocks))
        assert 0.97 * exact <= rank <= exact
        assert rank % 2 == 0 or exact < 34


def test_small_ranks_are_not_rounded_away():
    assert LowRank.rank_for(0.5, 24, 24) == 6
    assert LowRank.rank_for(0.5, 60, 60) == 15
    assert LowRank.rank_for(0.5, 400, 400) == 100  # 96 would give 4 % away


def test_published_settings_fit_the_budget_rule():
    # 2 x 50.3 % of DiT's blocks and Llama's 4096 x 4096 layers at half their parameters, b = 16.
    assert Blast.rank_for(0.5, 4096, 4096, 16) == 992
    assert Blast.parameters_for(1024, 4096, 4096, 16) == 1024 * (2 * 4096 + 256)


def test_automatic_blocks():
    assert Blast.blocks_for(384, 384) == Blast.blocks_for(1536, 384) == (6, 6)  # thinner blocks are slow
    assert Blast.blocks_for(3072, 768) == (12, 12)
    assert Blast.blocks_for(4096, 4096) == (16, 16)
    assert Blast.blocks_for(96, 64) == (4, 4)  # four blocks may be thinner
    assert Blast.blocks_for(1000, 1023) == (12, 12)  # no common divisor: pads 8 rows and 9 columns
    assert Blast.blocks_for(7, 5) == (1, 1)
    for m, n in [(384, 384), (1536, 384), (4096, 4096), (768, 3072)]:
        b, _ = Blast.blocks_for(m, n)
        assert b * b <= 0.1 * (m + n + b * b)


def test_block_diagonal_keeps_one_over_b():
    assert BlockDiagonal.blocks_for(384, 384, keep=0.5) == (2, 2)
    assert BlockDiagonal.blocks_for(384, 384, keep=0.3) == (4, 4)
    assert BlockDiagonal.parameters_for(None, 384, 384, 4) == 384 * 96
    with pytest.raises(BudgetError, match=r"more than keep=0\.3"):
        BlockDiagonal.rank_for(0.3, 384, 384, 2)
    with pytest.raises(BudgetError, match="no number of blocks that divides 7 and 5"):
        BlockDiagonal.blocks_for(7, 5, keep=0.5)


# ----- initialization ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(("m", "n"), [(256, 128), (128, 256), (192, 192)])
def test_a_fresh_layer_varies_like_linear(name, m, n):
    x = torch.randn(256, n, generator=torch.Generator().manual_seed(0))
    ratios = []
    for seed in range(10):
        torch.manual_seed(seed)
        ratios.append(STRUCTURES[name](m, n)(x).var() / nn.Linear(n, m, bias=False)(x).var())
    assert 0.8 <= torch.stack(ratios).mean() <= 1.2


@pytest.mark.parametrize("name", STRUCTURES)
def test_reset_parameters_follows_its_generator(name):
    operator = STRUCTURES[name](64, 64)
    operator.reset_parameters(torch.Generator().manual_seed(3))
    first = operator.dense().clone()
    operator.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(first, operator.dense())


# ----- refusals: where, got, expected, remedy --------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Blast(64, 100, rank=4, blocks=16), ShapeError, r"Blast: out_features=100 cannot be cut into 16 blocks. Use a divisor of 100 \(1, 2, 4, 5, 10, 20, ...; the nearest is 20\) or pad=True"),
        (lambda: Blast(100, 64, rank=4, blocks=16), ShapeError, r"in_features=100 .* nearest is 20"),
        (lambda: Blast(4, 4, rank=1, blocks=8, pad=True), ShapeError, "cannot be cut into 8 blocks: use at most 4"),
        (lambda: Blast(8, 8, rank=1, blocks=(2, 2, 2)), ShapeError, "a positive integer or a pair"),
        (lambda: Blast(8, 8, rank=0, blocks=2), RankError, "Blast: rank=0 must be a positive integer"),
        (lambda: LowRank(8, 8, rank=2.5), RankError, "LowRank: rank=2.5"),
        (lambda: Monarch(8, 8, rank=5, blocks=(2, 2)), RankError, r"blocks of size 4x4 cannot have rank 5. Use at most 4"),
        (lambda: Monarch(9, 8, rank=1, blocks=(2, 2)), ShapeError, "Monarch: in_features=9"),
        (lambda: BlockDiagonal(8, 8, blocks=(2, 4)), ShapeError, "as many block rows as block columns"),
        (lambda: Blast.rank_for(0, 8, 8, 2), BudgetError, r"keep=0 must be in \(0, 1\]"),
        (lambda: LowRank.rank_for(1.5, 8, 8), BudgetError, r"keep=1.5 must be in \(0, 1\]"),
        (lambda: Blast.rank_for(0.01, 16, 16, 4), BudgetError, "fewer than the 48 that rank 1 costs. Raise keep to at least 0.188"),
        (lambda: Dense(0, 3), ShapeError, "in_features=0 must be a positive integer"),
        (lambda: Identity(3, 4), ShapeError, "must agree"),
        (lambda: LowRank(3, 4, rank=1) + LowRank(4, 4, rank=1), ShapeError, "same sizes, got 4x3, 4x4"),
        (lambda: LowRank(3, 4, rank=1) @ LowRank(3, 4, rank=1), ShapeError, "in_features=3 cannot follow one with out_features=4"),
        (lambda: Operator.from_config({"structure": "wavelet"}), DataError, "unknown structure 'wavelet'"),
        (lambda: Operator.from_config({"structure": "blast", "in_features": 4, "out_features": 4}), DataError, "bad description of a 'blast' operator"),
        (lambda: Blast.from_factors(torch.ones(2, 3, 4), torch.ones(4, 2, 2), torch.ones(2, 5, 3)), ShapeError, "do not fit, got"),
        (lambda: Blast.from_factors(torch.ones(2, 3, 4), torch.ones(4, 2, 2), torch.ones(2, 4, 3), out_features=4), ShapeError, "cannot carry out_features=4"),
        (lambda: Monarch.from_factors(torch.ones(2, 3, 2, 1), torch.ones(2, 3, 1, 4)), ShapeError, "do not fit"),
        (lambda: LowRank.from_factors(torch.ones(2, 3), torch.ones(2, 3)), ShapeError, "must share r"),
        (lambda: BlockDiagonal.from_factors(torch.ones(2, 3)), ShapeError, r"blocks \(b, p, q\)"),
        (lambda: Dense.from_matrix(torch.ones(3)), ShapeError, r"a matrix \(m, n\)"),
    ],
)  # fmt: skip
def test_refuses_and_says_what_to_do(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_operators_do_not_imitate_tensors():
    with pytest.raises(TypeError):
        LowRank(3, 3, rank=1) @ torch.ones(3)
    with pytest.raises(TypeError):
        LowRank(3, 3, rank=1) + 1.0


def test_composition_is_flat_and_shows_its_sizes():
    a, b, c = (LowRank(4, 4, rank=1) for _ in range(3))
    assert len((a + b + c).terms) == 3
    assert len((a @ (b @ c)).terms) == 3
    assert "rank=1" in repr(a)
    assert "blocks=[2, 2]" in repr(Blast(4, 4, rank=1, blocks=2))
