"""Which models the trainer takes, what it leaves alone, and what it does when something breaks."""

import copy
import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("trl")

from transformers import AutoModelForCausalLM

from lowdim.errors import DataError, Diverged, LowdimWarning, RunError
from lowdim.policy.large import LargePolicy, load_optimizer, save_optimizer

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::lowdim.errors.LowdimWarning", "ignore::UserWarning"
)


def test_a_frozen_teacher_stays_as_it_is(tmp_path):
    large = tiny.network(24, seed=1)
    trainer = tiny.trainer(
        tmp_path, method="kdrl", large=large, max_steps=2, save_strategy="steps", save_steps=2
    )
    trainer.train()
    assert tiny.distance(large, tiny.network(24, seed=1)) == 0.0
    assert tiny.distance(trainer.model, tiny.network()) > 1e-3
    assert not (tmp_path / "checkpoint-2" / "large").exists()
    with pytest.raises(
        RunError, match=r"checkpoint-2 has no large model. It is of a run with one model or a frozen"
    ):
        tiny.trainer(tmp_path / "other", max_steps=3).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )
    assert "update_large" not in set(trainer.ledger.table()["phase"])


def test_both_models_are_saved_for_transformers(tmp_path):
    trainer = tiny.trainer(
        tmp_path / "run", max_steps=1, score="kept", large_scale_rewards="batch", center="all"
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "small"))
    trainer.save_large(tmp_path / "large")
    for name, model in (("small", trainer.model), ("large", trainer.large)):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert tiny.distance(loaded, model) == 0.0
        assert (tmp_path / name / "tokenizer.json").is_file()
    assert tiny.distance(trainer.large, tiny.network(24, seed=1)) > 1e-3
    table = trainer.ledger.table().set_index("phase")
    assert table.loc["score_large", "completion_tokens"] == table.loc["update_large", "completion_tokens"]
    work = sum(p.numel() for p in trainer.large.parameters()) * table.loc["update_large", "tokens"] * 6
    assert table.loc["update_large", "flops"] == work
    pods = tiny.trainer(tmp_path / "pods", method="pods", selection="max_variance", max_steps=1)
    pods.train()
    assert tiny.distance(pods.model, tiny.network()) > 1e-3
    with pytest.raises(DataError, match="method='pods' has no large model"):
        pods.save_large(tmp_path / "none")


def test_padded_embeddings_of_different_size_are_one_vocabulary(tmp_path):
    small = tiny.network()
    large = tiny.network(rows=20)
    state = small.state_dict()
    for name, value in large.state_dict().items():
        value.copy_(
            state[name] if value.shape == state[name].shape else nn.functional.pad(state[name], (0, 0, 0, 6))
        )
    large.lm_head.weight.data[14:] = 3.0  # padding that would win every softmax
    trainer = tiny.trainer(tmp_path, small=small, large=large, max_steps=2, hint_tokens=1, alpha=0.0)
    trainer.train()
    first, second = (trainer.state.log_history[step]["hybrid/kl_per_token"] for step in (0, 1))
    assert first == pytest.approx(0.0, abs=1e-7)
    assert abs(second) < 0.1


def test_rollouts_without_any_reward_are_not_selected(tmp_path):
    def now_and_then(completions, **_):
        return [None if row % 14 < 5 else float(row % 14) for row in range(len(completions))]

    trainer = tiny.trainer(tmp_path, reward_funcs=now_and_then, max_steps=1, alpha=0.0)
    seen = []
    choose = trainer._choose
    trainer._choose = lambda output: seen.append(choose(output)) or seen[-1]
    trainer.train()
    rows = seen[0]["rows"].view(2, 8)
    assert (rows % 14 >= 5).all()
    assert rows[0].tolist() == [13, 12, 11, 10, 5, 6, 7, 8]
    assert seen[0]["large_advantages"].view(2, 8).sum(-1).abs().max() < 1e-5


def test_prompts_beyond_the_positions_of_a_model(tmp_path):
    small, large = tiny.network(), tiny.network(24, seed=1)
    large.config.max_position_embeddings = 8
    trainer = tiny.trainer(
        tmp_path, small=small, large=large, max_steps=1, large_ratio="truncated", ratio_cap=2.0
    )
    with pytest.warns(LowdimWarning, match="a prompt of 4 tokens and .*=5 exceed the models' 8 .* to 4"):
        trainer.train()
    assert trainer.state.log_history[0]["large/clip_ratio/low_mean"] == 0.0


def test_what_is_not_finite_stops_the_run(tmp_path):
    broken = tiny.network(24, seed=1)
    broken.lm_head.weight.data[3] = float("nan")
    with pytest.raises(Diverged, match=r"step 0, score_large: .* no finite log-probability.*temperature=1.0"):
        tiny.trainer(tmp_path, large=broken).train()
    trainer = tiny.trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    update = trainer._large_loss
    trainer._large_loss = lambda batch: (
        update(batch) * (float("inf") if trainer.state.global_step == 1 else 1.0)
    )
    with pytest.raises(Diverged, match=r"step 1, update_large, rollouts \[.*checkpoint-1") as caught:
        trainer.train()
    assert caught.value.step == 1


def test_adapters_on_both_models_resume(tmp_path):
    peft = pytest.importorskip("peft")

    def made(folder, **changes):
        adapters = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        args = tiny.HybridGRPOConfig(
            **tiny.settings(folder, save_strategy="steps", save_steps=1, max_steps=2, alpha=0.5, **changes)
        )
        return tiny.HybridGRPOTrainer(
            tiny.network(),
            large=tiny.network(24, seed=1).to(torch.bfloat16),
            reward_funcs=tiny.reward,
            args=args,
            train_dataset=tiny.prompts(),
            processing_class=tiny.tokenizer(),
            peft_config=adapters,
            large_peft_config=copy.deepcopy(adapters),
        )

    whole = made(tmp_path / "whole", offload_large="all")
    start = copy.deepcopy(whole.large)
    whole.train()
    assert tiny.distance(start, whole.large) > 1e-4
    trained = {name for name, p in whole.large.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    assert (tmp_path / "whole" / "checkpoint-1" / "large" / "model" / "adapter_model.safetensors").is_file()
    resumed = made(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert tiny.distance(whole.model, resumed.model) == 0.0
    assert tiny.distance(whole.large, resumed.large) == 0.0


def test_checkpointed_activations_change_nothing(tmp_path):
    runs = []
    for wanted in (False, True):
        trainer = tiny.trainer(tmp_path, max_steps=1, activation_checkpointing=wanted)
        assert trainer.large.is_activation_checkpointing == wanted
        trainer.train()
        runs.append(trainer)
    assert tiny.distance(runs[0].large, runs[1].large) <= 1e-6
    assert tiny.distance(runs[0].model, runs[1].model) <= 1e-6


class Engine:
    """In place of vLLM: knows how TRL calls it, and writes with the small model's tokens."""

    def __init__(self, trainer):
        self.max_completion_length, self.generation_kwargs = 5, {}
        self.calls, self.syncs, self.trainer = [], 0, trainer

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        assert len(prompts) % num_generations == 0
        self.calls.append((prompts, num_generations, self.max_completion_length))
        length = self.max_completion_length
        draw = torch.Generator().manual_seed(len(self.calls))
        ids = torch.randint(2, 14, (len(prompts), length), generator=draw).tolist()
        return None, ids, [[[-2.5] for _ in row] for row in ids], None


def test_an_engine_writes_for_the_small_model_only(tmp_path):
    """No vLLM here: its stand-in is called as TRL calls it; that vLLM answers like this is not tested."""
    trainer = tiny.trainer(
        tmp_path,
        max_steps=2,
        hint_tokens=2,
        hint_epochs=2 / 64,
        alpha=0.0,
        vllm_importance_sampling_mode="token_truncate",
    )
    engine = Engine(trainer)
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, engine, -1
    trainer._time_sync()
    slices = []
    choose = trainer._choose
    trainer._choose = lambda output: slices.append(choose(output)) or slices[-1]
    trainer.train()
    (hinted, each, length), (plain, group, whole) = engine.calls
    assert (each, length, group, whole) == (1, 3, 14, 5)
    assert len(hinted) == len(plain) == 28
    assert {len(prompt) for prompt in hinted} <= {5, 6}
    assert {len(prompt) for prompt in plain} == {4}
    assert engine.syncs == 2
    assert trainer.ledger.phases["sync"].calls == 2
    # The correction for the engine's probabilities: one where the large model wrote, in the small loss only.
    correction, mask = slices[0]["importance_sampling_ratio"], slices[0]["completion_mask"].bool()
    assert (correction[:, :2][mask[:, :2]] == 1).all()
    assert (correction[:, 2:][mask[:, 2:]] != 1).any()
    small = slices[1]
    scored = trainer._large_loss(small)
    without = {name: value for name, value in small.items() if name != "importance_sampling_ratio"}
    assert float(scored) == float(trainer._large_loss(without))
    assert "old_per_token_logps" in small
    assert torch.equal(small["old_per_token_logps"], small["sampling_logps"])


def test_the_optimizer_of_a_large_model_is_written_without_pickle(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    save_optimizer(optimizer, tmp_path / "large", extra={"format": 1})
    other = torch.optim.AdamW(copy.deepcopy(layer).parameters(), lr=0.5)
    assert load_optimizer(other, tmp_path / "large")["format"] == 1
    state, back = optimizer.state_dict(), other.state_dict()
    assert back["param_groups"] == state["param_groups"]
    for number, values in state["state"].items():
        assert all(torch.equal(value, back["state"][number][name]) for name, value in values.items())
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == [
        "optimizer.safetensors",
        "state.json",
    ]
    with pytest.raises(RunError, match="of other parameters"):
        load_optimizer(torch.optim.AdamW([nn.Parameter(torch.ones(1))]), tmp_path / "large")
    with pytest.raises(RunError, match="no usable large model"):
        load_optimizer(other, tmp_path / "nothing")
    file = tmp_path / "large" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RunError, match="no usable large model"):
        load_optimizer(other, tmp_path / "large")
    with pytest.raises(RunError, match="has format 7, this version of lowdim reads 1"):
        LargePolicy(layer).load_state_dict({"format": 7})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("offload", [True, "all"])
def test_what_rests_lies_in_the_memory_of_the_cpu(offload):
    layer = nn.Linear(3, 2, device="cuda")
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    policy = LargePolicy(layer, offload=offload)
    policy.prepare(
        lambda *parts: parts, optimizer=optimizer, schedule=lambda _: None, device=torch.device("cuda")
    )
    layer(torch.ones(3, device="cuda")).sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    policy.rest()
    assert {v.device.type for values in optimizer.state.values() for v in values.values()} == {"cpu"}
    assert layer.weight.device.type == ("cpu" if offload == "all" else "cuda")
    policy.wake()
    assert layer.weight.device.type == "cuda"
    for values, now in zip(before.values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(values[name].cpu(), now[name].cpu()) for name in values)


def test_an_evaluation_that_falls_stops_the_run(tmp_path):
    trainer = tiny.trainer(tmp_path, max_steps=4)
    heard = []

    class Judge(tiny.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            heard.append(trainer.judge(0.9 / state.global_step))

    trainer.add_callback(Judge())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", LowdimWarning)
        trainer.train()
    assert heard == [False, True]
    assert trainer.state.global_step == 2
    assert trainer.guards.stopped == "the large model's evaluation fell from 0.900 to 0.450"
    assert any("by more than a third: the run stops" in str(warning.message) for warning in said)
