import warnings

import architectures
import pytest
import torch

import lowdim  # noqa: F401
from lowdim.algebra import StructuredLinear, Sum
from lowdim.compress.modules import structured_modules
from lowdim.compress.write import write_checkpoint
from lowdim.errors import DataError, Diverged, LowdimWarning

peft = pytest.importorskip("peft")

from lowdim.compress.peft import LoraStructuredLinear  # noqa: E402


def adapted(config=None, structures=("blast", "lowrank")):
    torch.manual_seed(0)
    model = architectures.compressed(architectures.gpt2(), structures)
    config = config or peft.LoraConfig(target_modules=["c_attn", "c_fc"], r=2, lora_alpha=4)
    return model, peft.get_peft_model(model, config)


def trained(model, batch, steps=5):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """Compress, write, adapt, train, save the adapter."""
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("peft")
    torch.manual_seed(0)
    write_checkpoint(architectures.compressed(architectures.gpt2(), ("blast", "lowrank")), root / "base")
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    batch = architectures.inputs(model)
    before = architectures.answer(model, batch)
    config = peft.LoraConfig(target_modules="all-linear", r=2, lora_alpha=4, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    assert torch.equal(architectures.answer(model.eval(), batch), before), "a fresh adapter changes nothing"
    losses = trained(model.train(), batch)
    assert losses[-1] < losses[0]
    model.eval()
    model.save_pretrained(root / "adapter")
    return root, model, batch


def test_every_compressed_layer_is_adapted(journey):
    _, model, _ = journey
    layers = [m for m in model.modules() if isinstance(m, LoraStructuredLinear)]
    assert len(layers) == 8
    assert all(isinstance(layer.get_base_layer(), StructuredLinear) for layer in layers)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_saved_adapter_reloads_on_the_compressed_model(journey):
    from transformers import AutoModelForCausalLM

    root, model, batch = journey
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(root / "base"), root / "adapter"
    )
    assert torch.equal(architectures.answer(again.eval(), batch), architectures.answer(model, batch))


def test_merged_model_stays_structured_and_reloads(journey, tmp_path):
    from transformers import AutoModelForCausalLM

    root, model, batch = journey
    expected = architectures.answer(model, batch)
    copy = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(root / "base"), root / "adapter"
    )
    merged = copy.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    structures = {entry["structure"] for entry in structured_modules(merged).values()}
    assert structures == {"sum"}
    assert torch.allclose(architectures.answer(merged, batch), expected, atol=1e-5)
    merged.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(architectures.answer(again, batch), architectures.answer(merged, batch))


def test_unmerging_gives_the_same_bits_back():
    model, adapter = adapted()
    batch = architectures.inputs(model)
    trained(adapter.train(), batch, steps=2)
    adapter.eval()
    before = architectures.answer(adapter, batch)
    adapter.merge_adapter()
    layers = [m for m in adapter.modules() if isinstance(m, LoraStructuredLinear)]
    assert all(isinstance(layer.get_base_layer().operator, Sum) for layer in layers)
    assert torch.allclose(architectures.answer(adapter, batch), before, atol=1e-5)
    adapter.unmerge_adapter()
    assert torch.equal(architectures.answer(adapter, batch), before)


def test_bias_adapters_merge_into_the_bias():
    config = peft.LoraConfig(target_modules=["c_attn"], r=2, lora_bias=True)
    model, adapter = adapted(config)
    batch = architectures.inputs(model)
    trained(adapter.train(), batch, steps=2)
    before = architectures.answer(adapter.eval(), batch)
    assert torch.allclose(architectures.answer(adapter.merge_and_unload(), batch), before, atol=1e-5)


def test_broken_adapter_is_not_merged_safely():
    _, adapter = adapted()
    layer = next(m for m in adapter.modules() if isinstance(m, LoraStructuredLinear))
    layer.lora_A["default"].weight.data.fill_(float("nan"))
    with pytest.raises(Diverged, match="NaN or infinity"):
        adapter.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}]
)
def test_variants_that_need_the_dense_weight_are_refused(options):
    with pytest.raises(DataError, match="--dense export"):
        adapted(peft.LoraConfig(target_modules=["c_attn"], r=2, **options))


def test_other_methods_say_that_they_leave_compressed_layers_out():
    torch.manual_seed(0)
    model = architectures.compressed(architectures.bert("BertForSequenceClassification"))
    config = peft.LoHaConfig(target_modules="all-linear", r=2)
    with pytest.warns(LowdimWarning, match="compressed layers are left out"):
        peft.get_peft_model(model, config)


def test_models_without_compressed_layers_are_untouched():
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowdimWarning)
        model = peft.get_peft_model(architectures.llama(), peft.LoraConfig(target_modules="all-linear", r=2))
    assert not any(isinstance(m, LoraStructuredLinear) for m in model.modules())
