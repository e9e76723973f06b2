"""Small random models with a tokenizer, on disk, and texts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = [f"{first}{second}" for first in "bdfklm" for second in ("a", "en", "i", "or")]
TEXTS = [" ".join(WORDS[(7 * i + 3 * j + i * j) % len(WORDS)] for j in range(8 + i % 9)) for i in range(96)]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def write_bert(folder: Path, kind: str = "BertModel", rows: int = len(WORDS) + 5) -> Path:
    """Write the model; `rows` of its table of words may be more than the tokenizer uses."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=rows,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_gpt2(folder: Path) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=len(WORDS) + 5, n_positions=64, initializer_range=0.2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Return the files of calibration and held-out text."""
    calibration, heldout = folder / "calibration.txt", folder / "heldout.txt"
    calibration.write_text("\n".join(TEXTS[:64]), encoding="utf-8")
    heldout.write_text("\n".join(TEXTS[64:]), encoding="utf-8")
    return calibration, heldout


def lasting(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without what differs between two runs: times, and where it was written."""
    timed = ("seconds", "speed", "created", "command", "output", "machine", "dense_ms", "compressed_ms")

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(entry) for key, entry in value.items() if key not in timed}
        return [strip(entry) for entry in value] if isinstance(value, list) else value

    return strip(report)
