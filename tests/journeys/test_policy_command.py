"""`lowdim policy` as a user runs it: two tiny Llamas that shall add, and hardly learn it in so few steps."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import lowdim.cli

pytest.importorskip("trl", reason="trl is not installed: no policy is trained")

from transformers import AutoTokenizer

from lowdim.policy import HybridGRPOResult
from lowdim.policy.demo import TINY, write_world

pytestmark = pytest.mark.filterwarnings("ignore")

TIMED = ("seconds", "created", "command", "output", "share", "step_time", "versions")
STOP = '''
import os
from pathlib import Path

def stop(prompts, completions, completion_ids, **columns):
    """Reward length; the process is told to stop at the call that the file asks for."""
    told = Path(__file__).with_name("stop.txt")
    calls = Path(__file__).with_name("calls.txt")
    count = len(calls.read_text()) + 1 if calls.exists() else 1
    calls.write_text("x" * count)
    if told.exists():
        call, number = map(int, told.read_text().split())
        if count == call:
            os.kill(os.getpid(), number)
    return [float(len(ids)) for ids in completion_ids]
'''


def call(*words: object, code: int = 0):
    """Run a command line in this process; return its outcome."""
    result = CliRunner().invoke(lowdim.cli.build(), ["policy", *map(str, words)])
    assert result.exit_code == code, result.output + result.stderr
    return result


def told(result) -> str:
    """The text of a panel, without its frame and line breaks."""
    return " ".join(result.stderr.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


def lasting(value):
    """What two runs of the same settings share: everything but times."""
    if isinstance(value, dict):
        return {key: lasting(entry) for key, entry in value.items() if key not in TIMED}
    return [lasting(entry) for entry in value] if isinstance(value, list) else value


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), sizes=TINY, held_out=12)


@pytest.fixture(scope="module")
def short(world):
    """Options of a run of four steps, and a reward that can stop the process."""
    (world.train.parent / "stop.py").write_text(STOP)
    return [
        *("--data", world.train, "--evaluate", world.evaluate, "--reward", "exact"),
        *("--candidates", 4, "--keep-rollouts", 2, "--prompts-per-step", 2, "--max-tokens", 4, "--lr", 1e-3),
        *("--steps", 4, "--save-steps", 2, "--eval-steps", 4, "--eval-samples", 1, "--device", "cpu"),
    ]


@pytest.fixture(scope="module")
def pair(world, short):
    """Options of the run that tests interrupt."""
    stop = f"{world.train.parent / 'stop.py'}:stop"
    return [
        *("train", "--small", world.small, "--large", world.large, *short, "--reward", f"{stop}=0.1"),
        *("--continue-steps", 2),
    ]


@pytest.fixture(scope="module")
def done(pair, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    result = call(*pair, "-o", out)
    for name in ("calls.txt", "stop.txt"):
        (world.train.parent / name).unlink(missing_ok=True)
    return out, result


def test_it_writes_both_models_tables_report_and_page(done, world):
    out, shown = done
    assert {path.name for path in out.iterdir()} == {
        *("small", "large", "evaluations.csv", "metrics.csv", "ledger.csv", "report.json", "report.html"),
        *("manifest.json", ".lock"),
    }
    report = json.loads((out / "report.json").read_text())
    rows = pd.read_csv(out / "evaluations.csv")
    assert list(zip(rows["phase"], rows["step"], rows["model"], strict=True)) == [
        *(("train", 0, "small"), ("train", 0, "large"), ("train", 4, "small"), ("train", 4, "large")),
        *(("continue", 0, "large"), ("continue", 2, "large")),
    ]
    assert report["sentence"] in " ".join(shown.stdout.split())
    assert report["command"].startswith("lowdim ")
    assert {row["part"] for row in report["ledger"]} == {"train", "continue"}
    work = {row["phase"] for row in report["ledger"] if row["part"] == "continue"}
    assert "update_large" in work
    assert "update_small" not in work
    for name, start in (("small", world.small), ("large", world.large)):
        assert not same(out / name, start), "it has learned"
        assert "trained by Hybrid-GRPO" in (out / name / "README.md").read_text()
        assert not (out / name / "training_args.bin").exists()
    result = HybridGRPOResult.load(out)
    assert type(result.policy("large")).__name__ == "LlamaForCausalLM"
    assert "CoDistill-GRPO" in (out / "report.html").read_text()


@pytest.mark.parametrize("number", [3, 5], ids=["in the first phase", "in the second"])
def test_what_was_told_to_stop_goes_on_to_the_same_weights(done, pair, world, tmp_path, number):
    out, folder = tmp_path / "out", world.train.parent
    (folder / "calls.txt").unlink(missing_ok=True)
    (folder / "stop.txt").write_text(f"{number} 15")
    try:
        stopped = call(*pair, "-o", out, code=130)
    finally:
        (folder / "stop.txt").unlink()
    assert "after this step, with a checkpoint" in told(stopped)
    assert "Interrupted" in told(stopped)
    assert not (out / "report.json").exists()
    assert "already holds an unfinished run" in told(call(*pair, "-o", out, code=2))
    call(*pair, "-o", out, "--resume")
    assert same(out / "small", done[0] / "small")
    assert same(out / "large", done[0] / "large")
    reports = [json.loads((path / "report.json").read_text()) for path in (out, done[0])]
    first, second = (lasting({**report, "ledger": None}) for report in reports)
    assert first == second
    tokens = [[(row["phase"], row["tokens"], row["flops"]) for row in report["ledger"]] for report in reports]
    assert tokens[0] == tokens[1]


def test_what_was_killed_goes_on_to_the_same_weights(done, pair, world, tmp_path):
    out, folder = tmp_path / "out", world.train.parent
    (folder / "calls.txt").unlink(missing_ok=True)
    (folder / "stop.txt").write_text("4 9")  # after the checkpoint of step 2
    child = os.fork()  # a new interpreter would take longer to import torch than to train
    if child == 0:
        try:
            call(*pair, "-o", out)
        finally:
            os._exit(1)
    try:
        _, status = os.waitpid(child, 0)
    finally:
        (folder / "stop.txt").unlink()
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == 9
    half = out / ".work" / "train" / "checkpoint-3"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step": 3, ')  # cut off
    call(*pair, "-o", out, "--resume")
    assert same(out / "small", done[0] / "small")
    assert same(out / "large", done[0] / "large")


def test_a_finished_run_is_read_again_and_not_repeated(done, pair):
    out, _ = done
    before = (out / "small" / "model.safetensors").stat().st_mtime_ns
    assert "already holds a finished run" in told(call(*pair, "-o", out, code=2))
    refused = told(call(*pair, "--alpha", 0.5, "-o", out, "--resume", code=2))
    assert "settings was" in refused
    report = json.loads((out / "report.json").read_text())
    shown = json.loads(call(*pair, "-o", out, "--resume", "--json").stdout)
    assert shown["evaluations"] == report["evaluations"]
    assert (out / "small" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--reward", "sharpness"), "sharpness"),
        (("--reward", "exact=heavy"), "expected NAME or NAME=WEIGHT"),
        (("--small", "compress:1.5"), "expected the share of the parameters to keep"),
        (("--of", "x"), "names what --small compress:"),
        (("--lora", "large"), "expected small:RANK or large:RANK"),
        (("--set", "ratio_cap"), "expected NAME=VALUE"),
        (("--set", "ratio_lid=3"), "has no setting 'ratio_lid'"),
        (("--preset", "best"), "Use one of paper, improved"),
        (("--method", "grpo"), "trains one model only"),
        (("--device", "toaster"), "expected auto, cpu or cuda"),
        (("--slices", 3), "cannot be cut into 3 equal micro-batches"),
        (("--keep-rollouts", 3), "keep_rollouts=3"),
        (("--continue-steps", -1), "continue_steps=-1 must be at least 0"),
        (("--resume", "--restart"), "Give only one"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_panel_and_leaves_nothing(world, short, tmp_path, words, text):
    out = tmp_path / "out"
    given = ["train", "--small", world.small, "--large", world.large, *short, *words, "-o", out]
    assert text in told(call(*given, code=2))
    assert not out.exists()


def test_evaluation_prompts_that_are_trained_on_are_refused(world, short, tmp_path):
    words = ["--small", world.small, "--large", world.large, *short, "--evaluate", world.train]
    assert "in the training data too" in told(call("train", *words, "-o", tmp_path / "out", code=2))
    missing = ["train", "--small", world.small, *short, "-o", tmp_path / "out"]
    assert "needs a large model" in told(call(*missing, code=2))


def test_a_compressed_copy_is_made_healed_and_trained(world, short, tmp_path):
    out = tmp_path / "out"
    words = ["--small", "compress:0.5", "--heal-steps", 2, "--heal-batches", 2, *short, "--steps", 1]
    call("train", *words, "--large", world.large, "-o", out)
    report = json.loads((out / "report.json").read_text())
    facts = report["start"]["compressed"]
    assert 0 < facts["parameters_after"] < 0.7 * facts["parameters_before"]
    assert facts["sampled_tokens"] > 0
    model = HybridGRPOResult.load(out).policy("small")
    assert sum(p.numel() for p in model.parameters()) == facts["parameters_after"]
    assert "parameters, a compressed copy of" in (out / "report.html").read_text()


def test_one_model_learns_with_adapters_and_stands_beside_another_run(world, short, done, tmp_path):
    out = tmp_path / "out"
    words = ["--method", "grpo", "--small", world.large, *short, "--lora", "small:2", "--steps", 1]
    call("train", *words, "--against", done[0], "-o", out)
    assert (out / "small" / "adapter_config.json").exists()
    assert not (out / "large").exists()
    assert type(HybridGRPOResult.load(out).policy()).__name__ == "PeftModelForCausalLM"
    page = (out / "report.html").read_text()
    assert "GRPO of language models" in page
    assert "Hybrid-GRPO" in page


@pytest.fixture(scope="module")
def chat(world, tmp_path_factory):
    """Folder of the two models with a chat template, and of conversations."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = AutoTokenizer.from_pretrained(world.small)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}={% endif %}"
    )
    for name in ("small", "large"):
        shutil.copytree(getattr(world, name), folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [json.loads(line) for line in world.train.read_text().splitlines()[:12]]
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"].rstrip("=")}]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_conversations_some_of_them_set_aside(chat, tmp_path):
    out, data = tmp_path / "out", ("--data", chat / "chat.jsonl", "--reward", "exact", "--max-tokens", 4)
    shape = ("--candidates", 4, "--keep-rollouts", 2, "--device", "cpu")
    words = ["--small", chat / "small", "--large", chat / "large", *data, *shape, "--prompts-per-step", 2]
    call("train", *words, "--hold-out", 5, "--steps", 1, "--eval-samples", 1, "-o", out)
    report = json.loads((out / "report.json").read_text())
    assert report["prompts"] == {"train": 7, "evaluate": 5}
    asked = {one["prompt"][0]["content"] for one in report["samples"]}
    assert len(asked) == 5
    assert asked <= {json.loads(line)["prompt"][0]["content"] for line in (chat / "chat.jsonl").open()}
    # A conversation is the text that the template makes of it, for the trainer, evaluations and plans.
    written = next(row for row in report["ledger"] if row["phase"] == "generate")
    assert written["tokens"] - written["completion_tokens"] == 2 * 4 * len("12+34=")
    assert not same(out / "small", chat / "small")
    texts = [{**json.loads(line)} for line in (chat / "chat.jsonl").open()]
    for row in texts:
        row["prompt"] = row["prompt"][0]["content"] + "="
    plain = tmp_path / "plain.jsonl"
    plain.write_text("\n".join(map(json.dumps, texts)) + "\n")
    bare = [*data[2:], "--samples", 2, "--json"]
    found = json.loads(call("evaluate", chat / "small", *data[:2], *bare).stdout)
    world = chat / "bare"
    shutil.copytree(chat / "small", world)
    (world / "chat_template.jinja").unlink()
    assert lasting(json.loads(call("evaluate", world, "--data", plain, *bare).stdout)) == lasting(found)
    plans = ["plan", *words[:4], *data, *shape, "--repeats", 1, "--prompts", 4, "--rows", 4, "--json"]
    assert json.loads(call(*plans).stdout)["shape"]["prompt_length"] == 6


class Engine:
    """Stands in for TRL's vLLM engine: writes digits, whatever it is asked."""

    def __init__(self, *, model, mode, max_completion_length, **_):
        assert mode == "colocate"
        self.model, self.max_completion_length = model, max_completion_length

    def sync_weights(self):
        Engine.synced += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        ids = [[1 + row % 9, 12] for row in range(len(prompts))]
        return None, ids, [[[-1.0], [-1.0]] for _ in prompts], None


def test_an_engine_that_is_missing_is_told_and_one_that_is_there_writes(world, short, tmp_path, monkeypatch):
    """No vLLM here: TRL's switches are real, the engine behind them is not."""
    words = ["train", "--small", world.small, "--large", world.large, *short, "--steps", 1, "--vllm"]
    assert "needs the package 'vllm'" in told(call(*words, "-o", tmp_path / "out", code=2))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("lowdim.policy.door.find_spec", lambda name: name)
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Engine)
    Engine.synced = 0
    call(*words, "-o", tmp_path / "out")
    ledger = json.loads((tmp_path / "out" / "report.json").read_text())["ledger"]
    costs = {row["phase"]: row for row in ledger}
    assert costs["generate"]["completion_tokens"] == 2 * 4 * 2
    assert costs["sync"]["calls"] == Engine.synced == 1
    assert not same(tmp_path / "out" / "small", world.small), "the large model teaches"


def test_evaluate_counts_and_keeps(world, tmp_path):
    words = ["evaluate", world.small, "--data", world.evaluate, "--reward", "exact", "--max-tokens", 4]
    shown = call(*words, "--samples", 2, "--limit", 6, "-o", tmp_path / "kept").stdout
    assert "pass@2" in shown
    assert (tmp_path / "kept" / "evaluation.json").exists()
    found = json.loads(call(*words, "--samples", 1, "--json").stdout)
    assert found["prompts"] == 12
    assert "is not empty" in told(call(*words, "-o", tmp_path / "kept", code=2))
    assert "no tokenizer could be read" in told(call("evaluate", tmp_path, *words[2:], code=2))


def test_plan_says_whether_it_pays(world, tmp_path):
    words = ["plan", "--small", world.small, "--large", world.large, "--max-tokens", 4, "--repeats", 1]
    words += ["--candidates", 4, "--keep-rollouts", 2, "--prompts", 4, "--rows", 4, "--device", "cpu"]
    data = ["--data", world.train, "--reward", "exact"]
    shown = " ".join(call(*words, *data, "-o", tmp_path / "plan.json").stdout.split())
    assert "Hybrid-GRPO" in shown
    assert "of 4 prompts" in shown
    assert json.loads((tmp_path / "plan.json").read_text())["shape"]
    bare = json.loads(call(*words, "--config-only", "--prompt-tokens", 6, "--json").stdout)
    assert bare["prospects"] is None
    assert "rewards need prompts" in told(call(*words, "--reward", "exact", code=2))


def test_the_demo_runs_and_goes_on(tmp_path):
    words = ["demo", "--quick", "--steps", 1, "--continue-steps", 1, "-o", tmp_path]
    shown = " ".join(call(*words).stdout.split())
    assert "GRPO alone." in shown
    assert (tmp_path / "hybrid" / "report.html").exists()
    again = json.loads(call(*words, "--json").stdout)
    assert again["sentence"] in shown


def test_two_processes_train_and_the_first_one_writes(world, short, done, tmp_path):
    out = tmp_path / "out"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = [
        "--small",
        world.small,
        "--large",
        world.large,
        *short,
        "--steps",
        1,
        "--save-steps",
        1,
        "--json",
    ]
    command = [sys.executable, "-m", "lowdim", "policy", "train", *map(str, words), "-o", str(out)]
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    report = json.loads((out / "report.json").read_text())
    assert json.loads(said[0][0]) == report
    assert said[1][0] == ""
    start, alone = (
        [lasting(row) for row in one["evaluations"] if row["step"] == 0 and row["phase"] == "train"]
        for one in (report, json.loads((done[0] / "report.json").read_text()))
    )
    assert start == alone, "each has evaluated its share of the prompts"
    rollouts = 2 * 2 * 4  # processes, prompts of each, candidates
    written = next(row for row in report["ledger"] if row["phase"] == "generate")
    assert rollouts * 7 <= written["tokens"] <= rollouts * 10
    assert not same(out / "small", world.small)
