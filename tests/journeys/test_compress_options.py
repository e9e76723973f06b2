"""Every option of `lowdim compress` has an effect on what is written, not only on the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import lowdim.cli

pytestmark = pytest.mark.filterwarnings("ignore")

FIRST = "encoder.layer.0."
LAYERS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")


class Outcome:
    """What one command line wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = json.loads((folder / "report.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        self.names = [row["name"] for row in self.report["layers"]]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> tuple[Path, Path]:
    return tiny.write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def run(tiny_folder, texts, tmp_path):
    """Run a command line on the small BERT with quick settings and return what it wrote."""

    def call(*words: object, calib: object = texts[0], model: Path = tiny_folder) -> Outcome:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        given = [model, "-o", out, "--calib", calib, "--eval", texts[1], "--sweeps", 2, *words]
        result = CliRunner().invoke(lowdim.cli.build(), ["compress", *map(str, given)])
        assert result.exit_code == 0, result.output
        return Outcome(out)

    return call


@pytest.fixture(scope="module")
def wordy(tmp_path_factory) -> Path:
    """The small BERT with a table of words that is most of the model."""
    return tiny.write_bert(tmp_path_factory.mktemp("wordy") / "bert", rows=3000)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """The calibration text as three tables, each with a column of other words beside it."""
    import pandas

    folder = tmp_path_factory.mktemp("tables")
    rows = pandas.DataFrame({"note": tiny.TEXTS[64:], "phrase": tiny.TEXTS[:32]})
    rows.to_csv(folder / "a.csv", index=False)
    rows.to_json(folder / "a.jsonl", orient="records", lines=True)
    pytest.importorskip("pyarrow")
    rows.to_parquet(folder / "a.parquet")
    (folder / "phrase.txt").write_text("\n".join(rows["phrase"]), encoding="utf-8")
    (folder / "note.txt").write_text("\n".join(rows["note"]), encoding="utf-8")
    return folder


def test_target_compresses_only_the_layers_named(run, tiny_folder):
    found = run("--target", "encoder.layer.0.attention", "--target", "pooler")
    assert found.names == [*(FIRST + name for name in LAYERS), "pooler.dense"]
    original = load_file(tiny_folder / "model.safetensors")
    assert f"{FIRST}attention.self.query.weight" not in found.weights
    untouched = [name for name in original if ".layer.1." in name or "intermediate" in name]
    assert len(untouched) > 16
    assert all(torch.equal(found.weights[name], original[name]) for name in untouched)


@pytest.mark.parametrize(("given", "expected"), [("2,4", [2, 4]), ("4", [4, 4])])
def test_blocks_cuts_the_layers_so(run, given, expected):
    found = run("--target", "encoder.layer.0.attention", "--blocks", given)
    assert [row["blocks"] for row in found.report["layers"]] == [expected] * 4
    b1, b2 = expected
    for row in found.report["layers"]:
        name = f"{row['name']}.operator"
        assert found.weights[f"{name}.U"].shape == (b1, 32 // b1, row["rank"])
        assert found.weights[f"{name}.S"].shape == (row["rank"], b1, b2)
        assert found.weights[f"{name}.V"].shape == (b2, row["rank"], 32 // b2)


def test_sequential_changes_what_comes_after_the_first_layers(run):
    words = ("--method", "lowrank", "--target", "encoder")
    plain, in_turn = run(*words), run(*words, "--sequential")
    assert (plain.report["sequential"], in_turn.report["sequential"]) == (False, True)
    assert plain.names == in_turn.names
    products = [
        {name: out.weights[f"{name}.operator.U"] @ out.weights[f"{name}.operator.V"] for name in out.names}
        for out in (plain, in_turn)
    ]
    # The first layers see the same inputs as before; all that follow see those of a compressed model.
    for name in plain.names:
        difference = (products[1][name] - products[0][name]).norm() / products[0][name].norm()
        entry = name.startswith(f"{FIRST}attention.self")
        assert (difference < 1e-3) if entry else (difference > 1e-3), (name, difference)


def test_error_curve_and_int8_stand_in_report_and_weights(run):
    plain = run("--method", "lowrank")
    found = run("--method", "lowrank", "--allocate", "error-curve", "--quantize", "int8")
    shown = found.report["allocations"]
    assert shown["chosen"] == found.report["allocation"]
    assert set(shown["sensitivity"]) == set(plain.names)
    assert all(value > 0 for value in shown["sensitivity"].values())
    # The better one on held-out text was kept.
    figures = {name: shown[name]["cosine"] for name in ("uniform", "error-curve")}
    assert figures["uniform"] == plain.report["quality"]["cosine"]
    assert figures["error-curve"] != figures["uniform"]
    assert shown["chosen"] == max(figures, key=lambda name: figures[name])
    assert found.report["quality"]["cosine"] == max(figures.values())
    ranks = [[row["rank"] for row in out.report["layers"]] for out in (plain, found)]
    assert (ranks[0] == ranks[1]) == (shown["chosen"] == "uniform")

    assert found.report["quantize"] == "int8"
    assert set(found.report["int8"]) == {"original", "compressed"}
    integers = [key for key, value in found.weights.items() if value.dtype == torch.int8]
    assert len(integers) == 2 * len(found.names)
    assert not any(value.dtype == torch.int8 for value in plain.weights.values())
    # Rounding to integers costs little beside the factorization.
    cosine = {name: entry["quality"]["cosine"] for name, entry in found.report["int8"].items()}
    assert cosine["original"] > 0.99
    assert cosine["compressed"] == pytest.approx(max(figures.values()), abs=0.02)
    size = [sum(value.nbytes for value in out.weights.values()) for out in (plain, found)]
    assert size[1] < size[0]
    assert found.report["int8"]["compressed"]["bytes"] == pytest.approx(size[1], rel=0.05)


def test_dense_writes_a_copy_with_ordinary_layers(run, tiny_folder):
    found = run("--method", "lowrank", "--dense")
    original, dense = (
        load_file(folder / "model.safetensors") for folder in (tiny_folder, found.folder / "dense")
    )
    assert {name: value.shape for name, value in dense.items()} == {
        name: value.shape for name, value in original.items()
    }
    assert "quantization_config" not in json.loads((found.folder / "dense/config.json").read_text())
    for row in found.report["layers"]:
        name = row["name"]
        product = found.weights[f"{name}.operator.U"] @ found.weights[f"{name}.operator.V"]
        assert torch.allclose(dense[f"{name}.weight"], product, atol=1e-6)
        assert torch.linalg.matrix_rank(dense[f"{name}.weight"]) <= row["rank"]
    assert any("dense/" in note for note in found.report["notes"])
    assert not (run("--method", "lowrank").folder / "dense").exists()


@pytest.mark.parametrize("how", ["int8", "low-rank"])
def test_embeddings_makes_the_table_of_words_smaller(run, wordy, how):
    from transformers import AutoModel, AutoTokenizer

    words = ("--method", "lowrank", "--recover-steps", 2)
    plain = run(*words, model=wordy)
    kept = run(*words, "--embeddings", "keep", model=wordy)
    found = run(*words, "--embeddings", how, "--dense", "--min-cosine", 0.1, model=wordy)
    assert same(plain.weights, kept.weights)
    assert plain.report["embeddings"] == kept.report["embeddings"] == []
    table = "embeddings.word_embeddings"
    stored = {key: value for key, value in found.weights.items() if key.startswith(table)}
    if how == "int8":
        assert {key: value.dtype for key, value in stored.items()} == {
            f"{table}.integers": torch.int8, f"{table}.scales": torch.float32,
        }  # fmt: skip
    else:
        assert {key: tuple(value.shape) for key, value in stored.items()} == {
            f"{table}.L": (3000, 15), f"{table}.R": (15, 32),
        }  # fmt: skip
    others = {key: value for key, value in found.weights.items() if key not in stored}
    assert same(others, {key: value for key, value in plain.weights.items() if not key.startswith(table)})

    (row,) = found.report["embeddings"]
    assert (row["name"], row["shape"], row["how"]) == (table, [3000, 32], how)
    assert row["bytes"] == {"before": 384_000, "after": sum(value.nbytes for value in stored.values())}
    size = [(out.folder / "model.safetensors").stat().st_size for out in (plain, found)]
    assert found.report["bytes"]["after"] == size[1]
    assert size[0] - size[1] == pytest.approx(384_000 - row["bytes"]["after"], abs=2000)
    quality = found.report["quality"]
    assert quality["before_embeddings"]["cosine"] == plain.report["quality"]["cosine"]
    assert found.report["gates"][0]["value"] == quality["cosine"] != plain.report["quality"]["cosine"]
    left = {entry["name"]: entry["reason"] for entry in found.report["left_alone"]}
    assert left["embeddings.position_embeddings"] == "64 rows: too few to gain"
    assert f"The embedding table {table}" in (found.folder / "report.html").read_text()
    assert f"Embedding table `{table}`" in (found.folder / "README.md").read_text()

    tokens = AutoTokenizer.from_pretrained(found.folder)(["ba ben fi", "mor"], padding=True)
    batch = {key: torch.tensor(value) for key, value in tokens.items()}
    small, dense = (AutoModel.from_pretrained(path) for path in (found.folder, found.folder / "dense"))
    assert type(dense.get_input_embeddings()) is torch.nn.Embedding
    with torch.no_grad():
        output = small(**batch).last_hidden_state
        assert torch.allclose(output, dense(**batch).last_hidden_state, atol=1e-4)
        # What goes into the first layer is the table in the file.
        ids = batch["input_ids"]
        if how == "int8":
            expected = stored[f"{table}.integers"][ids] * stored[f"{table}.scales"][ids]
            assert torch.equal(small.get_input_embeddings()(ids), expected)
        else:
            expected = stored[f"{table}.L"][ids] @ stored[f"{table}.R"]
            assert torch.allclose(small.get_input_embeddings()(ids), expected, atol=1e-6)


def test_embeddings_stand_in_the_plan_and_a_tied_table_stays(wordy, tiny_causal_folder):
    def call(*words: object, code: int = 0):
        result = CliRunner().invoke(lowdim.cli.build(), ["compress", *map(str, words)])
        assert result.exit_code == code, result.output
        return result

    shown = call(wordy, "--dry-run", "--embeddings", "low-rank").stdout
    assert "Embedding tables, low-rank" in shown
    assert "embeddings.word_embeddings" in shown
    found = json.loads(call(wordy, "--dry-run", "--embeddings", "int8", "--json").stdout)
    assert [(row["name"], row["how"]) for row in found["embeddings"]] == [
        ("embeddings.word_embeddings", "int8")
    ]
    told = call(tiny_causal_folder, "--dry-run", "--embeddings", "int8", code=2).stderr
    told = " ".join(told.translate(str.maketrans("", "", "│╭╮╰╯─")).split())
    assert "transformer.wte: its weight is tied to 'lm_head'" in told
    assert "transformer.wpe: 64 rows: too few to gain" in told
    assert "--embeddings keep" in told


def test_dtype_is_that_of_the_weights_written(run):
    found = run("--method", "lowrank", "--dtype", "bf16")
    assert {value.dtype for value in found.weights.values()} == {torch.bfloat16}
    assert found.report["dtype"] == "bfloat16"
    assert json.loads((found.folder / "config.json").read_text())["dtype"] == "bfloat16"
    full = run("--method", "lowrank")
    assert found.report["bytes"]["after"] < 0.7 * full.report["bytes"]["after"]


def test_calib_tokens_and_seed_choose_the_text(run):
    words = ("--method", "lowrank", "--target", "encoder.layer.0", "--calib-tokens", 100)
    one, twin, other = run(*words), run(*words, "--seed", 0), run(*words, "--seed", 7)
    everything = run(*words[:-2])
    # A started text is taken as a whole: 8 to 16 words and two marks.
    assert 100 <= one.report["calibration"]["tokens"] < 118
    assert everything.report["calibration"]["tokens"] > 600
    assert everything.report["calibration"]["paragraphs"] == 64
    assert (one.report["seed"], other.report["seed"]) == (0, 7)
    assert same(one.weights, twin.weights)
    assert tiny.lasting(one.report) == tiny.lasting(twin.report)
    assert not same(one.weights, other.weights)
    assert not same(one.weights, everything.weights)


def test_tables_give_the_text_of_their_column(run, tables):
    words = ("--method", "lowrank", "--target", "encoder.layer.0")
    expected, decoy = (run(*words, calib=tables / f"{name}.txt") for name in ("phrase", "note"))
    assert not same(expected.weights, decoy.weights)
    for kind in ("csv", "jsonl", "parquet"):
        found = run(*words, calib=f"{tables / f'a.{kind}'}:phrase")
        assert same(found.weights, expected.weights), kind
        assert found.report["calibration"]["text"] == f"32 paragraphs of a.{kind}"
        assert found.report["calibration"]["tokens"] == expected.report["calibration"]["tokens"]
