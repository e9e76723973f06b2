from __future__ import annotations

import architectures
import pytest
import torch
from torch import nn

from lowdim.algebra import LowRank, StructuredLinear
from lowdim.compress.plan import EXCLUDE, METHODS, plan
from lowdim.errors import BudgetError, DataError, ShapeError

BUILDERS = {
    "bert": architectures.bert,
    "gpt2": architectures.gpt2,
    "llama": architectures.llama,
    "qwen2": architectures.qwen2,
    "vit": architectures.vit,
    "dit": architectures.DiT,
}
INNER = {"bert": 12, "gpt2": 8, "llama": 14, "qwen2": 14, "vit": 12, "dit": 13}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", BUILDERS)
def test_every_architecture_has_a_plan_within_the_budget(kind, method):
    model = BUILDERS[kind]()
    found = plan(model, keep=0.5, method=method)
    assert len(found.layers) == INNER[kind]
    assert found.parameters_before == sum(p.numel() for p in model.parameters())
    for layer in found.layers:
        m, n = layer.shape
        assert 0 < layer.parameters <= 0.5 * m * n + 1e-9
        module = model.get_submodule(layer.name)
        assert tuple(module.weight.shape) in ((m, n), (n, m))
        assert METHODS[method].structure == layer.structure
    assert found.compressible_after <= 0.5 * found.compressible_before


def test_conv1d_is_transposed():
    found = plan(architectures.gpt2())
    assert found.layer("transformer.h.0.attn.c_attn").shape == (96, 32)


def test_output_heads_and_ties_are_left_alone():
    reasons = {entry.name: entry.reason for entry in plan(architectures.qwen2(), exclude=[]).left_alone}
    assert reasons["lm_head"] == "its weight is tied to 'model.embed_tokens'"
    model = architectures.vit()
    assert {e.name: e.reason for e in plan(model).left_alone} == {"classifier": "excluded by 'classifier'"}
    assert {e.reason for e in plan(model, exclude=[]).left_alone} == {"5 outputs: too narrow to gain"}
    assert [layer.name for layer in plan(model, targets=["classifier"], keep=0.9).layers] == ["classifier"]


def test_a_layer_used_twice_is_compressed_once():
    shared = nn.Linear(64, 64)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    net.append(nn.Linear(64, 64))
    net[3].weight = shared.weight
    found = plan(net)
    assert [layer.places for layer in found.layers] == [("0", "2", "3")]
    assert found.compressible_before == 64 * 64


def test_patterns():
    model = architectures.bert()
    assert {layer.name.split(".")[-1] for layer in plan(model, targets=["query", "key"]).layers} == {
        "query",
        "key",
    }
    assert len(plan(model, targets=["encoder.layer.0.*"]).layers) == 6
    assert len(plan(model, targets=["layer.1"], exclude=["attention"]).layers) == 2
    assert len(plan(model, exclude=[*EXCLUDE, "intermediate"]).layers) == 10


@pytest.mark.parametrize("option", ["targets", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(option):
    with pytest.raises(DataError, match=rf"{option}: 'quary' matches no linear layer.*encoder.layer.0"):
        plan(architectures.bert(), **{option: ["quary"]})


def test_an_empty_target_list_is_an_error():
    with pytest.raises(DataError, match="no layer is left to compress"):
        plan(architectures.bert(), targets=[])
    with pytest.raises(DataError, match=r"no layer is left.*excluded by '\*'"):
        plan(architectures.bert(), exclude=["*"])
    with pytest.raises(DataError, match="ReLU has no linear layer"):
        plan(nn.ReLU())


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, True, "half", float("nan")])
def test_keep_outside_its_range(keep):
    with pytest.raises(BudgetError, match=r"must be in \(0, 1\]"):
        plan(architectures.bert(), keep=keep)


def test_rank_zero_after_rounding():
    with pytest.raises(BudgetError, match=r"keep=0.001 of a 32x32 matrix is 1 parameters, fewer than"):
        plan(architectures.bert(), keep=0.001)


def test_factors_no_smaller_than_the_matrix_stay_dense():
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(96, 64))
    with pytest.raises(BudgetError, match="the factors would hold 4096 numbers, the matrix holds 4096"):
        plan(net[:1], keep=1.0, method="lowrank")
    found = plan(nn.Sequential(nn.Linear(64, 64), nn.Linear(100, 60)), keep=1.0, method="lowrank")
    assert [layer.name for layer in found.layers] == ["1"]
    assert "stays dense" in found.left_alone[0].reason


def test_blocks_that_do_not_divide_name_layer_numbers_and_remedy():
    with pytest.raises(
        ShapeError, match=r"layer '0'.*out_features=100 cannot be cut into 16 blocks.*nearest is 20"
    ):
        plan(nn.Sequential(nn.Linear(64, 100)), blocks=16)


def test_automatic_blocks_pad():
    layer = plan(nn.Sequential(nn.Linear(1023, 1019)), method="blast").layers[0]
    assert layer.blocks is not None
    assert layer.blocks[0] > 1
    assert layer.kept <= 0.5


def test_unknown_method_and_targets():
    with pytest.raises(DataError, match=r"method='magic' is unknown. Use one of blast"):
        plan(architectures.bert(), method="magic")
    with pytest.raises(DataError, match=r"targets='query'. Use 'all-linear' or a list"):
        plan(architectures.bert(), targets="query")


def test_compressed_and_quantized_layers_are_refused_with_the_reason():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    net[0] = StructuredLinear(LowRank(64, 64, rank=4))
    quantize_(net[1], Int8WeightOnlyConfig())
    net[2] = torch.ao.nn.quantized.dynamic.Linear(64, 64)
    found = plan(net)
    assert [layer.name for layer in found.layers] == ["3"]
    reasons = {entry.name: entry.reason for entry in found.left_alone}
    assert reasons["0"] == "already compressed"
    assert reasons["1"].startswith("already quantized (")
    assert reasons["2"].startswith("already quantized or adapted (torch.Linear)")
    with pytest.raises(DataError, match=r"no layer is left.*already quantized"):
        plan(net[1:3])


def test_multihead_attention_is_left_alone():
    found = plan(nn.TransformerEncoderLayer(32, 4, 64))
    assert {layer.name for layer in found.layers} == {"linear1", "linear2"}
    assert found.left_alone[0].reason == "nn.MultiheadAttention reads its weight directly"


def test_mixture_of_experts():
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(
        MixtralConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=99,
            num_key_value_heads=2, num_local_experts=4,
        )
    )  # fmt: skip
    found = plan(model)
    assert {layer.name.split(".")[-1] for layer in found.layers} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    stacks = [entry for entry in found.left_alone if "mixture of experts" in entry.reason]
    assert sum(entry.parameters for entry in stacks) == 4 * 3 * 32 * 64


def test_other_ranks_and_layers():
    found = plan(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), method="lowrank")
    other = found.with_ranks({"0": 8, "1": 32})
    assert [layer.rank for layer in other.layers] == [8]
    assert other.left_alone[0].reason == "the allocation keeps it dense"
    assert other.compressible_after == 8 * 128
    rest = found.without(["0"], "because")
    assert [layer.name for layer in rest.layers] == ["1"]
    assert rest.parameters_after == found.parameters_before - 64 * 64 + 16 * 128
    assert list(found.table()["rank"]) == [16, 16]


def test_pickled_weights_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    from lowdim.compress.transformers import read_pretrained
    from lowdim.errors import DataError

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.save_pretrained(tmp_path)
    torch.save(transformers.BertModel(config).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"model\.safetensors"):
        read_pretrained(str(tmp_path))
