"""Prompts at the door: sources, columns, templates, splits, and what is refused."""

import json

import pandas as pd
import pytest

from lowdim.errors import DataError
from lowdim.policy import check_disjoint, fill_template, read_prompts, split_prompts

datasets = pytest.importorskip("datasets")

ROWS = [{"question": f"{n} + {n}?", "answer": str(2 * n), "level": n} for n in range(1, 6)]
CHAT = [{"role": "user", "content": "2 + 3?"}]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_files_of_all_kinds_give_the_same_prompts(tmp_path, suffix):
    found = read_prompts(write(tmp_path / f"sums{suffix}", ROWS))
    assert found.dataset["prompt"][:] == [row["question"] for row in ROWS]
    assert found.dataset["answer"][:] == [row["answer"] for row in ROWS]
    assert [int(level) for level in found.dataset["level"]] == [1, 2, 3, 4, 5]
    assert found.name == f"sums{suffix}"
    assert found.notes == ("prompts from the column 'question', answers from the column 'answer'",)


def test_rows_data_sets_and_texts_are_sources_too():
    rows = read_prompts(ROWS)
    assert read_prompts(datasets.Dataset.from_list(ROWS)).dataset[:] == rows.dataset[:]
    assert read_prompts(iter(ROWS), limit=2).dataset["answer"][:] == ["2", "4"]
    texts = read_prompts(["a", "b"])
    assert texts.dataset.column_names == ["prompt"]
    assert texts.notes == ()


def test_answers_of_a_csv_file_stand_as_they_are_written(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,answer\na,007\nb,"1,234"\nc,NA\n')
    assert read_prompts(path).dataset["answer"][:] == ["007", "1,234", "NA"]


def test_marked_answers_are_taken_out_and_the_solution_kept():
    gsm = read_prompts([{"question": "q", "answer": "3 * 24 = <<3*24=72>>72\n#### 72"}])
    solution = "3 * 24 = <<3*24=72>>72\n#### 72"
    assert gsm.dataset[0] == {"prompt": "q", "answer": "72", "solution": solution}
    assert gsm.notes[-1] == "1 answers taken out of the solutions in the column 'answer'"
    math = read_prompts([{"problem": "p", "solution": r"Thus \boxed{\frac{1}{2}}."}])
    assert math.dataset[0] == {
        "prompt": "p",
        "answer": r"\frac{1}{2}",
        "solution": r"Thus \boxed{\frac{1}{2}}.",
    }
    numbers = read_prompts([{"prompt": "p", "answer": 72.0}, {"prompt": "q", "answer": 5}])
    assert numbers.dataset["answer"][:] == ["72", "5"]


def test_columns_can_be_named():
    found = read_prompts([{"text": "t", "gold": "g", "prompt": "other"}], prompt="text", answer="gold")
    assert found.dataset[0] == {"prompt": "t", "answer": "g"}


def test_repeated_prompts_are_taken_once_and_told():
    rows = [
        {"prompt": "a  b", "answer": "1"},
        {"prompt": "A b", "answer": "1"},
        {"prompt": "a b", "answer": "2"},
    ]
    found = read_prompts(rows)
    assert found.dataset["prompt"][:] == ["a  b"]
    assert found.notes == ("2 repeated prompts left out, 1 of them with another answer",)


def test_conversations_stay_conversations():
    found = read_prompts([{"prompt": CHAT, "answer": "5"}])
    assert found.dataset[0]["prompt"] == CHAT
    assert read_prompts(["2 + 3?"], chat=True).dataset[0]["prompt"] == CHAT


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "list holds no rows"),
        ([{"text": "a", "label": "b"}], {}, "none of the columns prompt, .* Its columns are: text, label"),
        ([{"prompt": "a"}], {"answer": "gold"}, "no column 'gold'. Its columns are: prompt"),
        ([{"prompt": "a"}], {"prompt": "text"}, "no column 'text'. Its columns are: prompt"),
        ([{"prompt": "a"}, {"prompt": " \n"}], {}, r"row 2 of list has an empty prompt \(column 'prompt'\)"),
        ([{"prompt": []}], {}, "empty prompt"),
        ([{"prompt": [{"role": "user", "content": ""}]}], {}, "empty prompt"),
        ([{"prompt": 5}], {}, "row 1 of list has a prompt of type int"),
        ([{"prompt": [{"text": "a"}]}], {}, "has a prompt of type list"),
        ([{"prompt": None}], {}, "has a prompt of type NoneType"),
        ([{"prompt": "a", "answer": "5"}, {"prompt": "b", "answer": None}], {}, "1 of the 2 rows .*row 2"),
        ([{"prompt": "a", "answer": " "}], {}, "have no answer"),
        ([{"prompt": "a", "answer": float("nan")}], {}, "have no answer"),
        ([{"prompt": "a", "completions": 1}], {}, "column 'completions', a name that the trainer gives"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "y"}], {}, "do not form a table"),
        ([{"prompt": "a"}, {"prompt": CHAT}], {}, "do not form a table"),
        ([5], {}, "row 1 is int, expected a text or a dictionary"),
        (5, {}, "got int, expected a file"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused(rows, options, message):
    with pytest.raises(DataError, match=message):
        read_prompts(rows, **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{', "line 2 of a.jsonl is not JSON"),
        ("a.jsonl", '{"prompt": "a"}\n[1]', "row 2 of a.jsonl is list, expected an object"),
        ("a.json", "[" * 100_000, "line 1 of a.json is not JSON"),
        ("a.jsonl", b"\xff\xfe", "a.jsonl is not UTF-8 text"),
        ("a.parquet", "no table", "a.parquet cannot be read"),
        ("a.csv", "", "a.csv cannot be read"),
        ("a.txt", "a", "a.txt is not a format read here"),
        ("absent.jsonl", None, "there is no file .*absent.jsonl"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        read_prompts(path)


def test_a_hub_data_set_that_cannot_be_reached_is_told(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: 1 / 0)
    with pytest.raises(
        DataError, match=r"'nobody/nothing' is neither a file here nor a Hub data set with a split 'test'"
    ):
        read_prompts("nobody/nothing", split="test")


def test_a_hub_data_set_is_read_with_configuration_and_split(monkeypatch):
    asked = []

    def load(*args, **options):
        asked.append((*args, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_prompts("openai/gsm8k@main", limit=3)) == 3
    assert asked == [("openai/gsm8k", "main", {"split": "train"})]


def test_a_split_is_seeded_and_shares_nothing():
    prompts = read_prompts(ROWS)
    train, held_out = split_prompts(prompts, evaluation=2, seed=1)
    again = split_prompts(prompts, evaluation=0.4, seed=1)
    assert train.dataset[:] == again[0].dataset[:]
    assert (len(train), len(held_out)) == (3, 2)
    check_disjoint(train, held_out)
    assert sorted(train.keys + held_out.keys) == sorted(prompts.keys)
    for evaluation in (0, 5, 0.01, 7):
        with pytest.raises(DataError, match="Leave at least one for each"):
            split_prompts(prompts, evaluation=evaluation)


def test_prompts_trained_on_are_found_under_any_template():
    train = read_prompts(ROWS, template="r1")
    evaluation = read_prompts([*ROWS[:2], {"question": "new?", "answer": "1"}], template="boxed", chat=True)
    with pytest.raises(
        DataError, match=r"2 of the 3 evaluation prompts are in the training data too, the first: "
    ):
        check_disjoint(train, evaluation)
    plain = read_prompts(ROWS)
    with pytest.raises(DataError, match="5 of the 5"):
        check_disjoint(plain.dataset, plain.dataset)
    with pytest.raises(DataError, match=r"no 'prompt'"):
        check_disjoint(datasets.Dataset.from_list(ROWS), plain)


def test_templates_ask_for_what_the_rewards_look_for():
    plain = fill_template("2 + 3?", template="r1")
    assert plain.endswith("Question: 2 + 3?\nAnswer:")
    assert all(tag in plain for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    assert r"\boxed{}" in fill_template("2 + 3?", template="boxed")
    assert fill_template("2 + 3?") == "2 + 3?"
    assert fill_template("{a}{question}", template="Q: {question}!") == "Q: {a}{question}!"


def test_templates_make_and_keep_conversations():
    chat = fill_template("2 + 3?", template="boxed", chat=True)
    assert [message["role"] for message in chat] == ["system", "user"]
    assert fill_template("2 + 3?", chat=True) == CHAT
    inside = fill_template(CHAT, template="boxed")
    assert inside[0]["content"].endswith("\n\n2 + 3?")
    assert CHAT == [{"role": "user", "content": "2 + 3?"}]  # what was given is left alone
    assert fill_template(CHAT, template="{question} Now.")[0]["content"] == "2 + 3? Now."
    with pytest.raises(DataError, match="does not end with a user's message"):
        fill_template([*CHAT, {"role": "assistant", "content": "5"}], template="r1")
    with pytest.raises(DataError, match=r"template='r2' is unknown. Use one of plain, r1, boxed"):
        fill_template("a", template="r2")
