"""Compressed checkpoints for transformers: ``AutoModel*.from_pretrained`` and ``save_pretrained`` just work.

A compressed model is an ordinary transformers model some of whose linear layers are `StructuredLinear`, and
some of whose embedding tables may be smaller ones. Which, and in which form, stands in ``config.json`` under
``quantization_config``; the quantizer registered here puts empty ones in their place before transformers
reads the weights, so that sharded files, ``dtype``, ``device_map`` and every architecture work without remote
code.

Every tensor's SHA-256 travels in the header of the weight files. Loading compares them, and refuses a
truncated or altered file by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from lowdim import __version__
from lowdim.compress.embedding import CompactEmbedding
from lowdim.compress.fingerprint import METADATA_KEY, fingerprints, verify
from lowdim.compress.modules import (
    FORMAT_VERSION,
    check_version,
    densify,
    format_version,
    install_modules,
    structured_modules,
)
from lowdim.errors import DataError, MissingExtra, RunError

try:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:  # pragma: no cover - exercised in a process without transformers
    raise MissingExtra("transformers", extra="transformers", purpose="load and save its models") from error

__all__ = [
    "FORMAT_VERSION",
    "LowdimConfig",
    "LowdimQuantizer",
    "attach_config",
    "densify",
    "install_modules",
    "read_pretrained",
    "read_processors",
    "register",
    "structured_modules",
]


class LowdimConfig(QuantizationConfigMixin):
    """What ``quantization_config`` in config.json says: which layers are structured, and how.

    Parameters
    ----------
    modules : mapping of str to dict
        Name of the layer or table in the saved model -> its description, as from `structured_modules`.
    version : int, optional
        Version of this description; by default the oldest that can say it.
    written_by : str, optional
        The version of lowdim that wrote it, for error messages.

    Raises
    ------
    RunError
        If the version is unknown to this lowdim.
    DataError
        If the description is incomplete.
    """

    def __init__(
        self,
        modules: Mapping[str, Mapping[str, Any]] | None = None,
        version: int | None = None,
        written_by: str | None = None,
        **unknown: Any,
    ) -> None:
        if version is not None:
            check_version(version, written_by)
        if not isinstance(modules, Mapping) or not modules:
            raise DataError(
                "config.json: quantization_config names no compressed modules. The file was edited or cut; "
                "copy it again, or compress the original model again."
            )
        self.quant_method = "lowdim"  # type: ignore[assignment]
        self.written_by = written_by or __version__
        self.modules = {name: dict(entry) for name, entry in modules.items()}
        self.version = format_version(self.modules) if version is None else version

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read the entry of config.json; see `QuantizationConfigMixin.from_dict`."""
        fields = {key: value for key, value in config_dict.items() if key != "quant_method"}
        if "version" in fields:  # null is no version, though it stands for "choose one" in Python
            check_version(fields["version"], fields.get("written_by"))
        config = cls(**fields)
        return (config, kwargs) if return_unused_kwargs else config


class LowdimQuantizer(HfQuantizer):
    """The plug-in of transformers that builds structured layers before weights are read.

    It converts nothing: it only loads what `compress` wrote, and keeps config.json and the fingerprints right
    when the model is saved again.
    """

    requires_calibration = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot work before any work is done."""
        if not self.pre_quantized:
            raise DataError(
                "LowdimConfig cannot compress a model inside from_pretrained. Load the model without it "
                "and call "
                "lowdim.compress.compress(model, ...), or run: lowdim compress MODEL -o OUT"
            )

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        placed = install_modules(model, self.quantization_config.modules)  # type: ignore[attr-defined]
        _refuse_ties(model, placed)
        shapes = {
            f"{saved}.{key}": tuple(tensor.shape)
            for saved, name in placed.items()
            for key, tensor in model.get_submodule(name).state_dict().items()
        }
        verify(checkpoint_files or [], shapes=shapes)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        # Factors are plain floating-point parameters: .float(), .half(), Trainer and FSDP may treat them as
        # such.
        model.is_quantized = False  # type: ignore[assignment]
        _refresh(model)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        """Bring config.json up to date and give the fingerprints for the files' headers."""
        from transformers.core_model_loading import revert_weight_conversion

        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}
        _refresh(model)
        # Some architectures are stored under older names than those of their modules, or with merged weights
        # cut; the header knows both, and tensors that are the same memory are read once.
        tensors = model.state_dict()
        stored = {**tensors, **revert_weight_conversion(model, dict(tensors))}
        return None, {METADATA_KEY: json.dumps(fingerprints(stored), sort_keys=True)}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        densify(model)
        return model.to(dtype) if dtype is not None else model

    def is_serializable(self) -> bool:
        """Return True: the model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: the factors are ordinary parameters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: the layers are ordinary modules."""
        return True


def _refuse_ties(model: Any, placed: Mapping[str, str]) -> None:
    """Refuse a class whose output layer would share its weight with a table that is no longer one."""
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    for saved, name in placed.items():
        if not isinstance(model.get_submodule(name), CompactEmbedding):
            continue
        partners = [other for pair in ties.items() if f"{name}.weight" in pair for other in pair]
        if partners:
            other = next(key for key in partners if key != f"{name}.weight")
            kind = type(model).__name__
            raise DataError(
                f"config.json describes '{saved}' as a compressed embedding table, but {kind} ties it to "
                f"{other!r}, which needs the dense one. Load the folder with the class it was saved from "
                f"({', '.join(model.config.architectures or ['unknown'])}), or compress a {kind}, which "
                "keeps the table."
            )


def _refresh(model: Any) -> None:
    """Let config.json describe the layers that are in the model now (adapters may have been merged)."""
    modules = structured_modules(model)
    if modules:
        model.config.quantization_config = LowdimConfig(modules=modules)
    else:
        model.hf_quantizer.remove_quantization_config(model)


def attach_config(model: Any, modules: Mapping[str, Mapping[str, Any]] | None = None) -> Any:
    """Make ``model.save_pretrained`` write a folder that ``from_pretrained`` understands.

    Parameters
    ----------
    model : PreTrainedModel
        With `StructuredLinear` layers or smaller tables; changed in place (its config and its quantizer).
    modules : mapping of str to dict, optional
        Description of the layers and tables; by default it is read from the model.

    Returns
    -------
    PreTrainedModel
        The same model.

    Raises
    ------
    DataError
        If the model has no structured layer.
    """
    modules = structured_modules(model) if modules is None else modules
    if not modules:
        raise DataError(
            f"attach_config: {type(model).__name__} has no StructuredLinear layer, so there is nothing to "
            "describe. "
            "Compress it first."
        )
    config = LowdimConfig(modules=modules)
    model.config.quantization_config = config
    model.hf_quantizer = LowdimQuantizer(config, pre_quantized=True)
    model.quantization_method = "lowdim"
    return model


def read_pretrained(source: str, *, dtype: torch.dtype | None = None) -> Any:
    """Load a model as the class that it was saved from, so that its head is kept.

    Parameters
    ----------
    source : str
        A folder or a Hub id.
    dtype : torch.dtype, optional
        By default that of the checkpoint.

    Returns
    -------
    PreTrainedModel

    Raises
    ------
    DataError
        If it cannot be read, is quantized by another method, or is of a class that transformers lacks.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(source, error) from error
    stored = getattr(config, "quantization_config", None)
    kind = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    kind = getattr(kind, "value", kind)
    if kind not in (None, "lowdim"):
        raise DataError(
            f"The model {source!r} is already quantized ({kind}). Compress the original weights; --quantize "
            "int8 then quantizes the factors."
        )
    named = list(getattr(config, "architectures", None) or [])
    known = [name for name in named if hasattr(transformers, name)]
    if named and not known:
        # AutoModel would read the weights, but into a model without the head.
        raise DataError(
            f'The model {source!r} is a {named[0]} ("architectures" in its config.json), which transformers '
            f"{transformers.__version__} does not have. Load it in Python with the code that defines it and "
            "pass the module: compress(model, tokenizer=...); or install a transformers that has the class."
        )
    model_class = getattr(transformers, known[0]) if known else transformers.AutoModel
    try:
        return model_class.from_pretrained(source, dtype=dtype or "auto", use_safetensors=True)
    except RunError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> DataError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(
        f"The model {source!r} cannot be read: {first} Give a folder with a sound config.json and weights, "
        "or a Hub id that can be reached (network, spelling)."
    )


def read_processors(source: str) -> tuple[Any, Any]:
    """Return a model's tokenizer, and what belongs beside its weights: tokenizer or image processor.

    Parameters
    ----------
    source : str
        A folder or a Hub id.

    Returns
    -------
    tokenizer, processor
        None where there is none.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except Exception:  # every kind of model without text raises its own error here
        tokenizer = None
    # An empty vocabulary is what AutoTokenizer makes of a folder without tokenizer files.
    if tokenizer is not None and len(tokenizer) > len(tokenizer.all_special_tokens):
        return tokenizer, tokenizer
    try:
        return None, transformers.AutoImageProcessor.from_pretrained(source)
    except Exception:  # models without images either
        return None, None


def register() -> None:
    """Enter the method "lowdim" in transformers' tables; done when this file is imported."""
    AUTO_QUANTIZATION_CONFIG_MAPPING["lowdim"] = LowdimConfig
    AUTO_QUANTIZER_MAPPING["lowdim"] = LowdimQuantizer


register()
