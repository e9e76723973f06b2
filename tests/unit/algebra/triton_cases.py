"""Run in a process of its own with TRITON_INTERPRET=1: compares the Triton kernels with their torch twin."""

import torch

from lowdim.algebra.kernels import feature_major
from lowdim.algebra.kernels.triton import triton_product

torch.manual_seed(0)
worst = 0.0
CASES = [  # b1, b2, p, q, r, tokens
    (2, 2, 16, 16, 16, 16),
    (3, 2, 5, 7, 9, 10),
    (1, 1, 8, 20, 3, 1),
    (16, 16, 3, 2, 5, 33),
]
for b1, b2, p, q, r, tokens in CASES:
    values = [torch.randn(s) for s in ((tokens, b2 * q), (b1, p, r), (r, b1, b2), (b2, r, q))]
    weights = torch.randn(tokens, b1 * p)
    reference = [v.clone().requires_grad_() for v in values]
    expected = feature_major(*reference)
    gradients = torch.autograd.grad((expected * weights).sum(), reference)
    for fused in (False, True):
        inputs = [v.clone().requires_grad_() for v in values]
        y = triton_product(*inputs, fused=fused)
        assert y.shape == expected.shape
        pairs = [
            (y, expected),
            *zip(torch.autograd.grad((y * weights).sum(), inputs), gradients, strict=True),
        ]
        for own, twin in pairs:
            assert own.shape == twin.shape
            worst = max(worst, float((own - twin).detach().abs().max() / twin.detach().abs().max()))

# Half precision storage, single precision sums (float16: the interpreter of Triton 3.8 cannot multiply
# bfloat16 tiles); a transposed input; a gradient for one factor only.
expected = expected.detach()
for fused in (False, True):
    half = triton_product(*(v.to(torch.float16) for v in values), fused=fused)
    assert half.dtype == torch.float16
    assert float((half.float() - expected).abs().max() / expected.abs().max()) < 0.005
strided = values[0].mT.contiguous().mT
assert torch.allclose(triton_product(strided, *values[1:]), expected, atol=1e-4)
only = values[2].clone().requires_grad_()
(gradient,) = torch.autograd.grad(
    (triton_product(values[0], values[1], only, values[3]) * weights).sum(), only
)
worst = max(worst, float((gradient - gradients[2]).abs().max() / gradients[2].abs().max()))
print(worst)
