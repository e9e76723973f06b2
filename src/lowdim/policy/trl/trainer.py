"""The Hybrid-GRPO trainer: TRL's trainer of the small policy, and a large one that learns beside it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel, Trainer, TrainerCallback, get_scheduler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import (
    add_fused_lm_head,
    is_async_callable,
)

from lowdim.errors import DataError, RunError
from lowdim.policy import door
from lowdim.policy.data import check_disjoint
from lowdim.policy.guards import Guards
from lowdim.policy.large import load_optimizer, save_optimizer
from lowdim.policy.ledger import CostLedger
from lowdim.policy.rewards.contract import checked
from lowdim.policy.trl.config import HybridGRPOConfig
from lowdim.policy.trl.models import (
    base_of,
    load_large,
    load_rollouts,
    load_weights,
    save_rollouts,
    tokenizer_of,
)
from lowdim.policy.trl.updates import OptimizerClock, UpdateTrainer
from lowdim.policy.trl.vocabulary import keep_tokens

__all__ = ["HybridGRPOTrainer"]

LARGE, STATE = "large", "hybrid.json"
SPECIAL = ("eos_token_id", "bos_token_id", "pad_token_id")


class HybridGRPOTrainer(UpdateTrainer):
    """Train a small and a large policy from the small one's rollouts.

    The small policy is the model of TRL's ``GRPOTrainer``: it generates, is logged, saved and resumed by it.
    The large one has an optimizer of its own and a folder ``large`` in each checkpoint. Both are updated one
    after the other, so that the activations of the small one are gone when the large one's are made.

    Parameters
    ----------
    model : str or PreTrainedModel
        The small model.
    large : str or PreTrainedModel, optional
        The large model, for methods "hybrid" and "kdrl"; with the same tokenizer.
    reward_funcs : callable or list of callable
        ``f(prompts, completions, completion_ids, **columns) -> list of float or None``.
    args : HybridGRPOConfig
        The settings.
    train_dataset, eval_dataset : Dataset
        With a column ``prompt`` and those that the reward functions ask for.
    processing_class : PreTrainedTokenizerBase, optional
        The tokenizer of both; the small model's by default.
    reward_processing_classes, optimizers : optional
        As in TRL.
    peft_config, large_peft_config : PeftConfig, optional
        Adapters for the small and the large model.
    callbacks : list of TrainerCallback, optional
        As in transformers.

    Attributes
    ----------
    large : PreTrainedModel or PeftModel or None
        The large model.
    ledger : CostLedger
        Seconds, tokens and floating-point work of each phase.
    guards : Guards
        What the run is watched for.

    Raises
    ------
    DataError
        If models, data, rewards and settings do not fit together.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, algorithm 1.

    Examples
    --------
    >>> trainer = HybridGRPOTrainer(
    ...     "Qwen/Qwen2.5-1.5B", large="Qwen/Qwen2.5-7B", reward_funcs=reward,
    ...     args=HybridGRPOConfig("run", per_device_train_batch_size=14), train_dataset=data,
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        large: str | PreTrainedModel | None = None,
        reward_funcs: Any = None,
        args: HybridGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        large_peft_config: Any = None,
    ) -> None:
        if not isinstance(args, HybridGRPOConfig):
            raise DataError(
                f"HybridGRPOTrainer: args is a {type(args).__name__}. Give a HybridGRPOConfig(output_dir, "
                "...)."
            )
        _check(model, large, args, reward_funcs, train_dataset, eval_dataset)
        rewards = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        self.ledger = CostLedger()
        self.guards = Guards(
            ratios=args.warn_ratios,
            weak=args.warn_weak,
            flat=args.warn_flat,
            falling=args.warn_falling,
            stop=args.stop_falling_large,
        )
        self.second = None if large is None else load_large(large, args, peft_config=large_peft_config)
        super().__init__(
            model=model,
            reward_funcs=[_checked(reward) for reward in rewards],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        if self._is_vlm and not self._plain:
            raise DataError(
                "HybridGRPOTrainer: a processor for images was given; rollouts with images cannot be "
                "selected. Give the tokenizer, or use method='grpo'."
            )
        if self.is_fsdp_enabled:
            door.check_launch(args, two=large is not None, shards=2 if self.accelerator.is_fsdp2 else 1)
        self.guards.silent = not self.accelerator.is_main_process
        if self.accelerator.device.type == "cuda":
            self.ledger.synchronize = torch.cuda.synchronize
        if self.use_vllm:
            self._time_sync()
        if self.second is not None:
            self._join(large)
        self._set_economies()
        self.add_callback(OptimizerClock(self))

    @property
    def large(self) -> Any:
        """The large model, None without one."""
        return None if self.second is None else self.second.model

    def _join(self, given: str | PreTrainedModel | None) -> None:
        """Make two models agree on tokens: padding, ends and the support of their softmax."""
        large = base_of(self.second.model)
        rows = tuple(base_of(m).get_output_embeddings().weight.shape[0] for m in (self.model, large))
        own = tokenizer_of(given)
        special = tuple({name: getattr(t, name, None) for name in SPECIAL} for t in (self._tokenizer, own))
        vocabularies = self._tokenizer.get_vocab(), None if own is None else own.get_vocab()
        count = door.shared_vocabulary(*vocabularies, rows=rows, special=special if own else None)  # type: ignore[arg-type]
        large.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        large.generation_config.pad_token_id = self._tokenizer.pad_token_id
        add_fused_lm_head(
            large,
            temperature=self.temperature,
            cast_lm_head_to_fp32=self.args.cast_lm_head_to_fp32,
            outputs=("log_probs", "entropy"),
        )
        text, wanted = large.config.get_text_config(), self.args.router_aux_loss_coef
        if hasattr(text, "output_router_logits"):
            self._balance_of_large = getattr(text, "router_aux_loss_coef", 0.0) if wanted is None else wanted
        if count is None:
            return
        for model in (base_of(self.model), large):
            keep_tokens(model, count)
        self._padding_of_large = list(range(count, rows[1])) or None
        if rows[0] > count and self.use_vllm:
            self.vllm_generation.generation_kwargs["allowed_token_ids"] = list(range(count))
        elif rows[0] > count:
            self.generation_kwargs["suppress_tokens"] = list(range(count, rows[0]))
            self.generation_config.suppress_tokens = self.generation_kwargs["suppress_tokens"]

    def _time_sync(self) -> None:
        sync = self.vllm_generation.sync_weights

        def timed() -> None:
            with self.ledger.phase("sync"):
                sync()

        self.vllm_generation.sync_weights = timed  # type: ignore[method-assign]

    # Preparation, and checkpoints

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.second is not None and self.second.wrapped is self.second.model:
            self._prepare_large(max_steps, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            self._load_state(Path(resume_from_checkpoint))
        return prepared

    def _prepare_large(self, max_steps: int, checkpoint: str | None) -> None:
        second, device = self.second, self.accelerator.device
        if checkpoint is not None and second.trainable:
            if not (Path(checkpoint) / LARGE / "state.json").is_file():
                raise RunError(
                    f"HybridGRPOTrainer: the checkpoint {checkpoint} has no large model. It is of a run with "
                    "one model or a frozen one: resume with that run's method, or start anew."
                )
            load_weights(second.model, Path(checkpoint) / LARGE / "model")
        placed = (
            self.is_fsdp_enabled and second.trainable
        )  # by its shards; a frozen teacher is in each process
        if not placed and not hasattr(second.model, "hf_device_map"):
            second.model.to(device)
        if not second.trainable:
            second.prepare(
                lambda model: self.accelerator.prepare_model(model, evaluation_mode=True), device=device
            )
            return

        def schedule(optimizer: Any) -> Any:
            return get_scheduler(
                self.args.lr_scheduler_type,
                optimizer=optimizer,
                num_warmup_steps=self.args.get_warmup_steps(max_steps),
                num_training_steps=max_steps,
                scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
            )

        second.prepare(
            self.accelerator.prepare, optimizer=self._large_optimizer(), schedule=schedule, device=device
        )
        if self.is_fsdp_enabled:  # generation of hints gathers the shards as a forward pass does
            register_fsdp_forward_method(second.wrapped, "generate")
        if checkpoint is not None:
            second.load_state_dict(load_optimizer(second.optimizer, Path(checkpoint) / LARGE))

    def _large_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer that the settings name, for the large model and its learning rate."""
        args: Any = copy.copy(self.args)
        args.learning_rate = self.args.large_learning_rate
        model = self.second.model
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        decayed = set(self.get_decay_parameter_names(model))
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if name in decayed], "weight_decay": args.weight_decay},
            {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
        ]
        return kind(groups, **options)

    def save_large(self, output_dir: str | os.PathLike[str]) -> None:
        """Save the large model, or its adapter, with the tokenizer, for ``from_pretrained``.

        Parameters
        ----------
        output_dir : path
            The folder.

        Raises
        ------
        DataError
            If there is no large model.
        """
        if self.second is None:
            raise DataError(
                f"HybridGRPOTrainer: method={self.args.method!r} has no large model. Use save_model."
            )
        state = self.accelerator.get_state_dict(self.second.wrapped) if self.is_fsdp_enabled else None
        if self.args.should_save:
            self.second.model.save_pretrained(str(output_dir), state_dict=state)
            self.processing_class.save_pretrained(str(output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before TRL's own files: trainer_state.json, written last, says that a checkpoint is complete.
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            save_rollouts(
                self._buffered_inputs, folder / f"rollouts_{self.accelerator.process_index}.safetensors"
            )
        if self.second is not None and self.second.trainable:
            # One floor lower: transformers takes any folder with adapters in a checkpoint for the small
            # model's.
            self.save_large(folder / LARGE / "model")
            save_optimizer(
                self.second.optimizer,
                folder / LARGE,
                extra=self.second.state_dict(),
                write=self.args.should_save,
            )
        if self.args.should_save:
            state = {
                "ledger": self.ledger.state_dict(),
                "guards": self.guards.state_dict(),
                "stages": None if self.stages is None else self.stages.state_dict(),
                "largest_reward": self._largest_reward,
                "slices": self._step,
            }
            (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        super()._save_checkpoint(model, trial)
        self.checkpoint = str(folder)

    def _load_state(self, checkpoint: Path) -> None:
        self.checkpoint = str(checkpoint)
        if (checkpoint / STATE).is_file():
            state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            self.ledger.load_state_dict(state["ledger"])
            self.guards.load_state_dict(state["guards"])
            if self.stages is not None and state.get("stages"):
                self.stages.load_state_dict(state["stages"])
            self._largest_reward = state["largest_reward"]
            self._step = state["slices"]
        rollouts = checkpoint / f"rollouts_{self.accelerator.process_index}.safetensors"
        if rollouts.is_file():
            self._buffered_inputs = load_rollouts(rollouts, device=self.accelerator.device)

    def judge(self, large: float) -> bool:
        """Look at an evaluation of the large model; the first one is the start.

        Parameters
        ----------
        large : float
            Accuracy or mean reward, the same on every process.

        Returns
        -------
        bool
            Whether the run was told to stop: it fell by more than a third.
        """
        stop = self.guards.evaluated(large)
        self.control.should_training_stop = self.control.should_training_stop or stop
        return stop


def _check(model: Any, large: Any, args: HybridGRPOConfig, rewards: Any, train: Any, evaluation: Any) -> None:
    door.check_rewards(rewards)
    two = args.method in ("hybrid", "kdrl")
    if two and large is None:
        raise DataError(
            f"HybridGRPOTrainer: method={args.method!r} needs a large model. Give large=..., or use "
            "method='grpo' or 'pods'."
        )
    if not two and large is not None:
        raise DataError(
            f"HybridGRPOTrainer: method={args.method!r} trains one model, but large=... was given. "
            "Leave it out, or use method='hybrid'."
        )
    processes = args.world_size
    door.check_launch(args, two=two, processes=processes)
    if two:
        door.check_pair(model, large)
    given = rewards if isinstance(rewards, list | tuple) else [rewards]
    if isinstance(train, Dataset):
        door.check_columns(train.column_names, given)
    if isinstance(evaluation, Dataset):
        door.check_columns(evaluation.column_names, given)
        if isinstance(train, Dataset):
            check_disjoint(train, evaluation)


def _checked(reward: Any) -> Any:
    plain = callable(reward) and not isinstance(reward, torch.nn.Module) and not is_async_callable(reward)
    return checked(reward) if plain else reward
