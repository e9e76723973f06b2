import architectures
import pytest
import torch
from torch import nn

from lowdim.compress import compress
from lowdim.compress.inputs import prepare, source_digest
from lowdim.compress.loading import Source
from lowdim.errors import DataError, RunError

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")


class Numbers:
    """A tokenizer of one token per word."""

    pad_token = "0"

    def __call__(self, texts, *, truncation, max_length):
        rows = [[5 + len(word) for word in text.split()][:max_length] for text in texts]
        return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}

    def pad(self, rows, *, padding_side, return_tensors):
        longest = max(map(len, rows["input_ids"]))
        return {k: torch.tensor([v + [0] * (longest - len(v)) for v in rows[k]]) for k in rows}

    def save_pretrained(self, folder):
        pass


def t5(kind: str = "T5ForConditionalGeneration") -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, kind).config_class(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    return getattr(transformers, kind)(config)


def pairs() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(5, 99, (20, 9), generator=generator),
            "decoder_input_ids": torch.randint(5, 99, (20, 7), generator=generator),
        }
    ]


def test_digest_of_a_table_knows_the_column_and_the_ending(tmp_path):
    content = "a,b\nOne text.,Another text.\n"
    for name in ("t.csv", "t.txt"):
        (tmp_path / name).write_text(content, encoding="utf-8")
    table, plain = f"{tmp_path}/t.csv", f"{tmp_path}/t.txt"
    found = [source_digest(given) for given in (table, plain, f"{table}:a", f"{table}:b", f"{table}:a,b")]
    assert len(set(found)) == 5
    assert found[2] == source_digest(f"{table}:a")
    (tmp_path / "t.csv").write_text(content + "Third,Fourth\n", encoding="utf-8")
    assert source_digest(f"{table}:a") != found[2]


@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "T5Model"])
@pytest.mark.parametrize(
    "given", [{}, {"calibration": ["One text."]}, {"evaluation": ["One text."], "method": "svd"}]
)
def test_text_for_an_encoder_decoder_is_refused(kind, given):
    with pytest.raises(DataError, match=rf"{kind} is an encoder-decoder.*'decoder_input_ids'.*'svd'"):
        compress(t5(kind), tokenizer=Numbers(), **given)


@pytest.mark.parametrize("given", [{"calibration": ["One text."]}, {"evaluation": ["One text."]}])
def test_text_beside_batches_for_an_encoder_decoder_is_refused(given):
    both = {"calibration": pairs(), "evaluation": pairs(), **given}
    with pytest.raises(DataError, match=r"encoder-decoder.*both calibration=... and evaluation="):
        compress(t5(), tokenizer=Numbers(), **both)


def test_what_is_told_for_an_encoder_decoder_works():
    result = compress(t5(), tokenizer=Numbers(), calibration=pairs(), sweeps=2, recover_steps=1)
    assert {row["name"].split(".")[0] for row in result.report["layers"]} == {"encoder", "decoder"}
    assert 0 < result.report["quality"]["relative_error"] < 1
    assert compress(t5(), tokenizer=Numbers(), method="svd").report["quality"]["text"] == "nothing"


def test_an_encoder_decoder_that_makes_its_decoder_inputs_itself_takes_text():
    model = t5("T5ForSequenceClassification")
    model.config.eos_token_id = 6
    source = Source(model, Numbers(), None, None, "t5")
    found = prepare(
        source,
        "classifier",
        calibration=["a b", "c d"],
        calibration_tokens=9,
        evaluation=["e f"],
        needed=True,
        seed=0,
    )
    assert found.calibration[0]["input_ids"].shape == (2, 2)
    assert model(**found.calibration[0]).logits.shape[0] == 2


@pytest.mark.parametrize("build", [architectures.bert, lambda: t5("UMT5EncoderModel")])
def test_encoders_take_text(build):
    result = compress(build(), tokenizer=Numbers(), calibration=["a bb ccc"] * 3, sweeps=2)
    assert result.report["task"] == "embedding"


@pytest.mark.parametrize("changed", ["calibration", "evaluation"])
@pytest.mark.parametrize("stopped", [True, False])
def test_resume_refuses_another_column(tmp_path, changed, stopped):
    class Stop(Exception):
        pass

    def stop(layer):
        raise Stop

    for name in ("calibration", "evaluation"):
        (tmp_path / f"{name}.csv").write_text(
            "a,b\nOne short text.,Quite another one.\n" * 2, encoding="utf-8"
        )
    texts = {name: f"{tmp_path}/{name}.csv:a" for name in ("calibration", "evaluation")}
    options = {"tokenizer": Numbers(), "sweeps": 2, "output": tmp_path / "out"}
    if stopped:
        with pytest.raises(Stop):
            compress(architectures.bert(), **texts, **options, callback=stop)
    else:
        compress(architectures.bert(), **texts, **options)
    other = {**texts, changed: f"{tmp_path}/{changed}.csv:b"}
    with pytest.raises(RunError, match=rf"the input {changed} has changed"):
        compress(architectures.bert(), **other, **options, resume=True)
