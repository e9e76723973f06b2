"""compress: a trained network becomes smaller and faster.

Problem: a transformer (or any network with linear layers) is too large or too slow. Every weight matrix A,
(m, n), is replaced by a structured one, by default BLAST: A is cut into blocks and

    A_ij ~= U_i diag(s_ij) V_j,        minimizing  tr((A - X) H (A - X)^T),

where H is the second moment of the layer's inputs on calibration text, so that what is minimized is the
error of the layer's output. Optionally the compressed model is then trained for a few steps to imitate the
original.

In: a folder, a Hub id, or an ``nn.Module`` (and text or inputs to calibrate with). Out: a `CompressResult`:
the model, report.json's contents, a table of the layers; as a folder it loads with
``AutoModel.from_pretrained`` after ``import lowdim``.

Sources: Lee, Kwon, Qu, Kim, "BLAST", NeurIPS 2024, arXiv 2410.21262.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowdim.compress.calibrate import Moments, second_moments
    from lowdim.compress.evaluate import evaluate, speed
    from lowdim.compress.pipeline import compress
    from lowdim.compress.plan import LayerPlan, Plan, plan
    from lowdim.compress.recover import recover
    from lowdim.compress.result import CompressResult
    from lowdim.compress.text import Text, batches, builtin_text, read_text
    from lowdim.compress.write import load_weights, write_checkpoint

__all__ = [
    "CompressResult",
    "LayerPlan",
    "Moments",
    "Plan",
    "Text",
    "batches",
    "builtin_text",
    "compress",
    "evaluate",
    "load_weights",
    "plan",
    "read_text",
    "recover",
    "second_moments",
    "speed",
    "write_checkpoint",
]

# Loaded on first use: transformers' import hook imports a file of this folder while transformers itself is
# half imported, and `import lowdim.compress` should not cost what is not used.
_HOMES = {
    "CompressResult": "result",
    "LayerPlan": "plan",
    "Moments": "calibrate",
    "Plan": "plan",
    "Text": "text",
    "batches": "text",
    "builtin_text": "text",
    "compress": "pipeline",
    "evaluate": "evaluate",
    "load_weights": "write",
    "plan": "plan",
    "read_text": "text",
    "recover": "recover",
    "second_moments": "calibrate",
    "speed": "timing",
    "write_checkpoint": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Room(ModuleType):
    """A package in which a name shared by a verb and its file means the verb."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Room


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
