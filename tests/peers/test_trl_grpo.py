"""With its switches off, the Hybrid-GRPO trainer is TRL's GRPOTrainer: the same weights to the last bit."""

import copy
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

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::lowdim.errors.LowdimWarning", "ignore::UserWarning"
)


def trained(folder, accumulate, **changes):
    given = {"per_device_train_batch_size": 16 // accumulate, "gradient_accumulation_steps": accumulate}
    args = trl.GRPOConfig(**tiny.settings(folder, num_generations=8, **given, **changes))
    trainer = trl.GRPOTrainer(
        tiny.network(),
        reward_funcs=tiny.reward,
        args=args,
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_without_distillation_and_selection_both_copies_follow_trl(tmp_path, accumulate):
    theirs = trained(
        *(tmp_path / "trl", accumulate), loss_type="dr_grpo", scale_rewards="none", disable_dropout=True
    )
    small = tiny.network()
    ours = tiny.trainer(
        tmp_path / "ours",
        small=small,
        large=copy.deepcopy(small),
        alpha=0.0,
        candidates=8,
        keep_rollouts=8,
        per_device_train_batch_size=16 // accumulate,
        gradient_accumulation_steps=accumulate,
    )
    ours.train()
    assert tiny.distance(tiny.network(), ours.model) > 1e-2
    assert tiny.distance(theirs.model, ours.model) == 0.0
    assert tiny.distance(ours.model, ours.large) <= 1e-6


def test_a_mixture_of_experts_keeps_its_own_loss(tmp_path):
    """TRL adds the loss that balances the experts to the small model's; the large copy gets the same."""
    transformers = pytest.importorskip("transformers")
    given = tiny.network().config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
    config = transformers.MixtralConfig(
        **{name: given[name] for name in names},
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        router_aux_loss_coef=0.5,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    small = transformers.MixtralForCausalLM(config)
    start = copy.deepcopy(small)
    trainer = tiny.trainer(
        tmp_path,
        small=small,
        large=copy.deepcopy(small),
        alpha=0.0,
        candidates=8,
        keep_rollouts=8,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=3,
        optim="sgd",
        learning_rate=0.1,
    )
    trainer.train()
    assert trainer._balance_of_large == 0.5
    assert tiny.distance(start, trainer.large) > 1e-3
    assert tiny.distance(trainer.model, trainer.large) <= 1e-6


def test_method_grpo_is_trl(tmp_path):
    accumulate = 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowdimWarning)
        theirs = trained(tmp_path / "trl", accumulate)
        ours = tiny.trainer(
            tmp_path / "ours",
            method="grpo",
            per_device_train_batch_size=16 // accumulate,
            gradient_accumulation_steps=accumulate,
        )
        ours.train()
    assert tiny.distance(theirs.model, ours.model) == 0.0
    theirs, ours = (
        [
            {k: v for k, v in row.items() if "time" not in k and "per_second" not in k}
            for row in t.state.log_history
        ]
        for t in (theirs, ours)
    )
    assert theirs == ours
