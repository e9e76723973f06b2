"""`lowdim claims` as a user runs it."""

import json

import pytest
from typer.testing import CliRunner

from lowdim.claims import declare
from lowdim.cli import build


@pytest.fixture
def invoke(monkeypatch):
    """The command with three claims of a system "fake" beside the real ones."""
    declare.registered()
    monkeypatch.setattr(declare, "_REGISTRY", dict(declare._REGISTRY))
    common = {"source": "nobody", "setting": "none."}

    @declare.claim("fake.good", statement="Good.", at_most=1.0, **common)
    def good(trial):
        return 0.5

    @declare.claim("fake.bad", statement="Bad.", at_least=1.0, **common)
    def bad(trial):
        return 0.5

    @declare.claim("fake.absent", statement="Absent.", at_least=1.0, **common)
    def absent(trial):
        raise declare.Unavailable("needs a file")

    runner = CliRunner()
    app = build()
    return lambda *words: runner.invoke(app, ["claims", *map(str, words)])


def test_list_shows_every_declared_claim(invoke):
    listed = json.loads(invoke("list", "--json").stdout)
    assert {entry["system"] for entry in listed} >= {"blast", "compress", "fake"}
    for entry in listed:
        assert entry["statement"], entry["id"]
        assert entry["source"], entry["id"]
        assert entry["setting"], entry["id"]
        assert entry["gated"] == (entry["threshold"] is not None), entry["id"]
    assert "fake.good" in invoke("list", "--system", "fake").stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["fake.good"], 0),
        (["fake.good", "fake.bad"], 1),
        (["fake.good", "fake.absent"], 0),
        (["fake.good", "fake.absent", "--require"], 1),
        (["fake.unknown"], 2),
        (["--system", "nothing"], 2),
        (["fake.good", "--resume"], 2),
        (["fake.good", "--output", "table"], 2),
    ],
)
def test_exit_codes(invoke, words, code):
    assert invoke("run", *words).exit_code == code


def test_json_is_all_there_is_on_stdout(invoke):
    result = invoke("run", "--system", "fake", "--json")
    statuses = {entry["id"]: entry["status"] for entry in json.loads(result.stdout)}
    assert statuses == {"fake.good": "pass", "fake.bad": "short", "fake.absent": "skipped"}


def test_the_table_merges_what_was_measured_at_different_times(invoke, tmp_path):
    table = tmp_path / "docs" / "claims.md"
    assert invoke("run", "fake.good", "--output", table).exit_code == 0
    assert invoke("run", "fake.absent", "--output", table).exit_code == 0
    page = table.read_text()
    assert "| `fake.good` | Good. | pass | 0.5 | <= 1 |" in page
    assert "needs a file" in page
    assert (tmp_path / "docs" / "claims" / "fake.good.json").is_file()
    before = (tmp_path / "docs" / "claims" / "fake.good.json").stat().st_mtime_ns
    assert invoke("run", "--system", "fake", "--output", table, "--resume").exit_code == 1
    assert (tmp_path / "docs" / "claims" / "fake.good.json").stat().st_mtime_ns == before
    assert "1 pass, 1 short, 0 reported, 1 skipped" in table.read_text()


def test_the_quickest_claims_hold(invoke, tmp_path):
    quickest = (
        "blast.special-cases",
        "blast.block-low-rank-exact",
        "blast.block-diagonal-exact",
        "blast.als-recovers",
    )
    result = invoke("run", *quickest, "--require", "--json", "--output", tmp_path / "claims.md")
    measured = {entry["id"]: entry for entry in json.loads(result.stdout)}
    assert {name: entry["status"] for name, entry in measured.items()} == dict.fromkeys(quickest, "pass")
    assert result.exit_code == 0
    assert measured["blast.als-recovers"]["seeds"] == [0, 1, 2]
