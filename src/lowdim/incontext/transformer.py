"""Transformer: a small GPT-2 that reads examples and predicts the next label."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowdim.algebra.seeds import Seed, generator
from lowdim.errors import DataError, MissingExtra, ShapeError
from lowdim.incontext.door import check_count
from lowdim.incontext.tasks import Prompt

__all__ = ["PromptTransformer"]

Tokens = Literal["alternating", "paired"]


class PromptTransformer(nn.Module):
    """A GPT-2 trunk over the tokens x_1, y_1, x_2, y_2, ..., with linear read-in and read-out.

    At the token of x_i it predicts y_i from the examples before. Nothing is downloaded: the trunk is built
    from its sizes, without dropout.

    Parameters
    ----------
    d : int
        Dimension of inputs.
    n_positions : int
        Examples it can see at most, the query included.
    n_layer, n_head, n_embd : int
        Sizes of the trunk.
    tokens : {"alternating", "paired"}
        "alternating": y_i is a token of its own, as in [1]_. "paired": the token of y_i holds x_i, too, so
        that no layer has to learn to look one token back; small models learn many times faster.
    initializer_range : float, optional
        Standard deviation of the weights of the trunk at the start; those that write into the residual
        stream have 1 / sqrt(2 n_layer) of it. GPT-2 has 0.02, made for its width of 768: by default
        0.02 sqrt(768 / n_embd), with which a layer adds as much at any width. Narrow models that start at
        0.02 hardly see their context at first, and predict 0 for thousands of steps, or for ever.
    seed : int, torch.Generator or None
        Of the start.

    Raises
    ------
    DataError
        If a size is below 1, `n_embd` not divisible by `n_head`, or `initializer_range` not positive.
    MissingExtra
        If transformers is not installed.

    References
    ----------
    .. [1] S. Garg, D. Tsipras, P. Liang, G. Valiant, "What can transformers learn in-context? A case study of
       simple function classes", NeurIPS 2022.

    Examples
    --------
    >>> from lowdim.incontext import SubspaceTasks
    >>> model = PromptTransformer(4, n_positions=11, n_layer=1, n_head=1, n_embd=8, seed=0)
    >>> prompt = SubspaceTasks(4, r=1, seed=0, dtype=torch.float32).sample(2, n=10, seed=0)
    >>> model(prompt.X, prompt.y).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        d: int,
        *,
        n_positions: int = 41,
        n_layer: int = 12,
        n_head: int = 8,
        n_embd: int = 256,
        tokens: Tokens = "alternating",
        initializer_range: float | None = None,
        seed: Seed = None,
    ) -> None:
        super().__init__()
        where = "PromptTransformer"
        sizes = {"d": d, "n_positions": n_positions, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
        for name, value in sizes.items():
            check_count(name, value, where=where)
        if n_embd % n_head:
            raise DataError(
                f"{where}: n_embd={n_embd} is not divisible by n_head={n_head}. Use a multiple of {n_head}."
            )
        if tokens not in ("alternating", "paired"):
            raise DataError(f"{where}: tokens={tokens!r} is unknown. Use 'alternating' or 'paired'.")
        start = 0.02 * math.sqrt(768 / n_embd) if initializer_range is None else initializer_range
        if not 0 < start < math.inf:
            raise DataError(f"{where}: initializer_range={start!r} must be a positive number, or None.")
        self.d, self.n_positions, self.tokens = d, n_positions, tokens
        self.sizes: dict[str, Any] = {**sizes, "tokens": tokens}
        # Layers draw their start from the global generator: it is put back after.
        with torch.random.fork_rng(devices=[]):
            source = generator(seed)
            if source is not None:
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=source)))
            self.trunk = _trunk(2 * n_positions, n_layer, n_head, n_embd, start)
            self.read_in = nn.Linear(d if tokens == "alternating" else d + 1, n_embd)
            self.read_out = nn.Linear(n_embd, 1)

    def forward(self, X: Tensor, y: Tensor) -> Tensor:
        """Predict every label from its input and the examples before.

        Parameters
        ----------
        X : Tensor, shape (batch, n, d)
        y : Tensor, shape (batch, n)
            The last one has no influence.

        Returns
        -------
        Tensor, shape (batch, n)

        Raises
        ------
        ShapeError
            If shapes do not fit.
        DataError
            If there are more examples than `n_positions`.
        """
        if X.ndim != 3 or X.shape[-1] != self.d or y.shape != X.shape[:2]:
            raise ShapeError(
                f"PromptTransformer: X {tuple(X.shape)} and y {tuple(y.shape)} do not fit; expected "
                f"(batch, n, {self.d}) and (batch, n)."
            )
        if X.shape[1] > self.n_positions:
            raise DataError(
                f"PromptTransformer: {X.shape[1]} inputs (the query included) exceed n_positions="
                f"{self.n_positions}. Shorten the context, or build a model with "
                f"n_positions={X.shape[1]}."
            )
        hidden = self.trunk(inputs_embeds=self.read_in(self._sequence(X, y))).last_hidden_state
        return self.read_out(hidden[:, ::2]).squeeze(-1)

    def _sequence(self, X: Tensor, y: Tensor) -> Tensor:
        """Return tokens, (batch, 2 n - 1, d or d + 1)."""
        label = y.unsqueeze(-1)
        if self.tokens == "alternating":
            pairs = torch.stack([X, torch.cat([label, X.new_zeros(*X.shape[:2], self.d - 1)], -1)], dim=2)
        else:
            pairs = torch.stack([torch.cat([X, torch.zeros_like(label)], -1), torch.cat([X, label], -1)], 2)
        return pairs.flatten(1, 2)[:, :-1]

    def predictions(self, prompt: Prompt) -> Tensor:
        """Return predictions after 0, 1, ..., n examples, the last one at the query; shape (batch, n + 1)."""
        X = torch.cat([prompt.X, prompt.xq.unsqueeze(1)], dim=1)
        y = torch.cat([prompt.y, prompt.y.new_zeros(len(prompt.y), 1)], dim=1)
        return self(X, y)

    def errors(self, prompt: Prompt) -> Tensor:
        """Return squared errors against labels without noise after 0, ..., n examples, (batch, n + 1)."""
        targets = torch.cat([prompt.clean, prompt.yq.unsqueeze(1)], dim=1)
        return (self.predictions(prompt) - targets).square()

    def loss(self, prompt: Prompt) -> Tensor:
        """Return the mean squared error over all context lengths from 0 to n."""
        return self.errors(prompt).mean()


def _trunk(positions: int, layers: int, heads: int, width: int, start: float) -> Any:
    try:
        from transformers import GPT2Config, GPT2Model
    except ImportError:
        raise MissingExtra("transformers", extra="transformers", purpose="build a GPT-2 model") from None
    config = GPT2Config(
        # There are no words: tokens are given as vectors.
        vocab_size=1,
        bos_token_id=0,
        eos_token_id=0,
        n_positions=positions,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The same function as "gelu_new", in one kernel.
        activation_function="gelu_pytorch_tanh",
        initializer_range=start,
        use_cache=False,
    )
    trunk = GPT2Model(config)
    trunk.wte.requires_grad_(False)  # the one word is never read
    return trunk
