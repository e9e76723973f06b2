"""The memory plans: section 7.3's arithmetic, and activations counted tensor by tensor."""

import contextlib

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lowdim.errors import BudgetError, DataError
from lowdim.policy import MemoryPlan, ModelSize, memory_plans


def qwen(width, inner, layers, heads, keys, words, tied):
    return Qwen2Config(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        tie_word_embeddings=tied,
    )


LARGE = ModelSize.of(qwen(3584, 18944, 28, 28, 4, 152064, False))
SMALL = ModelSize.of(qwen(1536, 8960, 28, 12, 2, 151936, True))
LENGTHS = {"candidates": 112, "prompt_length": 1024, "completion_length": 3072}


def test_parameters_are_counted_without_weights():
    assert LARGE.parameters == 7_615_616_512
    assert SMALL.parameters == 1_543_714_304
    assert LARGE.key_values == 512


def test_the_figures_of_the_page():
    full, lora, bf16, offload = memory_plans(SMALL, LARGE, **LENGTHS)
    assert full.state / 1e9 == pytest.approx(147, abs=1)
    assert bf16.state / 1e9 == pytest.approx(73, abs=0.5)
    assert offload.state == full.state
    # The large one in bfloat16 is 15 GB, the small one in full 25 GB; adapters of rank 64 come on top.
    adapters = 16 * 64 * LARGE.adapted
    assert lora.state - adapters == 2 * LARGE.parameters + 16 * SMALL.parameters
    assert 2 * LARGE.parameters / 1e9 == pytest.approx(15, abs=0.5)
    assert 16 * SMALL.parameters / 1e9 == pytest.approx(25, abs=0.5)
    assert 2 * SMALL.parameters / 1e9 == pytest.approx(3, abs=0.1)  # an engine's copy
    # What goes to the CPU and back each step.
    away = full.phases["generate"] - offload.phases["generate"]
    assert away / 1e9 == pytest.approx(61, abs=0.5)


def test_offload_frees_the_phases_of_the_small_model_only():
    full, _, _, offload = memory_plans(SMALL, LARGE, **LENGTHS)
    assert offload.phases["generate"] < full.phases["generate"]
    assert offload.phases["update_large"] == full.phases["update_large"]
    assert offload.peak == full.peak


def test_adapters_are_counted_as_peft_counts_them():
    from peft import LoraConfig, get_peft_model

    model = LlamaForCausalLM(tiny(LlamaConfig))
    size = ModelSize.of(model)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 3 * size.adapted


def tiny(kind, *, width=128, inner=256, layers=2, heads=4, keys=2):
    return kind(
        vocab_size=96,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
    )


def kept_bytes(model, *, rows, tokens, autocast):
    """Bytes of all storages that the backbone's graph holds, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    own |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    found, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # or its place would be used again
        return tensor

    cast = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
    ids = torch.randint(3, 90, (rows, tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast:
        model.model(ids, attention_mask=torch.ones_like(ids))
    return sum(found.values())


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"width": 192, "inner": 640, "heads": 6, "keys": 3}),
        (Qwen2Config, {"layers": 3, "keys": 4}),
    ],
)
def test_activations_are_those_that_autograd_keeps(kind, shape, precision):
    config = tiny(kind, **shape)
    model = {LlamaConfig: LlamaForCausalLM, Qwen2Config: Qwen2ForCausalLM}[kind](config)
    if precision == "bfloat16":
        model = model.bfloat16()
    rows, tokens = 4, 128
    size = ModelSize.of(model)
    counted = size.activation_bytes(rows, tokens, precision=precision)
    counted -= 3 * 4 * rows * tokens * size.vocabulary  # the head's tiles, which the backbone does not have
    measured = kept_bytes(model, rows=rows, tokens=tokens, autocast=precision == "autocast")
    assert counted == pytest.approx(measured, rel=0.02)


def test_checkpointing_keeps_the_layers_inputs():
    config = tiny(LlamaConfig, layers=12)
    model = LlamaForCausalLM(config).train()
    size = ModelSize.of(model)
    plain = kept_bytes(model, rows=4, tokens=128, autocast=False)
    model.activation_checkpointing_enable()
    measured = kept_bytes(model, rows=4, tokens=128, autocast=False)
    each = (size.activation_bytes(4, 128, precision="float32") - 3 * 4 * 4 * 128 * 96) / 12
    counted = size.activation_bytes(4, 128, precision="float32", checkpointing=True) - 3 * 4 * 4 * 128 * 96
    # The one layer that is computed again has no graph yet when the forward pass is over.
    assert counted - each == pytest.approx(measured, rel=0.1)
    assert counted < plain / 4


@pytest.mark.parametrize("name", ["full", "lora", "bf16", "offload"])
def test_the_largest_batch_fits_and_one_row_more_does_not(name):
    size = ModelSize.of(tiny(LlamaConfig))
    shape = {"candidates": 8, "prompt_length": 16, "completion_length": 64}
    room = 40_000_000

    def of(rows):
        plans = memory_plans(size, size, rows=rows, device_bytes=room, checkpointing=False, **shape)
        return next(plan for plan in plans if plan.name == name)

    fit = of(1).rows
    assert fit > 1
    assert of(1).fits
    one_rollout = {**shape, "candidates": 1}

    def peak(rows):
        plans = memory_plans(size, size, rows=rows, checkpointing=False, **one_rollout)
        return next(plan for plan in plans if plan.name == name).peak

    assert peak(fit) <= room < peak(fit + 1)


def test_what_does_not_fit_is_told():
    plans = memory_plans(SMALL, LARGE, device_bytes=80_000_000_000, **LENGTHS)
    told = {plan.name: plan.fits for plan in plans}
    assert told == {"full": False, "lora": True, "bf16": True, "offload": False}
    table = MemoryPlan.table(plans)
    assert list(table.index) == ["full", "lora", "bf16", "offload"]
    assert table.loc["full", "rows"] == 0
    assert table.loc["lora", "rows"] > 1


def test_one_model_alone():
    full, *_ = memory_plans(SMALL, **LENGTHS)
    assert full.state == 16 * SMALL.parameters
    assert set(full.phases) == {"generate", "score", "update_small"}


def test_a_frozen_large_model_has_no_moments():
    full, *_ = memory_plans(SMALL, LARGE, train_large=False, **LENGTHS)
    assert full.state == 16 * SMALL.parameters + 2 * LARGE.parameters
    assert "update_large" not in full.phases


@pytest.mark.parametrize("given", ["/nowhere", torch.nn.Linear(2, 2), None])
def test_what_is_no_language_model(given):
    with pytest.raises(DataError, match="policy plan"):
        ModelSize.of(given)


def test_counts_are_positive():
    with pytest.raises(BudgetError, match="rows=0"):
        memory_plans(SMALL, rows=0, **LENGTHS)
