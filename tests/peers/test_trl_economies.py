"""Compaction through the trainer: the step that TRL takes, for its losses; where it switches off."""

import importlib.util
import warnings
from pathlib import Path

import pytest

trl = pytest.importorskip("trl")

from lowdim.errors import LowdimWarning  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "tiny", Path(__file__).parents[1] / "unit" / "policy" / "tiny.py"
)
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

# One step of plain gradient descent: its length and direction are the gradient's.
STEP = {
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 0.0,
    "max_steps": 1,
    "lr_scheduler_type": "constant",
}


def mostly_flat(prompts, completions, **_):
    """One for all rollouts of most prompts; else for those that begin with a small digit."""
    return [
        float(prompt[0] in "1357" or text[:1] < "4")
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def moved(trainer):
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    return {name: (value - before[name]).detach() for name, value in trainer.model.named_parameters()}


def relative(ours, theirs):
    squares = sum(float((ours[name] - step).square().sum()) for name, step in theirs.items())
    return (squares / sum(float(step.square().sum()) for step in theirs.values())) ** 0.5


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo", "vespo"])
def test_the_step_is_that_of_trl(tmp_path, loss_type):
    # Making a trainer sets the seed: each is made when the other has run.
    theirs = trl.GRPOTrainer(
        tiny.network(),
        reward_funcs=mostly_flat,
        args=trl.GRPOConfig(**tiny.settings(tmp_path / "trl", loss_type=loss_type, **STEP)),
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
    )
    steps = [moved(theirs)]
    ours = tiny.trainer(
        tmp_path / "ours",
        method="grpo",
        compaction=True,
        reward_funcs=mostly_flat,
        loss_type=loss_type,
        **STEP,
    )
    steps.append(moved(ours))
    assert relative(steps[1], steps[0]) < 1e-5
    logged = ours.state.log_history[0]
    assert 0 < logged["compaction/kept"] < 0.7
    assert logged["compaction/positions"] <= logged["compaction/kept"]
    assert logged["num_tokens"] == theirs.state.log_history[0]["num_tokens"]


def test_the_large_model_steps_alike_and_the_small_one_not_at_all_otherwise(tmp_path):
    given = STEP | {"candidates": 4, "keep_rollouts": 4, "reward_funcs": mostly_flat}
    del given["num_generations"]
    trainers = []
    for compaction in (False, True):
        trainers.append(tiny.trainer(tmp_path / str(compaction), compaction=compaction, **given))
        start = {name: value.clone() for name, value in trainers[-1].large.state_dict().items()}
        trainers[-1].train()
    plain, compacted = trainers
    steps = [
        {name: value - start[name] for name, value in trainer.large.state_dict().items()}
        for trainer in trainers
    ]
    assert relative(steps[1], steps[0]) < 1e-5
    assert tiny.distance(plain.model, compacted.model) == 0.0
    assert compacted.state.log_history[0]["large/compaction/kept"] < 0.7
    work = [trainer.ledger.table().set_index("phase")["tokens"] for trainer in trainers]
    assert work[1]["update_large"] < 0.7 * work[0]["update_large"]


def test_several_updates_of_one_generation_keep_their_rows(tmp_path):
    """Rows may not move between the two optimizer steps of a generation."""
    given = STEP | {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
    given |= {"learning_rate": 0.1, "loss_type": "grpo", "method": "grpo", "reward_funcs": mostly_flat}
    steps = [
        moved(tiny.trainer(tmp_path / str(compaction), compaction=compaction, **given))
        for compaction in (False, True)
    ]
    assert relative(steps[1], steps[0]) < 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entropy_coef": 0.1}, "entropy bonus"),
        ({"top_entropy_quantile": 0.5}, "quantile"),
    ],
)
def test_it_switches_itself_off_with_one_warning(tmp_path, changes, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = tiny.trainer(
            tmp_path, method="grpo", compaction=True, reward_funcs=mostly_flat, **STEP, **changes
        )
        trainer.train()
    told = [str(warning.message) for warning in caught if warning.category is LowdimWarning]
    told = [message for message in told if "compaction" in message]
    assert len(told) == 1
    assert said in told[0]
    assert "compaction/kept" not in trainer.state.log_history[0]
