import copy
import json
import math

import architectures
import pytest
import torch
from torch import nn

from lowdim.compress.evaluate import evaluate, pooling_of, task_of
from lowdim.compress.timing import feed, file_bytes, parameter_bytes, peak_activation_bytes, speed
from lowdim.errors import DataError, Diverged


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pair(build):
    model = build().eval()
    if hasattr(model, "classifier"):
        model.classifier.weight.data *= 100  # fresh heads give all inputs nearly the same class
    return model, architectures.compressed(copy.deepcopy(model))


@pytest.mark.parametrize(
    ("build", "task"),
    [
        (architectures.bert, "embedding"),
        (lambda: architectures.bert("BertForMaskedLM"), "masked"),
        (lambda: architectures.bert("BertForSequenceClassification"), "classifier"),
        (lambda: architectures.bert("BertForQuestionAnswering"), "generic"),
        (architectures.gpt2, "causal"),
        (architectures.llama, "causal"),
        (architectures.vit, "classifier"),
        (architectures.DiT, "generic"),
    ],
)
def test_task_is_told_by_the_class(build, task):
    assert task_of(build()) == task


@pytest.mark.parametrize(
    "build",
    [
        architectures.bert,
        lambda: architectures.bert("BertForMaskedLM"),
        lambda: architectures.bert("BertForSequenceClassification"),
        lambda: architectures.bert("BertForQuestionAnswering"),
        architectures.gpt2,
        architectures.vit,
        architectures.DiT,
    ],
)
def test_a_model_equals_itself_and_a_random_one_does_not(build):
    model, other = pair(build)
    batch = architectures.inputs(model)
    best = {"cosine": 1, "cosine_q05": 1, "top1": 1, "top10": 1, "perplexity_increase": 0, "kl": 0,
            "agreement": 1, "relative_error": 0}  # fmt: skip
    same = evaluate(model, model, [batch], mask_token=4)
    different = evaluate(model, other, [batch], mask_token=4)
    measured = [key for key in best if key in same]
    assert measured
    for key in measured:
        assert same[key] == pytest.approx(best[key], abs=1e-5), key
    assert any(abs(different[key] - best[key]) > 1e-3 for key in measured)
    json.dumps(same, allow_nan=False)


def test_embedding_figures_are_those_computed_by_hand():
    class Model(nn.Module):
        def __init__(self, hidden):
            super().__init__()
            self.hidden = nn.Parameter(hidden)

        def forward(self, input_ids, attention_mask):
            return {"last_hidden_state": self.hidden[input_ids]}

    before = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [9.0, 9.0]])
    after = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 0.9], [-7.0, 5.0]])
    batch = {
        "input_ids": torch.tensor([[0, 3], [1, 3], [2, 3]]),  # the second token is padding
        "attention_mask": torch.tensor([[1, 0], [1, 0], [1, 0]]),
    }
    figures = evaluate(Model(before), Model(after), [batch], task="embedding")
    cosines = [1.0, 0.1 / math.hypot(0.9, 0.1), 0.9 / math.hypot(0.9, 0.1)]
    assert figures["cosine"] == pytest.approx(sum(cosines) / 3, abs=1e-6)
    # Nearest of the three texts: before 1, 0, 1; after 2, 2, 1. With two others each, all are shared.
    assert figures["top1"] == pytest.approx(1 / 3)
    assert figures["top10"] == 1
    assert figures["pooling"] == "mean"


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_pooling_sees_no_padding(pooling):
    model, other = pair(architectures.bert)
    batch = architectures.inputs(model)
    padded = {
        "input_ids": torch.cat([batch["input_ids"], torch.zeros(3, 4, dtype=torch.long)], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(3, 4, dtype=torch.long)], 1),
    }
    first = evaluate(model, other, [batch], pooling=pooling)
    second = evaluate(model, other, [padded], pooling=pooling)
    assert first["cosine"] == pytest.approx(second["cosine"], abs=1e-5)


def test_pooling_is_read_from_the_folder(tmp_path):
    assert pooling_of(tmp_path) == pooling_of(None) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    path = tmp_path / "1_Pooling" / "config.json"
    for key, pooling in [("mean_tokens", "mean"), ("cls_token", "cls"), ("lasttoken", "lasttoken")]:
        path.write_text(json.dumps({"word_embedding_dimension": 8, f"pooling_mode_{key}": True}))
        assert pooling_of(tmp_path) == pooling
    path.write_text(json.dumps({"pooling_mode": "max"}))
    assert pooling_of(tmp_path) == "max"
    path.write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(DataError, match="weightedmean"):
        pooling_of(tmp_path)


def test_causal_perplexity_is_that_of_transformers():
    model, other = pair(architectures.gpt2)
    batch = architectures.inputs(model)
    batch["attention_mask"][:] = 1
    figures = evaluate(model, other, [batch])
    with torch.no_grad():
        for name, which in (("perplexity_before", model), ("perplexity_after", other)):
            loss = which(**batch, labels=batch["input_ids"]).loss
            assert figures[name] == pytest.approx(loss.exp().item(), rel=1e-5)
    assert figures["tokens"] == 3 * 8


def test_causal_perplexity_leaves_padding_out():
    model, other = pair(architectures.gpt2)
    batch = architectures.inputs(model)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 6:] = 7
    assert evaluate(model, other, [batch]) == pytest.approx(evaluate(model, other, [changed]), nan_ok=False)


def test_masked_perplexity_is_that_of_transformers_with_given_labels():
    model, other = pair(lambda: architectures.bert("BertForMaskedLM"))
    batch = architectures.inputs(model)
    labels = batch["input_ids"].masked_fill(torch.rand(3, 9) > 0.4, -100)
    figures = evaluate(model, other, [{**batch, "labels": labels}])
    with torch.no_grad():
        loss = other(**batch, labels=labels).loss
    assert figures["perplexity_after"] == pytest.approx(loss.exp().item(), rel=1e-5)


def test_masking_is_seeded_and_needs_the_mask_token():
    model, other = pair(lambda: architectures.bert("BertForMaskedLM"))
    batch = architectures.inputs(model)
    assert evaluate(model, other, [batch], mask_token=4) == evaluate(model, other, [batch], mask_token=4)
    other_words = evaluate(model, other, [batch], mask_token=4, seed=5)
    assert other_words["kl"] != evaluate(model, other, [batch], mask_token=4)["kl"]
    with pytest.raises(DataError, match=r"mask_token=tokenizer\.mask_token_id"):
        evaluate(model, other, [batch])


def test_bad_calls_are_refused():
    model, other = pair(architectures.gpt2)
    with pytest.raises(DataError, match="no held-out inputs"):
        evaluate(model, other, [])
    with pytest.raises(DataError, match="unknown"):
        evaluate(model, other, [architectures.inputs(model)], task="poetry")
    with pytest.raises(DataError, match="input_ids"):
        evaluate(model, other, [torch.ones(1, 2)])
    with pytest.raises(DataError, match="at least 1"):
        speed(model, other, torch.ones(1, 2), repeats=0)


def test_outputs_that_are_not_finite_are_refused():
    layer = nn.Linear(2, 2)
    broken = nn.Linear(2, 2)
    broken.weight.data.fill_(float("nan"))
    with pytest.raises(Diverged, match="relative_error came out as NaN"):
        evaluate(layer, broken, [torch.ones(1, 2)])


def test_mode_of_the_models_is_restored():
    model, other = pair(architectures.gpt2)
    model.train()
    batch = architectures.inputs(model)
    first = evaluate(model, other, [batch])
    assert model.training
    assert not other.training
    assert first == evaluate(model, other, [batch]), "dropout was off"


def test_inputs_may_be_tensors_tuples_or_dictionaries():
    dit = architectures.DiT().eval()
    batch = architectures.inputs(dit)
    output = feed(dit, batch)
    assert torch.equal(output, feed(dit, (batch["image"], batch["time"])))
    assert feed(nn.Identity(), torch.ones(2)).shape == (2,)


def test_speed_has_medians_ratios_and_memory():
    slow = nn.Sequential(*[nn.Linear(256, 256) for _ in range(40)])
    fast = nn.Sequential(*[nn.Linear(256, 256) for _ in range(4)])
    timing = speed(slow, fast, torch.randn(2, 256), batches=(1, 64), repeats=7)
    for entry in timing.values():
        assert entry["ratio"] > 2
        assert entry["ratio_low"] <= entry["ratio"] <= entry["ratio_high"]
        assert entry["before_ms"] > entry["after_ms"] > 0
        assert entry["repeats"] == 7
    assert timing["64"]["peak_bytes_after"] >= 2 * 64 * 256 * 4


def test_peak_memory_counts_what_lives_at_the_same_time():
    x = torch.ones(1000)

    class Freed(nn.Module):
        def forward(self, x):
            for _ in range(5):
                x = x + 1
            return x

    class Held(nn.Module):
        def forward(self, x):
            return sum([x + i for i in range(5)])

    assert peak_activation_bytes(Freed(), x) == 2 * 4000
    assert peak_activation_bytes(nn.Linear(1000, 10), x) == 40, "views of weights are no new memory"
    assert peak_activation_bytes(nn.Flatten(0), x) == 0
    assert peak_activation_bytes(Held(), x) >= 5 * 4000


def test_bytes_of_parameters_count_shared_ones_once(tmp_path):
    model = architectures.gpt2()
    assert parameter_bytes(model) == sum(p.nbytes for p in model.parameters()) + sum(
        b.nbytes for b in model.buffers()
    )
    assert parameter_bytes(nn.ModuleList([model.lm_head, model.transformer.wte])) == 99 * 32 * 4
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "b.json").write_bytes(b"12345")
    assert file_bytes(tmp_path) == 5


def test_mode_of_every_module_in_the_models_is_restored():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2), nn.Dropout(0.5))
    model[0].eval()
    assert evaluate(model, model, [torch.ones(3, 2)])["relative_error"] == 0
    assert [module.training for module in model.modules()] == [True, False, True, True]
