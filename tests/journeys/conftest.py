from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # tiny.py is also run in fresh processes


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with a tokenizer, as save_pretrained writes it."""
    import tiny

    return tiny.write_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def tiny_causal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.write_gpt2(tmp_path_factory.mktemp("tiny") / "gpt2")
