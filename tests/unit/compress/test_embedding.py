"""Smaller embedding tables: their numbers, their refusals, and models that hold them, saved and loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowdim.algebra import LowRank
from lowdim.compress.embedding import CompactEmbedding, Int8Embedding, LowRankEmbedding
from lowdim.compress.modules import densify, format_version, structured_modules
from lowdim.compress.recover import recover
from lowdim.compress.shrink import install_tables, low_rank_table, shrink_tables
from lowdim.compress.tables import TablePlan
from lowdim.compress.timing import parameter_bytes
from lowdim.compress.write import load_weights, write_checkpoint
from lowdim.errors import DataError, RankError, RunError, ShapeError

WORDS = "embeddings.word_embeddings"
KINDS = ("int8", "low-rank")


def table(rows: int = 60, dim: int = 16, **options) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(rows, dim, **options)


def plan_of(name: str, old: nn.Embedding, how: str) -> TablePlan:
    v, d = old.weight.shape
    rank = None if how == "int8" else LowRank.rank_for(0.5, v, d)
    return TablePlan(name, (v, d), how, rank, v * d if rank is None else rank * (v + d))


def shrunk(model: nn.Module, how: str, name: str = WORDS) -> nn.Module:
    if how == "int8":
        pytest.importorskip("torchao")
    install_tables(model, shrink_tables(model, [plan_of(name, model.get_submodule(name), how)]))
    return model.eval()


# ----- numbers ----------------------------------------------------------------------------------------


def test_integers_are_those_of_torchao():
    pytest.importorskip("torchao")
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor

    from lowdim.compress.torchao import int8_table

    old = table()
    theirs = Int8Tensor.from_hp(old.weight.detach(), granularity=PerRow())
    small = int8_table(old)
    assert torch.equal(small.integers, theirs.qdata)
    assert torch.equal(small.weight, theirs.dequantize())


def test_int8_is_within_half_a_step_of_every_number():
    pytest.importorskip("torchao")
    from lowdim.compress.torchao import int8_table

    old = table(padding_idx=0)
    with torch.no_grad():
        old.weight[1] *= 1000
        old.weight[2] *= 1e-3
    small = int8_table(old)
    largest = old.weight.detach().abs().amax(1, keepdim=True)
    # A row of its own scale: 255 steps from -largest to largest, wherever the other rows are.
    assert ((small.weight - old.weight).abs() <= (0.5 + 1e-4) * largest / 127.5).all()
    assert not small.weight[0].any()
    assert small.padding_idx == 0


def test_low_rank_is_the_truncated_svd():
    old = table().double()
    for rank in (1, 5, 16):
        small = low_rank_table(old, rank)
        left, values, right = torch.linalg.svd(old.weight.detach(), full_matrices=False)
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert torch.allclose(small.weight, best, atol=1e-12)
        assert small.L.shape == (60, rank)
        assert small.R.shape == (rank, 16)
    with pytest.raises(RankError, match="rank=17 exceeds"):
        low_rank_table(old, 17)


def test_rows_that_are_zero_stay_zero():
    small = low_rank_table(table(padding_idx=7), 4)
    assert small.padding_idx == 7
    assert not small.weight[7].any()
    assert small.weight[6].any()


def test_the_padding_row_has_no_gradient():
    small = LowRankEmbedding(10, 4, rank=2, padding_idx=1)
    small(torch.tensor([1, 2])).sum().backward()
    assert not small.L.grad[1].any()
    assert small.L.grad[2].any()


def test_autocast_leaves_the_dtype_of_the_table():
    small = LowRankEmbedding(10, 4, rank=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert small(torch.tensor([1, 2])).dtype == torch.float32


@pytest.mark.parametrize("how", KINDS)
def test_a_shrunk_table_tells_its_bytes_and_its_error(how):
    if how == "int8":
        pytest.importorskip("torchao")
    net = nn.Sequential(table(3000, 16))
    (found,) = shrink_tables(net, [plan_of("0", net[0], how)])
    assert type(net[0]) is nn.Embedding, "the model itself is not changed"
    row = found.to_dict()
    weight = net[0].weight.detach().double()
    error = (found.module.weight.detach().double() - weight).norm() / weight.norm()
    assert row["relative_error"] == pytest.approx(float(error))
    assert 0 < row["relative_error"] < (0.01 if how == "int8" else 0.8)
    assert row["bytes"] == {
        "before": 4 * 3000 * 16,
        "after": 3000 * 16 + 4 * 3000 if how == "int8" else 4 * found.plan.rank * 3016,
    }
    assert (row["name"], row["shape"], row["how"]) == ("0", [3000, 16], how)


@pytest.mark.parametrize("how", KINDS)
def test_a_finished_table_is_read_from_its_file(how, tmp_path, monkeypatch):
    if how == "int8":
        pytest.importorskip("torchao")
    net = nn.Sequential(table(3000, 16))
    plans = [plan_of("0", net[0], how)]
    (first,) = shrink_tables(net, plans, folder=tmp_path)
    monkeypatch.setattr("lowdim.compress.shrink._compact", None)
    (again,) = shrink_tables(net, plans, folder=tmp_path)
    assert torch.equal(again.module.weight, first.module.weight)
    assert again.to_dict() == first.to_dict()
    with torch.no_grad():
        net[0].weight[5] += 1  # another table: the file is not its own
    with pytest.raises(TypeError, match="not callable"):
        shrink_tables(net, plans, folder=tmp_path)


def test_recovery_trains_no_table():
    torch.manual_seed(0)
    student = nn.Sequential(LowRankEmbedding(20, 8, rank=3), nn.Linear(8, 8))
    teacher = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    recover(student, teacher, [torch.arange(20)], steps=3, task="generic")
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "1.bias"}
    assert student[0].L.requires_grad


# ----- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "told"),
    [
        (lambda: Int8Embedding(0, 4), ShapeError, "Int8Embedding: num_embeddings=0 must be a positive"),
        (lambda: Int8Embedding(4, 2.0), ShapeError, "embedding_dim=2.0 must be a positive integer"),
        (lambda: Int8Embedding(4, 2, padding_idx=4), ShapeError, "padding_idx=4 must be a row .* 0 to 3"),
        (lambda: LowRankEmbedding(4, 2, rank=0), RankError, "rank=0 must be a positive integer"),
        (
            lambda: LowRankEmbedding.from_factors(torch.ones(4, 2), torch.ones(3, 5)),
            ShapeError,
            r"must share r, got \(4, 2\) and \(3, 5\)",
        ),
        (lambda: CompactEmbedding.from_config({"embedding": "cube"}), DataError, "unknown kind .* 'cube'"),
        (
            lambda: CompactEmbedding.from_config({"embedding": "int8", "num_embeddings": 3}),
            DataError,
            "bad description of a table in 'int8'.*embedding_dim",
        ),
        (
            lambda: CompactEmbedding.from_config(
                {"embedding": "low-rank", "num_embeddings": 3, "embedding_dim": 2, "padding_idx": None}
            ),
            DataError,
            "bad description of a table in 'low-rank'.*rank",
        ),
    ],
)
def test_wrong_sizes_and_descriptions_are_refused(build, error, told):
    with pytest.raises(error, match=told):
        build()


@pytest.mark.parametrize("how", KINDS)
def test_a_broken_table_is_named(how):
    net = nn.Sequential(table())
    with torch.no_grad():
        net[0].weight[3, 4] = float("nan")
    with pytest.raises(DataError, match=r"embedding table '0' holds 1 entries that are NaN"):
        shrink_tables(net, [plan_of("0", net[0], how)])


# ----- saved and loaded ---------------------------------------------------------------------------------

FRESH = """
import json, sys
sys.modules["torchao"] = None
import lowdim, torch, transformers
from safetensors.torch import load_file, save_file
result = {}
for folder in sys.argv[1:]:
    for options in ({}, {"device_map": "auto"}, {"dtype": torch.bfloat16}):
        model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, **options)
        assert not any(info.values()), info
        batch = load_file(folder + "/test_inputs")
        with torch.no_grad():
            output = model(**batch)[0]
        name = "output_" + "_".join(options)
        save_file({"output": output.contiguous()}, folder + "/" + name)
        model.save_pretrained(folder + "_again")
        again = type(model).from_pretrained(folder + "_again", **options)
        with torch.no_grad():
            assert torch.equal(again(**batch)[0], output)
        assert type(again.get_input_embeddings()).__module__ == "lowdim.compress.embedding"
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A BERT with every kind of table, in shards, and what a fresh process without torchao gets from it."""
    root, models = tmp_path_factory.mktemp("tables"), {}
    for how in KINDS:
        torch.manual_seed(0)
        model = shrunk(architectures.compressed(architectures.bert()), how)
        write_checkpoint(model, root / how, max_shard_size=20_000)
        batch = architectures.inputs(model)
        save_file(batch, root / how / "test_inputs")
        models[how] = (model, batch)
    run = subprocess.run(
        [sys.executable, "-c", FRESH, *(str(root / how) for how in KINDS)],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return root, models


@pytest.mark.parametrize("how", KINDS)
def test_a_fresh_process_gives_the_same_bits(written, how):
    root, models = written
    model, batch = models[how]
    assert len(list((root / how).glob("model-*.safetensors"))) > 1
    for name in ("output_", "output_device_map"):
        assert torch.equal(load_file(root / how / name)["output"], architectures.answer(model, batch)), name
    import copy

    cast = copy.deepcopy(model).bfloat16()
    output = load_file(root / how / "output_dtype")["output"]
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, architectures.answer(cast, batch))


def test_the_description_says_what_it_needs(written):
    root, _ = written
    for how in KINDS:
        entry = json.loads((root / how / "config.json").read_text())["quantization_config"]
        assert entry["version"] == 2
        assert entry["modules"][WORDS]["embedding"] == how
        assert entry["modules"][WORDS]["num_embeddings"] == 99
    # Without a table an earlier lowdim can read it, and is told so.
    modules = structured_modules(architectures.compressed(architectures.bert()))
    assert format_version(modules) == 1


def test_a_checkpoint_without_tables_is_written_in_the_first_version(tmp_path):
    write_checkpoint(architectures.compressed(architectures.bert()), tmp_path / "bert")
    assert json.loads((tmp_path / "bert/config.json").read_text())["quantization_config"]["version"] == 1
    write_checkpoint(architectures.compressed(architectures.DiT()), tmp_path / "dit")
    assert json.loads((tmp_path / "dit/lowdim.json").read_text())["version"] == 1


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda e: e.update(embedding="cube"), DataError, f"'{WORDS}' cannot be used: .*'cube'"),
        (lambda e: e.pop("num_embeddings"), DataError, f"'{WORDS}' cannot be used: .*num_embeddings"),
        (
            lambda e: e.update(num_embeddings=98),
            ShapeError,
            r"with shape \(98, 32\), but BertModel has \(99,",
        ),
        (lambda e: e.update(rank=3), RunError, r"has shape .* belong to different runs"),
    ],
)
def test_edited_descriptions_are_refused(written, tmp_path, change, error, told):
    import shutil

    from transformers import AutoModel

    root, _ = written
    shutil.copytree(root / "low-rank", tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"]["modules"][WORDS])
    path.write_text(json.dumps(config))
    with pytest.raises(error, match=told):
        AutoModel.from_pretrained(tmp_path / "copy")


def test_a_table_described_where_a_linear_layer_is(written):
    from lowdim.compress.modules import install_modules

    entry = {"embedding": "int8", "num_embeddings": 32, "embedding_dim": 32, "padding_idx": None}
    with pytest.raises(DataError, match=r"as a compressed embedding table, but in BertModel it is a Linear"):
        install_modules(architectures.bert(), {"encoder.layer.0.attention.self.query": entry})


def test_a_head_that_ties_the_table_is_refused(written):
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

    root, models = written
    told = r"BertForMaskedLM ties it to 'cls.predictions.decoder.weight'.*saved from \(BertModel\)"
    with pytest.raises(DataError, match=told):
        AutoModelForMaskedLM.from_pretrained(root / "int8")
    head = AutoModelForSequenceClassification.from_pretrained(root / "int8")
    model, batch = models["int8"]
    with torch.no_grad():
        assert torch.equal(head.eval().bert(**batch)[0], architectures.answer(model, batch))


@pytest.mark.parametrize("how", KINDS)
def test_dense_export_is_an_ordinary_checkpoint(written, how, tmp_path):
    from transformers import BertModel

    _, models = written
    model, batch = models[how]
    write_checkpoint(model, tmp_path, dense=True)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    dense, info = BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(dense.get_input_embeddings()) is nn.Embedding
    assert dense.get_input_embeddings().padding_idx == 0
    assert isinstance(model.get_input_embeddings(), CompactEmbedding), "the model itself stays"
    assert torch.allclose(architectures.answer(dense, batch), architectures.answer(model, batch), atol=1e-4)


@pytest.mark.parametrize("how", KINDS)
def test_transformers_finds_the_table_and_resizes_it_only_when_dense(how):
    model = shrunk(architectures.compressed(architectures.bert()), how)
    found = model.get_input_embeddings()
    assert found is model.get_submodule(WORDS)
    assert (found.num_embeddings, found.embedding_dim, found.padding_idx) == (99, 32, 0)
    assert found.weight.shape == (99, 32)
    assert model.resize_token_embeddings(99) is found
    with pytest.raises(TypeError, match=f"{type(found).__name__}.*not an instance of .*Embedding"):
        model.resize_token_embeddings(120)
    assert model.get_input_embeddings() is found
    densify(model)
    assert model.resize_token_embeddings(120).weight.shape == (120, 32)


@pytest.mark.parametrize("how", KINDS)
def test_a_decoder_whose_output_layer_is_its_own(how, tmp_path):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = shrunk(architectures.compressed(architectures.llama()), how, "model.embed_tokens")
    write_checkpoint(model, tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(again.get_input_embeddings()) is type(model.get_input_embeddings())
    batch = architectures.inputs(model)
    assert torch.equal(architectures.answer(again, batch), architectures.answer(model, batch))


class Bag(nn.Module):
    """A module that no library knows: the mean of word vectors, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(3000, 32, padding_idx=0), nn.Linear(32, 32)

    def forward(self, ids):
        return self.out(self.words(ids).mean(-2))


@pytest.mark.parametrize("how", KINDS)
def test_a_generic_module_reloads_into_a_fresh_one(how, tmp_path):
    torch.manual_seed(0)
    model = shrunk(architectures.compressed(Bag()), how, "words")
    write_checkpoint(model, tmp_path)
    assert json.loads((tmp_path / "lowdim.json").read_text())["version"] == 2
    fresh = load_weights(Bag(), tmp_path).eval()
    assert type(fresh.words) is type(model.words)
    assert parameter_bytes(fresh) == parameter_bytes(model) < parameter_bytes(Bag())
    ids = torch.randint(0, 3000, (4, 6))
    assert torch.equal(fresh(ids), model(ids))
    assert fresh.words.padding_idx == 0
