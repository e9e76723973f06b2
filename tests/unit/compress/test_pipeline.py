from __future__ import annotations

import json
import warnings

import architectures
import pytest
import torch
from torch import nn

from lowdim.algebra import StructuredLinear
from lowdim.compress import CompressResult, compress
from lowdim.compress.evaluate import feed
from lowdim.compress.layers import file_name
from lowdim.compress.ranks import Ranks
from lowdim.errors import BudgetError, DataError, LowdimWarning, RunError, ShapeError
from lowdim.runs import read_tensors

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")

BUILDERS = {
    "bert": architectures.bert,
    "gpt2": architectures.gpt2,
    "llama": architectures.llama,
    "qwen2": architectures.qwen2,
    "vit": architectures.vit,
    "dit": architectures.DiT,
}
FIGURE = {
    "bert": "cosine",
    "gpt2": "kl",
    "llama": "kl",
    "qwen2": "kl",
    "vit": "agreement",
    "dit": "relative_error",
}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48))


def rows(count: int = 3, size: int = 100, width: int = 48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, width, generator=generator) for _ in range(count)]


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_architecture_is_compressed_saved_and_loaded(kind, tmp_path):
    torch.manual_seed(0)
    model = BUILDERS[kind]().eval()
    batch = architectures.inputs(model)
    untouched = {key: value.clone() for key, value in model.state_dict().items()}
    result = compress(model, keep=0.5, calibration=[batch], sweeps=3, recover_steps=2)
    assert all(torch.equal(untouched[key], value) for key, value in model.state_dict().items())
    structured = [m for m in result.model.modules() if isinstance(m, StructuredLinear)]
    assert len(structured) == len(result.report["layers"]) > 0
    assert FIGURE[kind] in result.report["quality"]
    assert FIGURE[kind] in result.report["quality"]["before_recovery"]
    assert sum(p.numel() for p in result.model.parameters()) == result.report["parameters"]["after"]
    assert result.plan.parameters_after == result.report["parameters"]["after"]
    json.dumps(result.report, allow_nan=False)
    result.save(tmp_path / "out")
    fresh = BUILDERS[kind]() if kind == "dit" else None
    again = CompressResult.load(tmp_path / "out", model=fresh)
    assert torch.equal(architectures.answer(again.model, batch), architectures.answer(result.model, batch))
    assert again.plan == result.plan
    assert again.history is not None
    assert again.history.steps == result.history.steps
    assert again.layers.equals(result.layers)


@pytest.mark.parametrize("method", ["blast", "lowrank", "svd", "monarch", "blockdiag"])
def test_every_method_approximates(method):
    model = net()
    result = compress(model, keep=0.5, method=method, calibration=rows(), sweeps=5)
    assert result.report["quality"]["relative_error"] < 0.9
    for row in result.report["layers"]:
        assert 0 < row["output_error"] < 1
        assert 0 < row["weight_error"] < 1.5
        assert row["kept"] <= 0.5
    x = rows()[0]
    assert feed(result.model, x).shape == feed(model, x).shape


def test_more_parameters_are_better_and_calibration_helps():
    model, inputs = net(), [x @ torch.diag(torch.linspace(0.01, 2, 48)) for x in rows()]
    error = {
        (method, keep): compress(model, keep=keep, method=method, calibration=inputs).report["quality"][
            "relative_error"
        ]
        for method in ("svd", "lowrank")
        for keep in (0.4, 0.8)
    }
    assert error["lowrank", 0.8] < error["lowrank", 0.4]
    assert error["lowrank", 0.4] < 0.9 * error["svd", 0.4]


def test_sequential_calibration_makes_up_for_the_layers_before():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(48, 48) for _ in range(5)))
    one_shot = compress(model, keep=0.5, method="lowrank", calibration=rows(4))
    in_turn = compress(model, keep=0.5, method="lowrank", calibration=rows(4), sequential=True)
    assert in_turn.report["quality"]["relative_error"] < one_shot.report["quality"]["relative_error"]
    assert in_turn.report["sequential"]


class Beside(nn.Module):
    """Two layers that see the same input: the first has 8 large directions, the second is full."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.few, self.full = nn.Linear(64, 64), nn.Linear(64, 64)
        with torch.no_grad():
            self.few.weight.copy_(torch.randn(64, 8) @ torch.randn(8, 64) / 8 + 0.01 * torch.randn(64, 64))
            self.full.weight.copy_(torch.randn(64, 64) / 8)

    def forward(self, x):
        return torch.cat([self.few(x), self.full(x)], -1)


def test_allocation_keeps_the_better_one_and_shows_both():
    result = compress(
        Beside(), keep=0.5, method="lowrank", calibration=rows(2, 300, 64), allocation="error-curve"
    )
    shown = result.report["allocations"]
    assert shown["chosen"] == result.report["allocation"] == "error-curve"
    assert shown["error-curve"]["relative_error"] < shown["uniform"]["relative_error"]
    assert result.report["quality"]["relative_error"] == shown["error-curve"]["relative_error"]
    ranks = list(result.layers["rank"])
    assert ranks[0] < 16 < ranks[1]
    assert result.report["parameters"]["compressible_after"] <= 0.5 * 2 * 64 * 64


def test_a_shared_layer_stays_shared():
    torch.manual_seed(0)
    shared = nn.Linear(64, 64)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(64, 64))
    model[3].weight = shared.weight
    result = compress(model, keep=0.5, calibration=rows(2, 200, 64), sweeps=3)
    assert result.model[0] is result.model[2]
    assert result.model[3].operator is result.model[0].operator
    assert torch.equal(result.model[3].bias, model[3].bias)
    assert len(result.report["layers"]) == 1


class Experts(nn.Module):
    """Two experts of which the sign of the first number chooses one; the third never works."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x):
        return self.experts[int(x[0, 0] > 0)](x)


def test_experts_that_wait_for_their_tokens():
    torch.manual_seed(0)
    inputs = [torch.randn(100, 32) for _ in range(3)]
    for x, sign in zip(inputs, (-1, -1, 1), strict=True):
        x[:, 0] = sign * x[:, 0].abs()
    with pytest.warns(LowdimWarning, match=r"1 layers are left alone.*experts.2"):
        result = compress(Experts(), calibration=inputs, sweeps=2)
    assert [row["name"] for row in result.report["layers"]] == ["experts.0", "experts.1"]
    assert result.report["left_alone"][0]["reason"] == "no calibration input reaches it"


class Stop(Exception):
    """Stands for a kill after some layers."""


def stop_after(count: int):
    done = []

    def callback(layer) -> None:
        done.append(layer.plan.name)
        if len(done) == count:
            raise Stop

    return callback


OPTIONS = {"keep": 0.5, "sweeps": 4, "recover_steps": 3}


@pytest.mark.parametrize("extra", [{}, {"sequential": True}, {"allocation": "error-curve"}])
def test_finished_layers_are_not_computed_again_and_the_result_is_the_same(tmp_path, monkeypatch, extra):
    model, inputs = net(), rows()
    whole = compress(model, calibration=inputs, output=tmp_path / "whole", **OPTIONS, **extra)
    with pytest.raises(Stop):
        compress(
            model, calibration=inputs, output=tmp_path / "out", callback=stop_after(2), **OPTIONS, **extra
        )
    import lowdim.compress.factorize as layers

    computed = []
    original = layers.factorize
    monkeypatch.setattr(layers, "factorize", lambda *a, **k: computed.append(a[0].shape) or original(*a, **k))
    monkeypatch.setattr("lowdim.compress.stored.second_moments", forbid_after(len(inputs), extra))
    again = compress(model, calibration=inputs, output=tmp_path / "out", resume=True, **OPTIONS, **extra)
    expected = sum(len(json_layers(tmp_path / "whole")) for _ in range(1)) * (
        2 if "allocation" in extra else 1
    )
    assert len(computed) <= expected - 2
    assert same(again.model, whole.model)
    assert not (tmp_path / "out/.work").exists()
    assert again.report["quality"] == whole.report["quality"]


def forbid_after(count: int, extra: dict):
    """Calibration was finished before the stop, so it must not run again (except in turn with layers)."""
    from lowdim.compress.calibrate import second_moments

    if "sequential" in extra:
        return second_moments

    def forbidden(*args, **kwargs):
        raise AssertionError("calibrated again")

    return forbidden


def json_layers(folder) -> list:
    return json.loads((folder / "report.json").read_text())["layers"]


def test_a_finished_run_is_read_not_repeated(tmp_path, monkeypatch):
    model = net()
    first = compress(model, calibration=rows(), output=tmp_path / "out", sweeps=2)
    with pytest.raises(RunError, match=r"a finished run.*--resume"):
        compress(model, calibration=rows(), output=tmp_path / "out", sweeps=2)
    monkeypatch.setattr("lowdim.compress.factorize.factorize", None)
    again = compress(model, calibration=rows(), output=tmp_path / "out", sweeps=2, resume=True)
    assert same(first.model, again.model)
    assert again.report == first.report


def test_other_options_other_inputs_and_another_model_are_refused(tmp_path):
    model = net()
    with pytest.raises(Stop):
        compress(model, calibration=rows(), output=tmp_path, callback=stop_after(1))
    with pytest.raises(RunError, match=r"keep was 0.5 and is now 0.4"):
        compress(model, keep=0.4, calibration=rows(), output=tmp_path, resume=True)
    with pytest.raises(RunError, match=r"the input calibration has changed"):
        compress(model, calibration=rows(2), output=tmp_path, resume=True)
    with pytest.raises(RunError, match=r"begun with another model"):
        compress(net(1), calibration=rows(), output=tmp_path, resume=True)
    with pytest.raises(RunError, match=r"an unfinished run.*--restart"):
        compress(model, calibration=rows(), output=tmp_path)
    assert compress(model, keep=0.4, calibration=rows(), output=tmp_path, restart=True).report["keep"] == 0.4


@pytest.mark.parametrize("damage", ["truncate", "change"])
@pytest.mark.parametrize("kind", ["layers-uniform", "moments"])
def test_damaged_work_files_are_refused_by_name(tmp_path, damage, kind):
    model = net()
    with pytest.raises(Stop):
        compress(model, calibration=rows(), output=tmp_path, callback=stop_after(2), sweeps=2)
    path = tmp_path / ".work" / kind / file_name("0")
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-3] ^= 4
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncate" else bytes(changed))
    word = "is truncated or damaged" if damage == "truncate" else "was changed"
    with pytest.raises(RunError, match=rf"{kind}/0.safetensors {word}.*--resume"):
        compress(model, calibration=rows(), output=tmp_path, resume=True, sweeps=2)
    path.unlink()
    if kind == "moments":  # the index promises the file
        with pytest.raises(RunError, match=r"moments/0.safetensors cannot be read"):
            compress(model, calibration=rows(), output=tmp_path, resume=True, sweeps=2)
    else:
        compress(model, calibration=rows(), output=tmp_path, resume=True, sweeps=2)


def test_work_files_hold_what_the_report_says(tmp_path):
    model = net()
    with pytest.raises(Stop):
        compress(model, calibration=rows(), output=tmp_path, callback=stop_after(3), sweeps=2)
    tensors, facts = read_tensors(tmp_path / ".work/layers-uniform/2.safetensors")
    assert set(tensors) == {"U", "S", "V"}
    assert len(facts["key"]) == 64
    assert json.loads(facts["config"])["structure"] == "blast"


def test_int8_and_dense_stand_beside(tmp_path):
    torch.manual_seed(0)
    model = architectures.bert().eval()
    batch = architectures.inputs(model)
    result = compress(
        model, calibration=[batch], sweeps=2, quantize="int8", dense=True, output=tmp_path / "out"
    )
    columns = result.report["int8"]
    assert set(columns) == {"original", "compressed"}
    assert columns["compressed"]["bytes"] < result.report["bytes"]["after"] < result.report["bytes"]["before"]
    assert columns["compressed"]["quality"]["cosine"] > 0.5
    assert {"1", "32"} <= set(columns["original"]["speed"])
    loaded = CompressResult.load(tmp_path / "out").model
    assert torch.allclose(architectures.answer(loaded, batch), architectures.answer(result.model, batch))
    from transformers import AutoModel

    dense = AutoModel.from_pretrained(tmp_path / "out/dense")
    assert not any(isinstance(m, StructuredLinear) for m in dense.modules())
    assert torch.allclose(
        architectures.answer(dense, batch), architectures.answer(result.model, batch), atol=0.2
    )


def test_half_precision_weights_stay_half():
    model = net().bfloat16()
    result = compress(model, calibration=[x.bfloat16() for x in rows()], sweeps=2)
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert result.report["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"keep": 0.0}, BudgetError, r"keep=0.0 must be in \(0, 1\]"),
        ({"keep": 1.5}, BudgetError, r"keep=1.5 must be in \(0, 1\]"),
        ({"keep": 0.001}, BudgetError, r"fewer than the .* that rank 1 costs"),
        ({"blocks": 5}, ShapeError, r"layer '0'.*=64 cannot be cut into 5 blocks.*nearest is 4"),
        ({"method": "magic"}, DataError, r"method='magic' is unknown"),
        ({"allocation": "clever"}, DataError, r"allocation='clever'. Use 'uniform' or 'error-curve'"),
        ({"quantize": "int3"}, DataError, r"quantize='int3'. Use 'int8'"),
        ({"sweeps": 0}, DataError, r"sweeps=0 must be at least 1"),
        ({"recover_steps": -1}, DataError, r"recover_steps=-1 must not be negative"),
        ({"calibration_tokens": 0}, DataError, r"calibration_tokens=0 must be a positive"),
        ({"dtype": "int7"}, DataError, r"dtype='int7' is unknown. Use one of float32"),
        ({"device": "cuda:99"}, DataError, r"device='cuda:99' cannot be used here.*lowdim doctor"),
        ({"targets": []}, DataError, r"no layer is left to compress"),
        ({"calibration": []}, DataError, r"calibration is empty"),
        ({"calibration": torch.ones(3, 48)}, DataError, r"calibration is Tensor; expected a list of batches"),
        ({"calibration": None}, DataError, r"Sequential has no tokenizer.*calibration=\["),
        ({"calibration": "text.txt"}, DataError, r"Sequential has no tokenizer"),
        ({"method": "svd", "sequential": True}, DataError, r"sequential calibration has no effect"),
        ({"method": "monarch", "allocation": "error-curve"}, DataError, r"method='monarch' has none"),
        ({"min_cosine": 0.9}, DataError, r"min_cosine compares embeddings.*'generic'"),
        ({"max_perplexity_increase": 0.1}, DataError, r"is for language models.*'generic'"),
        ({"resume": True}, RunError, r"need the output folder"),
    ],
)
def test_bad_input_is_told_at_the_door(options, error, told):
    with pytest.raises(error, match=told):
        compress(net(), **{"calibration": rows(), **options})


def test_numbers_that_are_not_finite_name_the_layer():
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"'(2|4)'.*(NaN|not finite)"):
        compress(model, calibration=rows())
    bad = rows()
    bad[1][3, 4] = float("inf")
    with pytest.raises(DataError, match=r"input of layer '0' is not finite"):
        compress(net(), calibration=bad)


def test_few_tokens_are_told_and_noted():
    with pytest.warns(LowdimWarning, match=r"20 tokens for '.*rank-deficient"):
        result = compress(net(), calibration=rows(1, 20), sweeps=2)
    assert any("rank-deficient" in note for note in result.report["notes"])


def test_notes_survive_a_stop(tmp_path):
    options = {"calibration": rows(1, 20), "sweeps": 2}
    with pytest.raises(Stop):
        compress(net(), output=tmp_path, callback=stop_after(1), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = compress(net(), output=tmp_path, resume=True, **options)
    assert again.report["notes"] == compress(net(), **options).report["notes"]


def test_weight_only_needs_no_inputs():
    result = compress(net(), method="svd")
    assert result.report["quality"] == {"task": "generic", "text": "nothing"}
    assert result.report["layers"][0]["output_error"] is None
    assert any("nothing was calibrated" in note for note in result.report["notes"])


def test_generators_of_batches_are_read_once():
    result = compress(net(), calibration=(x for x in rows()), evaluation=(x for x in rows(1)), sweeps=2)
    assert result.report["quality"]["inputs"] == 100


def test_progress_tells_every_phase(tmp_path):
    heard = []
    compress(
        net(), calibration=rows(), sweeps=2, recover_steps=2, output=tmp_path,
        progress=lambda phase, done, total, text: heard.append((phase, done, total, text)),
    )  # fmt: skip
    phases = {phase for phase, *_ in heard}
    assert phases == {"plan", "calibrate", "factorize", "recover", "evaluate", "write"}
    for phase in phases:
        last = [entry for entry in heard if entry[0] == phase][-1]
        assert last[1] == last[2]
    assert any("error" in text for phase, _, _, text in heard if phase == "factorize")


def test_alone_there_is_one_rank():
    with Ranks.here() as ranks:
        assert (ranks.rank, ranks.world) == (0, 1)
        ranks.wait()


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("end", ["returns", "raises early", "raises late"])
def test_the_module_of_the_caller_is_left_as_it_was(dtype, end):
    model = nn.Sequential(nn.Linear(48, 64), nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 48)))
    model[1].eval()
    model[1][0].train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kind = getattr(torch, dtype or "float32")
    options = {"calibration": [x.to(kind) for x in rows()], "dtype": dtype, "sweeps": 2}
    if end == "returns":
        result = compress(model, **options)
        assert result.report["dtype"] == str(kind).removeprefix("torch.")
        assert not any(module.training for module in result.model.modules())
    elif end == "raises early":
        with pytest.raises(DataError, match="no layer is left"):
            compress(model, targets=[], **options)
    else:
        with pytest.raises(Stop):
            compress(model, callback=stop_after(1), **options)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert [module.training for module in model.modules()] == [True, True, False, True, False]
