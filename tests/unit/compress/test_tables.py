"""Which embedding tables are made smaller, which stay and why, and the whole way through `compress`."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from lowdim.algebra import LowRank, StructuredLinear
from lowdim.compress import CompressResult, compress, plan, stages
from lowdim.compress.embedding import CompactEmbedding, Int8Embedding, LowRankEmbedding
from lowdim.compress.result import summary_rows
from lowdim.compress.tables import FEWEST_ROWS
from lowdim.compress.timing import parameter_bytes
from lowdim.errors import DataError, RunError
from lowdim.report import compress_page
from lowdim.report import compress_words as words

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")

ROWS = 3000


class Encoder(nn.Module):
    """Words and positions, mixed by two layers; with or without an output layer that shares the words."""

    def __init__(self, rows: int = ROWS, tied: bool = False, kind: type = nn.Embedding, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = kind(rows, 32, **options)
        self.places = nn.Embedding(16, 32)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.lm_head = nn.Linear(32, rows, bias=False) if tied else nn.Identity()
        if tied:
            self.lm_head.weight = self.words.weight

    def forward(self, ids):
        return self.lm_head(self.layers(self.words(ids) + self.places.weight[: ids.shape[-1]]))


class Scaled(nn.Embedding):
    """A table that does more than look rows up."""

    def forward(self, ids):
        return 2 * super().forward(ids)


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, ROWS, (40, 8), generator=generator) for _ in range(count)]


def reasons(model: nn.Module, how: str = "int8") -> dict[str, str]:
    """The reasons of what is left alone, of a plan with another table that is not."""
    model.other = nn.Embedding(ROWS, 32)
    found = plan(model, embeddings=how)
    assert [table.name for table in found.tables] == ["other"]
    return {entry.name: entry.reason for entry in found.left_alone}


# ----- the plan -----------------------------------------------------------------------------------------


def test_int8_keeps_every_number_and_small_tables():
    found = plan(Encoder(), embeddings="int8")
    assert [table.to_dict() for table in found.tables] == [
        {
            "name": "words", "shape": [ROWS, 32], "how": "int8", "rank": None,
            "parameters_before": ROWS * 32, "parameters_after": ROWS * 32,
        }
    ]  # fmt: skip
    (left,) = found.left_alone
    assert (left.name, left.shape, left.parameters) == ("places", (16, 32), 512)
    assert left.reason == "16 rows: too few to gain"
    assert found.parameters_after == plan(Encoder()).parameters_after


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_low_rank_keeps_the_fraction(keep):
    found = plan(Encoder(), embeddings="low-rank", keep=keep)
    (table,) = found.tables
    assert table.rank == LowRank.rank_for(keep, ROWS, 32)
    assert table.parameters == table.rank * (ROWS + 32) <= keep * ROWS * 32
    assert table.parameters > 0.8 * keep * ROWS * 32
    dense = plan(Encoder(), keep=keep)
    assert dense.parameters_after - found.parameters_after == ROWS * 32 - table.parameters


def test_by_default_no_table_is_looked_at():
    found = plan(Encoder(tied=True))
    assert found.tables == ()
    assert {entry.name for entry in found.left_alone} == {"lm_head"}


def test_the_number_of_rows_decides():
    assert reasons(Encoder(FEWEST_ROWS - 1))["words"] == f"{FEWEST_ROWS - 1} rows: too few to gain"
    assert [t.name for t in plan(Encoder(FEWEST_ROWS), embeddings="int8").tables] == ["words"]


def test_tied_repeated_and_special_tables_are_left_alone_with_the_reason():
    assert reasons(Encoder(tied=True))["words"] == "its weight is tied to 'lm_head'"
    twice = Encoder()
    twice.decoder_words = twice.words
    assert reasons(twice)["words"] == "the model uses it in 2 places, also as 'decoder_words'"
    double = Encoder()
    double.more = nn.Embedding(ROWS, 32)
    double.more.weight = double.words.weight
    found = reasons(double)
    assert (found["words"], found["more"]) == (
        "its weight is tied to 'more'",
        "its weight is tied to 'words'",
    )
    assert reasons(Encoder(kind=Scaled))["words"] == "a Scaled, which may do more than nn.Embedding"
    assert reasons(Encoder(max_norm=1.0))["words"] == "max_norm=1 rewrites its rows when they are looked up"
    small = Encoder()
    small.words = Int8Embedding(ROWS, 32)
    assert reasons(small)["words"] == "already compressed"


def test_excluded_tables_stay():
    model = Encoder()
    model.other = nn.Embedding(ROWS, 32)
    found = plan(model, embeddings="int8", exclude=["words"])
    assert [table.name for table in found.tables] == ["other"]
    assert {e.name: e.reason for e in found.left_alone}["words"] == "excluded by 'words'"
    with pytest.raises(DataError, match="'words' matches no linear layer"):
        plan(model, exclude=["words"])


def test_factors_that_are_no_smaller_than_the_table_are_not_made():
    # At this size the factors of the layers gain a little, those of the table nothing.
    model = Encoder()
    model.words, model.other = nn.Embedding(ROWS, 1), nn.Embedding(ROWS, 32)
    found = plan(model, embeddings="low-rank", keep=0.9)
    reason = {entry.name: entry.reason for entry in found.left_alone}["words"]
    assert "fewer than the 3001 that rank 1 costs" in reason


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            Encoder(tied=True),
            r"no embedding table to make smaller \(words: its weight is tied to 'lm_head'; places: 16 rows: "
            r"too few to gain\). Leave embeddings out \(--embeddings keep\)",
        ),
        (nn.Sequential(nn.Linear(32, 32)), r"smaller \(Sequential has none\). Leave embeddings out"),
    ],
    ids=["tied", "none"],
)
def test_nothing_left_is_told_with_the_reasons(model, told):
    with pytest.raises(DataError, match=told):
        plan(model, embeddings="int8")


def test_an_unknown_kind_is_refused():
    told = r"embeddings='int4'. Use 'int8' or 'low-rank'"
    with pytest.raises(DataError, match=told):
        plan(Encoder(), embeddings="int4")
    with pytest.raises(DataError, match=told):
        compress(Encoder(), calibration=batches(), embeddings="int4")


# ----- through compress ---------------------------------------------------------------------------------

OPTIONS = {"keep": 0.5, "method": "lowrank"}


@pytest.mark.parametrize("how", ["int8", "low-rank"])
def test_report_and_files_are_of_the_model_that_is_written(how, tmp_path):
    if how == "int8":
        pytest.importorskip("torchao")
    model, inputs, out = Encoder(), batches(), tmp_path / "out"
    original = model.words.weight.detach().clone()
    plain = compress(model, calibration=inputs, recover_steps=4, **OPTIONS)
    found = compress(model, calibration=inputs, recover_steps=4, embeddings=how, output=out, **OPTIONS)
    assert torch.equal(model.words.weight, original)
    assert type(found.model.words) is (Int8Embedding if how == "int8" else LowRankEmbedding)
    assert type(found.model.places) is nn.Embedding
    # Tables come last: the layers are those of a run without the option.
    for name, value in plain.model.layers.state_dict().items():
        assert torch.equal(found.model.layers.state_dict()[name], value), name

    report = json.loads((out / "report.json").read_text())
    (row,) = report["embeddings"]
    error = float((found.model.words.weight.detach() - original).norm() / original.norm())
    assert row["relative_error"] == pytest.approx(error, rel=1e-3)
    assert row["bytes"] == {"before": 4 * ROWS * 32, "after": parameter_bytes(found.model.words)}
    assert report["bytes"]["after"] == (out / "model.safetensors").stat().st_size
    saved = row["bytes"]["before"] - row["bytes"]["after"]
    assert parameter_bytes(plain.model) - parameter_bytes(found.model) == saved
    assert report["parameters"]["after"] == found.plan.parameters_after
    assert report["parameters"]["after"] == plain.report["parameters"]["after"] - (
        row["parameters_before"] - row["parameters_after"]
    )

    # Measured anew by hand, on what the files hold.
    loaded = CompressResult.load(out, model=Encoder())
    assert loaded.plan == found.plan
    with torch.no_grad():
        pairs = [(model(x), loaded.model(x)) for x in inputs]
    off = sum((a - b).double().square().sum() for a, b in pairs) / sum(
        a.double().square().sum() for a, _ in pairs
    )
    assert report["quality"]["relative_error"] == pytest.approx(float(off.sqrt()), rel=1e-6)
    before = report["quality"]["before_embeddings"]["relative_error"]
    assert before == plain.report["quality"]["relative_error"] != report["quality"]["relative_error"]
    assert report["quality"]["before_recovery"] == plain.report["quality"]["before_recovery"]
    assert any("made smaller after everything else" in note for note in report["notes"])
    assert [entry["name"] for entry in report["left_alone"]] == ["places"]


def test_both_kinds_of_int8_together(tmp_path):
    pytest.importorskip("torchao")
    model, inputs, out = Encoder(), batches(), tmp_path / "out"
    result = compress(
        model, calibration=inputs, recover_steps=2, embeddings="int8", quantize="int8", dense=True,
        output=out, **OPTIONS,
    )  # fmt: skip
    kinds = {name: value.dtype for name, value in result.model.state_dict().items()}
    assert kinds["words.integers"] == torch.int8
    assert sum(kind == torch.int8 for kind in kinds.values()) == 1 + 2 * 2
    report = result.report
    size = (out / "model.safetensors").stat().st_size
    assert report["bytes"]["after"] == size < report["bytes"]["float"] < report["bytes"]["before"]
    # Plain int8 of the original has its table in int8 too, or the comparison would be unfair.
    rounded = 4 * 16 * 32 + 4 * (32 + 64) + 4 * 96 + 32 * 64 * 2
    assert report["int8"]["original"]["bytes"] == pytest.approx(rounded + ROWS * 36, rel=0.02)
    assert report["int8"]["original"]["quality"]["relative_error"] < 0.05
    with torch.no_grad():
        error = [(model(x) - result.model(x)).norm() / model(x).norm() for x in inputs]
    assert report["int8"]["compressed"]["quality"]["relative_error"] == pytest.approx(
        float(torch.stack(error).mean()), rel=0.02
    )
    dense = Encoder()
    from lowdim.compress import load_weights

    load_weights(dense, out / "dense")
    assert type(dense.words) is nn.Embedding
    x = inputs[0]
    with torch.no_grad():
        assert torch.allclose(dense(x), result.model(x), atol=1e-4)


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("how", ["int8", "low-rank"])
@pytest.mark.parametrize("moment", ["before the tables", "after the tables", "after the evaluation"])
def test_a_stopped_run_resumes_to_the_same_weights(how, moment, tmp_path, monkeypatch):
    if how == "int8":
        pytest.importorskip("torchao")
    given = {"calibration": batches(), "recover_steps": 3, "embeddings": how, **OPTIONS}
    whole = compress(Encoder(), output=tmp_path / "whole", **given)
    name, real = {
        "before the tables": ("shrink_tables", stages.shrink_tables),
        "after the tables": ("install_tables", stages.install_tables),
        "after the evaluation": ("write_checkpoint", stages.write_checkpoint),
    }[moment]

    def stop(*args, **kwargs):
        raise Stop

    monkeypatch.setattr(stages, name, stop)
    with pytest.raises(Stop):
        compress(Encoder(), output=tmp_path / "out", **given)
    monkeypatch.setattr(stages, name, real)
    other = {**given, "embeddings": None}
    with pytest.raises(RunError, match=f"embeddings was '?{how}'? and is now None"):
        compress(Encoder(), output=tmp_path / "out", resume=True, **other)
    if moment != "before the tables":
        monkeypatch.setattr("lowdim.compress.shrink._compact", None)  # kept on disk, not made again
    again = compress(Encoder(), output=tmp_path / "out", resume=True, **given)
    first, second = whole.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert again.report["quality"] == whole.report["quality"]
    assert again.report["embeddings"] == whole.report["embeddings"]


def test_without_inputs_the_tables_are_made_smaller_all_the_same():
    result = compress(
        Encoder(), keep=0.5, method="svd", embeddings="low-rank", calibration=batches(1), recover_steps=0
    )
    assert isinstance(result.model.words, CompactEmbedding)
    assert isinstance(result.model.layers[0], StructuredLinear)


# ----- what is told -------------------------------------------------------------------------------------


@pytest.fixture
def report():
    """A report with a table in int8, as `compress` writes it."""
    row = {
        "name": "words", "shape": [30522, 384], "how": "int8", "rank": None, "parameters_before": 11720448,
        "parameters_after": 11720448, "bytes": {"before": 46_881_792, "after": 11_842_536},
        "relative_error": 0.0063,
    }  # fmt: skip
    layer = {"name": "fc", "shape": [64, 64], "structure": "lowrank", "rank": 16, "weight_error": 0.2}
    layer |= {"parameters_before": 4096, "parameters_after": 2048}
    return {
        "model": "tiny", "task": "embedding", "method": "lowrank", "keep": 0.5, "layers": [layer],
        "parameters": {"before": 12_000_000, "after": 11_997_952} | {
            "compressible_before": 4096, "compressible_after": 2048
        },
        "bytes": {"before": 48_000_000, "after": 12_100_000},
        "quality": {
            "task": "embedding", "cosine": 0.9, "before_recovery": {"cosine": 0.85},
            "before_embeddings": {"cosine": 0.91},
        },
        "recovery": {"steps": 9, "kept": True}, "speed": {}, "embeddings": [row], "left_alone": [],
    }  # fmt: skip


def test_the_page_has_a_line_on_the_tables(report):
    said = dict(words.losses(report))
    assert said["Embeddings"] == [
        "The embedding table words (30522 \N{MULTIPLICATION SIGN} 384) is stored in int8: 46.9 MB became "
        "11.8 MB, with a relative error of 0.6 %.",
        "Cosine to the original is 0.900; with the original table it was 0.910.",
    ]
    # What the tables cost is not laid to recovery.
    assert "Recovery (9 steps) helped: cosine to the original went from 0.850 to 0.910." in said["Quality"]
    html = compress_page(report).html().replace("\N{NO-BREAK SPACE}", " ")
    assert "46.9 MB became 11.8 MB" in html
    report["embeddings"][0] |= {"how": "low-rank", "rank": 188}
    assert "is stored as a product of rank 188" in dict(words.losses(report))["Embeddings"][0]
    del report["embeddings"], report["quality"]["before_embeddings"]
    assert "Embeddings" not in dict(words.losses(report))
    compress_page(report).html()


def test_the_figure_of_parameters_shows_the_table_apart(report):
    from lowdim.report import compress_figures as figures

    figure, _ = figures.groups(report)
    after = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert after["words"] == 11_720_448
    assert after["everything else"] == 11_997_952 - 2048 - 11_720_448


def test_summary_and_card_have_a_line_on_the_tables(report):
    from lowdim.compress.card import model_card

    rows = {row[0]: row[1:] for row in summary_rows(report)}
    assert rows["  of the table words, int8"] == ("46.9 MB", "11.8 MB (error 0.6%)")
    assert rows["cosine to the original embedding"][1] == (
        "0.9 (0.85 before recovery, 0.91 with the original tables)"
    )
    card = model_card(nn.Identity(), report)
    line = "Embedding table `words` in int8: 46,881,792 to 11,842,536 bytes, relative error 0.63%."
    assert line in card
    assert line not in model_card(nn.Identity(), report, dense=True)


def test_the_plan_is_shown(monkeypatch):
    from lowdim.cli import compress as command

    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(command.manners, "out", console)
    command._show_plan(plan(Encoder(), embeddings="low-rank"))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    at = lines.index(["Embedding", "tables,", "low-rank"])
    assert lines[at + 1] == ["Table", "Shape", "Rank", "Kept"]
    assert lines[at + 2] == ["words", f"{ROWS}x32", "15", "47%"]
    assert ["places", "16x32", "16", "rows:", "too", "few", "to", "gain"] in lines
