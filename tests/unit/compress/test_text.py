import json

import pytest
import torch

from lowdim.compress.text import Text, batches, builtin_text, read_text, split_column
from lowdim.errors import DataError


class Letters:
    """One token per character: small enough to count by hand."""

    pad_token = None
    eos_token = "."

    def __call__(self, texts, *, truncation, max_length):
        rows = [[ord(c) for c in text][:max_length] for text in texts]
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}

    def pad(self, rows, *, padding_side, return_tensors):
        assert padding_side == "right"
        longest = max(map(len, rows["input_ids"]))
        return {k: torch.tensor([v + [0] * (longest - len(v)) for v in rows[k]]) for k in rows}


def write(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_builtin_paragraphs_are_frozen_and_disjoint():
    calibration, held_out = builtin_text("calibration"), builtin_text("heldout")
    assert (len(calibration), len(held_out)) == (743, 300)
    assert not set(calibration) & set(held_out)
    assert len(set(calibration)) == 743
    assert len(set(held_out)) == 300
    assert all(80 <= len(text) <= 600 for text in calibration + held_out)
    with pytest.raises(DataError, match=r"split='test' is unknown. Use 'calibration' or 'heldout'"):
        builtin_text("test")


def test_default_is_the_builtin_text_with_a_note():
    text = read_text()
    assert text.paragraphs == builtin_text("calibration")
    assert "Python documentation" in text.note


def test_txt_paragraphs_between_blank_lines_or_one_a_line(tmp_path):
    blocks = write(tmp_path, "a.txt", "one\ntwo  words\n \n\nthree\n")
    lines = write(tmp_path, "b.txt", "one\ntwo\none\n")
    assert read_text(blocks).paragraphs == ["one two words", "three"]
    assert read_text(str(lines)).paragraphs == ["one", "two"]
    assert read_text(lines).note == "2 paragraphs of b.txt"


def test_jsonl_with_a_usual_column_a_named_one_and_strings(tmp_path):
    rows = [{"id": 1, "text": "one", "title": "first"}, {"id": 2, "text": "two", "title": "second"}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_text(path).paragraphs == ["one", "two"]
    assert read_text(f"{path}:title").paragraphs == ["first", "second"]
    assert read_text(path, column="title,text").paragraphs == ["first", "one", "second", "two"]
    assert read_text(write(tmp_path, "b.jsonl", '"one"\n\n"two"\n')).paragraphs == ["one", "two"]


def test_csv_by_name_by_number_and_quoted(tmp_path):
    named = write(tmp_path, "a.csv", 'id,sentence\n1,"one, and\nmore"\n2,two\n')
    bare = write(tmp_path, "b.csv", "A plane.,A bird.,5.0\nA cat.,A dog.,1.0\n")
    assert read_text(named).paragraphs == ["one, and more", "two"]
    assert read_text(f"{bare}:0,1").paragraphs == ["A plane.", "A bird.", "A cat.", "A dog."]


def test_parquet_by_column(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    pandas.DataFrame({"id": [1, 2], "body": ["one", "two"]}).to_parquet(path)
    assert read_text(f"{path}:body").paragraphs == ["one", "two"]
    with pytest.raises(DataError, match=r"columns id, body; which holds the text\? Write a.parquet:COLUMN"):
        read_text(path)
    with pytest.raises(DataError, match=r"entry 1 of a.parquet is int, expected text"):
        read_text(path, column="id")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "a.txt holds no text"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", '{"text": "one"}\n{"text"', "line 2 of a.jsonl is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 of a.jsonl is list"),
        ("a.jsonl:body", '{"text": "one"}\n', r"no column 'body'. Its columns are: text"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv:3", "one,two\n", "line 1 of a.csv has 2 cells, column 3 was wanted"),
        ("a.csv", "one,two\n1,2\n", "columns one, two; which holds the text"),
        ("a.txt:body", "one\n", "plain text and has no column 'body'"),
        ("a.parquet", b"PAR0", "cannot be read as Parquet"),
        ("a.pdf", b"%PDF", "not a format read here"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, name, content, message):
    path = tmp_path / name.partition(":")[0]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_text(str(tmp_path / name))


def test_missing_file_folder_and_unreachable_data_set(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="there is no file"):
        read_text(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"is a folder. Give a file \(\.txt"):
        read_text(tmp_path)
    datasets = pytest.importorskip("datasets")

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"neither a file here nor a Hub data set.*ConnectionError"):
        read_text("nobody/nothing")


def test_hub_data_set_is_streamed_up_to_the_limit(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(identity, configuration, *, split, streaming):
        calls.append((identity, configuration, split, streaming))
        return datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["one", "two", "three"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_text("owner/name@small", limit=2).paragraphs == ["one", "two"]
    assert calls == [("owner/name", "small", "train", True)]


def test_batches_sort_by_length_stop_at_tokens_and_mask_padding():
    found = batches(["aaaa", "b", "cc"], Letters(), batch_size=2, tokens=None)
    assert [batch["input_ids"].shape for batch in found] == [(2, 2), (1, 4)]
    assert found[0]["attention_mask"].tolist() == [[1, 0], [1, 1]]
    many = [chr(97 + i % 26) * 10 for i in range(1000)]
    counted = sum(int(b["attention_mask"].sum()) for b in batches(many, Letters(), tokens=105))
    assert counted == 110


def test_batches_take_another_sample_for_another_seed_and_the_same_for_the_same():
    text = Text([chr(97 + i) * 5 for i in range(26)], "letters", "")

    def sample(seed):
        return sorted({int(b["input_ids"][r, 0]) for b in batches(text, Letters(), tokens=25, seed=seed)
                       for r in range(len(b["input_ids"]))})  # fmt: skip

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_long_paragraphs_are_cut_in_pieces_at_white_space():
    words = " ".join(f"w{i:03d}" for i in range(100))  # 499 characters in pieces of at most 6 * 20
    found = batches([words], Letters(), tokens=None, max_length=20, batch_size=100)
    starts = sorted("".join(map(chr, row[:4].tolist())) for row in found[0]["input_ids"])
    assert starts == ["w000", "w024", "w048", "w072", "w096"]
    assert found[0]["input_ids"].shape == (5, 20)


@pytest.mark.parametrize("option", ["tokens", "max_length", "batch_size"])
def test_batches_refuse_sizes_that_are_not_positive(option):
    with pytest.raises(DataError, match=f"{option}=0, expected a positive number"):
        batches(["a"], Letters(), **{option: 0})
    with pytest.raises(DataError, match="there is no text"):
        batches([], Letters())


def test_a_paragraph_somewhat_too_long_stays_one_input():
    found = batches(["x" * 100 + " " + "y" * 139], Letters(), tokens=None, max_length=20)
    assert [batch["input_ids"].shape for batch in found] == [(1, 20)]


def test_a_column_is_split_off_unless_a_file_has_that_name(tmp_path):
    assert split_column(f"{tmp_path}/t.csv:a,b") == (tmp_path / "t.csv", "a,b")
    assert split_column(tmp_path / "t.csv") == (tmp_path / "t.csv", None)
    assert split_column("C:/t.csv")[1] is None
    assert split_column("t.csv:a", "b")[1] == "b"
    path = write(tmp_path, "t.csv:a", "one")
    assert split_column(path) == (path, None)
