"""Evaluation: the rewards of a policy's completions, and what they say with which uncertainty."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowdim.errors import DataError, RunError
from lowdim.runs import atomic_json, atomic_tensors, plain, read_json, read_tensors

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evaluation"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a policy's completions of Q prompts, S samples of each, earned.

    Parameters
    ----------
    rewards : Tensor of float64, shape (Q, S)
        NaN where the reward function gave None.
    lengths : Tensor of int64, shape (Q, S)
        Tokens of each completion, its end included.
    truncated : Tensor of bool, shape (Q, S)
        Completions that were cut off.
    greedy : Tensor of float64, shape (Q,), or None
        Rewards of the most probable completions.
    tokens : int
        Written in all.
    seconds : float
    solved_at : float, default 1.0
        A reward from here on counts as solved.
    completions : list of dict
        Some of them as text: row, sample, prompt, completion, answer, reward.
    settings : dict
        JSON-ready.

    Examples
    --------
    >>> import torch
    >>> rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    >>> found = Evaluation(rewards, torch.ones(3, 2).long(), torch.zeros(3, 2).bool(), None, 6, 0.1)
    >>> found.mean, round(found.error, 4), round(found.pass_at(2)[0], 4)
    (0.5, 0.2887, 0.6667)
    """

    rewards: Tensor
    lengths: Tensor
    truncated: Tensor
    greedy: Tensor | None
    tokens: int
    seconds: float
    solved_at: float = 1.0
    completions: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def together(cls, shares: Sequence[Evaluation]) -> Evaluation:
        """Join what n processes have found, each of its share of the same prompts.

        Parameters
        ----------
        shares : sequence of Evaluation
            The k-th one of ``evaluate_policy(..., share=(k, n))``.

        Returns
        -------
        Evaluation
            As of one process; ``seconds`` are those of the slowest.
        """
        n = len(shares)

        def join(name: str) -> Tensor:
            whole: Tensor = getattr(shares[0], name).clone()
            for k, share in enumerate(shares):
                whole[k::n] = getattr(share, name)[k::n]
            return whole

        return replace(
            shares[0],
            rewards=join("rewards"),
            lengths=join("lengths"),
            truncated=join("truncated"),
            greedy=None if shares[0].greedy is None else join("greedy"),
            tokens=sum(share.tokens for share in shares),
            seconds=max(share.seconds for share in shares),
            completions=sorted(
                (each for share in shares for each in share.completions),
                key=lambda each: (each["row"], -1 if each["sample"] == "greedy" else each["sample"]),
            ),
        )

    @property
    def mean(self) -> float:
        """Mean over the prompts of the mean reward of their samples; NaN if nothing was rewarded."""
        return _mean_error(self._of_prompts())[0]

    @property
    def error(self) -> float:
        """Standard error of `mean`, clustered by prompt: samples of one prompt are no independent trials."""
        return _mean_error(self._of_prompts())[1]

    @property
    def greedy_accuracy(self) -> tuple[float, float]:
        """Share of prompts whose greedy completion is solved, and its standard error."""
        if self.greedy is None:
            return float("nan"), float("nan")
        known = self.greedy[~self.greedy.isnan()]
        return _mean_error((known >= self.solved_at).double())

    @property
    def truncated_share(self) -> float:
        """Share of the samples that were cut off."""
        return self.truncated.double().mean().item()

    def pass_at(self, k: int) -> tuple[float, float]:
        """Estimate the probability that one of k samples is solved.

        Of n samples, c solved, the estimate of a prompt is ``1 - C(n - c, k) / C(n, k)``: the share of all
        subsets of k samples that hold a solved one, which has no bias.

        Parameters
        ----------
        k : int
            1 to S.

        Returns
        -------
        estimate : float
        error : float
            Standard error over the prompts.

        Raises
        ------
        DataError
            If k is not between 1 and the number of samples.
        """
        samples = self.rewards.shape[1]
        if not 1 <= k <= samples:
            raise DataError(f"Evaluation.pass_at: k={k} must be from 1 to the {samples} samples of a prompt.")
        known = ~self.rewards.isnan()
        counts = known.sum(dim=1).tolist()
        solved = ((self.rewards >= self.solved_at) & known).sum(dim=1).tolist()
        chances = [1 - comb(n - c, k) / comb(n, k) for n, c in zip(counts, solved, strict=True) if n >= k]
        return _mean_error(torch.tensor(chances, dtype=torch.float64))

    def table(self) -> pd.DataFrame:
        """Return pass@k for every k up to the number of samples: columns k, estimate, error.

        Returns
        -------
        DataFrame
        """
        import pandas as pd

        rows = [(k, *self.pass_at(k)) for k in range(1, self.rewards.shape[1] + 1)]
        return pd.DataFrame(rows, columns=["k", "estimate", "error"])

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, without rewards and texts, as a JSON-ready dictionary."""
        lengths = self.lengths.double()
        accuracy, accuracy_error = self.greedy_accuracy
        return plain(
            {
                "prompts": self.rewards.shape[0],
                "samples": self.rewards.shape[1],
                "mean": self.mean,
                "error": self.error,
                "greedy": accuracy,
                "greedy_error": accuracy_error,
                "pass_at": {row.k: [row.estimate, row.error] for row in self.table().itertuples()},
                "truncated": self.truncated_share,
                "unrewarded": int(self.rewards.isnan().sum()),
                "length_mean": lengths.mean().item(),
                "length_median": lengths.median().item(),
                "length_max": int(self.lengths.max()),
                "tokens": self.tokens,
                "seconds": self.seconds,
                "solved_at": self.solved_at,
                "settings": self.settings,
            }
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``evaluation.json`` (figures, texts) and ``evaluation.safetensors`` (every reward).

        Parameters
        ----------
        directory : path
            Made if need be.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        named = {
            "rewards": self.rewards,
            "lengths": self.lengths,
            "truncated": self.truncated,
            "greedy": self.greedy,
        }
        atomic_tensors(
            folder / "evaluation.safetensors",
            {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None},
            {},
        )
        header = {"format": FORMAT, **self.to_dict(), "completions": plain(self.completions)}
        atomic_json(folder / "evaluation.json", header)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Evaluation:
        """Read what `save` has written.

        Parameters
        ----------
        directory : path

        Returns
        -------
        Evaluation

        Raises
        ------
        RunError
            If the folder holds none, or one of another version.
        """
        folder = Path(directory)
        if not (folder / "evaluation.json").is_file():
            raise RunError(
                f"Evaluation.load: {folder} holds no evaluation.json. Give a folder written by save()."
            )
        header = read_json(folder / "evaluation.json")
        if header.get("format") != FORMAT:
            raise RunError(
                f"Evaluation.load: {folder} has format {header.get('format')}, this lowdim reads {FORMAT}. "
                "Install the version that wrote it, or evaluate again."
            )
        tensors, _ = read_tensors(folder / "evaluation.safetensors")
        return cls(
            rewards=tensors["rewards"],
            lengths=tensors["lengths"],
            truncated=tensors["truncated"],
            greedy=tensors.get("greedy"),
            tokens=header["tokens"],
            seconds=header["seconds"],
            solved_at=header["solved_at"],
            completions=header["completions"],
            settings=header["settings"],
        )

    def _of_prompts(self) -> Tensor:
        """Mean reward of each prompt that has one."""
        means = self.rewards.nanmean(dim=1)
        return means[~means.isnan()]


def _mean_error(values: Tensor) -> tuple[float, float]:
    """Mean and standard error; NaN of none, and of one value no error."""
    count = len(values)
    mean = values.double().mean().item() if count else float("nan")
    error = (values.double().std() / count**0.5).item() if count > 1 else float("nan")
    return mean, error
