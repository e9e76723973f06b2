"""Run `lowdim compress` many times from one process that has everything imported, and disturb it.

Every run is a fork of this process: a command as a user types it, without the seconds that imports take.
Usage: python faults.py FOLDER SEED; the result is JSON on stdout.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

KILLS = 10
LIMITS = (2_500, 6_000, 40_000)
"""Largest file in bytes: smaller than the moments, than a layer, than the model."""


def start(words: list[str], log: Path, limit: int | None = None) -> int:
    """Fork a process that runs one command line; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        import lowdim.cli

        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        lowdim.cli.main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(pid: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def words(root: Path, out: Path) -> list[str]:
    return [
        "compress", str(root / "model"), "-o", str(out), "--sweeps", "4", "--recover-steps", "30",
        "--calib", str(root / "calibration.txt"), "--eval", str(root / "heldout.txt"),
    ]  # fmt: skip


def killed(root: Path, out: Path, after: float) -> dict[str, Any]:
    """Kill a run after some seconds, then resume it."""
    pid = start(words(root, out), root / "log")
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    ended = finish(pid)
    left = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) if out.exists() else []
    code = finish(start([*words(root, out), "--resume"], root / "log"))
    return {"after": after, "ended": ended, "left": left, "resumed": code, "log": (root / "log").read_text()}


def full(root: Path, out: Path, limit: int) -> dict[str, Any]:
    """Run on a disk that takes only small files, then resume with room."""
    code = finish(start(words(root, out), root / "log", limit))
    told = (root / "log").read_text()
    left = {str(p.relative_to(out)): p.stat().st_size for p in out.rglob("*") if p.is_file()}
    resumed = finish(start([*words(root, out), "--resume"], root / "log"))
    return {"limit": limit, "ended": code, "told": told, "left": left, "resumed": resumed}


def layers(out: Path) -> dict[str, list[Any]]:
    """The finished layer files of a stopped run: file number, time of writing, contents, seconds told."""
    from lowdim.runs import read_tensors

    found = {}
    for path in sorted((out / ".work" / "layers-uniform").glob("*.safetensors")):
        state = path.stat()
        contents = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.name] = [
            state.st_ino,
            state.st_mtime_ns,
            contents,
            float(read_tensors(path)[1]["seconds"]),
        ]
    return found


def tenth(root: Path, out: Path) -> dict[str, Any]:
    """Kill a run when ten layers are finished; let the next stop at a full disk, and the third finish."""
    pid = start(words(root, out), root / "log")
    folder = out / ".work" / "layers-uniform"
    # A file appears under its name when it is whole.
    while len(list(folder.glob("*.safetensors"))) < 10 and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    ended = finish(pid)
    killed = layers(out)
    # Too small for the weights of the whole model in recovery, large enough for every layer.
    stopped = finish(start([*words(root, out), "--resume"], root / "log", LIMITS[-1]))
    after = layers(out)
    code = finish(start([*words(root, out), "--resume"], root / "log"))
    log = (root / "log").read_text()
    return {"ended": ended, "killed": killed, "stopped": stopped, "after": after, "resumed": code, "log": log}


def main() -> None:
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    import torch

    torch.set_num_threads(1)
    import transformers

    import lowdim.cli.compress
    import lowdim.compress.pipeline
    import lowdim.report  # noqa: F401

    transformers.BertModel  # noqa: B018  (loaded lazily; and the tokenizers with it)
    transformers.AutoTokenizer  # noqa: B018
    whole = root / "whole"
    finish(start(words(root, root / "warm"), root / "log"))
    begin = time.perf_counter()
    first = finish(start(words(root, whole), root / "log"))
    duration = time.perf_counter() - begin
    draw = random.Random(seed)
    moments = sorted(draw.uniform(0.02, 1.0) * duration for _ in range(KILLS))
    result = {
        "whole": first,
        "log": (root / "log").read_text(),
        "duration": duration,
        "kills": [killed(root, root / f"killed{i}", after) for i, after in enumerate(moments)],
        "tenth": tenth(root, root / "tenth"),
        "full": [full(root, root / f"full{limit}", limit) for limit in LIMITS],
    }
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
