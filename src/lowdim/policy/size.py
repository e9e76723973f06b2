"""What the memory of a causal language model depends on, read from its configuration without its weights.

The activations that wait for the backward pass were counted tensor by tensor in transformers' Llama and Qwen2
(attention by SDPA, a gated MLP); other decoders keep a similar number.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lowdim.errors import DataError

__all__ = ["ModelSize", "Precision"]

Precision = Literal["float32", "autocast", "bfloat16"]

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
        last = (6 if precision == "bfloat16" else 8) * d * positions
        return kept + last + tile + (copies if precision == "autocast" else 0)
