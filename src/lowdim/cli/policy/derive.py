"""The small model as a compressed copy of the large one, healed on the large one's own samples."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowdim.errors import DataError

__all__ = ["Compressed", "compressed_share"]

PREFIX = "compress:"


def compressed_share(text: str) -> float | None:
    """Return the share of ``compress:0.25``, and None of anything else.

    Parameters
    ----------
    text : str
        What was given as the small model.

    Returns
    -------
    float or None

    Raises
    ------
    DataError
        If it is no share in (0, 1).

    Examples
    --------
    >>> compressed_share("compress:0.25"), compressed_share("Qwen/Qwen2.5-1.5B")
    (0.25, None)
    """
    if not text.startswith(PREFIX):
        return None
    try:
        share = float(text.removeprefix(PREFIX))
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise DataError(
            f"--small {text}: expected the share of the parameters to keep, between 0 and 1, such as "
            "compress:0.25."
        )
    return share


class Compressed:
    """Makes the small model of a run: a compressed copy of a large one.

    Systems do not know each other, so that the command line joins them: `lowdim.policy` lets the large model
    write, and `lowdim.compress` factorizes its layers and heals the copy by distillation on what was written.

    Parameters
    ----------
    share : float
        Fraction of the parameters of every matrix to keep.
    of : str
        Folder or Hub id of the large model.
    prompts : Prompts
        Those of the training.
    structure : {"lowrank", "blast"}
        Of the compressed matrices.
    heal_steps : int
        Updates of the healing, one batch each.
    heal_batches : int
        Fresh batches of samples; more steps than batches use them again.
    max_completion_length : int
        In tokens.
    seed : int
    device : str
    batch_size : int
        Rows of a batch of samples.
    """

    def __init__(
        self,
        share: float,
        *,
        of: str,
        prompts: Any,
        structure: str,
        heal_steps: int,
        heal_batches: int,
        max_completion_length: int,
        seed: int,
        device: str,
        batch_size: int = 32,
    ) -> None:
        if heal_steps < 0 or heal_batches < 2:
            raise DataError(
                f"--heal-steps {heal_steps} --heal-batches {heal_batches}: expected 0 or more steps and 2 or "
                "more batches (one is held out)."
            )
        self.share, self.of, self.prompts, self.structure = share, of, prompts, structure
        self.heal_steps, self.heal_batches, self.batch_size = heal_steps, heal_batches, batch_size
        self.max_completion_length, self.seed, self.device = max_completion_length, seed, device
        where = str(Path(of).resolve()) if Path(of).is_dir() else of
        self.__name__ = (
            f"{PREFIX}{share:g} of {where} by {structure}, healed for {heal_steps} steps on "
            f"{heal_batches} batches"
        )

    def __call__(
        self, folder: Path, progress: Callable[[str, int, int, str], object] | None
    ) -> tuple[Path, dict[str, Any]]:
        """Make the copy in a folder; what an interrupted call has left there is used."""
        from lowdim.compress import compress

        batches, tokens = self._samples(progress)
        out = folder / "compressed"
        result = compress(
            self.of,
            keep=self.share,
            method=self.structure,  # type: ignore[arg-type]
            calibration=batches[1:],
            evaluation=batches[:1],
            recover_steps=self.heal_steps,
            seed=self.seed,
            device=self.device,
            output=out,
            resume=True,
            progress=_renamed(progress),
        )
        parameters = result.report["parameters"]
        facts = {
            "compressed": {
                "of": self.of,
                "keep": self.share,
                "structure": self.structure,
                "heal_steps": self.heal_steps,
                "parameters_before": parameters["before"],
                "parameters_after": parameters["after"],
                "kl": result.report["quality"].get("kl"),
                "sampled_tokens": tokens,
                "generated_flops": 2.0 * tokens * parameters["before"],
            }
        }
        return out, facts

    def _samples(self, progress: Any) -> tuple[list[Any], int]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from lowdim.policy.samples import sample_batches

        device = "cuda" if self.device == "auto" and torch.cuda.is_available() else self.device
        device = "cpu" if device == "auto" else device
        model: Any = AutoModelForCausalLM.from_pretrained(self.of, dtype="auto")
        model.to(device)
        return sample_batches(
            model,
            AutoTokenizer.from_pretrained(self.of),
            self.prompts,
            batches=self.heal_batches + 1,
            batch_size=self.batch_size,
            max_completion_length=self.max_completion_length,
            seed=self.seed,
            progress=lambda done, total: (
                progress and progress("sample", done, total, os.path.basename(self.of))
            ),
        )


def _renamed(progress: Any) -> Any:
    """Tell the phases of compress apart from those of the training."""
    if progress is None:
        return None
    return lambda phase, done, total, text: progress(f"compress {phase}", done, total, text)
