"""Decoder: a language model of a few ten thousand weights, its samples and their log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdim.algebra.seeds import Seed, generator
from lowdim.errors import DataError
from lowdim.policy.arithmetic.addition import CHARACTERS, END

__all__ = ["Decoder", "Rollouts", "completion_mask", "large_decoder", "small_decoder"]

Cache = list[tuple[Tensor, Tensor]]


class Rollouts(NamedTuple):
    """Completions of prompts, those of one prompt one after the other.

    Parameters
    ----------
    tokens : Tensor of shape (rows, N), int64
        Filled up with ``$`` after the end.
    mask : Tensor of shape (rows, N), bool
        True up to and including the first ``$``.
    logp : Tensor of shape (rows, N), float32
        Log-probability of each token under the model that drew it, 0 where the mask is False.

    Examples
    --------
    >>> model = small_decoder(seed=0)
    >>> model.sample(torch.tensor([[0, 1, 10, 0, 2, 11]]), group=2, max_length=4, seed=0).tokens.shape
    torch.Size([2, 4])
    """

    tokens: Tensor
    mask: Tensor
    logp: Tensor


def completion_mask(tokens: Tensor) -> Tensor:
    """Return where a completion's tokens are, its first ``$`` included.

    Parameters
    ----------
    tokens : Tensor of shape (..., N), int64

    Returns
    -------
    Tensor of shape (..., N), bool

    Examples
    --------
    >>> completion_mask(torch.tensor([4, 2, END, END])).tolist()
    [True, True, True, False]
    """
    ended = (tokens == END).long()
    return ended.cumsum(-1) - ended == 0


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the new states (rows, T, width), and all keys and values (rows, heads, S, d)."""
        rows, T, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.view(rows, T, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        score = q @ (k.mT * (width / self.heads) ** -0.5)
        S = k.shape[2]
        if T > 1:
            score = score.masked_fill(torch.ones(T, S, dtype=torch.bool).triu(S - T + 1), -torch.inf)
        mixed = (score.softmax(-1) @ v).transpose(1, 2).reshape(rows, T, width)
        x = x + self.out(mixed)
        return x + self.down(functional.gelu(self.up(self.before_mlp(x)), approximate="tanh")), (k, v)


class Decoder(nn.Module):
    """A decoder with pre-normalization, learned positions, and a read-out tied to the embedding.

    Parameters
    ----------
    width : int
        Length of the hidden states.
    layers, heads : int
    positions : int
        Longest text in tokens.
    seed : int, torch.Generator or None
        Of the start.

    Raises
    ------
    DataError
        If `width` is not divisible by `heads`.

    Examples
    --------
    >>> model = Decoder(40, seed=0)
    >>> sum(parameter.numel() for parameter in model.parameters())
    60213
    >>> prompts, answers = torch.tensor([[0, 1, 10, 0, 2, 11]]), torch.tensor([[3, END, END, END]])
    >>> model.logits(prompts, answers).shape
    torch.Size([1, 4, 13])
    """

    def __init__(
        self, width: int, *, layers: int = 3, heads: int = 4, positions: int = 11, seed: Seed = None
    ) -> None:
        super().__init__()
        if width % heads:
            raise DataError(f"Decoder: width={width} is not divisible by heads={heads}.")
        self.embedding = nn.Parameter(torch.empty(len(CHARACTERS), width))
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(len(CHARACTERS)))
        self._start(generator(seed))

    @torch.no_grad()
    def _start(self, source: torch.Generator | None) -> None:
        for parameter in (self.embedding, self.positions):
            parameter.normal_(0.0, 0.02, generator=source)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=source)
                module.bias.zero_()

    def _read(self, tokens: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Return the last states of tokens (rows, T), and all keys and values so far."""
        start = 0 if past is None else past[0][0].shape[2]
        x = self.embedding[tokens] + self.positions[start : start + tokens.shape[-1]]
        cache = []
        for index, layer in enumerate(self.layers):
            x, new = layer(x, None if past is None else past[index])
            cache.append(new)
        return x, cache

    def _scores(self, x: Tensor) -> Tensor:
        return self.norm(x) @ self.embedding.mT + self.bias

    def logits(self, prompts: Tensor, completions: Tensor, *, owner: Tensor | None = None) -> Tensor:
        """Return the logits of every token of completions.

        Parameters
        ----------
        prompts : Tensor of shape (Q, P), int64
        completions : Tensor of shape (rows, N), int64
        owner : Tensor of shape (rows,), int64, optional
            Which prompt each completion belongs to; by default there is one completion for each prompt.

        Returns
        -------
        Tensor of shape (rows, N, characters), float32
        """
        x, past = self._read(prompts)
        if owner is not None:
            # A prompt is read once for all of its completions.
            x, past = x[owner], _pick(past, owner)
        x = x[:, -1:]
        if completions.shape[-1] > 1:
            x = torch.cat([x, self._read(completions[:, :-1], past)[0]], dim=1)
        return self._scores(x)

    def logp(
        self, prompts: Tensor, completions: Tensor, mask: Tensor, *, owner: Tensor | None = None
    ) -> Tensor:
        """Return log-probabilities of the tokens of completions, 0 where the mask is False.

        Completions of a prompt that are equal are computed once.

        Parameters
        ----------
        prompts : Tensor of shape (Q, P), int64
        completions : Tensor of shape (rows, N), int64
        mask : Tensor of shape (rows, N), bool
        owner : Tensor of shape (rows,), int64, optional
            Which prompt each completion belongs to.

        Returns
        -------
        Tensor of shape (rows, N), float32
        """
        back = None
        if owner is not None:
            code = owner
            for t in range(completions.shape[-1]):
                code = code * len(CHARACTERS) + completions[:, t]
            different, back = code.unique(return_inverse=True)
            one_of_each = torch.empty_like(different).scatter_(0, back, torch.arange(len(code)))
            owner, completions, mask = owner[one_of_each], completions[one_of_each], mask[one_of_each]
        every = self.logits(prompts, completions, owner=owner).log_softmax(-1)
        logp = every.gather(-1, completions[..., None]).squeeze(-1).where(mask, 0.0)
        return logp if back is None else logp[back]

    @torch.no_grad()
    def sample(
        self,
        prompts: Tensor,
        *,
        group: int,
        max_length: int,
        start: Tensor | None = None,
        greedy: bool = False,
        seed: Seed = None,
    ) -> Rollouts:
        """Draw completions at temperature 1.

        Parameters
        ----------
        prompts : Tensor of shape (Q, P), int64
        group : int
            Completions M of each prompt, one after the other.
        max_length : int
            Longest completion N, `start` included.
        start : Tensor of shape (Q M, T), int64, optional
            First tokens, by another hand: a hint. Their log-probabilities are this model's.
        greedy : bool
            Take the likeliest token instead.
        seed : int, torch.Generator or None

        Returns
        -------
        Rollouts
        """
        source, R = generator(seed), len(prompts) * group
        tokens, chosen = torch.full((R, max_length), END), torch.zeros(R, max_length)
        # Rows that have written the same so far share a node: its state is computed once.
        node, alive = torch.arange(len(prompts)).repeat_interleave(group), torch.arange(R)
        x, past = self._read(prompts)
        for t in range(max_length):
            logp = self._scores(x[:, -1]).log_softmax(-1)
            if start is not None and t < start.shape[-1]:
                token = start[alive, t]
            elif greedy:
                token = logp.argmax(-1)[node]
            else:
                token = torch.multinomial(logp.exp()[node], 1, generator=source).squeeze(1)
            tokens[alive, t], chosen[alive, t] = token, logp[node, token]
            going = token != END
            alive = alive[going]
            if t + 1 == max_length or not len(alive):
                break
            grown, node = (node * len(CHARACTERS) + token)[going].unique(return_inverse=True)
            parent, last = grown // len(CHARACTERS), grown % len(CHARACTERS)
            x, past = self._read(last[:, None], _pick(past, parent))
        return Rollouts(tokens, completion_mask(tokens), chosen)


def _pick(cache: Cache, rows: Tensor) -> Cache:
    return [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in cache]


def small_decoder(*, seed: Seed = None, positions: int = 11) -> Decoder:
    """Return a decoder of width 40 and 3 layers: 60,213 weights for two-digit sums.

    Parameters
    ----------
    seed : int, torch.Generator or None
    positions : int

    Returns
    -------
    Decoder

    Examples
    --------
    >>> sum(parameter.numel() for parameter in small_decoder(seed=0).parameters())
    60213
    """
    return Decoder(40, positions=positions, seed=seed)


def large_decoder(*, seed: Seed = None, positions: int = 11) -> Decoder:
    """Return a decoder of width 80 and 3 layers: 235,613 weights for two-digit sums.

    Parameters
    ----------
    seed : int, torch.Generator or None
    positions : int

    Returns
    -------
    Decoder

    Examples
    --------
    >>> sum(parameter.numel() for parameter in large_decoder(seed=0).parameters())
    235613
    """
    return Decoder(80, positions=positions, seed=seed)
