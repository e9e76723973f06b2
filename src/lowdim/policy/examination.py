"""Examinations of policies during a run: shared out over the processes, kept, and without a trace."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowdim.errors import LowdimError
from lowdim.policy.evaluate import evaluate_policy
from lowdim.policy.evaluation import Evaluation

__all__ = ["Examination", "anywhere"]


@dataclass(frozen=True)
class Examination:
    """How the policies are examined: prompts, reward, samples of each, every so many steps.

    Parameters
    ----------
    prompts : Prompts or None
        None: not at all.
    reward : callable
        1 for a right completion.
    tokenizer : transformers tokenizer
    folder : Path
        Where evaluations are kept.
    every : int
        Steps between two.
    options : dict
        Passed on to `evaluate_policy`.
    """

    prompts: Any
    reward: Any
    tokenizer: Any
    folder: Path
    every: int
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, model: Any, name: str, *, accelerator: Any, progress: Any = None) -> Evaluation:
        """Evaluate a model, with the help of all processes; what is kept under this name is read.

        The random state of the training is left as it was.
        """
        folder = self.folder / name
        missing = not (folder / "evaluation.json").is_file()
        if not anywhere(missing, accelerator):
            return Evaluation.load(folder)

        def evaluate(share: tuple[int, int] = (0, 1)) -> Evaluation:
            return evaluate_policy(
                *(model, self.tokenizer, self.prompts),
                reward=self.reward,
                share=share,
                progress=progress,
                **self.options,
            )

        with _undisturbed():
            # Sharded models need all processes for each token, so there everyone does the same.
            alone = accelerator.num_processes == 1 or accelerator.distributed_type == "FSDP"
            found = evaluate() if alone else _in_shares(evaluate, accelerator)
        if accelerator.is_main_process:
            found.save(folder)
        return found


def anywhere(true: bool, accelerator: Any) -> bool:
    """Say whether it is so on any process: they must stop at the same step, for example.

    Parameters
    ----------
    true : bool
        On this process.
    accelerator : Accelerator

    Returns
    -------
    bool
        The same on all processes.
    """
    if accelerator.num_processes == 1:
        return true
    told = torch.tensor([float(true)], device=accelerator.device)
    return bool(accelerator.gather(told).any())


def _in_shares(evaluate: Callable[[tuple[int, int]], Evaluation], accelerator: Any) -> Evaluation:
    """Let every process evaluate its share of the prompts; if one fails, all do."""
    from accelerate.utils import gather_object

    found, failure = None, None
    try:
        found = evaluate((accelerator.process_index, accelerator.num_processes))
    except Exception as error:
        failure = error  # the others wait for this process
    shares = gather_object([found])
    if failure is not None:
        raise failure
    if None in shares:
        raise LowdimError(
            "policy: another process has failed in its share of an evaluation. Its message says why."
        )
    return Evaluation.together(shares)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put back every random state that an evaluation may have moved."""
    own, numpy_ = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state of others is kept
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy_)  # noqa: NPY002
