"""Physics of deepinv are taken as they are (no extra of lowdim brings it yet: pip install deepinv)."""

import pytest
import torch

from lowdim.algebra.seeds import gaussian
from lowdim.phase import DeepinvMeasurement, TuckerPhaseRetrieval, relative_error
from lowdim.phase.video import Video

deepinv = pytest.importorskip("deepinv", reason="deepinv is not installed")


def film(frames=12, side=8):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: gaussian(size, seed=generator, dtype=torch.complex64)  # noqa: E731
    return Video(draw(2, 2, 2), [draw(side, 2), draw(side, 2)], draw(frames, 2)).frames()


def physics(kind):
    if kind == "random":
        generator = torch.Generator().manual_seed(1)
        return deepinv.physics.RandomPhaseRetrieval(m=300, img_size=(1, 8, 8), rng=generator)
    probe = deepinv.physics.phase_retrieval.build_probe((1, 8, 8), type="disk", probe_radius=3)
    shifts = deepinv.physics.phase_retrieval.generate_shifts((1, 8, 8), n_img=25)
    return deepinv.physics.Ptychography(img_size=(1, 8, 8), probe=probe, shifts=shifts)


@pytest.mark.parametrize("kind", ["random", "ptychography"])
def test_the_adjoint_of_a_physics_is_its_adjoint(kind):
    A = DeepinvMeasurement(physics(kind), image_shape=(8, 8))
    x = gaussian((3, 8, 8), seed=0, dtype=A.dtype)
    c = gaussian((3, A.samples), seed=1, dtype=A.dtype)
    left = torch.vdot(c.flatten(), A.forward(x).flatten())
    right = torch.vdot(A.adjoint(c).flatten(), x.flatten())
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)


def test_frames_are_found_from_the_intensities_of_a_physics():
    X, operator = film(), physics("random")
    y = operator(X.unsqueeze(1))  # intensities (frames, m), as deepinv measures
    model = TuckerPhaseRetrieval((2, 2, 2)).fit(operator, y, image_shape=(8, 8), intensity=True)
    assert relative_error(model.frames_, X) < 1e-2
    # By their own measure, too.
    found = torch.as_tensor(model.frames_)
    turned = deepinv.optim.phase_retrieval.cosine_similarity(found[:1].unsqueeze(1), X[:1].unsqueeze(1))
    assert float(turned.abs()) > 0.999
