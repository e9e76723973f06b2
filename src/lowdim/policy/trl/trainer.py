"""The Hybrid-GRPO trainer: TRL's trainer of the small policy, and a large one that learns beside it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model, set_seed
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, Trainer, TrainerCallback, get_scheduler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import (
    add_fused_lm_head,
    create_model_from_path,
    disable_dropout_in_model,
    is_async_callable,
)

from lowdim.errors import DataError, Diverged
from lowdim.policy import door
from lowdim.policy.effective import distillation_loss
from lowdim.policy.guards import Guards
from lowdim.policy.large import LargePolicy, load_optimizer, save_optimizer
from lowdim.policy.ledger import CostLedger, flops_per_token
from lowdim.policy.surrogate import clipped_surrogate
from lowdim.policy.trl.config import HybridGRPOConfig
from lowdim.policy.trl.rollouts import RolloutTrainer
from lowdim.policy.trl.vocabulary import keep_tokens

__all__ = ["HybridGRPOTrainer"]

LARGE, STATE = "large", "hybrid.json"
SPECIAL = ("eos_token_id", "bos_token_id", "pad_token_id")


class HybridGRPOTrainer(RolloutTrainer):
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

    args: HybridGRPOConfig

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
        self.second = None if large is None else _load(large, args, large_peft_config)
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
        self.guards.silent = not self.accelerator.is_main_process
        if self.accelerator.device.type == "cuda":
            self.ledger.synchronize = torch.cuda.synchronize
        if self.use_vllm:
            self._time_sync()
        if self.second is not None:
            self._join(large)
        self.add_callback(_OptimizerClock(self))

    @property
    def large(self) -> Any:
        """The large model, None without one."""
        return None if self.second is None else self.second.model

    def _join(self, given: str | PreTrainedModel | None) -> None:
        """Make two models agree on tokens: padding, ends and the support of their softmax."""
        large = _base(self.second.model)
        self._padding_of_large: list[int] | None = None
        rows = tuple(_base(m).get_output_embeddings().weight.shape[0] for m in (self.model, large))
        own = _tokenizer_of(given, self._tokenizer)
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
        if count is None:
            return
        for model in (_base(self.model), large):
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

        self.vllm_generation.sync_weights = timed

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
            _load_weights(second.model, Path(checkpoint) / LARGE)
        if not self.is_fsdp_enabled and not hasattr(second.model, "hf_device_map"):
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
        if checkpoint is not None:
            second.load_state_dict(load_optimizer(second.optimizer, Path(checkpoint) / LARGE))

    def _large_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer that the settings name, for the large model and its learning rate."""
        args = copy.copy(self.args)
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
        if self.second is not None and self.second.trainable:
            self.save_large(folder / LARGE)
            if self.args.should_save:
                save_optimizer(self.second.optimizer, folder / LARGE, extra=self.second.state_dict())
        if self.args.should_save:
            state = {
                "ledger": self.ledger.state_dict(),
                "guards": self.guards.state_dict(),
                "largest_reward": self._largest_reward,
            }
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        super()._save_checkpoint(model, trial)
        self.checkpoint = str(folder)

    def _load_state(self, checkpoint: Path) -> None:
        self.checkpoint = str(checkpoint)
        if (checkpoint / STATE).is_file():
            state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            self.ledger.load_state_dict(state["ledger"])
            self.guards.load_state_dict(state["guards"])
            self._largest_reward = state["largest_reward"]

    # 9 to 11: the updates

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training:
            self._slice, self._began = inputs, self.ledger.now()
        return inputs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Update the small policy, then the large one, on the same slice of rollouts."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        batch, self._slice = self._slice, None
        self._refuse_divergence(loss, batch, "update_small")
        tokens, own = self._count(batch)
        self.ledger.add(
            "update_small",
            seconds=self.ledger.now() - self._began,
            calls=1,
            tokens=tokens,
            completion_tokens=own,
            flops=tokens * flops_per_token(self.model, trained=True),
        )
        if self.second is not None and self.second.trainable:
            self._update_large(self._large_batch(batch))
        self._began = self.ledger.now()
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps = found[0] if torch.is_grad_enabled() else None
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if self.args.kd_place == "loss" and self.args.alpha and "large_logps" in inputs:
            distillation = distillation_loss(
                *(self._logps, inputs["large_logps"], _loss_mask(inputs)),
                max_length=self.max_completion_length,
                estimator=self.args.kd_estimator,
            )
            self._log({"hybrid/kd_loss": float(distillation.detach())})
            loss = loss + self.args.alpha * distillation / self.current_gradient_accumulation_steps
        self._logps = None
        return loss

    def _large_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Choose what the large policy is trained on: the small one's slice."""
        return batch

    def _update_large(self, batch: dict[str, Any]) -> None:
        second, accelerator = self.second, self.accelerator
        with self.ledger.phase("update_large"):
            waits = nullcontext() if accelerator.sync_gradients else accelerator.no_sync(second.wrapped)
            with waits:
                with self.compute_loss_context_manager():
                    loss = self._large_loss(batch)
                self._refuse_divergence(loss, batch, "update_large")
                accelerator.backward(loss)
            if accelerator.sync_gradients:
                rate = second.learning_rate
                norm = second.step(self._clip)
                self._log({"large/grad_norm": norm, "large/learning_rate": rate})
        tokens, own = self._count(batch)
        work = tokens * flops_per_token(second.model, trained=True)
        self.ledger.add("update_large", tokens=tokens, completion_tokens=own, flops=work)

    def _clip(self, model: Any) -> Any:
        largest = self.args.max_grad_norm or float("inf")
        norm = self.accelerator.clip_grad_norm_(model.parameters(), largest)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _large_loss(self, batch: dict[str, Any]) -> Tensor:
        """Equation 15: the small policy's probabilities in the denominator, the plain advantages."""
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            self.second.wrapped,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].size(1),
            compute_entropy=True,
        )
        self._logps = None
        mask = _loss_mask(batch)
        loss, ratios = clipped_surrogate(
            *(logps, batch["sampling_logps"], batch["large_advantages"], mask),
            max_length=self.max_completion_length,
            clip=(self.epsilon_low, self.epsilon_high),
            ratio_cap=self.args.ratio_cap,
            level=self.args.large_ratio,
            rows=batch.get("large_rows"),
        )
        figures = [loss.detach(), (entropies * mask).sum() / mask.sum().clamp(min=1)]
        figures += [torch.tensor(value, device=loss.device) for value in vars(ratios).values()]
        everywhere = self.accelerator.gather(torch.stack([f.float() for f in figures])).view(-1, len(figures))
        mean, largest = everywhere.nanmean(0).tolist(), everywhere[:, 3].max().item()
        self._log(
            {
                "large/loss": mean[0],
                "large/entropy": mean[1],
                "large/ratio/mean": mean[2],
                "large/ratio/max": largest,
                "large/ratio/p99": mean[4],
                "large/clip_ratio/low_mean": mean[5],
                "large/clip_ratio/high_mean": mean[6],
                "large/clip_ratio/outside": mean[7],
            }
        )
        return loss / self.current_gradient_accumulation_steps

    def _refuse_divergence(self, loss: Tensor, batch: dict[str, Any], phase: str) -> None:
        if self._plain or not self._anywhere(~loss.detach().isfinite().all()):
            return
        rows = batch["rows"].tolist()
        raise Diverged(
            f"HybridGRPOTrainer: the loss is not finite at step {self.state.global_step}, {phase}, rollouts "
            f"{rows}. Lower the learning rate, set ratio_cap=3, or use float32 or bf16. "
            f"Last checkpoint: {self.checkpoint or 'none'}.",
            step=self.state.global_step,
        )

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


class _OptimizerClock(TrainerCallback):
    """Adds the small model's clipping and optimizer step, which the Trainer takes, to the ledger."""

    def __init__(self, trainer: HybridGRPOTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ledger = self.trainer.ledger
        ledger.add("update_small", seconds=ledger.now() - self.trainer._began)


def _base(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model


def _loss_mask(batch: dict[str, Any]) -> Tensor:
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


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
    door.check_launch(args, two=two, train_large=bool(args.train_large), processes=processes)
    if two:
        door.check_pair(model, large)
    given = rewards if isinstance(rewards, list | tuple) else [rewards]
    if isinstance(train, Dataset):
        door.check_columns(train.column_names, given)
    if isinstance(evaluation, Dataset):
        door.check_columns(evaluation.column_names, given)
        if isinstance(train, Dataset):
            door.check_overlap(train["prompt"], evaluation["prompt"])


def _checked(reward: Any) -> Any:
    plain = callable(reward) and not isinstance(reward, torch.nn.Module) and not is_async_callable(reward)
    return door.checked_reward(reward) if plain else reward


def _load(large: str | PreTrainedModel, args: HybridGRPOConfig, peft_config: Any) -> LargePolicy:
    set_seed(args.seed)
    if isinstance(large, str):
        options = dict(args.large_model_init_kwargs or {})
        options.setdefault("device_map", None)
        model = create_model_from_path(large, **options)
    else:
        model = large
    if peft_config is not None:
        if is_peft_model(model):
            raise DataError(
                "HybridGRPOTrainer: the large model has adapters already, and large_peft_config asks for "
                "others. Leave large_peft_config out, or merge the adapters first (merge_and_unload)."
            )
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
    if args.disable_dropout:
        disable_dropout_in_model(model)
    if args.activation_checkpointing and args.train_large:
        kwargs = dict(args.activation_checkpointing_kwargs or {})
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs or None)
        if is_peft_model(model):
            model.enable_input_require_grads()
    return LargePolicy(model, trainable=bool(args.train_large), offload=args.offload_large)


def _load_weights(model: Any, folder: Path) -> None:
    """Read a checkpoint of the large model into it."""
    if is_peft_model(model):
        from peft.utils import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder)))
        return
    saved = type(model).from_pretrained(str(folder), dtype="auto")
    model.load_state_dict(saved.state_dict())


def _tokenizer_of(large: str | PreTrainedModel | None, small: Any) -> Any:
    """Find the tokenizer that the large model brings, None if it brings none."""
    path = large if isinstance(large, str) else getattr(large, "name_or_path", "")
    known: Callable[[str], bool] = lambda name: bool(path) and os.path.isfile(os.path.join(path, name))  # noqa: E731
    if not isinstance(large, str) and not (known("tokenizer.json") or known("tokenizer_config.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return None
