"""Two economies in the hooks of TRL's trainer: staged rollouts, and updates without empty rows."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.chat_template_utils import parse_response
from trl.data_utils import is_conversational

from lowdim.errors import DataError, LowdimWarning
from lowdim.policy.compaction import compact, obstacle
from lowdim.policy.forgetting import ForgettingGuard
from lowdim.policy.ledger import CostLedger, flops_per_token
from lowdim.policy.stages import Decision, StagedRollouts

__all__ = ["EconomicTrainer"]


@dataclass
class _Stage:
    """A generation in two stages: what was decided, and the rewards of the first."""

    decision: Decision  # of all processes
    made: Tensor  # (rows,) of this process
    early: list[int]
    late: list[int]
    rewards: Tensor  # of the first stage of all processes, (rows, functions)


class EconomicTrainer(GRPOTrainer):
    """TRL's trainer with both economies as switches; with both off it does what TRL does."""

    # TRL says None, or less, where a training run has something.
    args: Any
    model: Any
    num_generations: Any
    loss_type: Any
    tools: Any
    _logs: Any
    _buffered_inputs: Any
    second: Any
    ledger: CostLedger
    stages: StagedRollouts | None = None
    _compaction: bool = False
    _inputs: Any = None
    _stage: _Stage | None = None

    def _set_economies(self) -> None:
        """Check, once the models are there, whether the economies asked for are possible."""
        args = self.args
        why = obstacle(
            beta=self.beta,
            entropy_bonus=self._entropy_bonus_enabled,
            auxiliary_loss=self.aux_loss_enabled,
            entropy_quantile=self.top_entropy_quantile,
            images=self._is_vlm,
        )
        if args.staged_rollouts is not None:
            self._set_stages(why)
        if args.compaction and args.method == "kdrl":
            why = "the distillation gives every row an advantage"
        if args.compaction and why is not None and args.method != "hybrid":
            warnings.warn(
                f"HybridGRPOTrainer: compaction is off, for {why}. Set compaction=False to silence this.",
                LowdimWarning,
                stacklevel=3,
            )
        # A small model that is distilled has no advantages of zero: with two models the large one has.
        alone = args.method in ("grpo", "pods") and why is None
        self._compaction = alone and (args.compaction or self.stages is not None)

    def _set_stages(self, why: str | None) -> None:
        args = self.args
        G, rows = self.num_generations, args.per_device_train_batch_size * args.steps_per_generation
        where = f"HybridGRPOTrainer: staged_rollouts={args.staged_rollouts}"
        if why is not None:
            raise DataError(f"{where}: {why}, also on rollouts that are not made. Switch one of them off.")
        if self.tools or self.environments or self.rollout_func is not None:
            raise DataError(
                f"{where} needs the trainer's own generation: not with tools, environments or rollout_func."
            )
        if rows % G:
            raise DataError(
                f"{where}: a process generates {rows} rollouts (per_device_train_batch_size x"
                f" steps_per_generation), which are no whole groups of {G}. Use {rows // G * G or G} or"
                f" {(rows // G + 1) * G}."
            )
        if len(self.reward_funcs) > 1 and args.solved_reward is None:
            raise DataError(
                f"{where} with {len(self.reward_funcs)} reward functions: what is a right answer worth in"
                " all? Give solved_reward=..."
            )
        maximum = float(self.reward_weights[0]) if args.solved_reward is None else args.solved_reward
        self.stages = StagedRollouts(
            first=args.staged_rollouts,
            group=G,
            maximum=maximum,
            audit=args.stage_audit,
            seed=args.seed,
            guard=ForgettingGuard(cooldown=args.stage_cooldown),
        )

    # Compaction

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self._compaction or not self.model.training or self._buffered_inputs is before:
            return inputs
        # Slices that always are in one optimizer step, whatever the number of slices of a generation.
        window = math.gcd(self.args.steps_per_generation, self.args.gradient_accumulation_steps)
        self._buffered_inputs, found = compact(
            self._buffered_inputs,
            loss_type=self.loss_type,
            window=window,
            trim_prompts=_rotary(self.model),
            agree=self._agree,
        )
        metrics = self._metrics["train"]
        metrics["compaction/kept"].append(found.share)
        metrics["compaction/positions"].append(found.kept_positions / found.positions)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _agree(self, sizes: list[int]) -> list[int]:
        """Largest number of rows of each micro-batch: TRL gathers figures by row from all processes."""
        own = torch.tensor([sizes], device=self.accelerator.device)
        most: list[int] = self.accelerator.gather(own).amax(0).tolist()
        return most

    def _large_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Choose what the large policy is trained on: the small one's slice, compacted on request."""
        if not self.args.compaction:
            return batch
        (compacted,), found = compact(
            [batch],
            loss_type="dr_grpo",
            advantages="large_advantages",
            trim_prompts=_rotary(self.second.model),
        )
        self._metrics["train"]["large/compaction/kept"].append(found.share)
        return compacted

    # Staged rollouts

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._inputs, self._stage = inputs, None
        output = super()._generate_and_score_completions(inputs)
        if self._stage is not None:
            self._forget_unmade(output, self._stage.made)
        self._inputs = None
        return output

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        generate = super()._generate_single_turn
        stages = self.stages
        if stages is None or not self.model.training:
            return generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images)
        rows = torch.arange(len(prompt_ids)).view(-1, stages.group)
        early = rows[:, : stages.first].flatten().tolist()
        found, logprobs = generate([prompt_ids[row] for row in early], None, {}, stages.first)
        start = self.ledger.now()
        rewards = super()._calculate_rewards(
            [self._inputs[row] for row in early],
            [self._inputs[row]["prompt"] for row in early],
            self._decode(found, [prompt_ids[row] for row in early]),
            found,
        )
        spent = self.ledger.now() - start
        self.ledger.add("reward", seconds=spent, calls=1)
        self.ledger.add("generate", seconds=-spent)  # whose clock runs
        processes, own = self.accelerator.num_processes, self.accelerator.process_index
        keys = torch.tensor([_key(prompt_ids[row]) for row in rows[:, 0].tolist()], device=rewards.device)
        alarms = stages.guard.alarms
        decision = stages.decide(
            self._total(rewards).view(-1, stages.first),
            keys=self.accelerator.gather(keys).tolist(),
            processes=processes,
        )
        if stages.guard.alarms > alarms and self.accelerator.is_main_process:
            warnings.warn(
                "HybridGRPOTrainer: success on prompts that were solved at their last visit fell; staged"
                f" rollouts pause for {stages.guard.cooldown} generations. If this repeats, lower the"
                " learning rate, or give staged_rollouts a larger number.",
                LowdimWarning,
                stacklevel=2,
            )
        expand = decision.expand.view(processes, -1)[own].cpu()
        late = rows[expand, stages.first :].flatten().tolist()
        completions = [[self.eos_token_ids[0]] for _ in prompt_ids]
        scores: list[Any] = [[0.0] for _ in prompt_ids]
        _put(completions, early, found)
        if logprobs is not None:
            _put(scores, early, logprobs)
        if late:  # on every process or on none, and equally many
            found, more = generate([prompt_ids[row] for row in late], None, {}, stages.group - stages.first)
            _put(completions, late, found)
            if logprobs is not None:
                _put(scores, late, more)
        made = torch.zeros(len(prompt_ids), dtype=torch.bool)
        made[early + late] = True
        self._stage = _Stage(decision, made.to(rewards.device), early, late, rewards)
        return completions, None if logprobs is None else scores

    def _decode(self, ids: list[list[int]], prompt_ids: list[list[int]]) -> list[Any]:
        """Turn tokens into the completions that reward functions get, as TRL does."""
        if not is_conversational({"prompt": self._inputs[0]["prompt"]}):
            return self.processing_class.batch_decode(ids, skip_special_tokens=True)  # type: ignore[union-attr]
        templates = ("response_template", "response_schema")
        if any(getattr(self._tokenizer, name, None) is not None for name in templates):
            return [
                [parse_response(self._tokenizer, own, prefix=prompt, tools=self.tools)]
                for own, prompt in zip(ids, prompt_ids, strict=True)
            ]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)  # type: ignore[union-attr]
        return [[{"role": "assistant", "content": text}] for text in texts]

    def _total(self, matrix: Tensor) -> Tensor:
        """Weighted sum of the rewards, NaN where no function gave one."""
        total = (matrix * self.reward_weights.to(matrix.device)).nansum(-1)
        return total.masked_fill(matrix.isnan().all(-1), torch.nan)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        stage = self._stage
        if stage is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        processes, device = self.accelerator.num_processes, stage.rewards.device
        whole = torch.full((processes, len(prompts), len(self.reward_funcs)), torch.nan, device=device)
        # Every process has equally many early rows, the same ones.
        whole[:, stage.early] = stage.rewards.view(processes, len(stage.early), -1)
        if stage.late:
            pick = [[column[row] for row in stage.late] for column in (inputs, prompts, completions)]
            late = super()._calculate_rewards(*pick, [completion_ids_list[row] for row in stage.late])
            rows = self.accelerator.gather(torch.tensor(stage.late, device=device)).view(processes, -1)
            process = torch.arange(processes, device=device)[:, None]
            whole[process, rows] = late.view(processes, len(stage.late), -1)
        self._order_extra_columns(stage, len(prompts))
        matrix = whole.flatten(0, 1)
        figures = self.stages.statistics(  # type: ignore[union-attr]
            stage.decision, self._total(matrix).view(-1, self.num_generations)
        )
        for name, value in figures.items():
            if not math.isnan(value):
                self._metrics["train"][f"stages/{name}"].append(value)
        return matrix

    def _order_extra_columns(self, stage: _Stage, rows: int) -> None:
        """Put what reward functions logged for each completion into the order of the completions."""
        for column, values in self._pending_extra_logs.items():
            if len(values) == len(stage.early) + len(stage.late):
                ordered = [None] * rows
                _put(ordered, stage.early + stage.late, values)
                self._pending_extra_logs[column] = ordered

    def _generate(self, prompts: list[Any]) -> Any:
        found = super()._generate(prompts)
        if self._stage is not None:
            self._count_made(found[0], found[1], self._stage.made)
        return found

    def _count_made(self, prompt_ids: list[list[int]], ids: list[list[int]], made: Tensor) -> None:
        """Correct what TRL counted: rollouts that were not made have no tokens and no length."""
        gather, metrics = self.accelerator.gather, self._metrics["train"]
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        table = torch.tensor(
            [(len(p), len(c), c[-1] in ends) for p, c in zip(prompt_ids, ids, strict=True)],
            device=made.device,
        )
        table, everywhere = gather(table), gather(made)
        self.state.num_input_tokens_seen -= int(table[~everywhere, :2].sum())
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        lengths, ended = table[everywhere, 1].float(), table[everywhere, 2].bool()
        terminated = lengths[ended] if bool(ended.any()) else torch.zeros(1, device=made.device)
        metrics["completions/clipped_ratio"][-1] = float((~ended).float().mean())
        for name, values in (("", lengths), ("terminated_", terminated)):
            for what in ("mean", "min", "max"):
                metrics[f"completions/{what}_{name}length"][-1] = float(getattr(values, what)())

    def _forget_unmade(self, output: dict[str, Any], made: Tensor) -> None:
        """Take rollouts that were not made out of masks and logs, and keep the divisor of the loss."""
        tokens = output["completion_mask"].sum(-1).float()
        groups, there = tokens.view(-1, self.num_generations), made.view(-1, self.num_generations)
        # An unmade rollout counts as many tokens as the made ones of its prompt have on average.
        mean = (groups * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
        nominal = torch.where(there, groups, mean).flatten()
        output["num_items_in_batch"] = self.accelerator.gather(nominal.sum()).sum()
        if self.loss_type == "bnpo":
            output["nominal_tokens"] = nominal
        output["completion_mask"] = output["completion_mask"] * made[:, None]
        prefill = self.accelerator.reduce(output["prompt_mask"][~made].sum(), reduction="sum")
        self.ledger.add("generate", tokens=-int(prefill), flops=-float(prefill) * flops_per_token(self.model))
        everywhere = self.accelerator.gather(made).tolist()
        logs = self._logs
        columns = [logs["prompt"], logs["completion"], logs["advantages"]]
        for column in (*columns, *logs["rewards"].values(), *logs["extra"].values()):
            size = min(len(column), len(everywhere))
            newest = [column.pop() for _ in range(size)][::-1]
            kept = zip(newest, everywhere[len(everywhere) - size :], strict=True)
            column.extend(value for value, was_made in kept if was_made)


def _rotary(model: Any) -> bool:
    """Whether padding left of a prompt does not move its positions; it does with learned ones."""
    return getattr(model.config.get_text_config(), "rope_parameters", None) is not None


def _put(values: list[Any], rows: list[int], new: list[Any]) -> None:
    for row, value in zip(rows, new, strict=True):
        values[row] = value


def _key(prompt_ids: list[int]) -> int:
    """Give a prompt a number, alike in every process and every run."""
    digest = hashlib.blake2b(repr(prompt_ids).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
