"""From chosen rollouts to two updates: the small policy's by TRL, the large one's beside it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import TrainerCallback

from lowdim.errors import Diverged
from lowdim.policy.effective import distillation_loss
from lowdim.policy.ledger import flops_per_token
from lowdim.policy.surrogate import RatioStatistics, clipped_surrogate, truncated_surrogate
from lowdim.policy.trl.rollouts import RolloutTrainer

__all__ = ["OptimizerClock", "UpdateTrainer"]


class UpdateTrainer(RolloutTrainer):
    """The second half of a step: steps 9 to 11 of the method."""

    _slice: Any = None
    _began: float = 0.0
    _logps: Any = None
    _balance_of_large: float = 0.0

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
        # Not accelerate's: with shards of two models it compares their parameters, of unlike shapes.
        norm = clip_grad_norm_(model.parameters(), self.args.max_grad_norm or float("inf"))
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _large_loss(self, batch: dict[str, Any]) -> Tensor:
        """Equation 15: the small policy's probabilities in the denominator, the plain advantages."""
        balance = self._balance_of_large
        logps, entropies, auxiliary = self._get_per_token_logps_and_entropies(
            self.second.wrapped,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=balance != 0,
        )
        self._logps = None
        mask = _loss_mask(batch)
        loss, ratios = self._surrogate(logps, batch["sampling_logps"], batch["large_advantages"], mask)
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
        if balance:  # a mixture of experts: its own loss keeps them all in use
            loss = loss + balance * auxiliary
        return loss / self.current_gradient_accumulation_steps

    def _surrogate(
        self, logps: Tensor, old: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, RatioStatistics]:
        N, cap = self.max_completion_length, self.args.ratio_cap
        if self.args.large_ratio == "truncated":
            return truncated_surrogate(logps, old, advantages, mask, max_length=N, cap=cap)
        return clipped_surrogate(
            *(logps, old, advantages, mask),
            max_length=N,
            clip=(self.epsilon_low, self.epsilon_high),
            ratio_cap=cap,
            level=self.args.large_ratio,
        )

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


class OptimizerClock(TrainerCallback):
    """Adds the small model's clipping and optimizer step, which the Trainer takes, to the ledger."""

    def __init__(self, trainer: UpdateTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop the clock that ran since the last backward pass."""
        ledger = self.trainer.ledger
        ledger.add("update_small", seconds=ledger.now() - self.trainer._began)


def _loss_mask(batch: dict[str, Any]) -> Tensor:
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask
