"""The Triton kernels, run by Triton's interpreter on the CPU in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowdim.algebra.kernels import dispatch, feature_major
from lowdim.errors import LowdimWarning


def test_kernels_agree_with_their_torch_twin():
    pytest.importorskip("triton")
    # The interpreter must be chosen before Triton is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("triton_cases.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


def factors() -> tuple[torch.Tensor, ...]:
    return torch.randn(4, 6), torch.randn(2, 5, 3), torch.randn(3, 2, 2), torch.randn(2, 3, 3)


def test_the_quickest_candidate_is_chosen():
    seconds = {"feature": 3.0, "token": 1.0, "triton": 2.0}
    assert dispatch.quickest(list(seconds), seconds.__getitem__) == "token"


def test_a_candidate_that_fails_is_named_and_left_out():
    def measure(path):
        if path == "triton":
            raise RuntimeError("no shared memory left")
        return {"feature": 2.0, "token": 3.0}[path]

    with pytest.warns(LowdimWarning, match="the path .triton. failed .*no shared memory left"):
        assert dispatch.quickest(["feature", "token", "triton"], measure) == "feature"


def test_without_a_gpu_triton_is_not_considered():
    x, U, S, V = factors()
    assert dispatch.candidates(x, U) == ["feature", "token"]
    torch.testing.assert_close(dispatch.blast_product(x, U, S, V), feature_major(x, U, S, V))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", ["triton", "fused"])
def test_on_a_gpu(path):
    x, U, S, V = (t.cuda() for t in factors())
    torch.testing.assert_close(
        dispatch.blast_product(x, U, S, V, path=path), feature_major(x, U, S, V), rtol=1e-3, atol=1e-3
    )
