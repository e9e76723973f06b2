"""The large model of a run: loaded, adapted, its tokenizer found, its checkpoint read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model, set_seed
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel
from trl.trainer.utils import create_model_from_path, disable_dropout_in_model

from lowdim.errors import DataError
from lowdim.policy.door import check_precision
from lowdim.policy.large import LargePolicy
from lowdim.policy.trl.config import HybridGRPOConfig

__all__ = ["base_of", "load_large", "load_rollouts", "load_weights", "save_rollouts", "tokenizer_of"]


def base_of(model: Any) -> Any:
    """Take the model out of its adapters."""
    return model.get_base_model() if is_peft_model(model) else model


def load_large(
    large: str | PreTrainedModel, args: HybridGRPOConfig, *, peft_config: Any = None
) -> LargePolicy:
    """Load the large model and put adapters on it, drawn from the seed of the run.

    Parameters
    ----------
    large : str or PreTrainedModel
        Path, hub id or model.
    args : HybridGRPOConfig
        The settings.
    peft_config : PeftConfig, optional
        Adapters.

    Returns
    -------
    LargePolicy

    Raises
    ------
    DataError
        If the model has adapters already.
    """
    set_seed(args.seed)
    if isinstance(large, str):
        options = dict(args.large_model_init_kwargs or {})
        options.setdefault("device_map", None)
        model = create_model_from_path(large, **options)
    else:
        model = large
    if peft_config is not None:
        if is_peft_model(model):
            raise DataError(
                "HybridGRPOTrainer: the large model has adapters already, and large_peft_config asks for "
                "others. Leave large_peft_config out, or merge the adapters first (merge_and_unload)."
            )
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
    if args.disable_dropout:
        disable_dropout_in_model(model)
    if args.activation_checkpointing and args.train_large:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable(args.activation_checkpointing_kwargs)
        if is_peft_model(model):
            model.enable_input_require_grads()
    if args.train_large:
        check_precision(model)
    return LargePolicy(model, trainable=bool(args.train_large), offload=args.offload_large)


def tokenizer_of(large: str | PreTrainedModel | None) -> Any:
    """Find the tokenizer that the large model brings, None if it brings none.

    Parameters
    ----------
    large : str or PreTrainedModel
        As given to the trainer.

    Returns
    -------
    PreTrainedTokenizerBase or None
    """
    path = large if isinstance(large, str) else getattr(large, "name_or_path", "")
    files = [os.path.join(path, name) for name in ("tokenizer.json", "tokenizer_config.json")]
    if not path or not (isinstance(large, str) or any(map(os.path.isfile, files))):
        return None
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return None


def load_weights(model: Any, folder: str | Path) -> None:
    """Read what ``save_pretrained`` wrote into a model of the same shape.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        With adapters, only these are read.
    folder : path
        The folder.
    """
    if is_peft_model(model):
        from peft.utils import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        return
    saved = type(model).from_pretrained(str(folder), dtype="auto")
    model.load_state_dict(saved.state_dict())


def save_rollouts(slices: list[dict[str, Any]], path: Path) -> None:
    """Write the rollouts that a checkpoint between two generations needs.

    Parameters
    ----------
    slices : list of dict
        TRL's buffer: the batches of the updates to come.
    path : Path
        A safetensors file.
    """
    tensors = {
        f"{number}.{name}": value.detach().cpu().contiguous().clone()
        for number, batch in enumerate(slices)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }
    save_file(tensors, path)


def load_rollouts(path: Path, *, device: torch.device) -> list[dict[str, Any]]:
    """Read what :func:`save_rollouts` wrote.

    Parameters
    ----------
    path : Path
        The file.
    device : torch.device
        Where the batches are used.

    Returns
    -------
    list of dict
        As they were.
    """
    batches: dict[int, dict[str, Any]] = {}
    for key, value in load_file(path).items():
        number, name = key.split(".", 1)
        batches.setdefault(int(number), {})[name] = value.to(device)
    return [batches[number] for number in sorted(batches)]
