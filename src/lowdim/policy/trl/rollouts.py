"""From prompts to the rollouts that are trained on: hints, generation, scores, selection, advantages."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad

from lowdim.errors import Diverged, LowdimWarning
from lowdim.policy.advantages import Scale, group_advantages
from lowdim.policy.diagnostics import group_shares, log_weights
from lowdim.policy.effective import distillation_term, effective_reward, log_ratio
from lowdim.policy.guards import Guards
from lowdim.policy.hints import sampling_log_probs
from lowdim.policy.ledger import CostLedger, flops_per_token
from lowdim.policy.selection import select_rows
from lowdim.policy.trl.economies import EconomicTrainer

__all__ = ["RolloutTrainer"]

# Tensors of a generation batch with one row per rollout.
ROWS = (
    *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask"),
    *("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio"),
)


class RolloutTrainer(EconomicTrainer):
    """The first half of a step: steps 1 to 8 of the method, in the hooks of TRL's trainer."""

    # TRL says None where a training run has something.
    args: Any
    model: Any
    processing_class: Any
    max_completion_length: Any
    _buffered_inputs: Any
    second: Any  # a LargePolicy, or None
    ledger: CostLedger
    guards: Guards
    checkpoint: str | None = None
    _rewards: Tensor
    _hint_tokens: int = 0
    _largest_reward: float = 0.0
    _long: bool = False
    _padding_of_large: list[int] | None = None

    @property
    def _plain(self) -> bool:
        return self.args.method == "grpo"

    # 2 and 3: hints and generation

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        hinted = self.model.training and self.args.hint_tokens and self.state.epoch < self.args.hint_epochs
        self._hint_tokens = self.args.hint_tokens if hinted else 0
        if not hinted:
            with self.ledger.phase("generate"):
                return super()._generate_single_turn(
                    prompt_ids, images, multimodal_fields, num_generations, has_tool_images
                )
        with self.ledger.phase("hint"):
            hints = self._write_hints(prompt_ids)
            self.second.rest()
        ended = [bool(hint) and hint[-1] in self.eos_token_ids for hint in hints]
        # Every process takes part in every generation, and an engine deals equal numbers of rows to all of
        # them.
        rows = [row for row, done in enumerate(ended) if not done or self.use_vllm] or [0]
        prompts = [prompt_ids[row] + hints[row] for row in rows]
        # TRL's engines send one prompt for each `num_generations` rows: with hints every row has its own.
        with self.ledger.phase("generate"), self._at_most(self.max_completion_length - self._hint_tokens):
            rest, logprobs = super()._generate_single_turn(prompts, None, {}, 1)
        found = dict(zip(rows, rest, strict=True))
        completions = [
            hint + ([] if done else found[row])
            for row, (hint, done) in enumerate(zip(hints, ended, strict=True))
        ]
        if logprobs is None:
            return completions, None
        scored = dict(zip(rows, logprobs, strict=True))
        # The engine did not write the hint: no correction there (TRL takes None for a ratio of one).
        return completions, [
            [None] * len(hint) + ([] if done else scored[row])
            for row, (hint, done) in enumerate(zip(hints, ended, strict=True))
        ]

    @torch.no_grad()
    def _write_hints(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Let the large model write the first T tokens of each rollout."""
        self.second.wake()
        prompts = [torch.tensor(ids) for ids in prompt_ids]
        padded = pad(prompts, padding_value=self._tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(ids) for ids in prompts], padding_value=0, padding_side="left")
        sampling = {
            "max_new_tokens": self._hint_tokens,
            "do_sample": True,
            "pad_token_id": self._tokenizer.pad_token_id,
            "bos_token_id": self._tokenizer.bos_token_id,
            "eos_token_id": self.eos_token_ids,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "suppress_tokens": self._padding_of_large,
        }
        device = self.accelerator.device
        with (
            unwrap_model_for_generation(
                self.second.wrapped,
                self.accelerator,
                generation_kwargs=sampling,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as large,
            self._dist.summon_full_params(self.second.wrapped, recurse=False),
        ):
            ids = large.generate(
                input_ids=padded.to(device),
                attention_mask=mask.to(device),
                generation_config=GenerationConfig(**sampling, disable_compile=True),
            )
        return [self._until_end(row) for row in ids[:, padded.shape[1] :].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        for position, token in enumerate(ids):
            if token in self.eos_token_ids:
                return ids[: position + 1]
        return ids

    @contextmanager
    def _at_most(self, tokens: int) -> Iterator[None]:
        """Let generation stop after fewer tokens."""
        if self.use_vllm:
            self.vllm_generation.max_completion_length = tokens
        else:
            self.generation_config.max_new_tokens = self.generation_kwargs["max_new_tokens"] = tokens
        try:
            yield
        finally:
            tokens = self.max_completion_length
            if self.use_vllm:
                self.vllm_generation.max_completion_length = tokens
            else:
                self.generation_config.max_new_tokens = self.generation_kwargs["max_new_tokens"] = tokens

    # 4: rewards

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        with self.ledger.phase("reward"):
            matrix = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weighted = (matrix * self.reward_weights.to(matrix.device).unsqueeze(0)).nansum(dim=1)
        self._rewards = weighted.masked_fill(matrix.isnan().all(dim=1), torch.nan)
        return matrix

    # 5 to 8: scores, effective reward, selection, advantages

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        training = self.model.training
        if training and self.second is not None:
            self.second.rest()
        output = super()._generate_and_score_completions(inputs)
        if training:
            self._count_rollouts(output)
            if not self._plain:
                output = self._choose(output)
        return output

    def _choose(self, output: dict[str, Any]) -> dict[str, Any]:
        """Score the rollouts of this process, keep G of each M, and give them both advantages."""
        args, mask = self.args, output["completion_mask"]
        rows = mask.shape[0]
        first = self.accelerator.process_index * rows
        reward = self._rewards[first : first + rows]
        device = reward.device
        kept = torch.arange(rows, device=device)
        if args.score == "kept":
            kept = self._select(reward)
        scored = self._take(output, kept)
        logp_small, logp_large = self._score_both(scored)
        effective = reward[kept]
        if logp_small is not None and logp_large is not None and args.kd_place == "reward":
            effective = effective_reward(
                *(effective, logp_large, logp_small, scored["completion_mask"]),
                alpha=args.alpha,
                max_length=self.max_completion_length,
                estimator=args.kd_estimator,
            )
        self._report(reward, scored, logp_small, logp_large)
        chosen = torch.arange(len(kept), device=device)
        if args.score == "all":
            chosen = kept = self._select(effective)
        batch = self._take(scored, chosen)
        batch["advantages"] = self._advantages(effective, chosen, args.scale_rewards)
        batch["large_advantages"] = self._advantages(reward, kept, args.large_scale_rewards)
        batch["rows"] = first + kept
        if logp_small is not None and logp_large is not None:
            self._add_denominators(batch, logp_small[chosen], logp_large[chosen])
        return batch

    def _take(self, output: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        """Take some rollouts; what has no rows, like the number of tokens, stays."""
        return {key: value[rows] if key in ROWS else value for key, value in output.items()}

    def _select(self, score: Tensor) -> Tensor:
        """Keep G of M by a score; ties are drawn from the seed, the step and the process."""
        slice_of_step = self._step % self.args.gradient_accumulation_steps
        key = (self.args.seed, self.state.global_step, slice_of_step, self.accelerator.process_index)
        generator = torch.Generator().manual_seed(hash(key) % 2**63)
        return select_rows(
            score,
            candidates=self.args.candidates,
            keep=self.args.keep_rollouts,
            rule=self.args.selection,
            generator=generator,
        )

    def _advantages(self, reward: Tensor, kept: Tensor, scale: Scale) -> Tensor:
        """Advantages of the kept rollouts, relative to them or to all; `kept` indexes `reward`."""
        everything = self.args.center == "all" and len(reward) != len(kept)
        group = self.args.candidates if everything else self.args.keep_rollouts
        reward = reward if everything else reward[kept]
        if scale == "batch":  # one deviation for the batch of all processes
            whole = group_advantages(self.accelerator.gather(reward), group=group, scale=scale)
            first = self.accelerator.process_index * len(reward)
            advantage = whole[first : first + len(reward)]
        else:
            advantage = group_advantages(reward, group=group, scale=scale)
        return advantage[kept] if everything else advantage

    def _add_denominators(self, batch: dict[str, Any], logp_small: Tensor, logp_large: Tensor) -> None:
        mask = batch["completion_mask"]
        ratio = self.args.hint_ratio
        old, loss_mask = sampling_log_probs(
            *(logp_small, logp_large, mask), hint_tokens=self._hint_tokens, ratio=ratio
        )
        batch["sampling_logps"], batch["large_logps"] = old, logp_large
        if self._hint_tokens and ratio == "large":
            batch["old_per_token_logps"] = old
        if self._hint_tokens and ratio == "ignore":
            batch["tool_mask"] = loss_mask

    # 5: log-probabilities at generation

    def _score_both(self, batch: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        if self.second is None:
            return None, None
        self.second.wake()
        old = batch.get("old_per_token_logps")
        small = (
            self._score(self.model, batch, "score_small")
            if old is None
            else self._clean(old, batch, "score_small")
        )
        return small, self._score(self.second.model, batch, "score_large")

    @torch.no_grad()
    def _score(self, model: Any, batch: dict[str, Any], phase: str) -> Tensor:
        """Log-probabilities of the completions, one forward in eval mode, shape ``(rows, tokens)``."""
        was_training = model.training
        model.eval()
        with self.ledger.phase(phase):
            logps, _, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].size(1),
                batch_size=self.args.per_device_train_batch_size,
            )
        model.train(was_training)
        tokens, own = self._count(batch)
        self.ledger.add(phase, tokens=tokens, completion_tokens=own, flops=tokens * flops_per_token(model))
        return self._clean(logps, batch, phase)

    def _clean(self, logps: Tensor, batch: dict[str, Any], phase: str) -> Tensor:
        """Zero at padding; a sampled token without probability is an error."""
        logps = torch.where(batch["completion_mask"].bool(), logps.float(), 0)
        bad = (~logps.isfinite()).any(-1)
        if self._anywhere(bad.any()):
            raise Diverged(
                f"HybridGRPOTrainer: step {self.state.global_step}, {phase}: the sampled tokens of rollouts "
                f"{bad.nonzero().flatten().tolist()} have no finite log-probability. Sampling and scoring "
                f"must agree: temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k} (use 1, "
                f"1 and 0), and the weights must be finite. Last checkpoint: {self.checkpoint or 'none'}.",
                step=self.state.global_step,
            )
        return logps

    def _anywhere(self, flag: Tensor) -> bool:
        """Whether a condition holds on any process."""
        return bool(self.accelerator.reduce(flag.float(), reduction="sum") > 0)

    # Costs and diagnostics

    def _count(self, batch: dict[str, Any]) -> tuple[int, int]:
        """Tokens, and those of completions, of all processes."""
        own = batch["completion_mask"].sum()
        counts = torch.stack([batch["prompt_mask"].sum() + own, own])
        tokens, completion = self.accelerator.reduce(counts, reduction="sum").tolist()
        return int(tokens), int(completion)

    def _count_rollouts(self, output: dict[str, Any]) -> None:
        tokens, own = self._count(output)
        self._watch_length(output["prompt_mask"])
        small = flops_per_token(self.model)
        self.ledger.add("generate", tokens=tokens, completion_tokens=own, flops=tokens * small)
        if not self._hint_tokens or self.second is None:
            return
        lengths = output["completion_mask"].sum(-1).clamp(max=self._hint_tokens).sum()
        hint = int(self.accelerator.reduce(lengths, reduction="sum"))
        self.ledger.add("generate", completion_tokens=-hint)
        large = flops_per_token(self.second.model)
        prompts = tokens - own
        self.ledger.add("hint", tokens=prompts + hint, completion_tokens=hint, flops=(prompts + hint) * large)

    def _watch_length(self, prompts: Tensor) -> None:
        """Warn once if a prompt and its rollout are longer than a model's positions."""
        models = [self.model] if self.second is None else [self.model, self.second.model]
        known = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in models]
        positions = min((count for count in known if count), default=0)
        longest = int(prompts.sum(-1).max())
        if positions and longest + self.max_completion_length > positions and not self._long:
            self._long = True
            warnings.warn(
                f"HybridGRPOTrainer: a prompt of {longest} tokens and max_completion_length="
                f"{self.max_completion_length} exceed the models' {positions} positions. Leave long prompts "
                f"out, or lower max_completion_length to {max(positions - longest, 1)}.",
                LowdimWarning,
                stacklevel=2,
            )

    def _log(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][name].append(value)

    def _report(
        self, reward: Tensor, scored: dict[str, Any], logp_small: Tensor | None, logp_large: Tensor | None
    ) -> None:
        """Log what a batch of rollouts can teach, and how far apart the policies are."""
        everything = self._rewards
        there = everything[~everything.isnan()]
        if there.numel():
            self._largest_reward = max(self._largest_reward, float(there.max()))
        shares = group_shares(everything, group=self.args.candidates, largest=self._largest_reward or 1.0)
        self._log({f"hybrid/frac_{name}": value for name, value in vars(shares).items()})
        log_weight = None
        if logp_small is not None and logp_large is not None:
            mask = scored["completion_mask"]
            log_weight = self.accelerator.gather(log_weights(logp_large, logp_small, mask))
            self._report_distillation(reward, mask, logp_small, logp_large)
        truncated = self._metrics["train"]["completions/clipped_ratio"][-1]
        self.guards.watch(everything, shares, truncated=truncated, log_weight=log_weight)
        if log_weight is not None:
            pool = self.guards.pool
            self._log({"hybrid/ess": pool.fraction(), "hybrid/ess_rows": float(pool.rows)})

    def _report_distillation(
        self, reward: Tensor, mask: Tensor, logp_small: Tensor, logp_large: Tensor
    ) -> None:
        d = log_ratio(logp_large, logp_small, mask)
        sums = torch.stack([-d.sum(), mask.sum().to(d.dtype)])
        kl, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._log({"hybrid/kl_per_token": kl / max(tokens, 1.0)})
        if self.args.kd_place != "reward":
            return
        term = distillation_term(
            *(logp_large, logp_small, mask),
            max_length=self.max_completion_length,
            estimator=self.args.kd_estimator,
        )
        term = self.accelerator.gather(term)
        self._log({"hybrid/kd_mean": float(term.mean()), "hybrid/kd_std": float(term.std(correction=0))})
        if len(term) == len(self._rewards):
            total = self._rewards + self.args.alpha * term
            within = _variance_in_groups(total, self.args.candidates)
            plain = _variance_in_groups(self._rewards, self.args.candidates)
            if (
                within > 0
            ):  # with plain rewards equal in every group, all that tells rollouts apart is the term
                self._log({"hybrid/kd_variance_share": 1 - min(plain / within, 1.0)})


def _variance_in_groups(reward: Tensor, group: int) -> float:
    groups = reward.view(-1, group)
    centered = groups - groups.nanmean(-1, keepdim=True)
    return float(centered.square().nanmean())
