import pytest
import torch

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.inverse import CallablePrior, CircularBlur, GMMPrior, Inpainting, gaussian_kernel
from lowdim.inverse import linear_alphas_cumprod as linear
from lowdim.inverse.noise import ImageNoise


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixture(components=3, side=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = side**2
    root = 0.3 * torch.randn(components, n, n, generator=g, dtype=torch.float64) / n**0.5
    means = 0.5 * torch.randn(components, 1, side, side, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2][:components], dtype=torch.float64)
    return GMMPrior(weights / weights.sum(), means, root @ root.mT + 0.01 * torch.eye(n))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_kind_of_prediction_gives_the_same_noise_and_image(prediction):
    abar, x0, n, t = linear(), noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1), 300
    a = abar[t]
    truth = {"epsilon": n, "v_prediction": a.sqrt() * n - (1 - a).sqrt() * x0, "sample": x0}[prediction]
    prior = CallablePrior(lambda x, t: truth, abar, prediction=prediction)
    eps, clean = prior.predict(a.sqrt() * x0 + (1 - a).sqrt() * n, t)
    torch.testing.assert_close(eps, n, rtol=0, atol=1e-5)
    torch.testing.assert_close(clean, x0, rtol=0, atol=1e-5)


def test_times_may_differ_by_image():
    prior = mixture()
    x = noise(3, 1, 4, 4)
    together = prior.x0(x, torch.tensor([10, 400, 900]))
    alone = torch.cat([prior.x0(x[b : b + 1], t) for b, t in enumerate((10, 400, 900))])
    torch.testing.assert_close(together, alone)


def test_calls_are_counted_by_batch_and_by_image():
    prior = mixture()
    prior.x0(noise(3, 1, 4, 4), 5)
    prior.eps(noise(2, 1, 4, 4), 5)
    assert (prior.calls.batches, prior.calls.images) == (2, 5)


def test_what_does_not_fit_is_refused():
    prior = mixture()
    with pytest.raises(ShapeError, match=r"expected \(1, 4, 4\)"):
        prior.x0(noise(1, 1, 8, 8), 5)
    with pytest.raises(DataError, match=r"outside 0\.\.999"):
        prior.x0(noise(1, 1, 4, 4), 1000)
    with pytest.raises(DataError, match="alphas_cumprod"):
        CallablePrior(lambda x, t: x, [0.5, 1.5])
    with pytest.raises(DataError, match="prediction='noise'"):
        CallablePrior(lambda x, t: x, linear(), prediction="noise")
    with pytest.raises(ShapeError, match="the function gave"):
        CallablePrior(lambda x, t: x[:1], linear()).x0(noise(2, 1, 4, 4), 5)
    with pytest.raises(DataError, match="N > components"):
        GMMPrior.fit(noise(5, 1, 4, 4), components=20)
    with pytest.raises(ShapeError, match="do not fit"):
        GMMPrior(torch.ones(2) / 2, torch.zeros(2, 1, 4, 4), torch.eye(16).expand(3, 16, 16))


def test_the_denoiser_is_bayes_rule():
    # By hand, over a grid of components: E[x0 | xt] from densities of scipy.
    from scipy.stats import multivariate_normal

    prior, t = mixture(), 200
    x = noise(2, 1, 4, 4)
    a = float(prior.alphas_cumprod[t])
    expected = []
    for point in x.flatten(1).double().numpy():
        densities, means = [], []
        for w, mu, C in zip(prior.weights, prior.means, prior.covariances, strict=True):
            S = a * C.numpy() + (1 - a) * torch.eye(16).double().numpy()
            m = a**0.5 * mu.numpy()
            densities.append(float(w) * multivariate_normal(m, S).pdf(point))
            gain = torch.linalg.solve(torch.as_tensor(S), torch.as_tensor(point - m))
            means.append(mu + a**0.5 * C @ gain)
        w = torch.tensor(densities) / sum(densities)
        expected.append(sum(wi * mi for wi, mi in zip(w, means, strict=True)))
    torch.testing.assert_close(prior.x0(x, t).flatten(1).double(), torch.stack(expected), rtol=0, atol=1e-5)


def test_the_posterior_mean_of_everything_seen_is_the_denoiser():
    prior, t = mixture(), 300
    a = float(prior.alphas_cumprod[t])
    x = noise(5, 1, 4, 4)
    seen = Inpainting(torch.ones(4, 4))
    mean = prior.posterior_mean(x / a**0.5, seen, sigma=((1 - a) / a) ** 0.5)
    torch.testing.assert_close(mean, prior.x0(x, t), rtol=0, atol=1e-5)


def test_the_posterior_mean_in_another_range_is_the_same_image():
    prior, kernel = mixture(), gaussian_kernel(0.7, size=3)
    x = prior.sample(4, seed=0)
    ours, theirs = CircularBlur(kernel), CircularBlur(kernel, value_range=(0, 1))
    y = ours.measure(x, sigma=0.1, seed=0)
    y01 = theirs.A((x + 1) / 2) + (y - ours.A(x)) / 2
    found = prior.posterior_mean(y01, theirs, sigma=0.05)
    torch.testing.assert_close(2 * found - 1, prior.posterior_mean(y, ours, sigma=0.1), rtol=0, atol=1e-5)


def test_the_posterior_mean_has_the_least_error():
    prior, operator = mixture(), Inpainting.random((4, 4), missing=0.5, seed=1)
    x = prior.sample(4000, seed=0)
    y = operator.measure(x, sigma=0.05, seed=0)
    best = prior.posterior_mean(y, operator, sigma=0.05)
    error = float((best - x).square().mean())
    for worse in (1.02 * best, 0.98 * best, best + 0.02):
        assert float((worse - x).square().mean()) > error


def test_the_posterior_mean_wants_one_linear_operator_and_noise():
    prior, y = mixture(), noise(3, 1, 4, 4)
    masks = torch.ones(3, 1, 4, 4)
    with pytest.raises(DataError, match="one by one"):
        prior.posterior_mean(y, Inpainting(masks), sigma=0.1)
    with pytest.raises(DataError, match="sigma > 0"):
        prior.posterior_mean(y, Inpainting(masks[0]), sigma=0.0)
    with pytest.raises(DataError, match="linear"):
        prior.posterior_mean(y, torch.tanh, sigma=0.1)


def test_samples_have_the_moments_of_the_mixture():
    prior = mixture()
    x = prior.sample(40000, seed=0).flatten(1).double()
    mean = prior.weights @ prior.means
    second = torch.einsum("j,jmn->mn", prior.weights, prior.covariances)
    second += torch.einsum("j,jm,jn->mn", prior.weights, prior.means, prior.means)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.mT @ x / len(x), second, rtol=0, atol=0.02)


def test_a_mixture_is_saved_and_read(tmp_path):
    prior = mixture()
    prior.save(tmp_path / "prior")
    again = GMMPrior.load(tmp_path / "prior")
    x = noise(2, 1, 4, 4)
    assert torch.equal(again.x0(x, 100), prior.x0(x, 100))
    with pytest.raises(RunError, match=r"no prior\.json"):
        GMMPrior.load(tmp_path)
    (tmp_path / "prior" / "prior.json").write_text('{"format": 99, "prior": "GMMPrior"}')
    with pytest.raises(RunError, match="format 99"):
        GMMPrior.load(tmp_path / "prior")


def test_noise_belongs_to_the_image():
    together = ImageNoise(7, batch=3)((3, 2, 2))
    for b in range(3):
        assert torch.equal(ImageNoise([7 + b], batch=1)((1, 2, 2))[0], together[b])
    assert not torch.equal(ImageNoise(7, batch=3, repeat=1)((3, 2, 2)), together)
    measured = Inpainting(torch.ones(2, 2)).measure(torch.zeros(3, 1, 2, 2), sigma=1.0, seed=7)
    assert float((measured[:, 0] - together).abs().min()) > 0
    for wrong in ("7", [1.5], True):
        with pytest.raises(DataError, match="is no seed"):
            ImageNoise(wrong, batch=1)
    with pytest.raises(DataError, match="2 seeds for 3 images"):
        ImageNoise([1, 2], batch=3)


def test_a_saved_mixture_of_format_1_is_still_read(tmp_path):
    """It held covariances; the package's own mixture of latents is one."""
    from lowdim.runs import atomic_json, atomic_tensors

    prior = mixture()
    kept = {name: getattr(prior, name) for name in ("weights", "means", "covariances", "alphas_cumprod")}
    atomic_tensors(tmp_path / "prior.safetensors", {k: v.contiguous() for k, v in kept.items()}, {})
    atomic_json(tmp_path / "prior.json", {"format": 1, "prior": "GMMPrior", "shape": prior.shape})
    again, x = GMMPrior.load(tmp_path), noise(2, 1, 4, 4)
    torch.testing.assert_close(again.x0(x, 100), prior.x0(x, 100), atol=1e-5, rtol=0)
