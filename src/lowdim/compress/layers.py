"""A factorized layer: its file, and its place in the model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lowdim.algebra import History, Operator, StructuredLinear
from lowdim.compress.modules import replace_module
from lowdim.compress.plan import LayerPlan
from lowdim.runs import atomic_tensors, digest, read_tensors

__all__ = ["Layer", "file_name", "install_layers"]


@dataclass(frozen=True)
class Layer:
    """One factorized layer.

    Parameters
    ----------
    plan : LayerPlan
        What was asked for.
    operator : Operator
        The factors, on the CPU, in the dtype of the weight.
    history : History
        Errors per sweep.
    weight_error : float
        ``||A - X||_F / ||A||_F`` with the original weight A.
    output_error : float or None
        Relative root mean square error of the layer's output on the calibration inputs.
    seconds : float
        Time that the factorization took.
    """

    plan: LayerPlan
    operator: Operator
    history: History
    weight_error: float
    output_error: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row of report.json."""
        return {
            **self.plan.to_dict(),
            "weight_error": self.weight_error,
            "output_error": self.output_error,
            "sweeps": self.history.steps,
            "residual": list(self.history.residual),
            "reason": self.history.reason,
            "notes": list(self.history.notes),
            "seconds": self.seconds,
        }

    def write(self, path: Path, *, key: str) -> None:
        """Write the factors and what is known of them to a file.

        Parameters
        ----------
        path : Path
            A safetensors file, replaced as a whole.
        key : str
            Digest of what the factors depend on.
        """
        facts = {
            "key": key,
            "config": json.dumps(self.operator.config()),
            "history": json.dumps(self.history.to_dict()),
            "errors": json.dumps([self.weight_error, self.output_error]),
            "seconds": repr(self.seconds),
        }
        atomic_tensors(path, self.operator.state_dict(), facts)

    @classmethod
    def read(cls, path: Path, plan: LayerPlan, *, key: str | None = None) -> Layer | None:
        """Read what `write` wrote.

        Parameters
        ----------
        path : Path
            The file.
        plan : LayerPlan
            What was asked for.
        key : str, optional
            The digest that the file must carry.

        Returns
        -------
        Layer or None
            None if the file carries another key.

        Raises
        ------
        RunError
            If the file is truncated or was changed.
        """
        tensors, facts = read_tensors(path)
        if key is not None and facts.get("key") != key:
            return None
        operator = Operator.from_config(json.loads(facts["config"]), device="meta")
        operator.load_state_dict(dict(tensors), assign=True)
        history = json.loads(facts["history"])
        weight_error, output_error = json.loads(facts["errors"])
        return cls(
            plan=plan,
            operator=operator,
            history=History(
                objective=tuple(history["objective"]),
                residual=tuple(history["residual"]),
                seconds=history["seconds"],
                reason=history["reason"],
                notes=tuple(history["notes"]),
            ),
            weight_error=weight_error,
            output_error=output_error,
            seconds=float(facts["seconds"]),
        )


def file_name(name: str) -> str:
    """Return the name of a layer's work file; no two layers share one.

    Parameters
    ----------
    name : str
        Name of the layer.

    Returns
    -------
    str

    Examples
    --------
    >>> file_name("encoder.layer.0.attention.self.query")
    'encoder.layer.0.attention.self.query.safetensors'
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if plain == name and 0 < len(name) < 150:
        return f"{name}.safetensors"
    return f"{plain[-100:]}-{digest(name)[:12]}.safetensors"


def install_layers(model: nn.Module, layers: list[Layer]) -> None:
    """Put factorized layers into a model, in place, wherever their weights are used.

    Parameters
    ----------
    model : Module
        A copy of the original.
    layers : list of Layer
        From `factorize_layers`.
    """
    for layer in layers:
        operator: Operator | None = None
        for place in layer.plan.places:
            old = model.get_submodule(place)
            if isinstance(old, StructuredLinear):
                continue  # a second name of a module that was replaced already
            if operator is None:
                weight = old.get_parameter("weight")
                operator = layer.operator.to(weight.device, weight.dtype)
            bias = getattr(old, "bias", None)
            new = StructuredLinear(operator, bias)
            if bias is not None and new.bias is not None:
                new.bias.requires_grad_(bias.requires_grad)
            new.train(old.training)
            replace_module(model, old, new)
