"""Laws of deep linear networks: what no change of basis, scale or path along the fiber may alter."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowdim.algebra.seeds import gaussian
from lowdim.dynamics import dln, flatness

F64 = torch.float64
DEPTHS = st.integers(2, 5)
SEEDS = st.integers(0, 2**16)
SPECTRA = st.lists(st.floats(0.1, 10), min_size=1, max_size=4).map(lambda s: sorted(s, reverse=True))


def turn(d, seed):
    return torch.linalg.qr(gaussian((d, d), seed=seed, dtype=F64)).Q


def diagonal(s):
    return torch.tensor(s, dtype=F64).diag()


@settings(max_examples=30, deadline=None)
@given(s=SPECTRA, depth=DEPTHS, seed=SEEDS)
def test_spectra_and_critical_rates_depend_on_singular_values_alone(s, depth, seed):
    M = turn(len(s), seed) @ diagonal(s) @ turn(len(s), seed + 1)
    for function in (dln.balanced_sharpness, dln.hessian_eigenvalues):
        torch.testing.assert_close(function(M, depth=depth), function(s, depth=depth))
    torch.testing.assert_close(dln.critical_lrs(M, depth=depth).onset, dln.critical_lrs(s, depth=depth).onset)


@settings(max_examples=30, deadline=None)
@given(s=SPECTRA, depth=DEPTHS)
def test_mixed_curvatures_lie_between_those_of_their_directions(s, depth):
    S = dln.balanced_sharpness(s, depth=depth)
    for i in range(len(s)):
        for j in range(i):
            pair = dln.hessian_eigenvalues([s[j], s[i]], depth=depth)
            assert bool((pair[1:3] <= S[j] * (1 + 1e-12)).all())
            assert bool((pair[1:3] >= S[i] * (1 - 1e-12)).all())


@settings(max_examples=40, deadline=None)
@given(s=st.floats(0.05, 50), depth=DEPTHS, c=st.floats(1.0001, 3))
def test_an_orbit_exists_for_every_rate_beyond_the_edge(s, depth, c):
    lr = c * 2 / float(dln.balanced_sharpness([s], depth=depth)[0])
    orbit = dln.period2_orbit(s, depth=depth, lr=lr)
    low, high = float(orbit.low), float(orbit.high)
    assert 0 < low < s ** (1 / depth) < high
    assert high**depth <= 4 / 3 * s * (1 + 1e-9)  # attained at depth 2, c = 1.5
    there = low - lr * (low**depth - s) * low ** (depth - 1)
    assert abs(there - high) <= 1e-9 * high
    assert (
        bool(orbit.stable) == (c < dln.stability_limit(depth)) or abs(c - dln.stability_limit(depth)) < 1e-9
    )


@settings(max_examples=30, deadline=None)
@given(s=SPECTRA, depth=DEPTHS, c=st.floats(0.5, 1.4), factor=st.floats(0.1, 10))
def test_larger_targets_have_smaller_rates_and_equal_multipliers(s, depth, c, factor):
    # With s times k, layers grow by k^(1/L) and the curvature by k^(2 - 2/L).
    lr = c * float(dln.critical_lrs(s, depth=depth).onset[0])
    scaled = lr / factor ** (2 - 2 / depth)
    here = dln.floquet(s, depth=depth, lr=lr)
    there = dln.floquet([factor * v for v in s], depth=depth, lr=scaled)
    assert here.rank == there.rank
    torch.testing.assert_close(here.mixing, there.mixing, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(here.aligned, there.aligned, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    s=st.lists(st.floats(8.3, 10), min_size=2, max_size=3, unique=True).map(
        lambda s: sorted(s, reverse=True)
    ),
    depth=DEPTHS,
    u=st.floats(0.01, 1),
    phase=st.sampled_from([(0, 0), (0, 1)]),
)
def test_two_singular_values_cannot_oscillate_together_for_long(s, depth, u, phase):
    rates = dln.critical_lrs(s, depth=depth)
    low, high = float(rates.onset[1]), float(rates.period4[0])
    assume(low < high)
    assume(s[0] / s[1] > 1.001)
    lr = low + u * (high - low)
    assume(dln.oscillation_rank(s, depth=depth, lr=lr) == 2)
    assert not dln.floquet(s, depth=depth, lr=lr, phases=phase).stable


@settings(max_examples=30, deadline=None)
@given(s=SPECTRA, depth=DEPTHS, seed=SEEDS, strength=st.floats(0, 0.5))
def test_balanced_layers_are_the_flattest(s, depth, seed, strength):
    turns = [strength * gaussian((len(s), len(s)), seed=seed + k, dtype=F64) for k in range(depth - 1)]
    moved = flatness.reparameterize(dln.balanced_layers(s, depth=depth), turns)
    found = flatness.at_minimum(moved, target=diagonal(s))
    assert float(found.excess) >= -1e-9
    assert float(found.trace) >= float(found.smallest_trace) * (1 - 1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, depth=st.integers(1, 4))
def test_measures_do_not_depend_on_the_basis(seed, depth):
    layers = [gaussian((3, 3), seed=seed + k, dtype=F64) for k in range(depth)]
    turns = [turn(3, seed + 7 * k) for k in range(depth + 1)]
    turned = [turns[k + 1] @ W @ turns[k].mT for k, W in enumerate(layers)]
    before, after = flatness.at_minimum(layers), flatness.at_minimum(turned)
    for name in ("sharpness", "trace", "flattest", "balance_gap"):
        torch.testing.assert_close(getattr(before, name), getattr(after, name), rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, depth=st.integers(1, 4), shape=st.sampled_from([(3, 3), (2, 4), (4, 2)]))
def test_training_turns_with_its_target(seed, depth, shape):
    M = gaussian(shape, seed=seed, dtype=F64)
    net = dln.DeepLinear(M, depth=depth, scale=0.3)
    turned = dln.DeepLinear(turn(shape[0], seed) @ M, depth=depth, scale=0.3)
    one, other = (n.fit(0.05, steps=30, record=("loss", "gap")) for n in (net, turned))
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(one.gap, other.gap, rtol=1e-8, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, depth=st.integers(2, 4), lr=st.floats(0.01, 0.2))
def test_every_step_of_a_training_obeys_the_balance_identity(seed, depth, lr):
    M = gaussian((3, 3), seed=seed, dtype=F64)
    net = dln.DeepLinear(M, depth=depth, init="gaussian", scale=0.7, seed=seed)
    predicted = dln.balancing_step(net.start(), target=M, lr=lr)
    found = dln.balancing_matrices(net.fit(lr, steps=1).layers)
    for G, wanted in zip(found, predicted, strict=True):
        torch.testing.assert_close(G, wanted, rtol=1e-10, atol=1e-10)
