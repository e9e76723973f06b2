"""Attention: one layer of linear attention, as one matrix or as queries, keys, values and a projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowdim.algebra.seeds import Seed, gaussian, generator
from lowdim.errors import DataError, ShapeError
from lowdim.incontext.door import check_count
from lowdim.incontext.statistics import Moments
from lowdim.incontext.tasks import Prompt

__all__ = ["LinearAttention"]


class LinearAttention(nn.Module):
    """One layer of linear attention over the examples of a prompt.

    With tokens z_i = (x_i, y_i), and z_q = (x_q, 0) for the query, the prediction is

        p^T sum_i W_V z_i (W_K z_i . W_Q z_q) / n.

    The blocks that couple inputs with labels make that x_q^T W b_hat with b_hat = X^T y / n, one step of
    preconditioned gradient descent; the others vanish at the optimum. ``merged=True`` has this W only.

    Parameters
    ----------
    d : int
        Dimension of inputs.
    merged : bool
        Whether one matrix W, started at 0, stands for all; else W_Q, W_K, W_V and p are trained. At 0 those
        have a saddle, so they start at small random numbers.
    scale : float
        Standard deviation of that start times sqrt(d + 1).
    seed : int, torch.Generator or None
        Of that start.

    Raises
    ------
    DataError
        If d < 1 or scale <= 0.

    References
    ----------
    .. [1] R. Zhang, S. Frei, P. L. Bartlett, "Trained transformers learn linear models in-context",
       JMLR 2024.

    Examples
    --------
    >>> from lowdim.incontext import SubspaceTasks
    >>> model = LinearAttention(4)
    >>> prompt = SubspaceTasks(4, r=1, seed=0, dtype=torch.float32).sample(2, n=8, seed=0)
    >>> model(prompt.X, prompt.y, prompt.xq)
    tensor([0., 0.], grad_fn=<SumBackward1>)
    """

    def __init__(self, d: int, *, merged: bool = True, scale: float = 0.5, seed: Seed = None) -> None:
        super().__init__()
        self.d = check_count("d", d, where="LinearAttention")
        if not scale > 0:
            raise DataError(f"LinearAttention: scale={scale!r} must be positive: at 0 there is a saddle.")
        self.merged = merged
        if merged:
            self.W = nn.Parameter(torch.zeros(d, d))
            return
        source, size = generator(seed), d + 1

        def start(*shape: int) -> nn.Parameter:
            return nn.Parameter(gaussian(shape, seed=source) * (scale / size**0.5))

        self.W_Q, self.W_K, self.W_V = (start(size, size) for _ in range(3))
        self.p = start(size)

    def forward(self, X: Tensor, y: Tensor, xq: Tensor) -> Tensor:
        """Predict the labels of queries.

        Parameters
        ----------
        X : Tensor, shape (batch, n, d)
        y : Tensor, shape (batch, n)
        xq : Tensor, shape (batch, d)

        Returns
        -------
        Tensor, shape (batch,)

        Raises
        ------
        ShapeError
            If shapes do not fit.
        """
        if X.ndim != 3 or X.shape[-1] != self.d or y.shape != X.shape[:2] or xq.shape != X[:, 0].shape:
            raise ShapeError(
                f"LinearAttention: X {tuple(X.shape)}, y {tuple(y.shape)}, xq {tuple(xq.shape)} do not fit; "
                f"expected (batch, n, {self.d}), (batch, n), (batch, {self.d})."
            )
        n = X.shape[1]
        if self.merged:
            return self.predict((X.mT @ y.unsqueeze(-1)).squeeze(-1) / n, xq)
        Z = torch.cat([X, y.unsqueeze(-1)], dim=-1)
        query = xq @ self.W_Q[:, : self.d].mT
        scores = ((Z @ self.W_K.mT) @ query.unsqueeze(-1)).squeeze(-1)
        values = Z @ (self.W_V.mT @ self.p)
        return (scores * values).sum(-1) / n

    def predict(self, b_hat: Tensor, xq: Tensor) -> Tensor:
        """Return the prediction x_q^T W b_hat from the moment b_hat = X^T y / n and xq, both (batch, d)."""
        return ((xq @ self.effective_weights()) * b_hat).sum(-1)

    def loss(self, batch: Prompt | Moments) -> Tensor:
        """Return the mean squared error at the queries of a batch of prompts, or of their moments.

        Raises
        ------
        DataError
            If moments are given to a model that is not merged: it sees more of a prompt.
        """
        if isinstance(batch, Moments):
            if not self.merged:
                raise DataError(
                    "LinearAttention: with merged=False predictions depend on more than X^T y / n. "
                    "Give prompts."
                )
            return (self.predict(batch.b_hat, batch.xq) - batch.yq).square().mean()
        return (self(batch.X, batch.y, batch.xq) - batch.yq).square().mean()

    def errors(self, prompt: Prompt) -> Tensor:
        """Return squared errors at the query, shape (batch, 1), for the whole context."""
        return (self(prompt.X, prompt.y, prompt.xq) - prompt.yq).square().unsqueeze(-1)

    def effective_weights(self) -> Tensor:
        """Return W, shape (d, d): the part of the prediction that is x_q^T W b_hat.

        Of the parts v = W_V^T p and M = W_K^T W_Q that is v_y M_xx^T + M_yx v_x^T.
        """
        if self.merged:
            return self.W
        v, M, d = self.W_V.mT @ self.p, self.W_K.mT @ self.W_Q, self.d
        return v[d] * M[:d, :d].mT + torch.outer(M[d, :d], v[:d])
