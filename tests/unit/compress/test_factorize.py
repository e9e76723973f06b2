"""Factorizing the layers of a plan: equal ones at once, as on a GPU, against one at a time."""

import pytest
import torch
from torch import nn

from lowdim.compress import factorize
from lowdim.compress.calibrate import second_moments
from lowdim.compress.factorize import LayerOptions, factorize_layers
from lowdim.compress.plan import plan
from lowdim.errors import DataError

OPTIONS = LayerOptions(sweeps=4)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [(48, 48), (48, 32), (32, 48), (48, 48), (48, 32), (32, 48), (48, 48)]
    return nn.Sequential(*(nn.Linear(n, m) for n, m in sizes))


@pytest.fixture
def on_gpu(monkeypatch):
    """Take the way of a GPU on the CPU, and note the shapes of what is factorized at once."""
    taken = []
    whole = factorize.factorize
    monkeypatch.setattr(factorize, "_on_cpu", lambda *_: False)
    monkeypatch.setattr(
        factorize, "factorize", lambda A, *a, **k: taken.append(tuple(A.shape)) or whole(A, *a, **k)
    )
    return taken


def test_equal_layers_are_factorized_at_once_with_the_result_of_one_by_one(tmp_path, on_gpu, monkeypatch):
    model, told = net(), []
    entries = plan(model, keep=0.5, blocks=4)
    moments = second_moments(model, [torch.randn(500, 48)], [layer.name for layer in entries.layers])
    monkeypatch.setattr(factorize, "_STACKED", 2 * 48 * 96)
    given = dict(options=OPTIONS, progress=lambda done, total, text: told.append(text))
    stacked = factorize_layers(model, entries, moments, folder=tmp_path, **given)
    assert sorted(on_gpu) == [(1, 48, 48), (2, 32, 48), (2, 48, 32), (2, 48, 48)]
    assert any(text.startswith("0 and 1 more of its shape: sweep 4") for text in told)
    again = factorize_layers(model, entries, moments, folder=tmp_path, **given)
    assert len(on_gpu) == 4  # the files were read
    monkeypatch.setattr(factorize, "_on_cpu", lambda *_: True)
    alone = factorize_layers(model, entries, moments, options=OPTIONS)
    for one, other, third in zip(stacked, alone, again, strict=True):
        assert one.plan == other.plan == third.plan
        torch.testing.assert_close(one.operator.dense(), other.operator.dense(), rtol=1e-3, atol=1e-4)
        assert one.output_error == pytest.approx(other.output_error, rel=1e-4)
        assert torch.equal(one.operator.dense(), third.operator.dense())


def test_an_error_in_a_stack_names_the_layer(on_gpu):
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="layer '3': factorize: the 48x48 matrix holds 1 entries"):
        factorize_layers(model, plan(model, keep=0.5, blocks=4), None, options=OPTIONS)
    assert (3, 48, 48) in on_gpu
