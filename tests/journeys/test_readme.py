"""The README does what it says: its commands parse, its targets exist, its Python runs."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from lowdim import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [path for path in (README, *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]


def blocks(path, *languages):
    text = path.read_text(encoding="utf-8")
    return [
        body
        for language, body in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, flags=re.M | re.S)
        if language in languages
    ]


def commands(program):
    found = []
    for path in PAGES:
        for body in blocks(path, "", "sh", "bash", "shell", "console", "text"):
            for line in body.replace("\\\n", " ").splitlines():
                words = line.strip().removeprefix("$ ").strip()
                if words.startswith(f"{program} "):
                    found.append(pytest.param(words, id=f"{path.stem}: {words}"[:90]))
    return found


def parse(words):
    """Walk the command tree as click does, up to the parameters of the leaf; run nothing."""
    command = typer.main.get_command(cli.build())
    context = click.Context(command, info_name="lowdim")
    while isinstance(command, click.Group):
        _, words, _ = command.make_parser(context).parse_args(list(words))
        if not words:
            return
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, info_name=name, parent=context)
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    assert rest == [], f"too many words: {rest}"
    for parameter in command.params:
        given = values.get(parameter.name)
        if isinstance(parameter, click.Argument) and parameter.required:
            assert given, f"{parameter.name} is missing"
        if isinstance(parameter.type, click.Choice) and isinstance(given, str):
            parameter.type.convert(given, parameter, context)


@pytest.mark.parametrize("line", commands("lowdim"))
def test_commands_parse(line):
    words = shlex.split(line, comments=True)[1:]
    parse([word for word in words if word not in ("[", "]", "...")])


def test_a_wrong_command_would_be_noticed():
    with pytest.raises(click.UsageError):
        parse(["doctor", "--jsn"])
    with pytest.raises(click.UsageError):
        parse(["docto"])


def test_the_readme_shows_the_main_command():
    shown = "\n".join(blocks(README, "", "sh", "bash", "shell", "console"))
    assert "lowdim compress " in shown
    assert "make demo" in shown


@pytest.mark.parametrize("line", commands("make"))
def test_targets_exist(line):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    words = [word for word in shlex.split(line, comments=True)[1:] if "=" not in word]
    assert set(words) <= targets


@pytest.fixture
def small_model(tmp_path):
    """A tiny BERT with a tokenizer for English words, as a folder."""
    transformers = pytest.importorskip("transformers")
    import torch

    from lowdim.compress.text import builtin_text

    counts = {}
    for paragraph in builtin_text("calibration"):
        for word in re.findall(r"[a-z]+", paragraph.lower()):
            counts[word] = counts.get(word, 0) + 1
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:400]
    folder = tmp_path / "tiny"
    folder.mkdir()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *frequent]))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=405,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(vocabulary), model_max_length=128).save_pretrained(folder)
    return folder


def test_python_runs(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    snippets = blocks(README, "python")
    assert snippets
    for body in snippets:
        code = re.sub(r"\"[\w.-]+/[\w.-]+\"", repr(str(small_model)), body)
        # As written, but with few steps and little text: the README's figures are for a real model.
        code = re.sub(r"recover_steps=\d+", "recover_steps=2, calibration_tokens=2000, sweeps=2", code)
        exec(compile(code, "README.md", "exec"), names)
