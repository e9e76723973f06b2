"""Everything that cannot work is refused before work is spent, with the remedy."""

import copy
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("trl")

from lowdim.errors import DataError, LowdimWarning
from lowdim.policy import door
from lowdim.policy.trl import HybridGRPOConfig

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

REFUSED = [
    ({"keep_rollouts": 7}, "keep_rollouts=7 is odd.*Use 6 or 8"),
    ({"keep_rollouts": 16}, "keep_rollouts=16 is not between 2 and candidates=14"),
    ({"candidates": 1, "keep_rollouts": 1}, "candidates=1 are too few"),
    ({"hint_tokens": 5}, "hint_tokens=5 leaves nothing of max_completion_length=5.*Give 0 to 4"),
    ({"alpha": -0.5}, "alpha=-0.5 is negative"),
    ({"alpha": float("inf")}, "alpha=inf is negative or not finite"),
    ({"temperature": 0.0}, "temperature=0.0 has no log-probabilities"),
    ({"loss_type": "dapo"}, "loss_type='dapo' contradicts method='hybrid'.*dr_grpo"),
    ({"num_generations": 8}, "num_generations=8 contradicts candidates=14"),
    ({"kd_place": "loss"}, "kd_estimator='k1' teaches nothing as a loss.*k2"),
    ({"kd_estimator": "k2"}, "kd_estimator='k2' is for kd_place='loss'"),
    ({"ratio_cap": 1.1}, "ratio_cap=1.1 is not above 1 [+] epsilon = 1.2"),
    ({"large_ratio": "truncated"}, "ratio_cap=None does not bound large_ratio='truncated'"),
    ({"selection": "best"}, "selection='best' is unknown.*'both', 'top', 'max_variance', 'random'"),
    ({"offload_large": "disk"}, "offload_large='disk' is unknown"),
    ({"method": "pods", "alpha": 1.0}, "method='pods' has one model, but alpha=1.0"),
    ({"method": "kdrl", "train_large": True}, "train_large=True contradicts method='kdrl'"),
    ({"top_entropy_quantile": 0.2}, "top_entropy_quantile=0.2 goes with method='grpo' only"),
    (
        {"per_device_train_batch_size": 30},
        "is 30 rollouts, not a multiple of candidates=14.*per_device_train_batch_size=28 or 42",
    ),
    (
        {
            "per_device_train_batch_size": 7,
            "gradient_accumulation_steps": 2,
            "keep_rollouts": 7,
            "selection": "top",
        },
        "7 kept rollouts.*do not divide into steps_per_generation=2 equal slices",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_settings_that_contradict(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        HybridGRPOConfig(**tiny.settings(tmp_path, **changes))


def test_settings_follow_the_method(tmp_path):
    def made(**changes):
        config = HybridGRPOConfig(**tiny.settings(tmp_path, **changes))
        return (
            config.loss_type,
            config.scale_rewards,
            config.alpha,
            config.train_large,
            config.num_generations,
        )

    assert made() == ("dr_grpo", "none", 1.0, True, 14)
    assert made(method="kdrl") == ("dr_grpo", "none", 1.0, False, 14)
    assert made(method="pods", scale_rewards="group") == ("dr_grpo", "group", 0.0, False, 14)
    assert made(method="grpo", per_device_train_batch_size=8) == ("dapo", "group", 0.0, False, 8)


def built(folder, **given):
    """A trainer from `given` arguments of `tiny.trainer`."""
    return tiny.trainer(folder, **given)


def test_models_that_do_not_go_together(tmp_path):
    model = tiny.network()
    with pytest.raises(DataError, match="the same object, and would be updated twice"):
        built(tmp_path, small=model, large=model)
    with pytest.raises(DataError, match="method='pods' trains one model, but large"):
        built(tmp_path, method="pods", large=tiny.network())
    with pytest.raises(DataError, match="the large model only 13 rows of logits"):
        built(tmp_path, large=tiny.network(rows=13))
    with pytest.warns(LowdimWarning, match="the small model has .* Swap them"):
        built(tmp_path, small=tiny.network(24), large=tiny.network(16, seed=1))
    args = HybridGRPOConfig(**tiny.settings(tmp_path))
    with pytest.raises(DataError, match="method='hybrid' needs a large model"):
        tiny.HybridGRPOTrainer(model, reward_funcs=tiny.reward, args=args, train_dataset=tiny.prompts())
    with pytest.raises(DataError, match=r"args is a NoneType. Give a HybridGRPOConfig"):
        tiny.HybridGRPOTrainer(model, large=tiny.network(), reward_funcs=tiny.reward)


def test_weights_too_coarse_for_their_updates(tmp_path):
    with pytest.warns(LowdimWarning, match="trained in bfloat16: updates .* rounded away"):
        built(tmp_path, large=tiny.network(24, seed=1).to(tiny.torch.bfloat16))


def test_a_tokenizer_of_other_words(tmp_path):
    large = tiny.network(24, seed=1)
    large.save_pretrained(tmp_path / "large")
    other = tiny.tokenizer(["<pad>", "$", *"0123456789=+"])
    other.save_pretrained(tmp_path / "large")
    with pytest.raises(
        DataError, match=r"vocabularies differ in 2 tokens, for instance '[+]' is 12 .* and 13"
    ):
        built(tmp_path / "run", large=str(tmp_path / "large"))


def test_vocabularies():
    words = {"a": 0, "b": 1, "c": 2}
    assert door.shared_vocabulary(words, dict(words), rows=(3, 4)) == 3
    assert door.shared_vocabulary(words, None, rows=(8, 8)) is None
    special = {"eos_token_id": 1}, {"eos_token_id": 2}
    with pytest.raises(DataError, match="eos_token_id is 1 for the small and 2 for the large"):
        door.shared_vocabulary(words, words, rows=(3, 3), special=special)
    with pytest.raises(DataError, match="for instance 'c' is 2 for the small and None"):
        door.shared_vocabulary(words, {"a": 0, "b": 1}, rows=(3, 3))
    with pytest.raises(DataError, match="the small model only 2 rows"):
        door.shared_vocabulary(words, words, rows=(2, 3))


def test_data_and_rewards(tmp_path):
    renamed = tiny.prompts().rename_column("prompt", "question")
    with pytest.raises(DataError, match=r"no column 'prompt'. Columns: answer, question"):
        built(tmp_path, train=renamed)
    with pytest.raises(DataError, match=r"reward reward needs the column 'answer'. Columns: prompt"):
        built(tmp_path, train=tiny.prompts().remove_columns("answer"))
    with pytest.raises(DataError, match="no reward function"):
        built(tmp_path, reward_funcs=None)
    with pytest.raises(DataError, match="a reward of type int cannot be called"):
        built(tmp_path, reward_funcs=[3])
    args = HybridGRPOConfig(**tiny.settings(tmp_path))
    with pytest.raises(DataError, match="5 of the 5 evaluation prompts are in the training data"):
        tiny.HybridGRPOTrainer(
            tiny.network(),
            large=tiny.network(24),
            reward_funcs=tiny.reward,
            args=args,
            train_dataset=tiny.prompts(),
            eval_dataset=tiny.prompts(5),
        )


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda count: [1.0] * (count - 1), "returned 27 values for 28 completions"),
        (lambda count: ["good"] * count, "returned 'good' for row 0"),
        (lambda count: [1.0] * (count - 1) + [float("inf")], "returned 'inf' for row 27"),
    ],
)
def test_what_a_reward_returns(tmp_path, returned, message):
    def broken(completions, **_):
        return returned(len(completions))

    trainer = built(tmp_path, reward_funcs=broken)
    with pytest.raises(DataError, match=message):
        trainer.train()


def test_launches_that_cannot_work():
    plain = SimpleNamespace(fp16=False, offload_large=False, deepspeed_plugin=None, deepspeed=None)
    door.check_launch(plain, two=True)

    def changed(**values):
        return SimpleNamespace(**vars(plain) | values)

    with pytest.raises(DataError, match=r"DeepSpeed owns one model and optimizer per engine.*FSDP2"):
        door.check_launch(changed(deepspeed="zero2.json"), two=True)
    door.check_launch(changed(deepspeed="zero2.json"), two=False)
    with pytest.raises(DataError, match="fp16=True scales the gradients of both"):
        door.check_launch(changed(fp16=True), two=True)
    with pytest.raises(DataError, match="offload_large='all' moves weights, which 2 processes hold"):
        door.check_launch(changed(offload_large="all"), two=True, processes=2)
    with pytest.raises(DataError, match=r"FSDP1 hides the parameters.*FSDP2"):
        door.check_launch(plain, two=True, shards=1)
    door.check_launch(plain, two=True, shards=2)
    with pytest.raises(DataError, match=r"offload_large=True moves what FSDP has sharded.*cpu_offload"):
        door.check_launch(changed(offload_large=True), two=True, shards=2)


def test_adapters_on_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=2, target_modules=["q_proj"])
    adapted = peft.get_peft_model(tiny.network(24, seed=1), adapters)
    args = HybridGRPOConfig(**tiny.settings(tmp_path))
    with pytest.raises(DataError, match="the large model has adapters already"):
        tiny.HybridGRPOTrainer(
            tiny.network(),
            large=copy.deepcopy(adapted),
            large_peft_config=adapters,
            reward_funcs=tiny.reward,
            args=args,
            train_dataset=tiny.prompts(),
        )
