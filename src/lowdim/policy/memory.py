"""How much memory two policies on one device need, phase by phase, and how many rows then fit.

Weights are counted from the configuration, without loading them. The activations that wait for the backward
pass were counted tensor by tensor in transformers' Llama and Qwen2 (attention by SDPA, a gated MLP); other
decoders keep a similar number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowdim.errors import BudgetError, DataError

if TYPE_CHECKING:
    import pandas

__all__ = ["PLANS", "MemoryPlan", "ModelSize", "memory_plans"]

Precision = Literal["float32", "autocast", "bfloat16"]

PLANS = ("full", "lora", "bf16", "offload")
"""The plans that are compared."""

CHECKPOINT_ABOVE = 1_000_000_000
"""Parameters from which on gradient checkpointing is assumed."""

HEAD_TILE = 4096 * 32768
"""Logits that TRL's fused head holds at once (4,096 tokens, 32,768 words); in float32, three times over."""


@dataclass(frozen=True)
class ModelSize:
    """What the memory of a causal language model depends on.

    Parameters
    ----------
    parameters : int
        Shared ones once.
    layers, width, inner, heads, key_values : int
        Decoder layers, hidden size, inner size of the MLP, attention heads, and length of the keys of one
        token in one layer (heads of keys times their size).
    vocabulary : int
        Rows of the output head.
    adapted : int
        Inputs plus outputs, summed over all linear layers but the head: LoRA of rank r adds r times as many
        parameters.

    Examples
    --------
    >>> ModelSize(7_600_000_000, 28, 3584, 18944, 28, 512, 152064, 5_046_272).cache_bytes(tokens=1000)
    57344000
    """

    parameters: int
    layers: int
    width: int
    inner: int
    heads: int
    key_values: int
    vocabulary: int
    adapted: int

    @classmethod
    def of(cls, model: Any) -> ModelSize:
        """Read the sizes of a model, of a configuration, or of a folder or Hub id that holds one.

        Parameters
        ----------
        model : Module, PretrainedConfig, path or str
            Of a path or Hub id only config.json is read, and no weight is made.

        Returns
        -------
        ModelSize

        Raises
        ------
        DataError
            If it is no causal language model that transformers knows.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

        if isinstance(model, str | os.PathLike):
            try:
                model = AutoConfig.from_pretrained(os.fspath(model))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"policy plan: {model} holds no configuration of a transformers model "
                    f"({str(error).splitlines()[0]}). Give a folder with config.json, or a Hub id."
                ) from error
        if isinstance(model, PreTrainedConfig):
            try:
                with torch.device("meta"):
                    model = AutoModelForCausalLM.from_config(model)
            except ValueError as error:
                raise DataError(
                    f"policy plan: {type(model).__name__} is no configuration of a causal language model."
                ) from error
        config = getattr(getattr(model, "config", None), "get_text_config", lambda: None)()
        if config is None:
            raise DataError(
                f"policy plan: got a {type(model).__name__}, expected a causal language model of "
                "transformers, its configuration, or the folder of one."
            )
        heads = int(config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        width = int(config.hidden_size)
        head = model.get_output_embeddings()
        linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
        return cls(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            layers=int(config.num_hidden_layers),
            width=width,
            inner=int(getattr(config, "intermediate_size", None) or 4 * width),
            heads=heads,
            key_values=int(getattr(config, "num_key_value_heads", None) or heads) * size,
            vocabulary=int(config.vocab_size),
            adapted=sum(layer.in_features + layer.out_features for layer in linear if layer is not head),
        )

    def cache_bytes(self, tokens: int, *, precision: Precision = "bfloat16") -> int:
        """Return the bytes of the keys and values of `tokens` tokens (of all rows together).

        Parameters
        ----------
        tokens : int
            Rows times tokens of prompt and completion.
        precision : {"float32", "autocast", "bfloat16"}
            Of the numbers; under autocast they are of two bytes.

        Returns
        -------
        int
        """
        return 2 * self.layers * self.key_values * tokens * (4 if precision == "float32" else 2)

    def activation_bytes(
        self, rows: int, tokens: int, *, precision: Precision = "autocast", checkpointing: bool = False
    ) -> int:
        """Return the bytes that one forward pass keeps for its backward pass.

        Parameters
        ----------
        rows, tokens : int
            Size of the micro-batch, prompt included.
        precision : {"float32", "autocast", "bfloat16"}
            Weights and computation in float32; float32 weights under bfloat16 autocast; all in bfloat16.
        checkpointing : bool
            Keep the input of each layer only, and compute the rest again, layer by layer.

        Returns
        -------
        int

        Notes
        -----
        With width d, keys of k numbers, inner size f and h heads, a layer keeps for each token, counted over
        the storages that autograd holds: in float32 ``8 d + 2 k + 4 f`` numbers of 4 bytes (two
        normalizations 3 d each, queries, output of the attention, keys and values, four of the gated MLP);
        in bfloat16 ``20 d + 4 k + 8 f`` bytes, since the normalizations compute in float32; under autocast
        ``30 d + 4 k + 8 f`` bytes, since their outputs are of four bytes too, and the 2-byte copies of the
        weights; always ``4 (h + 2)`` bytes of statistics. The final normalization keeps two widths, and the
        head, which TRL computes in tiles, three float32 tiles. Work space inside kernels is not counted.
        """
        d, k, f = self.width, self.key_values, self.inner
        each = {
            "float32": 32 * d + 8 * k + 16 * f,
            "bfloat16": 20 * d + 4 * k + 8 * f,
            "autocast": 30 * d + 4 * k + 8 * f,
        }[precision] + 4 * (self.heads + 2)
        wide = 4 if precision == "float32" else 2
        positions = rows * tokens
        kept = positions * (self.layers * wide * d + each if checkpointing else self.layers * each)
        copies = 2 * self.parameters // (self.layers if checkpointing else 1)
        tile = 3 * 4 * min(positions * self.vocabulary, HEAD_TILE)
        return kept + 8 * d * positions + tile + (copies if precision == "autocast" else 0)


@dataclass(frozen=True)
class _State:
    """Bytes of one policy outside the activations."""

    weights: int
    gradients: int
    moments: int
    precision: Precision

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments


def _state(size: ModelSize, *, how: str, rank: int) -> _State:
    P = size.parameters
    if how == "lora":
        # Adapters stay in float32: 4 bytes each for weights and gradients, 8 for the moments.
        A = rank * size.adapted
        return _State(2 * P + 4 * A, 4 * A, 8 * A, "bfloat16")
    if how == "bf16":
        return _State(2 * P, 2 * P, 4 * P, "bfloat16")
    if how == "frozen":
        return _State(2 * P, 0, 0, "bfloat16")
    return _State(4 * P, 4 * P, 8 * P, "autocast")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of two policies on one device under one plan.

    Parameters
    ----------
    name : str
        "full", "lora", "bf16" or "offload".
    state : int
        Weights, gradients and moments of both: what section 7.3's arithmetic counts.
    phases : mapping of str to int
        Bytes in each phase: "generate", "score", "update_small", "update_large".
    rows : int
        Largest micro-batch that fits the device; 0 where not even one row does, and -1 without a device.
    rollouts : int
        Rollouts that the small policy can write at once; likewise.
    note : str
        What the plan is and costs.

    Examples
    --------
    >>> size = ModelSize(1_000_000, 2, 64, 128, 2, 64, 1000, 2000)
    >>> plans = memory_plans(size, size, candidates=4, prompt_length=8, completion_length=8)
    >>> [plan.name for plan in plans], plans[0].state
    (['full', 'lora', 'bf16', 'offload'], 32000000)
    """

    name: str
    state: int
    phases: Mapping[str, int]
    rows: int = -1
    rollouts: int = -1
    note: str = ""

    @property
    def peak(self) -> int:
        """Bytes in the fullest phase."""
        return max(self.phases.values())

    @property
    def fits(self) -> bool | None:
        """Whether all phases fit the device; None without a device."""
        return None if self.rows < 0 else self.rows > 0 and self.rollouts > 0

    @staticmethod
    def table(plans: tuple[MemoryPlan, ...]) -> pandas.DataFrame:
        """Return one row per plan, in gigabytes.

        Parameters
        ----------
        plans : tuple of MemoryPlan

        Returns
        -------
        pandas.DataFrame
        """
        import pandas

        return pandas.DataFrame(
            [
                {
                    "plan": plan.name,
                    "state_GB": plan.state / 1e9,
                    **{f"{phase}_GB": held / 1e9 for phase, held in plan.phases.items()},
                    "rows_that_fit": None if plan.rows < 0 else plan.rows,
                    "rollouts_that_fit": None if plan.rollouts < 0 else plan.rollouts,
                    "note": plan.note,
                }
                for plan in plans
            ]
        )


_NOTES = {
    "full": "float32 weights and AdamW moments of both, 16 bytes per parameter",
    "lora": "large in bfloat16 with adapters of rank {rank}; small in full",
    "bf16": "everything in bfloat16, 8 bytes per parameter; small updates are rounded away"
    ", so watch the loss",
    "offload": "as full; the moments of the large policy ({moments:.0f} GB) wait in the memory of the CPU "
    "while the small one writes, there and back each step",
}


def memory_plans(
    small: ModelSize,
    large: ModelSize | None = None,
    *,
    candidates: int,
    prompt_length: int,
    completion_length: int,
    rows: int = 1,
    device_bytes: int | None = None,
    lora_rank: int = 64,
    checkpointing: bool | None = None,
    engine: bool = False,
    train_large: bool = True,
) -> tuple[MemoryPlan, ...]:
    """Compute what every plan needs in every phase of a step.

    Both policies stay on the device, and so do the gradients of the small one until the large one has its
    own. The two updates come one after the other, so that only one of them holds activations.

    Parameters
    ----------
    small, large : ModelSize
        The policies; `large` is None where only one is trained.
    candidates : int
        Rollouts that are written at once.
    prompt_length, completion_length : int
        The longest, in tokens.
    rows : int
        Rows of a micro-batch.
    device_bytes : int, optional
        Memory of the device; with it, the largest micro-batch that fits is sought.
    lora_rank : int
        Of the large policy's adapters under the plan "lora", on all linear layers.
    checkpointing : bool, optional
        Gradient checkpointing; by default for models above 1B parameters.
    engine : bool
        Whether an inference engine holds a second copy of the small policy in bfloat16.
    train_large : bool
        False for a frozen large policy in bfloat16.

    Returns
    -------
    tuple of MemoryPlan
        In the order of `PLANS`. Allocator fragmentation is not counted: leave a tenth free.

    Raises
    ------
    BudgetError
        If a count is below 1.

    References
    ----------
    hybrid-grpo.md, section 7.3: 147 GB in full for 7.6B and 1.54B parameters.

    Examples
    --------
    >>> size = ModelSize(1_000_000, 2, 64, 128, 2, 64, 1000, 2000)
    >>> full, *_ = memory_plans(
    ...     size, size, candidates=4, prompt_length=8, completion_length=8, device_bytes=40_000_000
    ... )
    >>> full.fits, full.rows > 1
    (True, True)
    """
    counts = {
        "candidates": candidates,
        "prompt_length": prompt_length,
        "completion_length": completion_length,
        "rows": rows,
        "lora_rank": lora_rank,
    }
    for name, count in counts.items():
        if count < 1:
            raise BudgetError(f"memory_plans: {name}={count}, expected a positive number.")
    tokens = prompt_length + completion_length
    return tuple(
        _plan(
            *(name, small, large, candidates, rows, tokens, device_bytes, lora_rank, checkpointing),
            engine=engine,
            train_large=train_large,
        )
        for name in PLANS
    )


def _plan(
    name: str,
    small: ModelSize,
    large: ModelSize | None,
    candidates: int,
    rows: int,
    tokens: int,
    device_bytes: int | None,
    rank: int,
    checkpointing: bool | None,
    *,
    engine: bool,
    train_large: bool,
) -> MemoryPlan:
    own = _state(small, how="bf16" if name == "bf16" else "full", rank=rank)
    how = {"lora": "lora", "bf16": "bf16"}.get(name, "full") if train_large else "frozen"
    other = _State(0, 0, 0, "bfloat16") if large is None else _state(large, how=how, rank=rank)
    held = own.weights + own.moments + other.weights + other.moments
    held += 2 * small.parameters if engine else 0
    away = other.moments if name == "offload" else 0

    def activations(size: ModelSize | None, state: _State, count: int) -> int:
        if size is None:
            return 0
        again = size.parameters > CHECKPOINT_ABOVE if checkpointing is None else checkpointing
        return size.activation_bytes(count, tokens, precision=state.precision, checkpointing=again)

    def phases(rollouts: int, count: int) -> dict[str, int]:
        # Scoring keeps nothing for a backward pass: the input and output of one layer, as if checkpointed.
        scoring = max(
            size.activation_bytes(count, tokens, precision=state.precision, checkpointing=True)
            - count * tokens * size.layers * size.width * (4 if state.precision == "float32" else 2)
            for size, state in ((small, own), (large or small, other if large else own))
        )
        cache = small.cache_bytes(rollouts * tokens, precision=own.precision)
        found = {
            "generate": held - away + cache,
            "score": held - away + scoring,
            "update_small": held + own.gradients + activations(small, own, count),
        }
        if large is not None and train_large:
            later = held + own.gradients + other.gradients + activations(large, other, count)
            found["update_large"] = later
        return found

    fit, write = -1, -1
    if device_bytes is not None:
        fit = _largest(lambda count: max(phases(1, count).values()) <= device_bytes)
        write = _largest(lambda rollouts: phases(rollouts, 1)["generate"] <= device_bytes)
    return MemoryPlan(
        name,
        own.total + other.total + (2 * small.parameters if engine else 0),
        phases(candidates, rows),
        fit,
        write,
        _NOTES[name].format(rank=rank, moments=other.moments / 1e9),
    )


def _largest(fits: Any) -> int:
    """Return the largest count that fits, 0 if none does; at most about a million."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
