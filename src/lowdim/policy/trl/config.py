"""The settings of a Hybrid-GRPO run: TRL's, and one for every switch of the method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import GRPOConfig

from lowdim.policy.door import check_batches, check_settings
from lowdim.policy.stages import check_stages

__all__ = ["HybridGRPOConfig"]

# What the methods set where the user says nothing: mean-centered rewards and a constant divisor.
DR_GRPO = {"loss_type": "dr_grpo", "scale_rewards": "none", "disable_dropout": True}
TRL = {"loss_type": "dapo", "scale_rewards": "group", "disable_dropout": False}


@dataclass
class HybridGRPOConfig(GRPOConfig):
    """Settings of a :class:`HybridGRPOTrainer`: those of TRL's ``GRPOConfig`` and the following.

    Settings whose default is None follow the method.

    Parameters
    ----------
    method : {"hybrid", "kdrl", "pods", "grpo"}
        "hybrid" trains both models; "kdrl" keeps the large one frozen; "pods" trains one model on G of M
        rollouts; "grpo" is TRL's own trainer, bit for bit.
    candidates : int
        M, rollouts per prompt.
    keep_rollouts : int
        G, rollouts per prompt that are trained on; with method "grpo" the rollouts per prompt.
    alpha : float or None
        Weight of the distillation; 0 switches it off. None is 1 with two models, else 0.
    selection : {"both", "top", "max_variance", "random"}
        Which G rollouts are kept, see :func:`lowdim.policy.select_rows`.
    center : {"kept", "all"}
        Whether advantages are relative to the mean of the kept or of all rollouts of a prompt.
    kd_estimator : {"k1", "k3", "k2"}
        Estimator of the divergence; k2 for ``kd_place="loss"`` only, k1 for "reward" only.
    kd_place : {"reward", "loss"}
        Whether the distillation is part of the reward (the paper's) or of the small model's loss.
    train_large : bool or None
        None is True with method "hybrid".
    hint_tokens : int
        T, tokens that the large model writes in front of each rollout during the first epochs.
    hint_epochs : float
        How long.
    hint_ratio : {"small", "large", "ignore"}
        Whose tokens hints are in the updates, see :func:`lowdim.policy.hints.sampling_log_probs`.
    large_ratio : {"token", "sequence", "truncated"}
        The large model's importance ratios: "token" is the paper's; "sequence" takes a rollout's geometric
        mean; "truncated" weights the policy gradient with ratios bounded by `ratio_cap`, and clips nothing.
    ratio_cap : float or None
        Upper bound of the large model's ratios where the clip does not hold them; 3 to 10 is recommended,
        None is the paper's. With "truncated" the bound of all ratios, such as 2.
    large_learning_rate : float or None
        None is ``learning_rate``.
    large_scale_rewards : {"none", "group", "batch"}
        Whether the large model's advantages are divided by a standard deviation; ``scale_rewards`` is the
        small model's.
    large_model_init_kwargs : dict or None
        For loading the large model from a path, such as ``{"dtype": "bfloat16"}``.
    score : {"all", "kept"}
        "kept" selects by the plain rewards and scores the kept rollouts only: cheaper, not the paper's.
    compaction : bool
        Leave rollouts without advantage out of the update, with the divisor kept: lossless. Entropy and clip
        ratios are then logged over the rollouts that are left.
    staged_rollouts : int or None
        With method "grpo": generate this many rollouts of each prompt first, and the others only where one
        failed.
    stage_audit : float
        Share of the prompts that are never staged.
    stage_cooldown : int
        Generations without staging after the policy began to forget what it could do.
    solved_reward : float or None
        Reward of a right answer, by which a prompt counts as solved; None is 1, with one reward function.
    offload_large : {False, True, "all"}
        What of the large model waits in the CPU's memory during generation: nothing, the optimizer's
        moments, or these and the weights.
    warn_ratios, warn_weak, warn_flat, warn_falling, stop_falling_large : bool
        The guards, see :class:`lowdim.policy.guards.Guards`.

    Raises
    ------
    DataError
        If settings contradict each other.

    References
    ----------
    Kwon et al., "CoDistill-GRPO", 2026, table 4. Not given there and TRL's here: clip width 0.2, AdamW
    without decay, gradient norm 1, temperature 1, one update per generation.

    Examples
    --------
    >>> config = HybridGRPOConfig("run", per_device_train_batch_size=14, bf16=False, report_to="none")
    >>> config.num_generations, config.loss_type, config.alpha
    (14, 'dr_grpo', 1.0)
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [  # type: ignore[misc]
        *GRPOConfig._VALID_DICT_FIELDS,
        "large_model_init_kwargs",
    ]

    loss_type: Any = field(
        default=None, metadata={"help": "None: dr_grpo, the method's; dapo with method grpo."}
    )
    scale_rewards: Any = field(
        default=None, metadata={"help": "None: none, the method's; group with method grpo."}
    )
    disable_dropout: Any = field(default=None, metadata={"help": "None: True; False with method grpo."})
    num_generations: int | None = field(
        default=None, metadata={"help": "None: candidates; keep_rollouts with method grpo."}
    )
    method: str = field(default="hybrid", metadata={"help": "hybrid, kdrl, pods or grpo."})
    candidates: int = field(default=14, metadata={"help": "M, rollouts per prompt."})
    keep_rollouts: int = field(default=8, metadata={"help": "G, rollouts per prompt that are trained on."})
    alpha: float | None = field(
        default=None, metadata={"help": "Weight of the distillation. None: 1 with two models, else 0."}
    )
    selection: str = field(default="both", metadata={"help": "both, top, max_variance or random."})
    center: str = field(
        default="kept", metadata={"help": "Advantages relative to the kept or to all rollouts of a prompt."}
    )
    kd_estimator: str = field(default="k1", metadata={"help": "k1, k3, or k2 in the loss."})
    kd_place: str = field(default="reward", metadata={"help": "Distillation in the reward or in the loss."})
    train_large: bool | None = field(default=None, metadata={"help": "None: True with method hybrid."})
    hint_tokens: int = field(default=0, metadata={"help": "T, tokens that the large model writes in front."})
    hint_epochs: float = field(default=1.0, metadata={"help": "Epochs with hints."})
    hint_ratio: str = field(default="small", metadata={"help": "small, large or ignore."})
    large_ratio: str = field(default="token", metadata={"help": "token, sequence or truncated."})
    ratio_cap: float | None = field(
        default=None, metadata={"help": "Upper bound of the large model's ratios."}
    )
    large_learning_rate: float | None = field(default=None, metadata={"help": "None: learning_rate."})
    large_scale_rewards: str = field(default="none", metadata={"help": "none, group or batch."})
    large_model_init_kwargs: Any = field(default=None, metadata={"help": "For loading the large model."})
    score: str = field(default="all", metadata={"help": "Score all or only the kept rollouts."})
    compaction: bool = field(
        default=False, metadata={"help": "Leave rollouts without advantage out of the update."}
    )
    staged_rollouts: int | None = field(default=None, metadata={"help": "Rollouts of the first stage."})
    stage_audit: float = field(default=0.05, metadata={"help": "Share of the prompts that are never staged."})
    stage_cooldown: int = field(default=20, metadata={"help": "Generations without staging after an alarm."})
    solved_reward: float | None = field(default=None, metadata={"help": "Reward of a right answer. None: 1."})
    offload_large: bool | str = field(default=False, metadata={"help": "False, True (moments) or all."})
    warn_ratios: bool = field(default=True, metadata={"help": "Warn if the policies are far apart."})
    warn_weak: bool = field(default=True, metadata={"help": "Warn if the small model hardly ever succeeds."})
    warn_flat: bool = field(default=True, metadata={"help": "Warn if rewards are equal or rollouts cut off."})
    warn_falling: bool = field(default=True, metadata={"help": "Warn if the small model's reward falls."})
    stop_falling_large: bool = field(
        default=True, metadata={"help": "Stop if the large model's evaluation falls by a third."}
    )

    def __post_init__(self) -> None:
        plain = self.method == "grpo"
        for name, value in (TRL if plain else DR_GRPO).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.num_generations is None:
            self.num_generations = self.keep_rollouts if plain else self.candidates
        if self.alpha is None:
            self.alpha = 1.0 if self.method in ("hybrid", "kdrl") else 0.0
        if self.train_large is None:
            self.train_large = self.method == "hybrid"
        if self.large_learning_rate is None:
            self.large_learning_rate = self.learning_rate
        self.scale_rewards = {True: "group", False: "none"}.get(self.scale_rewards, self.scale_rewards)
        check_settings(self)
        check_stages(self)
        if not plain and self.generation_batch_size is None:
            slices = self.steps_per_generation or self.gradient_accumulation_steps
            self._check_batches(slices)
        super().__post_init__()
        if not plain:
            self._check_batches(self.steps_per_generation)

    def _check_batches(self, slices: int | None) -> None:
        check_batches(
            per_device=self.per_device_train_batch_size,
            slices=slices or 1,
            candidates=self.candidates,
            keep=self.keep_rollouts,
        )
