"""Models on disk: the same predictions, and refusals of what is none."""

import json

import numpy as np
import pytest
from drawn import classification, regression

from lowdim.errors import DataError, RunError
from lowdim.regress import TensorClassifier, TensorRegressor


def models():
    X, y, _ = regression((4, 3), 1, 80)
    Xc, c, _ = classification((4, 3), 1, 80, classes=3)
    words = np.array(["a", "bb", "c"])[c]
    mask = np.arange(12).reshape(4, 3) > 2
    yield "cp", TensorRegressor(1).fit(X, y), X
    yield "tucker", TensorRegressor((2, 2), decomposition="tucker").fit(X, y), X
    yield "vectors", TensorRegressor().fit(X.reshape(80, -1), y), X.reshape(80, -1)
    yield "targets", TensorRegressor(1, decomposition="tucker").fit(X, np.stack([y, -y], 1)), X
    yield "mask", TensorRegressor(1, mask=mask).fit(X[:, mask], y), X[:, mask]
    yield "single", TensorRegressor(1).fit(X.astype(np.float32), y), X
    yield "binary", TensorClassifier(1, class_weight={0: 1.0, 2: 2.0}).fit(Xc[c != 1], c[c != 1]), Xc
    yield "words", TensorClassifier(2, decomposition="tucker").fit(Xc, words), Xc
    yield "objects", TensorClassifier(2).fit(Xc, words.astype(object)), Xc
    yield "hinge", TensorClassifier(1, loss="squared_hinge", class_weight="balanced").fit(Xc, words), Xc
    yield "truth", TensorClassifier(1).fit(Xc, c == 1), Xc


MODELS = list(models())


@pytest.mark.parametrize(("name", "model", "X"), MODELS, ids=[name for name, *_ in MODELS])
def test_save_and_load(name, model, X, tmp_path):
    model.save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.json", "model.safetensors"}
    loaded = type(model).load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.predict(X).dtype == model.predict(X).dtype
    for attribute in ("coef_", "intercept_", "core_", "shape_", "n_iter_", "n_parameters_", "n_features_in_"):
        np.testing.assert_array_equal(getattr(loaded, attribute), getattr(model, attribute))
    ours, theirs = loaded.get_params(), model.get_params()
    np.testing.assert_array_equal(ours.pop("mask"), theirs.pop("mask"))
    assert ours == theirs
    if name != "vectors":
        a, b = loaded.to_tensorly(), model.to_tensorly()
        for one, other in zip(*([x] if not isinstance(x, list) else x for x in (a, b)), strict=True):
            np.testing.assert_array_equal(one.to_tensor(), other.to_tensor())


def test_refusals(tmp_path):
    X, y, _ = regression((4, 3), 1, 80)
    model = TensorRegressor(1).fit(X, y)
    with pytest.raises(RunError, match=r"holds no model.json. Give a folder written by save\(\)"):
        TensorRegressor.load(tmp_path)
    model.save(tmp_path)
    with pytest.raises(RunError, match=r"holds a TensorRegressor. Use TensorRegressor.load"):
        TensorClassifier.load(tmp_path)
    text = (tmp_path / "model.json").read_text()
    header = json.loads(text)
    (tmp_path / "model.json").write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(RunError, match=r"has format 99 .*, this lowdim reads 1"):
        TensorRegressor.load(tmp_path)
    (tmp_path / "model.json").write_text(text)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"model\.safetensors was changed"):
        TensorRegressor.load(tmp_path)
    strange = TensorRegressor(1).fit(X, y).set_params(alpha=object())
    with pytest.raises(DataError, match=r"the option alpha=.* cannot be written as JSON"):
        strange.save(tmp_path / "strange")
