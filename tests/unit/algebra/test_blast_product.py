"""The orders of the Blast product: all alike, chosen by token count, and digestible for torch's compilers."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowdim.algebra import Blast, LowRank, StructuredLinear
from lowdim.algebra.kernels import (
    blast_product,
    choose_path,
    dispatch,
    feature_major,
    product,
    token_major,
)
from lowdim.errors import DataError

SIZES = [(1, 1, 5, 7, 3), (2, 3, 130, 4, 3), (2, 4, 3, 2, 5), (4, 2, 2, 3, 5), (16, 16, 2, 2, 3)]


def factors(b1: int, b2: int, p: int, q: int, r: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(b1 + 7 * b2)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((b1, p, r), (r, b1, b2), (b2, r, q))
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 9, 70])
@pytest.mark.parametrize("path", [feature_major, token_major])
def test_every_order_agrees_with_the_definition(size, tokens, path):
    U, S, V = factors(*size)
    x = torch.randn(tokens, V.shape[0] * V.shape[2], dtype=torch.float64)
    expected = torch.einsum("ipr,rij,jrq,tjq->tip", U, S, V, x.view(tokens, V.shape[0], V.shape[2]))
    expected = expected.reshape(tokens, size[0] * size[2])
    y = path(x, U, S, V)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous()
    bias = torch.arange(y.shape[1], dtype=torch.float64)
    torch.testing.assert_close(path(x, U, S, V, bias), expected + bias)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scratch_memory_does_not_show(mode, dtype, monkeypatch):
    monkeypatch.setattr(product, "_CACHED", 0)  # the shortest parts, whatever the thread count
    U, S, V = (f.to(dtype) for f in factors(16, 16, 2, 2, 300))
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10  # of outputs of size 100
    inputs = [torch.randn(tokens, 32, dtype=dtype) for tokens in (500, 20, 130, 231)]
    bias = torch.arange(32, dtype=dtype)
    expected = [feature_major(x, U.requires_grad_(), S, V, bias) for x in inputs]
    with mode():
        results = [blast_product(x.view(1, *x.shape), U, S, V, bias=bias) for x in inputs]
    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        threads = list(pool.map(lambda x: blast_product(x, U.detach(), S, V, bias=bias), inputs * 5))
    for k, wanted in enumerate(expected):
        torch.testing.assert_close(results[k][0], wanted, rtol=0, atol=tolerance)
        torch.testing.assert_close(threads[k + 8], wanted, rtol=0, atol=tolerance)
        assert results[k].is_contiguous()


def test_scratch_memory_is_for_plain_products_only():
    U, S, V = (f.float() for f in factors(16, 16, 2, 2, 300))
    x = torch.randn(3, 150, 32)
    with torch.no_grad():
        assert product.unwatched(x[0], U, S, V)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert blast_product(x[0], U, S, V).dtype == torch.bfloat16
        mapped = torch.vmap(lambda x: blast_product(x, U, S, V))(x)
        torch.testing.assert_close(mapped, blast_product(x, U, S, V), rtol=0, atol=1e-3)
        module = StructuredLinear(Blast.from_factors(U, S, V))
        with FlopCounterMode(display=False) as counter:
            module(x[0])
        assert counter.get_total_flops() == 150 * module.operator.flops()
    assert not product.unwatched(x[0], U, S, V)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_token_without_gradients_is_a_product_with_a_vector(size, dtype, monkeypatch):
    U, S, V = (f.to(dtype).requires_grad_() for f in factors(*size))
    x = torch.randn(2, V.shape[0] * V.shape[2], dtype=dtype)[:, None]
    bias = torch.arange(U.shape[0] * U.shape[1], dtype=dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    calls = []
    one = dispatch.one_token
    monkeypatch.setattr(dispatch, "one_token", lambda *given: calls.append(given) or one(*given))
    expected, adjoint = blast_product(x, U, S, V, bias=bias), (V.mH, S.mH, U.mH)
    assert not calls  # with gradients, or for two tokens
    with torch.no_grad():
        for shape in ((), (1,), (1, 1)):
            y = blast_product(x[0].view(*shape, -1), U, S, V, bias=bias)
            torch.testing.assert_close(y, expected[0].view(*shape, -1), **tolerance)
            assert y.is_contiguous()
        back = blast_product(expected[0], *adjoint)
        torch.testing.assert_close(back, token_major(expected[0], *adjoint), **tolerance)
        before = len(calls)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert blast_product(x[0], U, S, V).dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
    assert before == len(calls) == 4


def test_one_token_leaves_large_factors_to_several_threads(monkeypatch):
    x, (U, S, V) = torch.ones(1, 10).double(), factors(4, 2, 3, 5, 6)
    monkeypatch.setattr(product, "_SMALL_FACTORS", 10)
    with torch.no_grad():
        for threads, alone in ((1, True), (4, False)):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert product.suits_one_token(x, U, S, V) is alone


def test_gradients_of_both_orders_agree():
    U, S, V = (f.requires_grad_() for f in factors(4, 2, 3, 5, 6))
    x = torch.randn(30, 10, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(30, 12, dtype=torch.float64)
    both = [
        torch.autograd.grad((blast_product(x, U, S, V, path=path) * weights).sum(), (x, U, S, V))
        for path in ("feature", "token")
    ]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


def test_the_order_follows_the_token_count():
    assert [choose_path(n, 16, 16) for n in (1, 15, 16, 512)] == ["token", "token", "feature", "feature"]
    assert [choose_path(n, 4, 4) for n in (16, 24, 25, 64)] == ["token", "token", "feature", "feature"]


def test_an_unknown_path_is_refused():
    with pytest.raises(DataError, match=r"'fast' is unknown. Use one of 'feature', 'token'"):
        blast_product(torch.ones(1, 10), *(f.float() for f in factors(4, 2, 3, 5, 6)), path="fast")


def layer(b: int = 4, pad: bool = False) -> StructuredLinear:
    torch.manual_seed(0)
    n = 23 if pad else 24
    return StructuredLinear(Blast(n, 16, rank=6, blocks=b, pad=pad), torch.randn(16)).eval()


@pytest.mark.parametrize("b", [2, 4, 8])
@pytest.mark.parametrize("pad", [False, True])
def test_export_with_a_dynamic_batch(b, pad):
    module = layer(b, pad)
    n = module.in_features
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(module, (torch.randn(3, n),), dynamic_shapes=({0: batch},))
    for tokens in (1, 2, 15, 16, 99, 700):
        x = torch.randn(tokens, n)
        torch.testing.assert_close(program.module()(x), module(x))


def test_export_with_dynamic_batch_and_length():
    module = layer()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.export.export(module, (torch.randn(2, 5, 24),), dynamic_shapes=(dims,))
    for shape in ((1, 1, 24), (3, 40, 24)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), module(x))


def test_onnx_gives_the_same_numbers(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module = nn.Sequential(layer(), nn.ReLU(), StructuredLinear(LowRank(16, 8, rank=2)))
    path = tmp_path / "layer.onnx"
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.randn(3, 24),), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False
        )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for tokens in (1, 7, 64):
        x = torch.randn(tokens, 24)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic):
    torch.compiler.reset()
    module = layer()
    # The eager backend needs no C++ compiler; a graph break would raise.
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (1, 3, 40):
        x = torch.randn(tokens, 24, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, module(x))
        y.square().sum().backward()
        expected = torch.autograd.grad(module(x).square().sum(), x)[0]
        torch.testing.assert_close(x.grad, expected)
    torch.compiler.reset()


@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_autocast_computes_in_bfloat16(tokens):
    module = layer()
    x = torch.randn(tokens, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module.operator(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), module.operator(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("tokens", [2, 30])
def test_gradcheck_of_the_layer(tokens):
    module = layer().double()
    x = torch.randn(tokens, 24, dtype=torch.float64, requires_grad=True)
    names, values = zip(*module.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


def test_vmap_over_a_stack_of_layers():
    U, S, V = (torch.stack([f, 2 * f]) for f in factors(4, 2, 3, 5, 6))
    x = torch.randn(2, 30, 10, dtype=torch.float64)
    y = torch.vmap(blast_product)(x, U, S, V)
    for k in range(2):
        torch.testing.assert_close(y[k], blast_product(x[k], U[k], S[k], V[k]))
