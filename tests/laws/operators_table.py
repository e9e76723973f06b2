"""The one table of all Operators: name -> a function that builds a small random one in float64.

Every public Operator class of ``lowdim.algebra`` must occur as the type of some entry (a rule
test checks it), and every entry must obey the laws of ``test_operators.py``.
"""

from collections.abc import Callable

import torch

from lowdim.algebra import Blast, BlockDiagonal, Dense, Identity, LowRank, Monarch, Operator

F64 = torch.float64


def _latin_blast() -> Blast:
    torch.manual_seed(5)
    return Blast(6, 4, rank=4, blocks=(2, 2), frozen=True, dtype=F64)


OPERATORS: dict[str, Callable[[], Operator]] = {
    "dense": lambda: Dense(7, 5, dtype=F64),
    "identity": lambda: Identity(6),
    "lowrank": lambda: LowRank(7, 5, rank=3, dtype=F64),
    "lowrank of full rank": lambda: LowRank(4, 4, rank=6, dtype=F64),
    "block diagonal": lambda: BlockDiagonal(6, 9, blocks=3, dtype=F64),
    "monarch": lambda: Monarch(8, 12, rank=2, blocks=(3, 2), dtype=F64),
    "monarch of one block": lambda: Monarch(5, 4, rank=2, blocks=(1, 1), dtype=F64),
    "blast": lambda: Blast(8, 12, rank=5, blocks=(4, 2), dtype=F64),
    "blast of one block": lambda: Blast(7, 5, rank=2, blocks=1, dtype=F64),
    "blast of many blocks": lambda: Blast(32, 32, rank=3, blocks=(16, 16), dtype=F64),
    "blast padded": lambda: Blast(7, 10, rank=3, blocks=(4, 3), pad=True, dtype=F64),
    "blast with frozen couplings": _latin_blast,
    "adjoint": lambda: Blast(8, 12, rank=5, blocks=(4, 2), dtype=F64).adjoint(),
    "adjoint of a padded blast": lambda: Blast(7, 10, rank=3, blocks=(4, 3), pad=True, dtype=F64).adjoint(),
    "scaled": lambda: -2.5 * Monarch(8, 12, rank=2, blocks=(3, 2), dtype=F64),
    "sum": lambda: Blast(8, 12, rank=3, blocks=2, dtype=F64) + LowRank(8, 12, rank=1, dtype=F64),
    "difference": lambda: Dense(4, 3, dtype=F64) - LowRank(4, 3, rank=1, dtype=F64),
    "chain": lambda: Dense(6, 5, dtype=F64) @ BlockDiagonal(8, 6, blocks=2, dtype=F64),
    "sum of chains": lambda: (
        Dense(6, 5, dtype=F64) @ LowRank(8, 6, rank=2, dtype=F64) + 0.5 * Dense(8, 5, dtype=F64)
    ),
}
