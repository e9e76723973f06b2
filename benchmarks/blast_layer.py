"""A BLAST layer against nn.Linear, a low-rank layer and the official BLAST layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Options, Row, Skipped, Table, interleave, ratio
from benchmarks.peers import official_blast
from lowdim.algebra import Blast, LowRank, StructuredLinear

NAME = "blast_layer"
DESCRIPTION = (
    "One layer with bias, float32, keep 0.5, N tokens per call. Ratios are the other's time over ours:"
    " above 1, BLAST is"
    " faster. Median over paired repetitions, quartiles in parentheses."
)
KEEP = 0.5
SHAPES = (  # out_features, in_features, token counts
    (384, 384, (1, 64, 512)),
    (1536, 384, (64, 512)),
    (1024, 1024, (1, 8, 64, 512)),
    (4096, 1024, (1, 8)),
    (4096, 4096, (1, 64)),
)
QUICK = ((1536, 384, (64,)), (1024, 1024, (1, 64)))

#: Speed over nn.Linear asked of the shapes below at 64 to 512 tokens, by block count.
FASTER = {4: 1.5, 16: 1.3}
FASTER_SHAPES = ((1536, 384), (1024, 1024))
#: No layer of at least a million weights may be slower than this share of nn.Linear's speed.
FLOOR, LARGE = 0.9, 1_000_000
#: "Not slower than the official layer" allows for the grain of the clock.
EVEN = 0.97


def run(options: Options) -> Table:
    try:
        peer: Any = official_blast("models.modeling_blast").BlastLinear
        missing = ""
    except Skipped as reason:
        peer, missing = None, str(reason)
    rows = []
    for m, n, counts in QUICK if options.quick else SHAPES:
        for b in (4, 16):
            for tokens in counts:
                rows.append(_row(m, n, b, tokens, peer, options))
    notes = [
        f"Thresholds (medians): BLAST over nn.Linear at least {FASTER[4]} (b = 4) and {FASTER[16]} (b = 16)"
        " for 1536x384 and"
        f" 1024x1024 at 64 to 512 tokens; at least {FLOOR} wherever the matrix has a million entries; never"
        " slower than"
        f" the official layer ({EVEN} allowed for the clock).",
    ]
    if missing:
        notes.append(f"Official layer skipped: {missing}.")
    return Table(NAME, DESCRIPTION, tuple(rows), tuple(notes))


def _row(m: int, n: int, b: int, tokens: int, peer: Any, options: Options) -> Row:
    torch.manual_seed(0)
    rank = Blast.rank_for(KEEP, m, n, (b, b))
    bias = torch.zeros(m)
    layers: dict[str, nn.Module] = {
        "ours": StructuredLinear(Blast(n, m, rank=rank, blocks=(b, b)), bias),
        "dense": nn.Linear(n, m),
        "lowrank": StructuredLinear(LowRank(n, m, rank=LowRank.rank_for(KEEP, m, n, (1, 1))), bias),
    }
    if peer is not None:
        layers["official"] = _official(peer, layers["ours"], m, n, b, rank)
    x = torch.randn(tokens, n)
    with torch.inference_mode():
        timings = interleave(
            {name: _call(layer.eval(), x) for name, layer in layers.items()}, repeats=options.repeats(9)
        )
    ratios = {
        name: ratio(timings["ours"], other=timing) for name, timing in timings.items() if name != "ours"
    }
    dense = ratios["dense"].median
    met = [peer is None or ratios["official"].median >= EVEN]
    judged = peer is not None
    if (m, n) in FASTER_SHAPES and tokens >= 64:
        met.append(dense >= FASTER[b])
        judged = True
    if m * n >= LARGE:
        met.append(dense >= FLOOR)
        judged = True
    return Row(
        case=f"{m}x{n}, b={b}, rank {rank}, N={tokens}",
        cells={
            "dense, ms": f"{1e3 * timings['dense'].median:.3g}",
            "BLAST, ms": f"{1e3 * timings['ours'].median:.3g}",
            "dense / BLAST": str(ratios["dense"]),
            "low rank / BLAST": str(ratios["lowrank"]),
            "official / BLAST": str(ratios["official"]) if peer is not None else None,
        },
        figures={
            "shape": [m, n],
            "blocks": b,
            "rank": rank,
            "tokens": tokens,
            "seconds": {name: list(timing.seconds) for name, timing in timings.items()},
            "ratio": {name: value.median for name, value in ratios.items()},
        },
        met=all(met) if judged else None,
    )


def _call(layer: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: layer(x)


def _official(peer: Any, ours: nn.Module, m: int, n: int, b: int, rank: int) -> nn.Module:
    """Give the official layer the factors of ours, and make sure that both compute the same."""
    layer = peer(n, m, num_blocks=b, rank=rank, bias=True)
    operator = ours.operator
    with torch.no_grad():
        layer.B.copy_(operator.U)
        layer.C.copy_(operator.V)
        layer.D.copy_(operator.S.permute(1, 2, 0))
        layer.bias.zero_()
        probe = torch.randn(3, n)
        torch.testing.assert_close(layer(probe), ours(probe), rtol=1e-3, atol=1e-3)
    return layer
