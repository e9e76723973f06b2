"""Steps of Hybrid-GRPO and of GRPO, timed in turn, and planned between the turns."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch

__all__ = ["LARGE", "SMALL", "Case", "llama", "measure"]

VOCABULARY, PROMPT, CANDIDATES, KEEP = 256, 16, 14, 8

LARGE = (256, 16)
SMALL = {"4:1": (256, 4), "8:1": (256, 2), "16:1": (256, 1)}
"""Width and layers. The sizes differ in depth, so that heads and kernels are alike."""

STEADY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "OMP_NUM_THREADS": "1",
}
"""For the process that measures. The GNU C library returns freed memory to the system where it lies at the
end of the heap, and the next kernel pays for fresh pages. What lies there is an accident of all allocations
before: scoring with the small model took 0.1 s of a step in some processes and 0.7 s in others."""

now = time.process_time
"""With one thread these are the seconds of a quiet machine, whatever else it does."""


def llama(width: int, layers: int, *, seed: int = 0) -> Any:
    """Make a Llama with random weights.

    Parameters
    ----------
    width, layers : int
        Its heads are of 64 numbers.
    seed : int

    Returns
    -------
    LlamaForCausalLM
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    heads = max(width // 64, 1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def tokenizer() -> Any:
    """Make a tokenizer with a word for every token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<end>": 1, "<unknown>": 2}
    vocabulary |= {f"w{i}": i for i in range(3, VOCABULARY)}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )


def prompts() -> Any:
    """Return prompts of equal length, with ever other words."""
    from datasets import Dataset

    source = torch.Generator().manual_seed(0)
    draws = torch.randint(3, VOCABULARY, (64, PROMPT), generator=source).tolist()
    return Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in draws]})


def spread(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """Reward completions so that those of a group are not alike.

    Parameters
    ----------
    completion_ids : sequence of sequence of int
    **columns
        Not looked at.

    Returns
    -------
    list of float
    """
    return [sum((i + 1) * token for i, token in enumerate(ids)) % 9973 / 9973 for ids in completion_ids]


@dataclass
class Stepper:
    """A trainer whose steps are taken one at a time.

    Parameters
    ----------
    trainer : Trainer
        With ``max_steps=1``.
    seconds, wall : list of float
        Of every step: of the processor, and on the wall.
    """

    trainer: Any
    seconds: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        from transformers import TrainerCallback

        began = (0.0, 0.0)
        outer = self

        class Watch(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                nonlocal began
                began = now(), time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                outer.seconds.append(now() - began[0])
                outer.wall.append(time.perf_counter() - began[1])

        self.trainer.add_callback(Watch())

    def __call__(self) -> None:
        """Take a step."""
        with quiet():
            self.trainer.train()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the trainers print, and hold Python's garbage collector, as `timeit` does.

    A collection takes a third of a second where many packages are loaded, and falls on any part of a step.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if collects:
            gc.enable()


def stepper(small: Any, large: Any | None, *, length: int, prompts_per_step: int, folder: str) -> Stepper:
    """Make a trainer: TRL's GRPO of `small` alone, or Hybrid-GRPO of both.

    Parameters
    ----------
    small, large : transformers model
    length : int
        Of every completion: none ends before.
    prompts_per_step : int
    folder : str
        TRL wants one; nothing is saved.

    Returns
    -------
    Stepper
    """
    from trl import GRPOConfig, GRPOTrainer

    from lowdim.policy import HybridGRPOConfig, HybridGRPOTrainer

    settings: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": 1,
        "max_completion_length": length,
        "generation_kwargs": {"min_new_tokens": length},
        "gradient_accumulation_steps": prompts_per_step,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
    }
    tools = {"reward_funcs": spread, "train_dataset": prompts(), "processing_class": tokenizer()}
    with quiet():
        if large is None:
            own: dict[str, Any] = {"loss_type": "dr_grpo", "scale_rewards": "none", "num_generations": KEEP}
            args = GRPOConfig(**settings, **own, per_device_train_batch_size=KEEP)
            return Stepper(GRPOTrainer(model=small, args=args, **tools))
        config = HybridGRPOConfig(
            **settings, candidates=CANDIDATES, keep_rollouts=KEEP, per_device_train_batch_size=CANDIDATES
        )
        trainer = HybridGRPOTrainer(small, large=large, args=config, **tools)
    trainer.ledger.now = now  # type: ignore[method-assign]
    return Stepper(trainer)


def planned(sizes: str, *, length: int, prompts_per_step: int) -> Any:
    """Plan the steps that `stepper` takes, from two measurements of each part.

    Parameters
    ----------
    sizes : str
        Key of `SMALL`.
    length, prompts_per_step : int

    Returns
    -------
    lowdim.policy.Plan
    """
    from lowdim.policy import plan

    with quiet():
        return plan(
            *(llama(*SMALL[sizes]), llama(*LARGE), [PROMPT]),
            reward=None,
            candidates=CANDIDATES,
            keep_rollouts=KEEP,
            max_completion_length=length,
            prompts_per_step=prompts_per_step,
            rows=KEEP,
            repeats=2,
            checkpointing=False,
            device="cpu",
            clock=now,
        )


@dataclass(frozen=True)
class Case:
    """Steps and plans of one completion length and two sizes, in pairs.

    Parameters
    ----------
    sizes : str
        Key of `SMALL`.
    length, prompts : int
        Tokens of a completion, and prompts of a step.
    grpo_large, grpo_small, hybrid : tuple of float
        Seconds of the processor, one per repetition.
    wall : dict of str to list of float
        The same steps on the wall.
    plans : tuple of Plan
        One per repetition.
    phases : dict of str to float
        Seconds of the phases of Hybrid-GRPO's steps, means.
    """

    sizes: str
    length: int
    prompts: int
    grpo_large: tuple[float, ...]
    grpo_small: tuple[float, ...]
    hybrid: tuple[float, ...]
    wall: dict[str, list[float]]
    plans: tuple[Any, ...]
    phases: dict[str, float]

    def off(self, method: str) -> float:
        """Return by which part the plans miss a method's step: median over the pairs.

        Parameters
        ----------
        method : {"grpo_large", "grpo_small", "hybrid"}

        Returns
        -------
        float
            Positive where the plan is too long.
        """
        pairs = zip(self.plans, getattr(self, method), strict=True)
        return statistics.median(plan.total(method) / seconds - 1 for plan, seconds in pairs)

    @property
    def saving(self) -> float:
        """Share of GRPO-large's step that is saved: median over the pairs."""
        return 1 - statistics.median(h / g for h, g in zip(self.hybrid, self.grpo_large, strict=True))

    @property
    def planned_saving(self) -> float:
        """What the plans say of it: median."""
        return statistics.median(plan.saving for plan in self.plans)


def measure(length: int, *, sizes: Sequence[str], repeats: int, prompts_per_step: int = 1) -> list[Case]:
    """Time steps of all trainers in turn, and plan them in every turn, in a process of its own.

    Parameters
    ----------
    length : int
        Tokens of every completion.
    sizes : sequence of str
        Keys of `SMALL`.
    repeats : int
        Turns, after one that is not counted.
    prompts_per_step : int

    Returns
    -------
    list of Case
        One for each of `sizes`.
    """
    shape: dict[str, Any] = {"sizes": tuple(sizes), "repeats": repeats, "prompts_per_step": prompts_per_step}
    with _environment(STEADY), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, length, **shape).result()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that start inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _measure(length: int, *, sizes: Sequence[str], repeats: int, prompts_per_step: int) -> list[Case]:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    plans: dict[str, list[Any]] = {name: [] for name in sizes}
    with tempfile.TemporaryDirectory() as folder:
        shape: dict[str, Any] = {"length": length, "prompts_per_step": prompts_per_step, "folder": folder}
        grpo = stepper(llama(*LARGE), None, **shape)
        small = {name: stepper(llama(*SMALL[name]), None, **shape) for name in sizes}
        hybrid = {name: stepper(llama(*SMALL[name], seed=1), llama(*LARGE), **shape) for name in sizes}
        every = [grpo, *small.values(), *hybrid.values()]
        for one in every:  # the first step makes the optimizers' moments
            one()
            one.seconds.clear()
            one.wall.clear()
        for one in hybrid.values():
            one.trainer.ledger.phases.clear()
        for repeat in range(repeats):
            for one in every if repeat % 2 == 0 else reversed(every):
                one()
            for name in sizes:
                plans[name].append(planned(name, length=length, prompts_per_step=prompts_per_step))
    return [
        Case(
            *(name, length, prompts_per_step),
            *(tuple(grpo.seconds), tuple(small[name].seconds), tuple(hybrid[name].seconds)),
            {"grpo_large": grpo.wall, "grpo_small": small[name].wall, "hybrid": hybrid[name].wall},
            tuple(plans[name]),
            {phase: cost.seconds / repeats for phase, cost in hybrid[name].trainer.ledger.phases.items()},
        )
        for name in sizes
    ]
