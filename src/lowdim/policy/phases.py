"""One phase of a run: a trainer at work in its folder, watched, evaluated, stopped and resumed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowdim.policy.examination import Examination, anywhere
from lowdim.runs import atomic_json, plain, read_json

__all__ = ["Phase"]

Progress = Callable[[str, int, int, str], object]
Callback = Callable[[dict[str, Any]], object]

WHOLE = "trainer_state.json"
"""What the trainer writes last into a checkpoint: with it, the checkpoint is whole."""


@dataclass
class Phase:
    """A trainer's work in a folder: until its last step, or until it is told to stop.

    Parameters
    ----------
    name : str
        "train" or "continue".
    folder : Path
        Checkpoints, and the models at the end.
    examination : Examination
    models : dict of str to str
        Names of the trainer's two models ("small", "large") in tables.
    progress, callback : callable, optional
        See `codistill`.
    stop_asked : bool
        Whether the process was told to stop.
    """

    name: str
    folder: Path
    examination: Examination
    models: Mapping[str, str]
    progress: Progress | None = None
    callback: Callback | None = None
    stop_asked: bool = False

    @property
    def finished(self) -> bool:
        """Whether an earlier call has finished it."""
        return (self.folder / "phase.json").is_file()

    def record(self) -> dict[str, Any]:
        """Return what the finished phase has left: steps, metrics, ledger, why it stopped."""
        found: dict[str, Any] = read_json(self.folder / "phase.json")
        return found

    def run(self, trainer: Any, tokenizer: Any) -> None:
        """Train to the end, save the models, and note that it is done.

        Parameters
        ----------
        trainer : HybridGRPOTrainer
        tokenizer : transformers tokenizer

        Raises
        ------
        KeyboardInterrupt
            If the process was told to stop (SIGTERM, SIGINT): after the step in work, with a checkpoint.
        """
        main = trainer.accelerator.is_main_process
        _silence(trainer)
        trainer.add_callback(_watcher(self, trainer))
        checkpoint = self.checkpoint(remove=main)
        with _graceful(self):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.accelerator.wait_for_everyone()
        if self.stop_asked and trainer.state.global_step < trainer.state.max_steps:
            raise KeyboardInterrupt
        trainer.save_model(str(self.folder / "small"))
        if trainer.large is not None and trainer.args.train_large:
            trainer.save_large(str(self.folder / "large"))
        if main:
            (self.folder / "small" / "training_args.bin").unlink(missing_ok=True)
            ledger = trainer.ledger.table().to_dict("records")
            for row in ledger:  # the trainer's only model may be the large one
                stem, _, which = row["phase"].rpartition("_")
                row["phase"] = f"{stem}_{self.models[which]}" if which in self.models else row["phase"]
            record = {
                "steps": trainer.state.global_step,
                "metrics": [{"phase": self.name, **row} for row in trainer.state.log_history],
                "ledger": [{"part": self.name, **row} for row in ledger],
                "stopped": trainer.guards.stopped,
            }
            atomic_json(self.folder / "phase.json", plain(record))
        trainer.accelerator.wait_for_everyone()

    def checkpoint(self, *, remove: bool = False) -> Path | None:
        """Return the last whole checkpoint; halves that a killed process has left are removed."""
        found = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        whole = [path for path in found if _whole(path)]
        for path in set(found) - set(whole) if remove else ():
            shutil.rmtree(path, ignore_errors=True)
        return whole[-1] if whole else None

    def examine(self, trainer: Any) -> None:
        """Evaluate both models at this step, and tell the guard about the large one."""
        step, main = trainer.state.global_step, trainer.accelerator.is_main_process
        if self.examination.prompts is None:
            return
        for part, model in (("small", trainer.model), ("large", trainer.large)):
            frozen = part == "large" and not trainer.args.train_large
            if model is None or (frozen and step):
                continue
            name = self.models[part]

            def tell(done: int, total: int, name: str = name) -> None:
                if self.progress is not None and main:
                    self.progress(f"examine {name}", done, total, f"step {step}")

            found = self.examination(
                model, f"{self.name}-{step}-{name}", accelerator=trainer.accelerator, progress=tell
            )
            if name == "large":
                trainer.judge(found.mean)
            if self.callback is not None and main:
                shown = {"phase": self.name, "step": step, "model": name, "accuracy": found.mean}
                self.callback(shown)


def _watcher(phase: Phase, trainer: Any) -> Any:
    """Return the callback of transformers through which a phase sees its trainer."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if phase.progress is not None and trainer.accelerator.is_main_process:
                phase.progress(phase.name, state.global_step, state.max_steps, "")
            if state.global_step == 0:
                phase.examine(trainer)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step, last = state.global_step, state.global_step >= state.max_steps
            if step % phase.examination.every == 0 or last:
                phase.examine(trainer)
            # Between two generations only: the rollouts of one are in no checkpoint.
            between = step % _generation_steps(args) == 0
            if not between:
                control.should_save = control.should_save and last
            if between and anywhere(phase.stop_asked, trainer.accelerator):
                phase.stop_asked = True
                control.should_save = control.should_training_stop = True
            if control.should_training_stop:
                control.should_save = True

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            if not trainer.accelerator.is_main_process or not logs or "reward" not in logs:
                return
            if phase.progress is not None:
                text = f"reward {logs['reward']:.3f}"
                phase.progress(phase.name, state.global_step, state.max_steps, text)
            if phase.callback is not None:
                phase.callback({"phase": phase.name, "step": state.global_step, **logs})

    return Watcher()


def _generation_steps(args: Any) -> int:
    """Return the optimizer steps that one generation of rollouts serves."""
    slices = args.steps_per_generation * args.num_iterations
    return max(1, slices // args.gradient_accumulation_steps)


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or cut off
        return False
    return True


def _silence(trainer: Any) -> None:
    """Take the callbacks away that print."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)


@contextlib.contextmanager
def _graceful(phase: Phase) -> Iterator[None]:
    """Take the first SIGTERM or SIGINT as a wish to stop after this step; a second one acts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        phase.stop_asked = True
        signal.signal(number, before[number])
        warn_stop(phase)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def warn_stop(phase: Phase) -> None:
    """Say that the run ends soon."""
    if phase.progress is not None:
        phase.progress("stop", 0, 1, "after this step, with a checkpoint; once more stops at once")


@contextlib.contextmanager
def quiet(*, logs: Path | None = None) -> Iterator[None]:
    """Keep the bars and remarks of transformers and datasets away from the user's screen.

    Parameters
    ----------
    logs : Path, optional
        Where TensorBoard's files go, unless the user has said it: beside checkpoints they would vanish.

    Yields
    ------
    None
    """
    import datasets
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    their = datasets.is_progress_bar_enabled()
    wanted = {"TOKENIZERS_PARALLELISM": "false"}
    if logs is not None:
        wanted["TENSORBOARD_LOGGING_DIR"] = str(logs)
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ.update(ours)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.filterwarnings("ignore", category=kind, module=r"(transformers|trl|torch|peft)\.")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if their:
            datasets.enable_progress_bars()
        for name in ours:
            os.environ.pop(name, None)
