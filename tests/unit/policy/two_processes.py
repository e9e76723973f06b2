"""One process of trainings over two: ``python two_processes.py FOLDER`` (see the test)."""

import copy
import importlib.util
import os
import sys
import warnings
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import LoraConfig

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

SHARDS = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


class Dealt(tiny.HybridGRPOTrainer):
    """Writes rollouts that depend on the prompt, the step and the place in the group only."""

    def _generate_single_turn(
        self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False
    ):
        rollouts = []
        for row, prompt in enumerate(prompt_ids):
            key = (*prompt, row % num_generations, self.state.global_step)
            draw = torch.Generator().manual_seed(hash(key))
            length = int(torch.randint(2, 6, (1,), generator=draw))
            rollouts.append(torch.randint(2, 14, (length,), generator=draw).tolist())
        return rollouts, None


class Adapted(tiny.HybridGRPOTrainer):
    """Both models with adapters."""

    def __init__(self, *args, **kwargs):
        adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
        super().__init__(*args, peft_config=adapters, large_peft_config=copy.deepcopy(adapters), **kwargs)


def no_ties(prompts, completion_ids, **_):
    pairs = zip(prompts, completion_ids, strict=True)
    return [zlib.crc32(repr(pair).encode()) % 1009 / 1009 for pair in pairs]


def train(folder, *, rows, resume=None, kind=Dealt, **changes):
    given = {"optim": "sgd", "learning_rate": 0.3, "max_steps": 2, "gradient_accumulation_steps": 2}
    given |= {"per_device_train_batch_size": rows} | changes
    trainer = kind(
        tiny.network(),
        large=tiny.network(24, seed=1),
        reward_funcs=no_ties,
        args=tiny.HybridGRPOConfig(**tiny.settings(folder, **given)),
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def allow_shards_on_cpus():
    """Accelerate leaves FSDP out where there is no accelerator, without a word; PyTorch's works there."""
    begin = AcceleratorState.__init__

    def with_shards(self, *args, fsdp_plugin=None, **kwargs):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if getattr(self, "fsdp_plugin", None) is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = with_shards


def left(trainer):
    table = trainer.ledger.table().drop(columns=["seconds", "share"])
    found = {"costs": table.to_dict("list"), "sharded": trainer.accelerator.is_fsdp2}
    for name, model in (("small", trainer.model), ("large", trainer.large)):
        state = model.state_dict()
        found[name] = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in state.items()}
    return found


def main(folder):
    saved = {}
    for kind, changes in (("ddp", {}), ("fsdp", SHARDS)):
        if changes:
            AcceleratorState._reset_state()
            allow_shards_on_cpus()
        here = Path(folder) / kind
        saved[kind, "dealt"] = left(train(here / "dealt", rows=28, **changes))
        if kind == "ddp":  # whose checkpoints are those of one process
            continue
        changes = changes | {
            "kind": Adapted,
            "hint_tokens": 2,
            "save_strategy": "steps",
            "save_steps": 1,
            "optim": "adamw_torch",
            "learning_rate": 1e-2,
            "rows": 14,
        }
        saved[kind, "whole"] = left(train(here / "whole", **changes))
        checkpoint = str(here / "whole" / "checkpoint-1")
        saved[kind, "resumed"] = left(train(here / "resumed", resume=checkpoint, **changes))
    torch.save(saved, Path(folder) / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
