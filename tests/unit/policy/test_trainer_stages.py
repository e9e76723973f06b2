"""Staged rollouts in the trainer: what is generated, scored, counted, resumed; in one process and in two."""

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from lowdim.errors import DataError

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("two_staged", HERE / "two_staged.py")
two_staged = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two_staged)
tiny = two_staged.tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::lowdim.errors.LowdimWarning", "ignore::UserWarning"
)


def staged(folder, **changes):
    return two_staged.trainer(folder, **changes)


def test_what_is_generated_scored_and_counted(tmp_path):
    trainer = staged(tmp_path, max_steps=3)
    trainer.train()
    assert trainer.calls[::2] == [8] * 3  # 4 prompts, 2 rollouts each
    made = sum(trainer.calls)
    assert 8 * 3 < made < 24 * 3
    # Every rollout is scored once, those that were not made never are.
    assert len(trainer.scored) == made
    logs = [row for row in trainer.state.log_history if "stages/made" in row]
    assert sum(row["stages/made"] for row in logs) == pytest.approx(made / 24)
    tokens = sum(len(prompt) + len(own) for prompt, own in trainer.scored)  # a character is a token
    assert logs[-1]["num_tokens"] == tokens
    newest = [own for _, own in trainer.scored[-sum(trainer.calls[-2:]) :]]
    mean = sum(map(len, newest)) / len(newest)
    assert logs[-1]["completions/mean_length"] == pytest.approx(mean)
    assert logs[-1]["completions/clipped_ratio"] == pytest.approx(
        sum(own[-1] > 1 for own in newest) / len(newest)
    )
    table = trainer._logs
    assert len(table["completion"]) == len(table["advantages"]) == len(table["prompt"]) == len(newest)
    rewards = list(table["rewards"]["counted"])
    assert sum(rewards) / len(rewards) == pytest.approx(logs[-1]["reward"])
    # What reward functions note stands beside its completion.
    assert list(table["extra"]["text"]) == list(table["completion"])
    ledger = trainer.ledger.table().set_index("phase")
    assert ledger.loc["generate", "tokens"] == tokens


def test_the_divisor_is_that_of_all_rollouts(tmp_path):
    """The step equals one computed by hand from the made rollouts, over the tokens of all."""
    step = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    trainer = staged(tmp_path, max_steps=1, loss_type="dapo", **step)
    batches = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: batches.append(inputs) or compute(model, inputs)
    trainer.train()
    (batch,) = batches
    lengths = {}
    for prompt, own in trainer.scored:
        lengths.setdefault(prompt, []).append(len(own))
    nominal = sum(6 * sum(own) / len(own) for own in lengths.values())
    assert float(batch["num_items_in_batch"]) == pytest.approx(nominal)
    model = tiny.network()
    width = batch["completion_ids"].shape[1]
    logits = model(
        input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        attention_mask=torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
    ).logits[:, -width - 1 : -1]
    logp = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    loss = -((logp * batch["completion_mask"]).sum(-1) @ batch["advantages"]) / nominal
    loss.backward()
    assert max(float(value.grad.abs().max()) for value in model.parameters()) > 1e-3
    for name, value in model.named_parameters():
        moved = value.detach() - trainer.model.get_parameter(name).detach()
        torch.testing.assert_close(moved, value.grad, atol=1e-6, rtol=1e-4)


def test_solved_prompts_alone_make_no_second_call(tmp_path):
    trainer = staged(tmp_path, max_steps=2, reward_funcs=lambda completions, **_: [1.0] * len(completions))
    trainer.train()
    assert trainer.calls == [8, 8]
    assert tiny.distance(trainer.model, tiny.network()) == 0.0


def test_an_evaluation_is_not_staged(tmp_path):
    trainer = staged(tmp_path, per_device_eval_batch_size=12)
    trainer.evaluate(tiny.prompts(4))
    assert trainer.calls == [12, 12]
    assert trainer.stages.cycle == 0


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "stage_audit": 0.3}
    whole = staged(tmp_path / "whole", **saved)
    whole.train()
    resumed = staged(tmp_path / "resumed", **saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert tiny.distance(whole.model, resumed.model) == 0.0
    assert whole.stages.state_dict() == resumed.stages.state_dict()
    assert whole.stages.cycle == 6
    assert whole.scored[-len(resumed.scored) :] == resumed.scored


def test_while_the_guard_pauses_staging_all_prompts_go_on(tmp_path):
    trainer = staged(tmp_path, max_steps=3)
    trainer.stages.guard.left = 1
    trainer.train()
    assert trainer.calls[:2] == [8, 16]
    assert sum(trainer.calls[2:]) < 2 * 24


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"method": "pods", "candidates": 6, "keep_rollouts": 4, "num_generations": None},
            "selection of 4 of 6 rollouts needs all",
        ),
        ({"staged_rollouts": 6}, "Give 1 to 5"),
        ({"stage_audit": 2.0}, "no share"),
        ({"stage_cooldown": 0}, "stage_cooldown=0"),
        ({"reward_funcs": [two_staged.reward, tiny.reward]}, "solved_reward"),
        ({"entropy_coef": 0.1}, "entropy bonus"),
    ],
)
def test_refusals(tmp_path, changes, said):
    with pytest.raises(DataError, match=said):
        staged(tmp_path, **changes)


def test_distillation_teaches_on_solved_prompts_too(tmp_path):
    with pytest.raises(DataError, match="distillation"):
        tiny.trainer(tmp_path, candidates=4, keep_rollouts=4, staged_rollouts=2)


def test_a_reward_above_that_of_a_right_answer_is_told(tmp_path):
    trainer = staged(tmp_path, reward_funcs=lambda completions, **_: [3.0] * len(completions))
    with pytest.raises(DataError, match="solved_reward"):
        trainer.train()
    staged(
        tmp_path,
        reward_funcs=lambda completions, **_: [3.0] * len(completions),
        solved_reward=3.0,
        max_steps=1,
    ).train()


def test_two_processes_make_both_calls_with_equally_many_rows(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"),
        *(str(HERE / "two_staged.py"), str(tmp_path)),
    ]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["calls"] == second["calls"]
    assert first["weights"] == second["weights"]
    assert first["state"] == second["state"]
    made = sum(first["calls"])
    assert first["scored"] == second["scored"] == made
    assert made < 12 * 4  # something was stopped
    # And something was not although it was solved, to keep the other process company.
    assert first["audited"] > 0
