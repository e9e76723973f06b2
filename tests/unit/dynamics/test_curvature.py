"""Curvature products against dense matrices, in every way of computing them, and what they leave behind."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lowdim.algebra import spectrum
from lowdim.dynamics.curvature import hessian
from lowdim.dynamics.gauss_newton import CrossEntropy, SplitLoss, gauss_newton
from lowdim.dynamics.parameters import FlatParameters
from lowdim.errors import DataError, LowdimWarning, ShapeError


def network(*, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def data(dtype=torch.float64):
    return X.to(dtype), torch.tensor([0, 1, 1, 0, 1, 0])


def dense(model, loss):
    """Return the Hessian by torch.func, parameters in the order of the network."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    values = dict(model.named_parameters())
    sizes = [values[name].numel() for name in names]

    def of(flat):
        parts = flat.split(sizes)
        moved = {n: part.view_as(values[n]) for n, part in zip(names, parts, strict=True)}
        return loss(lambda x: functional_call(model, moved, (x,)))

    flat = torch.cat([values[name].detach().reshape(-1) for name in names])
    return torch.func.hessian(of)(flat)


def cross_entropy(call):
    x, y = data()
    return nn.functional.cross_entropy(call(x), y)


@pytest.mark.parametrize("method", ["reuse", "recompute", "auto"])
def test_products_are_those_of_the_dense_hessian(method):
    model = network()
    want = dense(model, cross_entropy)
    with hessian(model, lambda: cross_entropy(model), method=method) as H:
        got = H @ torch.eye(H.shape[0], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert H.products == H.shape[0]


def test_differences_are_exact_to_three_digits():
    model = network()
    want = dense(model, cross_entropy)
    with hessian(model, lambda: cross_entropy(model), method="difference") as H:
        got = H @ torch.eye(H.shape[0], dtype=torch.float64)
    assert float((got - want).norm() / want.norm()) < 1e-3


def test_a_large_table_does_not_lengthen_the_step_of_small_layers():
    torch.manual_seed(0)
    table, layer = nn.Embedding(500, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model = nn.Sequential(table, nn.LayerNorm(8), layer)
    with torch.no_grad():
        table.weight.mul_(100)
    x, y = torch.arange(20), torch.arange(20) % 3

    def loss():
        return nn.functional.cross_entropy(model(x), y)

    def top(method):
        with hessian(model, loss, method=method) as H:
            v = torch.zeros(H.shape[0]).index_fill_(0, torch.arange(H.shape[0] - 115, H.shape[0]), 1.0)
            return H @ (v / v.norm())

    want = top("reuse")
    assert float((top("difference") - want).norm() / want.norm()) < 3e-3


def test_parts_of_a_batch_are_weighted_by_their_length():
    model = network()
    x, y = data()
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    want = dense(model, cross_entropy)

    def loss(batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with hessian(model, loss, batches=batches) as H:
        got = H @ torch.eye(H.shape[0], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_only_trainable_and_selected_parameters_count():
    model = network()
    model[0].bias.requires_grad_(False)
    want = dense(model, cross_entropy)
    with hessian(model, lambda: cross_entropy(model)) as H:
        assert H.shape == (22, 22)
        torch.testing.assert_close(H @ torch.eye(22, dtype=torch.float64), want, rtol=1e-10, atol=1e-12)
    with hessian(model, lambda: cross_entropy(model), select="^2[.]weight") as H:
        assert H.parameters.names == ("2.weight",)
        got = H @ torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(got, want[12:20, 12:20], rtol=1e-10, atol=1e-12)


def test_a_loss_that_does_not_bend_has_no_curvature():
    layer = nn.Linear(3, 1)
    with hessian(layer, lambda: layer(torch.ones(2, 3)).sum()) as H:
        assert not bool((H @ torch.ones(4)).any())


class Once(torch.autograd.Function):
    """A square with a first derivative only, as fused kernels are."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def test_without_a_second_derivative_differences_are_taken_and_told():
    layer = nn.Linear(2, 1, bias=False)

    def loss():
        return Once.apply(layer(torch.eye(2))).sum()

    with pytest.warns(LowdimWarning, match="differences of gradients"), hessian(layer, loss) as H:
        torch.testing.assert_close(
            H @ torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0]), rtol=1e-3, atol=1e-3
        )
    # Autograd itself takes the gradient of such a function for a constant, without a word.
    with hessian(layer, loss, method="reuse") as H:
        assert not bool((H @ torch.ones(2)).any())
    with pytest.raises(RuntimeError, match="Once has a backward pass of its own"):  # noqa: SIM117
        with hessian(layer, loss, strict=True) as H:
            H @ torch.ones(2)


def test_checkpoints_of_both_kinds_are_crossed():
    from torch.utils.checkpoint import checkpoint

    model = network()
    x, y = data()
    want = dense(model, cross_entropy)
    for reentrant in (False, True):

        def loss(reentrant=reentrant):
            hidden = checkpoint(model[0], x.requires_grad_(), use_reentrant=reentrant)
            return nn.functional.cross_entropy(model[2](model[1](hidden)), y)

        import contextlib

        told = pytest.warns(LowdimWarning, match="differences") if reentrant else contextlib.nullcontext()
        with told, hessian(model, loss) as H:
            got = H @ torch.eye(H.shape[0], dtype=torch.float64)
        assert float((got - want).norm() / want.norm()) < 1e-3


def test_attention_is_differentiated_twice():
    torch.manual_seed(0)
    q = nn.Parameter(torch.randn(1, 1, 4, 8))

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = q

        def forward(self):
            return nn.functional.scaled_dot_product_attention(self.q, self.q, self.q).square().sum()

    model = Attention()
    with hessian(model, model, strict=True) as H:
        image = H @ torch.ones(32)
    assert bool(torch.isfinite(image).all())
    assert bool(image.any())


@pytest.mark.parametrize("criterion", ["closed form", "differentiated"])
def test_gauss_newton_is_that_of_the_dense_jacobian(criterion):
    model = network()
    x, y = data()
    names = [name for name, _ in model.named_parameters()]
    values = dict(model.named_parameters())
    jacobian = torch.func.jacrev(lambda moved: functional_call(model, moved, (x,)))(dict(values))
    J = torch.cat([jacobian[name].reshape(12, -1) for name in names], dim=1).detach()
    outer = torch.func.hessian(lambda z: nn.functional.cross_entropy(z.view(6, 2), y))(
        model(x).detach().reshape(-1)
    )
    loss = CrossEntropy(y) if criterion == "closed form" else lambda z: nn.functional.cross_entropy(z, y)
    with gauss_newton(model, SplitLoss(lambda: model(x), loss)) as G:
        got = G @ torch.eye(G.shape[0], dtype=torch.float64)
    torch.testing.assert_close(got, J.mT @ outer @ J, rtol=1e-10, atol=1e-12)


def test_cross_entropy_leaves_out_what_is_not_asked():
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, -100, 2], [3, 1, -100]])
    outer = torch.func.hessian(lambda z: CrossEntropy(targets)(z.view(2, 3, 4)))(logits.reshape(-1))
    u = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = CrossEntropy(targets).curvature(logits, u)
    torch.testing.assert_close(got.reshape(-1), outer @ u.reshape(-1))
    with pytest.raises(ShapeError, match="classes"):
        CrossEntropy(targets)(torch.zeros(3, 4))


class Everything(nn.Module):
    """Dropout, batch normalization, a buffer of its own, and one gradient that is there."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.drop(self.norm(self.first(x))).square().mean()


@pytest.mark.parametrize("mode", ["eval", "batch-norm", "train"])
@pytest.mark.parametrize("method", ["reuse", "difference"])
def test_nothing_is_left_behind(mode, method):
    torch.manual_seed(0)
    model = Everything()
    model.drop.eval()  # a flag of its own
    x = data(torch.float32)[0]
    model(x).backward()
    gradients = [p.grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copies = [g.clone() for g in gradients]
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    python, numpy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with hessian(model, lambda: model(x), mode=mode, method=method) as H:
        spectrum.eigenpairs(H, seed=0)
        random.random()
        np.random.rand()  # noqa: NPY002
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(g, c) for g, c in zip(gradients, copies, strict=True))
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert python == random.getstate()
    assert np.array_equal(numpy, np.random.get_state()[1])  # noqa: NPY002


def test_statistics_of_the_batch_are_another_loss():
    torch.manual_seed(0)
    model = Everything()
    x = data(torch.float32)[0]
    found = []
    for mode in ("eval", "batch-norm"):
        with hessian(model, lambda: model(x), mode=mode) as H:
            found.append(H @ torch.ones(H.shape[0]))
    assert not torch.allclose(found[0], found[1])


def test_mixed_precision_is_off_inside():
    model = network(dtype=torch.float32)
    x, y = data(torch.float32)
    seen = []

    def loss():
        out = model(x)
        seen.append(out.dtype)
        return nn.functional.cross_entropy(out, y)

    with torch.autocast("cpu", dtype=torch.bfloat16), hessian(model, loss) as H:
        H @ torch.ones(H.shape[0])
    assert set(seen) == {torch.float32}


def test_accelerates_mixed_precision_is_taken_off_and_put_back():
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()
    try:
        accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
        model = accelerator.prepare(network(dtype=torch.float32))
        x, y = data(torch.float32)
        wrapped = model.forward
        seen = []

        def loss():
            hidden = model[0](x)
            out = model(x)
            seen.append(hidden.dtype)
            return nn.functional.cross_entropy(out, y)

        want = dense(network(dtype=torch.float64), cross_entropy)
        with hessian(model, loss) as H:
            got = H @ torch.eye(H.shape[0])
        assert model.forward is wrapped
        assert float((got - want).norm() / want.norm()) < 1e-5
    finally:
        AcceleratorState._reset_state()
        PartialState._reset_state()


def test_gradient_is_there_where_it_is_free():
    model = network()
    with hessian(model, lambda: cross_entropy(model)) as H:
        found = H.gradient()
    cross_entropy(model).backward()
    torch.testing.assert_close(found, torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    with hessian(model, lambda: cross_entropy(model), method="difference") as H:
        assert H.gradient() is None


def test_integers_are_left_out_with_a_word():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(2))
            self.q = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)

    with pytest.warns(LowdimWarning, match="q: integers"):
        assert FlatParameters.of(Mixed()).names == ("a",)


def drawing():
    layer = nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(0)
    return layer, lambda: layer(torch.randn(4, 3, generator=generator)).square().mean()


REFUSALS = {
    "not a network": (lambda: ("layer", lambda: 0), {}, "expected a torch.nn.Module"),
    "no function": (lambda: (nn.Linear(2, 1), 3.0), {}, "expected a function"),
    "frozen": (lambda: (nn.Linear(2, 1).requires_grad_(False), lambda: 0), {}, "no parameter to look at"),
    "nothing selected": (lambda: (nn.Linear(2, 1), lambda: 0), {"select": "conv"}, "select='conv'"),
    "bad expression": (lambda: (nn.Linear(2, 1), lambda: 0), {"select": "("}, "no regular expression"),
    "method": (lambda: (nn.Linear(2, 1), lambda: 0), {"method": "magic"}, "method='magic'"),
    "mode": (lambda: (nn.Linear(2, 1), lambda: 0), {"mode": "sleep"}, "mode='sleep'"),
    "no parts": (lambda: (nn.Linear(2, 1), lambda b: 0), {"batches": []}, "batches is empty"),
    "weights alone": (lambda: (nn.Linear(2, 1), lambda b: 0), {"weights": [1.0]}, "without batches"),
    "weights that do not fit": (
        lambda: (nn.Linear(2, 1), lambda b: 0),
        {"batches": [1], "weights": [1.0, 2.0]},
        "2 weights for 1",
    ),
    "negative weight": (
        lambda: (nn.Linear(2, 1), lambda b: 0),
        {"batches": [1], "weights": [-1.0]},
        "positive",
    ),
    "unknown length": (lambda: (nn.Linear(2, 1), lambda b: 0), {"batches": ["text"]}, "Give weights="),
    "draws": (drawing, {}, "same batch each time"),
    "dropout": (
        lambda: ((m := Everything()), lambda: m(torch.ones(2, 3) * torch.rand(()))),
        {"mode": "train"},
        None,
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    make, options, message = REFUSALS[case]
    model, loss = make()
    if message is None:  # random numbers of torch are the same in each evaluation: nothing to refuse
        with hessian(model, loss, **options) as H:
            assert H.shape[0] == 24
        return
    with pytest.raises(DataError, match=message), hessian(model, loss, **options):
        pass


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda layer: layer(torch.ones(3, 2)), "shape \\(3, 1\\)"),
        (lambda layer: 3.0, "returned float"),
        (lambda layer: layer(torch.full((3, 2), float("nan"))).sum(), "loss is nan"),
    ],
)
def test_losses_that_are_none(loss, message):
    layer = nn.Linear(2, 1)
    with pytest.raises(DataError, match=message), hessian(layer, lambda: loss(layer)):
        pass


def test_a_loss_without_a_graph_is_refused():
    layer = nn.Linear(2, 1)

    def loss():
        with torch.no_grad():
            return layer(torch.ones(3, 2)).mean()

    with pytest.raises(DataError, match="no graph"), hessian(layer, loss) as H:
        H @ torch.ones(3)


def test_vectors_of_another_length_are_refused():
    layer = nn.Linear(2, 1)
    loss = lambda: layer(torch.ones(3, 2)).square().mean()  # noqa: E731
    with hessian(layer, loss) as H, pytest.raises(ShapeError, match="expected \\(3,\\)"):
        H @ torch.ones(4)


def test_optimizer_steps_in_backward_are_not_set_off():
    layer = nn.Linear(2, 1)
    for parameter in layer.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: p.data.zero_())
    before = layer.weight.clone()
    with hessian(layer, lambda: layer(torch.eye(2)).square().mean(), method="difference") as H:
        H @ torch.ones(3)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_differences_of_half_precision_are_refused(dtype):
    """They would be wrong by a tenth and more: moves of a thousandth are lost in the rounding."""
    model = network(dtype=dtype)
    x, _ = data(dtype)

    def loss():
        return model(x).float().square().mean()

    with pytest.raises(DataError, match="float32"), hessian(model, loss, method="difference"):
        pass
    compiled = torch.compile(model, backend="aot_eager")
    without = hessian(model, lambda: compiled(x).float().square().mean())
    with without as H, pytest.raises(DataError, match="float32"):
        H @ torch.ones(H.shape[0])
    with hessian(model, loss) as H:
        assert (H @ torch.ones(H.shape[0])).isfinite().all()


def test_parameters_without_numbers_are_refused():
    with pytest.raises(DataError, match="meta"):
        FlatParameters.of(nn.Linear(3, 2, device="meta"))
    with pytest.raises(DataError, match="lazy"):
        FlatParameters.of(nn.LazyLinear(2))
    empty = nn.Module()
    empty.none = nn.Parameter(torch.zeros(0, 3))
    with pytest.raises(DataError, match="no parameter"):
        FlatParameters.of(empty)


class Caching(nn.Module):
    """Fills one buffer and makes another, at the first pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("cache", None)

    def forward(self, x):
        if self.cache is None:
            self.cache = torch.full((2,), float(len(x)))
            self.register_buffer("late", torch.ones(2))
        return self.layer(x) * self.cache


def test_caches_are_as_empty_as_before():
    model = Caching()
    x, y = data(torch.float32)
    with hessian(model, lambda: nn.functional.cross_entropy(model(x), y)) as H:
        _ = H @ torch.ones(8)
    assert model.cache is None
    assert not hasattr(model, "late")


def test_no_seed_is_left_for_a_gpu_that_is_not_used_yet():
    model, (x, y) = network(), data()
    left = torch.cuda._lazy_seed_tracker.get_calls
    before = left()
    with hessian(model, lambda: nn.functional.cross_entropy(model(x), y)) as H:
        _ = H @ torch.ones(H.shape[0])
    assert left() == before
