"""The parts of a run: settings, phases, samples, words, results, and the world of the demo."""

from __future__ import annotations

import json
import random
import types

import numpy as np
import pytest
import torch
import typer

from lowdim.cli.policy.train import finish
from lowdim.errors import DataError, RunError
from lowdim.policy import HybridGRPOResult, codistill, named_reward
from lowdim.policy.arithmetic.addition import Addition
from lowdim.policy.demo import TINY, Size, character_tokenizer, llama, right, write_world
from lowdim.policy.evaluation import Evaluation
from lowdim.policy.examination import Examination
from lowdim.policy.phases import Phase
from lowdim.policy.samples import sample_batches
from lowdim.policy.settings import PRESETS, grpo_of, settings_of, telling
from lowdim.policy.sources import is_maker, jsonable, name_of_model
from lowdim.policy.words import model_card, sentence

pytest.importorskip("trl", reason="trl is not installed: no policy is trained")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), sizes=TINY, held_out=12)


@pytest.fixture(scope="module")
def kind():
    from lowdim.policy import HybridGRPOConfig

    return HybridGRPOConfig


# Settings


def test_settings_of_a_mapping_and_of_a_configuration_are_the_same(kind):
    given = {"candidates": 4, "keep_rollouts": 2, "per_device_train_batch_size": 12, "learning_rate": 1e-3}
    config = kind("somewhere", **given, bf16=False, report_to="none")
    first, second = settings_of(given, kind), settings_of(config, kind)
    assert {name: second[name] for name in given} == given
    assert kind("a", **first).candidates == kind("a", **second).candidates == 4
    assert "output_dir" not in second
    assert "output_dir" not in telling({**second, "report_to": "none"})


def test_grpo_of_a_pair_keeps_the_prompts_of_a_step(kind):
    given = {"candidates": 14, "keep_rollouts": 8, "per_device_train_batch_size": 28, "alpha": 0.5}
    args = kind("a", **given, bf16=False, large_learning_rate=3e-4, ratio_cap=3.0, use_cpu=True)
    plain = grpo_of(args, 7, "b")
    assert plain.num_generations == 8
    assert plain.per_device_train_batch_size == 16
    assert (plain.method, plain.loss_type, plain.scale_rewards) == ("grpo", "dr_grpo", "none")
    assert (plain.max_steps, plain.learning_rate, plain.ratio_cap) == (7, 3e-4, None)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_setting_of_the_trainer(name, kind):
    rows = PRESETS[name]["candidates"]
    config = kind("a", **PRESETS[name], per_device_train_batch_size=rows, bf16=False)
    assert (config.candidates, config.keep_rollouts, config.alpha) == (rows, 8, 1.0)


@pytest.mark.parametrize("config", [{"candidats": 4}, 3])
def test_settings_that_are_none_are_refused(config, kind):
    with pytest.raises(DataError, match="codistill: config"):
        settings_of(config, kind)


def test_names_and_values_for_the_manifest(tmp_path):
    assert name_of_model(None) is None
    assert name_of_model("owner/name") == "owner/name"
    assert name_of_model(tmp_path) == str(tmp_path.resolve())
    assert name_of_model(torch.nn.Linear(1, 1)) == "Linear"
    assert is_maker(lambda folder, progress: None)
    assert not is_maker(torch.nn.Linear(1, 1))
    value = jsonable({"a": (1, {2}), "b": types.SimpleNamespace(value="cosine"), "c": object})
    assert value["a"] == [1, [2]]
    assert value["b"] == "cosine"


# Phases


def phase(folder, examination=None, **more):
    return Phase("train", folder, examination, {"small": "small", "large": "large"}, **more)


def test_the_last_whole_checkpoint_counts_and_halves_go(tmp_path):
    for step, text in ((2, "{}"), (10, "{}"), (12, '{"global_'), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert phase(tmp_path).checkpoint().name == "checkpoint-10"
    assert phase(tmp_path).checkpoint(remove=True).name == "checkpoint-10"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-10"}
    assert phase(tmp_path / "none").checkpoint() is None


def test_an_examination_leaves_random_numbers_alone_and_is_kept(world, tmp_path):
    def careless(prompts, completions, completion_ids, **columns):
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        return [0.5] * len(completions)

    model = llama(TINY["small"], seed=0).train()
    prompts = [{"prompt": "12+30="}, {"prompt": "01+02="}]
    options = {"samples": 1, "max_completion_length": 3}
    examine = Examination(prompts, careless, character_tokenizer(), tmp_path, 1, options)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    alone = types.SimpleNamespace(num_processes=1, is_main_process=True)
    found = examine(model, "train-0-small", accelerator=alone)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()
    assert model.training
    again = examine(None, "train-0-small", accelerator=alone)
    assert again.mean == found.mean == 0.5


def test_the_run_stops_when_the_large_model_falls(world, tmp_path, monkeypatch):
    figures = iter([0.2, 0.6, 0.2, 0.3])

    def fall(model, tokenizer, prompts, *, reward, progress=None, **options):
        value = next(figures)
        rewards = torch.full((2, 1), value, dtype=torch.float64)
        return Evaluation(rewards, torch.ones(2, 1).long(), torch.zeros(2, 1).bool(), None, 2, 0.0)

    monkeypatch.setattr("lowdim.policy.examination.evaluate_policy", fall)
    settings = {"candidates": 4, "keep_rollouts": 2, "per_device_train_batch_size": 8, "max_steps": 6}
    result = codistill(
        world.small,
        large=world.large,
        rewards=named_reward("exact"),
        train=world.train,
        evaluate=world.evaluate,
        config={**settings, "max_completion_length": 4, "use_cpu": True},
        eval_steps=1,
        output=tmp_path / "out",
    )
    assert result.report["steps"] == {"train": 1}
    assert "fell from 0.600 to 0.300" in result.report["stopped"]
    assert "The run was stopped" in result.summary()


# Samples


def test_samples_hold_prompt_and_completion_up_to_its_end():
    model, tokenizer = llama(TINY["small"], seed=0), character_tokenizer()
    prompts = [{"prompt": "1+2="}, {"prompt": "10+20="}]
    options = {"batches": 2, "batch_size": 4, "max_completion_length": 5, "seed": 1}
    batches, tokens = sample_batches(model, tokenizer, prompts, **options)
    assert len(batches) == 2
    rows = [row[mask.bool()] for one in batches for row, mask in zip(*one.values(), strict=True)]
    texts = tokenizer.batch_decode(rows)
    assert all(text.startswith(("1+2=", "10+20=")) for text in texts)
    assert tokens == sum(map(len, rows)) - 4 * (4 + 6)
    assert len(set(texts)) > 2, "another sample of each prompt each time"
    again, _ = sample_batches(model, tokenizer, prompts, **{**options, "batches": 1, "batch_size": 8})
    assert tokenizer.batch_decode([row[m.bool()] for row, m in zip(*again[0].values(), strict=True)]) == texts
    with pytest.raises(DataError, match="batches=0"):
        sample_batches(model, tokenizer, prompts, **{**options, "batches": 0})


# Words and results

ROW = {"phase": "train", "error": 0.01, "greedy": 0.5}
REPORT = {
    "format": 1,
    "settings": {"method": "hybrid", "small": "tiny", "large": "big", "rewards": ["exact"]},
    "steps": {"train": 10, "continue": 5},
    "evaluations": [
        {**ROW, "step": 0, "model": "small", "accuracy": 0.1},
        {**ROW, "step": 0, "model": "large", "accuracy": 0.3},
        {**ROW, "step": 10, "model": "small", "accuracy": 0.2},
        {**ROW, "step": 10, "model": "large", "accuracy": 0.5},
        {**ROW, "step": 5, "model": "large", "accuracy": 0.75, "phase": "continue"},
    ],
    "metrics": [{"phase": "train", "step": 1, "reward": 0.1}],
    "ledger": [{"part": "train", "phase": "generate", "seconds": 1.0}],
    "sentence": "A sentence.",
}


def test_the_sentence_names_what_happened():
    text = sentence(REPORT)
    assert "Hybrid-GRPO for 10 steps: the small model's accuracy went from 10.0 % to 20.0 %" in text
    assert "After 5 more steps of GRPO on its own rollouts the large model's is 75.0 %" in text
    frozen = {**REPORT, "settings": {"method": "kdrl"}, "evaluations": REPORT["evaluations"][:3]}
    assert "the large model was frozen at 30.0 %" in sentence(frozen)
    assert "nothing was evaluated" in sentence({**REPORT, "evaluations": []})
    assert "The run was stopped: it fell." in sentence({**REPORT, "stopped": "it fell"})


def test_the_card_of_a_model_has_its_own_figures():
    card = model_card(REPORT, "large")
    assert card.startswith("---\nlibrary_name: transformers")
    assert "# big, trained by Hybrid-GRPO" in card
    assert "| continue | 5 | 0.750 | 0.500 |" in card
    assert "0.100" not in card


def test_a_result_is_saved_and_loaded(world, tmp_path):
    result = HybridGRPOResult.of(world.small, None, REPORT)
    result.save(tmp_path)
    again = HybridGRPOResult.load(tmp_path)
    assert again.table.equals(result.table)
    assert again.large is None
    assert again.policy().config.hidden_size == TINY["small"].width
    with pytest.raises(DataError, match="there is no 'large'"):
        again.policy("large")


@pytest.mark.parametrize("content", [None, {"format": 2}, {"format": 1, "settings": {}}])
def test_folders_that_hold_no_result_are_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"report\.json"):
        HybridGRPOResult.load(tmp_path)


def test_a_run_that_a_guard_has_stopped_leaves_with_code_one(tmp_path, capsys):
    ledger = [{**REPORT["ledger"][0], "share": 1.0, "tokens": 5, "completion_tokens": 2, "flops": 1e9}]
    rows = [{**row, "truncated": 0.0} for row in REPORT["evaluations"]]
    report = {**REPORT, "ledger": ledger, "evaluations": rows}
    finish(HybridGRPOResult.of(None, None, report), tmp_path, None, False)
    stopped = HybridGRPOResult.of(None, None, {**report, "stopped": "it fell"})
    with pytest.raises(typer.Exit) as left:
        finish(stopped, tmp_path, None, True)
    assert left.value.exit_code == 1
    assert '"stopped": "it fell"' in capsys.readouterr().out
    assert "The run was stopped: it fell." in (tmp_path / "report.html").read_text()


# The world of the demo


def test_the_world_holds_sums_and_models_of_one_vocabulary(world):
    rows = [json.loads(line) for path in (world.train, world.evaluate) for line in path.open()]
    assert len(rows) == 10_000
    for row in rows[::997]:
        first, second = row["prompt"].rstrip("=").split("+")
        assert int(row["answer"]) == int(first) + int(second)
    tokenizer = character_tokenizer()
    assert tokenizer.decode(tokenizer("12+34=46$").input_ids) == "12+34=46$"
    assert tokenizer.decode(tokenizer("46$").input_ids, skip_special_tokens=True) == "46"


def test_the_probability_of_being_right_is_exact():
    task, model = Addition(seed=0), llama(TINY["small"], seed=0).double().eval()
    which = task.held_out[:1]
    tokenizer = character_tokenizer()
    ids = torch.tensor(tokenizer(task.text(task.prompt(which))).input_ids)
    answer = task.text(task.answer(which))[0].rstrip("$") + "$"
    by_hand, given = 1.0, ids
    with torch.no_grad():
        for token in tokenizer(answer).input_ids:
            by_hand *= float(model(input_ids=given).logits[0, -1].softmax(-1)[token])
            given = torch.cat([given, torch.tensor([[token]])], dim=1)
        assert right(model, task, which) == pytest.approx(by_hand, rel=1e-5)


def test_a_warm_up_ends_at_its_accuracy(tmp_path):
    seen = []
    sizes = {"small": Size(32, 64, 1, 2, 0.004)}
    write_world(tmp_path, sizes=sizes, held_out=50, progress=lambda *told: seen.append(told))
    assert seen[-1][0] == "warm small"
    assert seen[-1][1] == 100
    made = (tmp_path / "small" / "model.safetensors").stat().st_mtime_ns
    write_world(tmp_path, sizes=sizes, held_out=50)
    assert (tmp_path / "small" / "model.safetensors").stat().st_mtime_ns == made, "taken as it is"
    with pytest.raises(DataError, match="cannot be shared out over 2 heads"):
        llama(Size(30, 64, 1, 2, 0.0), seed=0)
