"""Statistics: what linear methods need of a prompt, sampled without the prompt.

For Gaussian inputs X^T y / n has a distribution that is sampled in O(d) per problem, whatever n, and
(X^T X, X^T y) one that is sampled in O(d^3) by Bartlett's decomposition of a Wishart matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowdim.algebra.seeds import Seed, gaussian, generator
from lowdim.errors import DataError
from lowdim.incontext.door import check_count
from lowdim.incontext.families import Linear
from lowdim.incontext.tasks import SubspaceTasks

__all__ = ["Moments", "sample_gram", "sample_moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """What linear attention sees of a batch of linear problems.

    Parameters
    ----------
    b_hat : Tensor, shape (batch, d)
        X^T y / n, with the noise of the labels.
    xq : Tensor, shape (batch, d)
        Inputs to predict at.
    yq : Tensor, shape (batch,)
        Their labels, without noise.
    b : Tensor, shape (batch, d)
        Task vectors.

    Examples
    --------
    >>> moments = sample_moments(SubspaceTasks(4, r=1, seed=0), 8, n=100, seed=0)
    >>> moments.b_hat.shape
    torch.Size([8, 4])
    """

    b_hat: Tensor
    xq: Tensor
    yq: Tensor
    b: Tensor


def sample_moments(tasks: SubspaceTasks, batch: int, *, n: int, seed: Seed = None) -> Moments:
    """Draw X^T y / n and a query of linear problems, in O(d) per problem.

    With x_i = S^(1/2) z_i and c = S^(1/2) b, labels are ``y = |c| u + noise e``, where ``u = Z c / |c|`` and
    e are independent standard normal vectors of n numbers. Along c, Z^T y is u.y; across it, Z is independent
    of y, so that Z^T y is normal with variance ``|y|^2``. The lengths and the product of u and e are those of
    independent chi-square and normal variables.

    Parameters
    ----------
    tasks : SubspaceTasks
        Of linear functions.
    batch : int
    n : int
        Examples in the context of each problem.
    seed : int, torch.Generator or None

    Returns
    -------
    Moments

    Raises
    ------
    DataError
        If functions are not linear, or a number is below 1.

    Notes
    -----
    The prompts of `SubspaceTasks.sample` at the same seed are others, with the same distribution.

    Examples
    --------
    >>> tasks = SubspaceTasks(4, r=1, noise=0.1, seed=0)
    >>> found = sample_moments(tasks, 20000, n=5, seed=0)
    >>> float((found.b_hat * found.b).sum(-1).mean()).__round__(1)  # E b_hat.b = tr S = r
    1.0
    """
    where = "sample_moments"
    family = tasks.family
    if not isinstance(family, Linear):
        raise DataError(
            f"{where}: labels of {family.name!r} are not linear in the input. Use SubspaceTasks.sample."
        )
    check_count("batch", batch, where=where)
    check_count("n", n, where=where)
    source = generator(seed)
    bases, _ = tasks.draw_bases(batch, seed=source)
    dtype, device = bases.dtype, bases.device

    def draw(*shape: int) -> Tensor:
        return gaussian(shape, seed=source, dtype=dtype, device=device)

    b = family.task_vectors(bases, seed=source)
    root = tasks.root
    c = b if root is None else b @ root
    size = c.norm(dim=-1, keepdim=True)
    # A task vector in the null space of the inputs has labels of pure noise: any direction serves.
    along = torch.where(size > 0, c / size.clamp_min(torch.finfo(dtype).tiny), 0)
    u_u = _chi_square(batch, n, source, dtype, device)
    e_along = draw(batch, 1)
    e_e = e_along.square() + (_chi_square(batch, n - 1, source, dtype, device) if n > 1 else 0)
    u_e = u_u.sqrt() * e_along
    u_y = size * u_u + tasks.noise * u_e
    y_y = size.square() * u_u + 2 * tasks.noise * size * u_e + tasks.noise**2 * e_e
    across = draw(batch, tasks.d)
    across = across - along * (across * along).sum(-1, keepdim=True)
    b_hat = (along * u_y + y_y.clamp_min(0).sqrt() * across) / n
    xq = draw(batch, tasks.d)
    if root is not None:
        b_hat, xq = b_hat @ root, xq @ root
    return Moments(b_hat, xq, (xq * b).sum(-1), b)


def sample_gram(
    tasks: SubspaceTasks, batch: int, *, n: int, seed: Seed = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw X^T X and X^T y of linear problems by Bartlett's decomposition, in O(d^3) per problem.

    X^T X = S^(1/2) A A^T S^(1/2) with A lower triangular: A_ii^2 chi-square with n - i degrees of freedom
    (i = 0, ..., d - 1), below standard normal. Given X, X^T e is normal with covariance X^T X.

    Parameters
    ----------
    tasks : SubspaceTasks
        Of linear functions.
    batch : int
    n : int
        Examples in the context of each problem, at least d.
    seed : int, torch.Generator or None

    Returns
    -------
    gram : Tensor, shape (batch, d, d)
        X^T X.
    moment : Tensor, shape (batch, d)
        X^T y, with the noise of the labels.
    b : Tensor, shape (batch, d)
        Task vectors.

    Raises
    ------
    DataError
        If functions are not linear, or n < d.

    References
    ----------
    .. [1] M. S. Bartlett, "On the theory of statistical regression", Proc. R. Soc. Edinburgh 53, 1933.

    Examples
    --------
    >>> gram, moment, b = sample_gram(SubspaceTasks(3, r=1, seed=0), 4, n=10**6, seed=0)
    >>> (gram / 10**6).round(decimals=1)[0].diagonal()
    tensor([1., 1., 1.], dtype=torch.float64)
    """
    where, family, d = "sample_gram", tasks.family, tasks.d
    if not isinstance(family, Linear):
        raise DataError(
            f"{where}: labels of {family.name!r} are not linear in the input. Use SubspaceTasks.sample."
        )
    check_count("batch", batch, where=where)
    if check_count("n", n, where=where) < d:
        raise DataError(
            f"{where}: n={n} must be at least d={d}. Use SubspaceTasks.sample for short contexts."
        )
    source = generator(seed)
    bases, _ = tasks.draw_bases(batch, seed=source)
    dtype, device = bases.dtype, bases.device
    b = family.task_vectors(bases, seed=source)
    A = gaussian((batch, d, d), seed=source, dtype=dtype, device=device).tril(-1)
    diagonal = [_chi_square(batch, n - i, source, dtype, device) for i in range(d)]
    A = A + torch.diag_embed(torch.cat(diagonal, dim=-1).sqrt())
    if tasks.root is not None:
        A = tasks.root @ A
    gram = A @ A.mT
    e = gaussian((batch, d, 1), seed=source, dtype=dtype, device=device)
    moment = gram @ b.unsqueeze(-1) + tasks.noise * A @ e
    return gram, moment.squeeze(-1), b


def _chi_square(
    batch: int, freedom: int, source: torch.Generator | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return chi-square variables, (batch, 1)."""
    where = source.device if source is not None else device
    shape = torch.full((batch, 1), freedom / 2, dtype=dtype, device=where)
    return 2 * torch._standard_gamma(shape, generator=source).to(device)
