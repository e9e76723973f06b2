"""The ground floor: linear maps with structure, and the mathematics shared by all rooms.

An :class:`Operator` is a linear map that is an ``nn.Module``; its structures
are :class:`LowRank`, :class:`BlockDiagonal`, :class:`Monarch` and
:class:`Blast`. A :class:`StructuredLinear` puts one in the place of
``nn.Linear``.
"""

from lowdim.algebra.blast import Blast
from lowdim.algebra.blocks import BlockDiagonal, Monarch
from lowdim.algebra.compose import Adjoint, Chain, Scaled, Sum
from lowdim.algebra.factorize import Factorization, factorize
from lowdim.algebra.history import History
from lowdim.algebra.linear import StructuredLinear, is_linear, weight_matrix
from lowdim.algebra.lowrank import LowRank
from lowdim.algebra.operator import Cost, Dense, Identity, Operator
from lowdim.algebra.subspace import Subspace

__all__ = [
    "Adjoint",
    "Blast",
    "BlockDiagonal",
    "Chain",
    "Cost",
    "Dense",
    "Factorization",
    "History",
    "Identity",
    "LowRank",
    "Monarch",
    "Operator",
    "Scaled",
    "StructuredLinear",
    "Subspace",
    "Sum",
    "factorize",
    "is_linear",
    "weight_matrix",
]
