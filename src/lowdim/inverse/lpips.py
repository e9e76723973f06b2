"""lpips: the perceptual distance of images, where its package is installed and its network at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowdim.errors import DataError

if TYPE_CHECKING:
    from lowdim.inverse.folder import InverseResult

__all__ = ["SMALLEST", "add_lpips"]

SMALLEST = 32
"""Pixels a side that its network needs at least."""


def add_lpips(result: InverseResult) -> dict[str, Any]:
    """Return the report of a result with the LPIPS distance of every reconstruction to the truth.

    Parameters
    ----------
    result : InverseResult

    Returns
    -------
    dict
        ``lpips`` in every row and, as means, in every solver's record; or, without them, a note that says
        why.

    Raises
    ------
    DataError
        If the truth is not known.

    References
    ----------
    Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features as a perceptual
    metric", CVPR 2018; the network is AlexNet.
    """
    if result.truth is None:
        raise DataError("lpips: the true images are not known. Give them as the source.")
    report = dict(result.report)
    sides = [min(image.shape[-2:]) for image in result.truth]
    channels = {len(image) for image in result.truth}
    if min(sides) < SMALLEST or not channels <= {1, 3}:
        what = f"{SMALLEST} pixels a side" if min(sides) < SMALLEST else "1 or 3 channels"
        return _without(report, f"images have less than the {what} its network needs")
    try:
        from lpips import LPIPS
    except ImportError:
        return _without(report, "the package lpips is not installed (pip install lpips)")
    try:
        distance = LPIPS(net="alex", verbose=False).eval()
    except (OSError, RuntimeError) as error:  # its weights come over the network
        return _without(report, f"its network could not be loaded ({str(error).splitlines()[0]})")
    low, high = report["value_range"]
    rows = [dict(row) for row in report["rows"]]
    for row in rows:
        index = report["names"].index(row["image"])
        pair = (result.images[row["solver"]][index], result.truth[index])
        image, truth = ((2 * (x.float() - low) / (high - low) - 1).expand(3, -1, -1)[None] for x in pair)
        with torch.no_grad():
            row["lpips"] = float(distance(image.clamp(-1, 1), truth))
    solvers = []
    for record in report["solvers"]:
        found = [row["lpips"] for row in rows if row["solver"] == record["name"]]
        solvers.append({**record, "lpips": sum(found) / len(found)})
    return {**report, "rows": rows, "solvers": solvers}


def _without(report: dict[str, Any], why: str) -> dict[str, Any]:
    note = f"LPIPS is left out: {why}."
    return {**report, "notes": [*(n for n in report["notes"] if not n.startswith("LPIPS")), note]}
