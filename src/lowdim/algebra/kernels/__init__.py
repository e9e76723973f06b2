"""Ways to compute the product of a Blast matrix with many vectors."""

from lowdim.algebra.kernels.dispatch import blast_product
from lowdim.algebra.kernels.product import Path, choose_path, feature_major, token_major

__all__ = ["Path", "blast_product", "choose_path", "feature_major", "token_major"]
