"""The Triton kernels on a GPU against compiled torch and nn.Linear, at Llama-7B's shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Options, Row, Skipped, Table, interleave, ratio
from lowdim.algebra import Blast
from lowdim.algebra.kernels import blast_product, feature_major

NAME = "triton"
DESCRIPTION = (
    "One BLAST layer without bias in bfloat16 on a GPU, b = 16, the paper's ranks; N = 1 and 16 are"
    " decoding, 1024 is"
    " prefill. Ratios are the other's time over our Triton kernels': above 1, ours are faster. Median over"
    " paired"
    " repetitions, quartiles in parentheses."
)
BLOCKS = 16
SHAPES = ((4096, 4096, 1024), (11008, 4096, 1488), (4096, 11008, 1488))  # out, in, rank
TOKENS = (1, 16, 1024)


def run(options: Options) -> Table:
    if not torch.cuda.is_available():
        raise Skipped("no CUDA GPU in reach")
    rows = []
    for m, n, rank in SHAPES[:1] if options.quick else SHAPES:
        for tokens in TOKENS:
            rows.append(_row(m, n, rank, tokens, options))
    note = "'fused' couples inside the first kernel; 'compiled' is torch.compile of the plain torch product."
    return Table(NAME, DESCRIPTION, tuple(rows), (note,))


def _row(m: int, n: int, rank: int, tokens: int, options: Options) -> Row:
    settings = {"device": "cuda", "dtype": torch.bfloat16}
    operator = Blast(n, m, rank=rank, blocks=(BLOCKS, BLOCKS), **settings)
    factors = (operator.U.detach(), operator.S.detach(), operator.V.detach())
    dense = nn.Linear(n, m, bias=False, **settings)
    compiled = torch.compile(feature_major, dynamic=False)
    x = torch.randn(tokens, n, **settings)
    with torch.inference_mode():
        expected = feature_major(x, *factors).float()
        for path in ("triton", "fused"):
            error = (blast_product(x, *factors, path=path).float() - expected).norm() / expected.norm()
            if float(error) > 0.02:
                raise ArithmeticError(
                    f"{path} differs from plain torch by {float(error):.3g} at {m}x{n}, N={tokens}"
                )
        timings = interleave(
            {
                "triton": _timed(lambda: blast_product(x, *factors, path="triton")),
                "fused": _timed(lambda: blast_product(x, *factors, path="fused")),
                "compiled": _timed(lambda: compiled(x, *factors)),
                "dense": _timed(lambda: dense(x)),
            },
            repeats=options.repeats(9),
        )
    best = min(("triton", "fused"), key=lambda name: timings[name].median)
    ratios = {name: ratio(timings[best], other=timings[name]) for name in ("compiled", "dense")}
    return Row(
        case=f"{m}x{n}, rank {rank}, N={tokens}",
        cells={
            "dense, ms": f"{1e3 * timings['dense'].median:.4f}",
            "compiled, ms": f"{1e3 * timings['compiled'].median:.4f}",
            "triton, ms": f"{1e3 * timings['triton'].median:.4f}",
            "fused, ms": f"{1e3 * timings['fused'].median:.4f}",
            "dense / ours": str(ratios["dense"]),
            "compiled / ours": str(ratios["compiled"]),
        },
        figures={
            "shape": [m, n],
            "rank": rank,
            "tokens": tokens,
            "seconds": {name: list(timing.seconds) for name, timing in timings.items()},
            "ratio": {name: value.median for name, value in ratios.items()},
        },
    )


def _timed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        result = call()
        torch.cuda.synchronize()
        return result

    return run
