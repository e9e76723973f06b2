"""Ways to compute the product of a Blast matrix with many vectors."""

from lowdim.algebra.kernels.product import blast_product

__all__ = ["blast_product"]
