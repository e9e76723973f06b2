"""Images shared by two processes, as accelerate launch and torchrun start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("inverse_process.py")


def start(folder, *arguments, size):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(size):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if size > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
        command = [sys.executable, str(SCRIPT), str(folder), *arguments]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    ended = [process.communicate(timeout=300)[1] for process in running]
    return [process.returncode for process in running], ended


def given(folder):
    return {path.name: sorted(map(int, path.read_text().split())) for path in folder.glob("log-*")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    codes, told = start(folder, size=1)
    assert codes == [0], told
    return torch.load(folder / "images-0.pt")


def test_two_processes_share_the_images_and_find_the_same(tmp_path, alone):
    pytest.importorskip("accelerate")
    codes, told = start(tmp_path, size=2)
    assert codes == [0, 0], told
    shares = given(tmp_path)
    assert len(shares) == 2
    assert {len(share) for share in shares.values()} == {3, 4}
    assert not set(shares["log-0"]) & set(shares["log-1"])
    for rank in range(2):
        assert all(map(torch.equal, torch.load(tmp_path / f"images-{rank}.pt"), alone))


def test_a_failure_ends_all_and_what_was_done_is_kept(tmp_path, alone):
    pytest.importorskip("accelerate")
    codes, told = start(tmp_path, "fail", size=2)
    assert 0 not in codes
    assert "a disk is full" in told[1]
    assert "Another process of this job failed (ValueError: a disk is full)" in told[0]
    done = given(tmp_path)["log-0"]
    codes, told = start(tmp_path, "resume", size=1)
    assert codes == [0], told
    everything = given(tmp_path)["log-0"]
    assert len(everything) == 7  # none twice
    assert set(done) < set(everything)
    assert all(map(torch.equal, torch.load(tmp_path / "images-0.pt"), alone))
