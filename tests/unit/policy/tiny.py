"""Models of a few thousand parameters, a tokenizer of single characters, and sums of digits as a task."""

import gc

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: F401

from lowdim.policy.trl import HybridGRPOConfig, HybridGRPOTrainer

# Every training collects garbage; the million objects of the imports are none.
gc.freeze()

CHARACTERS = ["<pad>", "$", *"0123456789+="]
QUIET = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "log_level": "error",
    "save_strategy": "no",
    "activation_checkpointing": False,
}


def tokenizer(characters=CHARACTERS):
    words = {word: number for number, word in enumerate(characters)}
    split = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    split.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    split.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=split, pad_token="<pad>", eos_token="$", padding_side="left"
    )


def network(width=16, *, seed=0, rows=14):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def prompts(count=64):
    pairs = [(a, b) for a in range(8) for b in range(8)][:count]
    return Dataset.from_dict(
        {"prompt": [f"{a}+{b}=" for a, b in pairs], "answer": [str(a + b) for a, b in pairs]}
    )


def reward(prompts, completions, answer, **_):
    """Right digits in their place, and a little for length: no two rollouts are likely to be equal."""
    pairs = zip(completions, answer, strict=True)
    return [sum(c == a for c, a in zip(text, right, strict=False)) + 0.1 * len(text) for text, right in pairs]


def settings(folder, **changes):
    given = QUIET | {
        "output_dir": str(folder),
        "max_steps": 6,
        "learning_rate": 1e-2,
        "max_completion_length": 5,
        "per_device_train_batch_size": 28,
        "seed": 3,
    }
    return given | changes


def trainer(folder, *, small=None, large=None, train=None, reward_funcs=reward, words=None, **changes):
    """A Hybrid-GRPO trainer on two prompts of 14 rollouts per step."""
    args = HybridGRPOConfig(**settings(folder, **changes))
    if large is None and args.method in ("hybrid", "kdrl"):
        large = network(24, seed=1)
    return HybridGRPOTrainer(
        network() if small is None else small,
        large=large,
        reward_funcs=reward_funcs,
        args=args,
        train_dataset=prompts() if train is None else train,
        processing_class=words or tokenizer(),
    )


def distance(one, other):
    """Largest difference of two models' weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)
