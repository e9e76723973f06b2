"""A trainer with staged rollouts that counts; as ``python two_staged.py FOLDER``, one process of two."""

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

import torch.distributed as dist

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def reward(prompts, completions, **_):
    """One for all rollouts of half of the prompts; else for those that begin with a small digit."""
    pairs = zip(prompts, completions, strict=True)
    return [float(prompt[0] in "1357" or text[:1] < "4") for prompt, text in pairs]


def trainer(folder, *, reward_funcs=reward, **changes):
    """A trainer on prompts of 6 rollouts, 2 in the first stage.

    Its `calls` are the rows of each call of the engine, its `scored` the prompts and completions (token ids)
    that the reward function saw.
    """
    given = {
        "method": "grpo",
        "num_generations": 6,
        "staged_rollouts": 2,
        "stage_audit": 0.0,
        "per_device_train_batch_size": 24,
        "reward_funcs": reward_funcs,
    }
    calls, scored = [], []

    def counted(prompts, completions, completion_ids, log_extra, **columns):
        scored.extend((p, tuple(ids)) for p, ids in zip(prompts, completion_ids, strict=True))
        log_extra("text", list(completions))
        return reward_funcs(
            prompts=prompts, completions=completions, completion_ids=completion_ids, **columns
        )

    if callable(reward_funcs):
        given["reward_funcs"] = counted
    small = tiny.network()
    generate = small.generate

    def engine(input_ids, **options):
        calls.append(len(input_ids))
        return generate(input_ids=input_ids, **options)

    small.generate = engine
    made = tiny.trainer(folder, small=small, **(given | changes))
    made.calls, made.scored = calls, scored
    return made


def main(folder):
    rank = int(os.environ["RANK"])
    run = trainer(Path(folder) / "run", per_device_train_batch_size=12, max_steps=4)
    audited = []
    decide = run.stages.decide

    def noting(*args, **kwargs):
        decision = decide(*args, **kwargs)
        audited.append(int(decision.audited.sum()))
        return decision

    run.stages.decide = noting
    run.train()
    found = {
        "calls": run.calls,
        "scored": len(run.scored),
        "audited": sum(audited),
        "state": run.stages.state_dict(),
        "weights": [float(p.detach().double().sum()) for p in run.model.parameters()],
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    warnings.simplefilter("ignore")
    main(sys.argv[1])
