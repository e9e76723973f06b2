"""The large policy's loss with truncated ratios."""

import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.policy.surrogate import clipped_surrogate, truncated_surrogate


def _case(seed=0, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    logp = -torch.rand(6, 3, generator=source, dtype=dtype).requires_grad_()
    logp = logp.detach().requires_grad_()
    old = -torch.rand(6, 3, generator=source, dtype=dtype) * 3
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[2, 1:] = False
    return logp, old, torch.randn(6, generator=source, dtype=dtype), mask


def test_gradient_is_the_truncated_weight_times_the_advantage():
    logp, old, A, mask = _case()
    loss, ratios = truncated_surrogate(logp, old, A, mask, max_length=4, cap=1.5)
    loss.backward()
    w = (logp.detach() - old).exp()
    assert torch.allclose(logp.grad, -(w.clamp(max=1.5) * A[:, None] * mask) / (6 * 4))
    assert ratios.maximum == pytest.approx(float(w[mask].max()))
    assert ratios.clipped_low == 0


def test_on_policy_it_is_the_clipped_gradient():
    logp, _, A, mask = _case()
    gradients = []
    for loss in (
        truncated_surrogate(logp, logp.detach(), A, mask, max_length=3, cap=2.0)[0],
        clipped_surrogate(logp, logp.detach(), A, mask, max_length=3)[0],
    ):
        gradients.append(torch.autograd.grad(loss, logp)[0])
    assert torch.allclose(*gradients)


def test_what_stands_at_padding_has_no_effect():
    logp, old, A, mask = _case()
    broken = old.clone()
    broken[2, 1:] = -torch.inf
    wanted, _ = truncated_surrogate(logp, old, A, mask, max_length=3, cap=2.0)
    found, _ = truncated_surrogate(logp, broken, A, mask, max_length=3, cap=2.0)
    assert torch.equal(wanted, found)


def test_refusals():
    logp, old, A, mask = _case()
    with pytest.raises(DataError, match="cap=0"):
        truncated_surrogate(logp, old, A, mask, max_length=3, cap=0)
    with pytest.raises(ShapeError, match="advantages"):
        truncated_surrogate(logp, old, A[:2], mask, max_length=3, cap=2.0)
