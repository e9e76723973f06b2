"""Tucker-structured phase retrieval: time to an exact video against five sweeps of the official code."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from types import ModuleType

import numpy as np
import torch

from benchmarks.harness import Options, Row, Table, Timing, ratio
from benchmarks.peers import official_tucker
from lowdim.algebra.seeds import gaussian
from lowdim.algebra.tensors import Tucker
from lowdim.phase import TuckerPhaseRetrieval, relative_error

NAME = "phase_retrieval"
DESCRIPTION = (
    "20 frames of 12 x 12 pixels, multilinear ranks (3, 3, 3), real Gaussian A, float64. The official code "
    "runs five sweeps, as in its sample; ours, with its default options, runs until the loss stands still. "
    "Ratio: official time over ours. Error: of all frames, each up to its sign."
)
THRESHOLD = 20.0
SWEEPS = 5


def video(ratio: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return A (q, m, 12, 12), magnitudes (q, m) and frames (q, 12, 12)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return gaussian(shape, seed=generator, dtype=torch.float64)

    frames = Tucker(draw(3, 3, 3), (draw(12, 3), draw(12, 3), draw(20, 3))).dense().movedim(-1, 0)
    A = draw(20, round(144 * ratio), 12, 12)
    return A, torch.einsum("kmij,kij->km", A, frames).abs(), frames


def run(options: Options) -> Table:
    with official_tucker() as official:
        ratios = (0.6,) if options.quick else (0.6, 1.5)
        rows = [_row(official, share, repeats=options.repeats(3)) for share in ratios]
    notes = (f"Threshold at 0.6: at least {THRESHOLD:g}, and an error below 1e-6 of ours.",)
    return Table(NAME, DESCRIPTION, tuple(rows), notes)


def _row(official: ModuleType, share: float, *, repeats: int) -> Row:
    theirs, ours, errors = [], [], []
    for seed in range(repeats):
        A, y, frames = video(share, seed)
        # Their axes: (pixels in Fortran order, m, q), the vectors themselves, and intensities (m, q).
        a = np.ascontiguousarray(A.numpy().transpose(3, 2, 1, 0).reshape(144, -1, 20)).astype(complex)
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = official.tucker_fit([3, 3, 3], [12, 12], a, y.numpy().T ** 2, SWEEPS)
        theirs.append(time.perf_counter() - start)
        start = time.perf_counter()
        model = TuckerPhaseRetrieval((3, 3, 3)).fit(A, y)
        ours.append(time.perf_counter() - start)
        official_frames = torch.as_tensor(found).movedim(-1, 0)
        errors.append(
            (
                relative_error(official_frames, frames.to(torch.complex128)),
                relative_error(model.frames_, frames),
            )
        )
    gain = ratio(Timing(tuple(ours)), other=Timing(tuple(theirs)))
    worst = [max(pair[i] for pair in errors) for i in (0, 1)]
    return Row(
        case=f"m = {share:g} n",
        cells={
            f"official, {SWEEPS} sweeps, s": f"{float(np.median(theirs)):.1f}",
            "ours, s": f"{float(np.median(ours)):.2f}",
            "official / ours": str(gain),
            "largest error: official, ours": f"{worst[0]:.2g}, {worst[1]:.1g}",
        },
        figures={"official": theirs, "ours": ours, "errors": errors},
        met=bool(gain.median >= THRESHOLD and worst[1] < 1e-6) if share == 0.6 else None,
    )
