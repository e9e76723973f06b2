"""The BLAST paper's claims about the matrices themselves and about training from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowdim.claims.declare import Measurement, Trial, claim

if TYPE_CHECKING:
    from torch import Tensor

__all__: list[str] = []

PAPER = "Lee, Kwon, Qu, Kim, NeurIPS 2024, arXiv 2410.21262"
FIGURE = f"{PAPER}, synthetic factorization experiment"
OWN = "own measurement"

SIZE, BLOCKS, RANK = 256, 16, 8
SYNTHETIC = f"{SIZE}x{SIZE}, {BLOCKS}x{BLOCKS} blocks, target of rank {RANK}, float64."


def blast_target(seed: int, *, rank: int = RANK) -> Tensor:
    """Draw a BLAST matrix with standard normal factors and couplings, shape (256, 256), float64."""
    import torch

    from lowdim.algebra import Blast

    generator = torch.Generator().manual_seed(1000 + seed)
    side = SIZE // BLOCKS
    shapes = ((BLOCKS, side, rank), (rank, BLOCKS, BLOCKS), (BLOCKS, rank, side))
    U, S, V = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return Blast.from_factors(U, S, V).dense().detach()


def lowrank_target(seed: int) -> Tensor:
    """Draw a matrix of rank 8 with standard normal factors, shape (256, 256), float64."""
    import torch

    generator = torch.Generator().manual_seed(2000 + seed)
    left, right = (torch.randn(SIZE, RANK, generator=generator, dtype=torch.float64) for _ in range(2))
    return left @ right.mT


def recovery_error(target: Tensor, trial: Trial, *, rank: int, sweeps: int, **options: Any) -> float:
    """Factorize a synthetic target and return the relative Frobenius error."""
    from lowdim.algebra import Blast, factorize

    blocks = (BLOCKS, BLOCKS)
    found = factorize(
        target, Blast, rank=rank, blocks=blocks, sweeps=sweeps, tol=0.0, seed=trial.seed, **options
    )
    return found.weight_error


@claim(
    "blast.als-recovers",
    statement="Exact block minimization (our default) recovers a BLAST matrix from its entries: relative"
    " error",
    source=FIGURE + " (the method is ours)",
    setting=f"{SYNTHETIC} Rank given; 50 sweeps.",
    at_most=1e-4,
    seeds=(0, 1, 2),
)
def als_recovers(trial: Trial) -> float:
    return recovery_error(blast_target(trial.seed), trial, rank=RANK, sweeps=50, method="als")


@claim(
    "blast.precgd-recovers",
    statement="Preconditioned gradient descent recovers a BLAST matrix from its entries: relative error",
    source=FIGURE,
    setting=f"{SYNTHETIC} Rank given; 100 iterations, step 1 to 0.",
    paper="recovers (figure without numbers)",
    at_most=1e-4,
    seeds=(0, 1, 2),
)
def precgd_recovers(trial: Trial) -> float:
    return recovery_error(
        blast_target(trial.seed), trial, rank=RANK, sweeps=100, method="precgd", preset="paper"
    )


@claim(
    "blast.gd-stalls",
    statement="Plain gradient descent is slow on the same target: relative error (a baseline, not gated)",
    source=FIGURE,
    setting=f"{SYNTHETIC} Rank given; 150 iterations with the safe step 1/L.",
    paper="slow (figure without numbers)",
    seeds=(0, 1, 2),
)
def gd_stalls(trial: Trial) -> float:
    return recovery_error(blast_target(trial.seed), trial, rank=RANK, sweeps=150, method="gd")


def _advantage(target: Tensor, trial: Trial) -> Measurement:
    plain = recovery_error(target, trial, rank=4 * RANK, sweeps=150, method="gd")
    preconditioned = recovery_error(target, trial, rank=4 * RANK, sweeps=150, method="precgd", preset="paper")
    return Measurement(plain / preconditioned, {"gd": plain, "precgd": preconditioned})


@claim(
    "blast.overparametrized",
    statement="With four times the needed rank, preconditioning leaves a smaller error than plain descent:"
    " ratio",
    source=FIGURE,
    setting=f"{SYNTHETIC} Rank {4 * RANK} in the model; 150 iterations each.",
    paper="better (figure without numbers)",
    at_least=3,
    seeds=(0, 1, 2),
    unit="x",
)
def overparametrized(trial: Trial) -> Measurement:
    return _advantage(blast_target(trial.seed), trial)


@claim(
    "blast.overparametrized-lowrank",
    statement="The same on a low-rank target: ratio of the errors of plain and preconditioned descent",
    source=FIGURE,
    setting=f"{SIZE}x{SIZE} target of rank {RANK}, {BLOCKS}x{BLOCKS} blocks, rank {4 * RANK} in the model,"
    " float64;"
    " 150 iterations each.",
    paper="better (figure without numbers)",
    at_least=10,
    seeds=(0, 1, 2),
    unit="x",
)
def overparametrized_lowrank(trial: Trial) -> Measurement:
    return _advantage(lowrank_target(trial.seed), trial)


def blockdiagonal_target(seed: int) -> Tensor:
    """Draw a block-diagonal matrix with 16 standard normal blocks, shape (256, 256), float64."""
    import torch

    generator = torch.Generator().manual_seed(3000 + seed)
    side = SIZE // BLOCKS
    blocks = torch.randn(BLOCKS, side, side, generator=generator, dtype=torch.float64)
    return torch.block_diag(*blocks)


@claim(
    "blast.block-diagonal-exact",
    statement="Exact block minimization finds a block-diagonal matrix exactly: relative error",
    source=f"{PAPER} (block diagonal is a special case); method and figure ours",
    setting=f"{SIZE}x{SIZE} with {BLOCKS} dense diagonal blocks, float64, rank {SIZE // BLOCKS}, 50 sweeps.",
    at_most=1e-8,
    seeds=(0, 1, 2),
)
def block_diagonal_exact(trial: Trial) -> float:
    target = blockdiagonal_target(trial.seed)
    return recovery_error(target, trial, rank=SIZE // BLOCKS, sweeps=50, method="als")


@claim(
    "blast.block-diagonal-precgd",
    statement="Preconditioned descent can stall on a block-diagonal matrix: relative error (a baseline, not"
    " gated)",
    source=OWN,
    setting=f"{SIZE}x{SIZE} with {BLOCKS} dense diagonal blocks, float64, rank {SIZE // BLOCKS}, 150"
    " iterations,"
    " damping 0.1.",
    seeds=(0, 1, 2),
)
def block_diagonal_precgd(trial: Trial) -> float:
    target = blockdiagonal_target(trial.seed)
    return recovery_error(target, trial, rank=SIZE // BLOCKS, sweeps=150, method="precgd", preset="paper")
