import copy
import json
import subprocess
import sys

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowdim.algebra import Blast, BlockDiagonal, LowRank, Monarch, Operator, StructuredLinear
from lowdim.compress import CompressResult, compress
from lowdim.compress.int8 import Int8
from lowdim.compress.modules import structured_modules
from lowdim.compress.result import summary_columns, summary_rows
from lowdim.compress.timing import parameter_bytes
from lowdim.compress.write import load_weights, write_checkpoint
from lowdim.errors import DataError

pytest.importorskip("torchao")

from lowdim.compress.torchao import compare_int8, int8, int8_original, quantize

OPERATORS = {
    "blast": lambda: Blast(48, 32, rank=24, blocks=(4, 4)),
    "lowrank": lambda: LowRank(48, 32, rank=16),
    "blockdiag": lambda: BlockDiagonal(48, 32, blocks=2),
    "monarch": lambda: Monarch(48, 32, rank=4, blocks=(4, 4)),
    "sum": lambda: Blast(48, 32, rank=24, blocks=(4, 4)) + LowRank(48, 32, rank=16),
    "padded": lambda: Blast(45, 30, rank=24, blocks=(4, 4), pad=True),
}


def relative(first, second):
    return ((first - second).norm() / second.norm()).item()


@pytest.mark.parametrize("name", OPERATORS)
def test_eight_bits_change_little_and_take_a_quarter(name):
    torch.manual_seed(0)
    operator = OPERATORS[name]()
    small = quantize(operator)
    x = torch.randn(7, operator.in_features)
    assert relative(small(x), operator(x)) < 0.02
    assert relative(small.dense(), operator.dense()) < 0.02
    assert torch.allclose(small(x), x @ small.dense().T, atol=1e-4)
    assert small.cost().flops == operator.cost().flops
    assert small.cost().parameters == operator.cost().parameters
    assert small.cost().bytes < 0.5 * operator.cost().bytes
    y = torch.randn(3, operator.out_features)
    assert torch.allclose(small.adjoint()(y), y @ small.dense(), atol=1e-4)


def test_numbers_are_those_of_torchao():
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor

    torch.manual_seed(0)
    operator = LowRank(48, 32, rank=16)
    theirs = Int8Tensor.from_hp(operator.U.detach(), granularity=PerRow()).dequantize()
    assert torch.equal(quantize(operator).values()["U"], theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    torch.manual_seed(0)
    operator = Blast(48, 32, rank=24, blocks=(4, 4)).to(dtype)
    small = quantize(operator)
    assert small(torch.ones(48, dtype=dtype)).dtype == dtype
    assert relative(small.dense().float(), operator.dense().float()) < 0.03


def test_description_rebuilds_the_operator_also_on_meta():
    torch.manual_seed(0)
    small = quantize(OPERATORS["sum"]())
    config = json.loads(json.dumps(small.config()))
    twin = Operator.from_config(config, device="meta")
    assert {t.device.type for t in twin.state_dict().values()} == {"meta"}
    twin = Operator.from_config(config)
    twin.load_state_dict(small.state_dict())
    x = torch.randn(2, 48)
    assert torch.equal(twin(x), small(x))
    with torch.device("meta"):
        assert {t.device.type for t in Operator.from_config(config).state_dict().values()} == {"meta"}


def test_unknown_parameter_is_refused():
    with pytest.raises(DataError, match="no parameter 'Q'; it has U, V"):
        Int8(LowRank(8, 8, rank=2), ["Q"])


def test_saved_model_loads_in_a_fresh_process_without_torchao(tmp_path):
    torch.manual_seed(0)
    model = architectures.compressed(architectures.gpt2(), ("blast", "sum"))
    small = int8(model)
    assert {e["structure"] for e in structured_modules(model).values()} == {"blast", "sum"}, "a copy"
    batch = architectures.inputs(model)
    write_checkpoint(small, tmp_path / "int8", max_shard_size=20_000)
    write_checkpoint(small, tmp_path / "whole")
    save_file(batch, tmp_path / "inputs")
    code = """
import sys
sys.modules["torchao"] = None
import lowdim, torch
from transformers import AutoModelForCausalLM
from safetensors.torch import load_file, save_file
root = sys.argv[1]
model, info = AutoModelForCausalLM.from_pretrained(root + "/int8", output_loading_info=True)
assert not any(info.values()), info
assert any(buffer.dtype == torch.int8 for buffer in model.buffers())
batch = load_file(root + "/inputs")
save_file({"output": model(**batch).logits.detach()}, root + "/output")
model.save_pretrained(root + "/again")
again = AutoModelForCausalLM.from_pretrained(root + "/again")
assert torch.equal(again(**batch).logits, model(**batch).logits)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert torch.equal(load_file(tmp_path / "output")["output"], architectures.answer(small, batch))
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    # The header of so small a file weighs as much as its numbers.
    assert sum(t.nbytes for t in tensors.values()) <= parameter_bytes(small) < parameter_bytes(model)


def test_generic_module_in_eight_bits_reloads(tmp_path):
    torch.manual_seed(0)
    model = int8(architectures.compressed(architectures.DiT()))
    write_checkpoint(model, tmp_path)
    fresh = load_weights(architectures.DiT(), tmp_path).eval()
    batch = architectures.inputs(model)
    assert torch.equal(architectures.answer(fresh, batch), architectures.answer(model, batch))


def test_original_in_eight_bits_by_torchao_also_for_conv1d():
    torch.manual_seed(0)
    for build in (architectures.bert, architectures.gpt2):
        model = build().eval()
        names = list(structured_modules(architectures.compressed(build())))
        small = int8_original(model, names)
        batch = architectures.inputs(model)
        assert relative(architectures.answer(small, batch), architectures.answer(model, batch)) < 0.05
        linear = sum(model.get_submodule(name).weight.nbytes for name in names)
        saved = parameter_bytes(model) - parameter_bytes(small)
        assert 0.6 * linear < saved < 0.75 * linear


def test_comparison_has_size_quality_and_speed():
    torch.manual_seed(0)
    original = architectures.bert().eval()
    model = architectures.compressed(copy.deepcopy(original))
    batch = architectures.inputs(model)
    result = compare_int8(
        original, model, [batch], names=list(structured_modules(model)), batch=batch, sizes=(1, 4)
    )
    for entry in result.values():
        assert entry["bytes"] < parameter_bytes(original)
        assert set(entry["speed"]) == {"1", "4"}
        assert entry["speed"]["1"]["ms"] > 0
    assert result["original"]["quality"]["cosine"] > 0.999
    assert result["compressed"]["quality"]["task"] == "embedding"
    assert result["compressed"]["bytes"] == parameter_bytes(int8(model))


def test_uncompressed_model_is_refused():
    with pytest.raises(DataError, match="no compressed layer"):
        int8(architectures.bert())


def test_dense_export_of_eight_bits_is_floating_point(tmp_path):
    from transformers import BertModel

    torch.manual_seed(0)
    model = int8(architectures.compressed(architectures.bert()))
    write_checkpoint(model, tmp_path, dense=True)
    again = BertModel.from_pretrained(tmp_path)
    assert not any(isinstance(m, StructuredLinear) for m in again.modules())
    batch = architectures.inputs(model)
    assert torch.allclose(architectures.answer(again, batch), architectures.answer(model, batch), atol=1e-4)


def test_report_card_and_summary_describe_the_model_that_was_written(tmp_path):
    torch.manual_seed(0)
    model = architectures.bert().eval()
    batch = architectures.inputs(model)
    out = tmp_path / "out"
    result = compress(
        model, calibration=[batch], sweeps=2, recover_steps=2, quantize="int8", dense=True, output=out
    )
    report = json.loads((out / "report.json").read_text())
    on_disk = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert report["bytes"]["after"] == result.report["bytes"]["after"] == on_disk
    plain = compress(model, calibration=[batch], sweeps=2, recover_steps=2)
    assert report["bytes"]["float"] == parameter_bytes(plain.model) > parameter_bytes(result.model)
    small = report["int8"]["compressed"]
    assert small["quality"]["cosine"] != report["quality"]["cosine"]

    card = (out / "README.md").read_text()
    written, unrounded = f"{small['quality']['cosine']:.4g}", f"{report['quality']['cosine']:.4g}"
    assert "factors in int8" in card
    assert "| on held-out inputs | compressed, int8 (this folder) | float factors |" in card
    assert (
        f"| weight file, bytes | {report['bytes']['before']:,} | {on_disk:,} | {report['bytes']['float']:,} |"
        in card
    )
    assert f"| mean cosine to the original embedding | {written} | {unrounded} |" in card
    before, ms, unrounded_ms = (
        f"{value:.4g}"
        for value in (
            report["speed"]["1"]["before_ms"], small["speed"]["1"]["ms"], report["speed"]["1"]["after_ms"],
        )
    )  # fmt: skip
    assert f"| milliseconds per forward, batch 1 | {before} | {ms} | {unrounded_ms} |" in card

    assert summary_columns(report)[2:] == ("Compressed, int8", "Float factors")
    rows = {row[0]: row[1:] for row in summary_rows(report)}
    assert {len(row) for row in rows.values()} == {3}
    assert rows["weights on disk"][1:] == (
        f"{on_disk / 1e6:.1f} MB",
        f"{report['bytes']['float'] / 1e6:.1f} MB",
    )
    assert rows["cosine to the original embedding"][1] == written
    assert rows["cosine to the original embedding"][2].startswith(f"{unrounded} (")
    assert rows["forward pass, batch 1"][1].startswith(f"{small['speed']['1']['ms']:.1f} ms")
    assert (
        f"weights on disk: {report['bytes']['before'] / 1e6:.1f} MB -> {on_disk / 1e6:.1f} MB (float factors"
        in (result.summary())
    )

    # The dense copy is of the written model too: the same function, to rounding.
    from transformers import AutoModel

    dense = AutoModel.from_pretrained(out / "dense")
    loaded = CompressResult.load(out).model
    assert torch.allclose(architectures.answer(dense, batch), architectures.answer(loaded, batch), atol=1e-4)


def test_without_a_folder_the_size_is_that_of_the_integers():
    torch.manual_seed(0)
    model = architectures.DiT().eval()
    result = compress(model, calibration=[architectures.inputs(model)], sweeps=2, quantize="int8")
    assert result.report["bytes"]["after"] == parameter_bytes(result.model) < result.report["bytes"]["float"]
