"""Three questions in a text: a task for TRL's trainer whose reward is known exactly.

A prompt ``a*b c*d e*f =`` has one token for each pair; the answer is the three products modulo 50, one token
each. A tiny Llama is warmed up on noisy labels, so that it knows some products, half knows others and hardly
knows the rest: the text form of the bandit in :mod:`lowdim.claims.bandit`.
"""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Curve", "World", "reward", "settings", "staged_run", "trainer_of"]

SIDE, ANSWERS = 14, 50
TRAINING, HELD_OUT, WARM_UP = 512, 512, 260
PAD, END, EQUALS = 0, 1, 2
#: Token ids: three special ones, the pairs, the answers.
FIRST_PAIR, FIRST_ANSWER = 3, 3 + SIDE * SIDE


class World:
    """The task, its tokenizer, and a warmed-up model.

    Parameters
    ----------
    seed : int
        Of the labels' noise, the prompts and the model.
    """

    def __init__(self, seed: int = 0) -> None:
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

        pairs = [f"{a}*{b}" for a in range(SIDE) for b in range(SIDE)]
        words = ["<pad>", "<end>", "=", *pairs, *(str(answer) for answer in range(ANSWERS))]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
        )
        self.pairs = pairs
        source = torch.Generator().manual_seed(seed)
        self.answers = torch.tensor([a * b % ANSWERS for a in range(SIDE) for b in range(SIDE)])
        kind, middle = (torch.rand(len(pairs), generator=source) for _ in range(2))
        self.told = torch.where(kind < 0.55, 1.0, torch.where(kind < 0.87, 0.15 + 0.55 * middle, 0.05))
        self.training = torch.randint(len(pairs), (TRAINING, 3), generator=source)
        self.held_out = torch.randint(len(pairs), (HELD_OUT, 3), generator=source)
        set_seed(seed)
        self._model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(words),
                hidden_size=64,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=32,
                pad_token_id=PAD,
                bos_token_id=None,
                eos_token_id=END,
                tie_word_embeddings=False,
            )
        )
        self._warm_up(source)

    def model(self) -> Any:
        """Return a copy of the warmed-up model."""
        return copy.deepcopy(self._model)

    def _texts(self, questions: Tensor, answers: Tensor) -> Tensor:
        """Token ids of prompts and completions, ``(prompts, 8)``."""
        import torch

        one = torch.ones(len(questions), 1, dtype=torch.long)
        return torch.cat([FIRST_PAIR + questions, EQUALS * one, FIRST_ANSWER + answers, END * one], dim=1)

    def _warm_up(self, source: Any) -> None:
        import torch
        from torch.nn.functional import cross_entropy

        optimizer = torch.optim.AdamW(self._model.parameters(), lr=4e-3)
        for step in range(WARM_UP):
            optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / WARM_UP)
            questions = torch.randint(len(self.pairs), (128, 3), generator=source)
            told = torch.rand(questions.shape, generator=source) < self.told[questions]
            noise = torch.randint(ANSWERS, questions.shape, generator=source)
            ids = self._texts(questions, torch.where(told, self.answers[questions], noise))
            logits = self._model(input_ids=ids).logits[:, 3:-1]
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def score(self, model: Any) -> float:
        """Exact mean reward on the held-out prompts: the probability of the right answer and its end."""
        import torch

        ids = self._texts(self.held_out, self.answers[self.held_out])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[:, 3:-1].log_softmax(-1)
        return float(logp.gather(-1, ids[:, 4:, None])[..., 0].sum(-1).exp().mean())

    def data(self) -> Any:
        """Return the training prompts as a ``datasets.Dataset`` with columns prompt and answer."""
        from datasets import Dataset

        rows = self.training.tolist()
        return Dataset.from_dict(
            {
                "prompt": [" ".join(self.pairs[q] for q in row) + " =" for row in rows],
                "answer": [" ".join(str(int(self.answers[q])) for q in row) for row in rows],
            }
        )


def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Give 1 for the right three products, else 0.

    Parameters
    ----------
    completions, answer : list of str
        What was written, and what is right.

    Returns
    -------
    list of float
        One number for each completion.
    """
    return [float(text.split() == right.split()) for text, right in zip(completions, answer, strict=True)]


def settings(
    output: Any, *, group: int, prompts: int, steps: int, seed: int = 0, plain: bool = False, **options: Any
) -> Any:
    """Return the settings of a run of plain GRPO through TRL.

    Parameters
    ----------
    output : path
        Folder that TRL asks for.
    group, prompts, steps, seed : int
        G, N, optimizer steps, seed of the run.
    plain : bool
        For TRL's own trainer instead of ours.
    options
        Further settings.

    Returns
    -------
    HybridGRPOConfig or GRPOConfig
    """
    from trl import GRPOConfig

    from lowdim.policy.trl import HybridGRPOConfig

    given = {
        "output_dir": str(output),
        "num_generations": group,
        "per_device_train_batch_size": group * prompts,
        "max_completion_length": 5,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5,
        "loss_type": "dapo",
        "max_steps": steps,
        "seed": seed,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10**6,
        "disable_tqdm": True,
        "log_level": "error",
        **options,
    }
    return GRPOConfig(**given) if plain else HybridGRPOConfig(method="grpo", **given)


def trainer_of(world: World, output: Any, *, plain: bool = False, **options: Any) -> Any:
    """Return a trainer of the task.

    Parameters
    ----------
    world : World
        The task.
    output : path
        Folder that TRL asks for.
    plain : bool
        TRL's own trainer instead of ours.
    options
        For :func:`settings`.

    Returns
    -------
    HybridGRPOTrainer or GRPOTrainer
    """
    from trl import GRPOTrainer

    from lowdim.policy.trl import HybridGRPOTrainer

    kind: Any = GRPOTrainer if plain else HybridGRPOTrainer
    return kind(
        model=world.model(),
        reward_funcs=reward,
        args=settings(output, plain=plain, **options),
        train_dataset=world.data(),
        processing_class=world.tokenizer,
    )


@dataclass(frozen=True)
class Curve:
    """Held-out reward on the way of a training.

    Parameters
    ----------
    tokens, rewards : tuple of float
        Tokens written so far, and the exact held-out reward, at each look.
    alarms : int
        How often the guard against forgetting paused staged rollouts.

    Examples
    --------
    >>> curve = Curve((100.0, 200.0, 300.0), (0.5, 0.7, 0.6), 0)
    >>> curve.at(150.0), round(curve.fall, 3)
    (0.6, 0.1)
    """

    tokens: tuple[float, ...]
    rewards: tuple[float, ...]
    alarms: int

    def at(self, tokens: float) -> float:
        """Return the reward after so many tokens, along a line between two looks.

        Parameters
        ----------
        tokens : float

        Returns
        -------
        float
        """
        import numpy as np

        return float(np.interp(tokens, self.tokens, self.rewards))

    @property
    def fall(self) -> float:
        """Largest fall below the running best."""
        return max(
            best - reward
            for best, reward in zip(itertools.accumulate(self.rewards, max), self.rewards, strict=True)
        )


def staged_run(
    world: World,
    first: int | None,
    *,
    steps: int,
    seed: int,
    every: int,
    group: int = 4,
    prompts: int = 16,
    guarded: bool = True,
    **options: Any,
) -> Curve:
    """Train with compaction and, on request, staged rollouts, and look at the reward on the way.

    Parameters
    ----------
    world : World
        The task.
    first : int or None
        Rollouts of the first stage; None makes all at once.
    steps, seed : int
        Optimizer steps, seed of the run.
    every : int
        Steps from look to look.
    group, prompts : int
        G, N.
    guarded : bool
        Whether staging pauses when solved prompts are forgotten.
    options
        Further settings.

    Returns
    -------
    Curve
    """
    from transformers import TrainerCallback

    tokens: list[float] = []
    rewards: list[float] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % every == 0:
                tokens.append(float(trainer.ledger.phases["generate"].completion_tokens))
                rewards.append(world.score(trainer.model))

    with tempfile.TemporaryDirectory() as folder:
        options |= {"staged_rollouts": first, "compaction": True}
        trainer = trainer_of(world, folder, group=group, prompts=prompts, steps=steps, seed=seed, **options)
        guard = None if trainer.stages is None else trainer.stages.guard
        if guard is not None and not guarded:
            guard.fall = math.inf
        trainer.add_callback(Look())
        trainer.train()
    return Curve(tuple(tokens), tuple(rewards), 0 if guard is None else guard.alarms)
