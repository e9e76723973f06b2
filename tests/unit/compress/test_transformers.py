import json
import subprocess
import sys
from pathlib import Path

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowdim.algebra import StructuredLinear
from lowdim.compress.fingerprint import METADATA_KEY
from lowdim.compress.modules import structured_modules
from lowdim.compress.write import load_weights, write_checkpoint
from lowdim.errors import DataError, RunError, ShapeError

CASES = {
    "bert": (architectures.bert, ("blast",)),
    "masked": (lambda: architectures.bert("BertForMaskedLM"), ("blast", "lowrank")),
    "classifier": (lambda: architectures.bert("BertForSequenceClassification"), ("blockdiag", "monarch")),
    "gpt2": (architectures.gpt2, ("blast", "lowrank", "blockdiag", "monarch", "sum")),
    "llama": (architectures.llama, ("blast", "sum")),
    "qwen2": (architectures.qwen2, ("blast",)),
    "vit": (architectures.vit, ("blast", "monarch")),
}

FRESH = """
import json, sys
import lowdim
assert "torch" not in sys.modules and "transformers" not in sys.modules
import torch, transformers
from safetensors.torch import load_file, save_file
result = {}
for folder, kind, options in json.loads(sys.argv[1]):
    if "dtype" in options:
        options["dtype"] = getattr(torch, options["dtype"])
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
    batch = load_file(folder + "/test_inputs")
    with torch.no_grad():
        output = model(**batch)[0]
    key = folder + " " + kind + " " + " ".join(f"{k}={v}" for k, v in options.items())
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    result[key] = {"problems": problems, "dtype": str(model.dtype)}
    save_file({"output": output.contiguous()}, folder + f"/test_output_{len(result)}")
    result[key]["file"] = folder + f"/test_output_{len(result)}"
    model.save_pretrained(folder + "_again")
    again = type(model).from_pretrained(folder + "_again", **options)
    with torch.no_grad():
        result[key]["again"] = torch.equal(again(**batch)[0], output)
print(json.dumps(result))
"""

OPTIONS = [{}, {"device_map": "cpu"}, {"device_map": "auto"}, {"dtype": "bfloat16"}]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every architecture, compressed and written; and what a fresh process made of the folders."""
    root = tmp_path_factory.mktemp("folders")
    models, jobs = {}, []
    for name, (build, structures) in CASES.items():
        torch.manual_seed(0)
        model = architectures.compressed(build(), structures)
        shards = {"max_shard_size": 20_000} if name in ("gpt2", "bert") else {}
        write_checkpoint(model, root / name, **shards)
        batch = architectures.inputs(model)
        save_file(batch, root / name / "test_inputs")
        models[name] = (model, batch)
        kind = "AutoModel" if name == "bert" else type(model).__name__
        jobs += [
            [str(root / name), kind, options] for options in (OPTIONS if name == "bert" else OPTIONS[:1])
        ]
    jobs += [[str(root / "gpt2"), "AutoModelForCausalLM", OPTIONS[3]]]
    run = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps(jobs)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return root, models, json.loads(run.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_fresh_process_gives_the_same_bits(written, name):
    _, models, results = written
    model, batch = models[name]
    keys = [key for key in results if Path(key.split()[0]).name == name and "dtype=" not in key]
    assert keys
    for key in keys:
        assert results[key]["problems"] == {}, key
        assert results[key]["again"], key
        output = load_file(results[key]["file"])["output"]
        assert torch.equal(output, architectures.answer(model, batch)), key


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_bfloat16_is_the_cast_model(written, name):
    _, models, results = written
    model, batch = models[name]
    key = next(key for key in results if Path(key.split()[0]).name == name and "bfloat16" in key)
    assert results[key]["dtype"] == "torch.bfloat16"
    import copy

    cast = copy.deepcopy(model).bfloat16()
    assert torch.equal(load_file(results[key]["file"])["output"], architectures.answer(cast, batch))


def test_large_models_are_cut_in_shards(written):
    root, _, _ = written
    assert len(list((root / "gpt2").glob("model-*-of-*.safetensors"))) > 2
    assert (root / "gpt2" / "model.safetensors.index.json").is_file()


def test_tied_embeddings_stay_tied(written):
    from transformers import AutoModelForCausalLM

    root, _, _ = written
    for name in ("gpt2", "qwen2"):
        model = AutoModelForCausalLM.from_pretrained(root / name)
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_head_on_the_folder_of_a_base_model(written):
    from transformers import AutoModelForSequenceClassification

    root, models, _ = written
    model, batch = models["bert"]
    head, info = AutoModelForSequenceClassification.from_pretrained(root / "bert", output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(head.bert(**batch)[0], architectures.answer(model, batch))


def test_base_model_from_the_folder_of_a_head(written):
    from transformers import AutoModel

    root, models, _ = written
    model, batch = models["gpt2"]
    base, info = AutoModel.from_pretrained(root / "gpt2", output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        assert torch.equal(base(**batch)[0], model.transformer(**batch)[0])


def test_reloaded_model_is_an_ordinary_float_model(written):
    from transformers import AutoModel

    root, _, _ = written
    model = AutoModel.from_pretrained(root / "bert")
    assert model.half().dtype == torch.float16
    assert model.float().dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())


def copied(written, name, tmp_path):
    import shutil

    root, _, _ = written
    shutil.copytree(root / name, tmp_path / name)
    return tmp_path / name


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def load(folder):
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("version", [7, None])
def test_unknown_format_version_is_refused(written, tmp_path, version):
    folder = copied(written, "vit", tmp_path)
    edit(folder, lambda entry: entry.update(version=version, written_by="9.0"))
    with pytest.raises(RunError, match=rf"format version {version} .by lowdim 9\.0.*pip install -U lowdim"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda e: e.pop("modules"), DataError, "names no compressed modules"),
        (
            lambda e: e["modules"].update({"vit.layers.9.fc": next(iter(e["modules"].values()))}),
            DataError,
            r"does not have: 'vit\.layers\.9\.fc'",
        ),
        (lambda e: next(iter(e["modules"].values())).pop("rank"), DataError, "cannot be used"),
        (lambda e: next(iter(e["modules"].values())).pop("bias"), DataError, "'bias' is missing"),
        (lambda e: next(iter(e["modules"].values())).update(structure="cube"), DataError, "'cube'"),
        (lambda e: next(iter(e["modules"].values())).update(out_features=64), ShapeError, "with shape"),
    ],
)
def test_edited_description_is_refused(written, tmp_path, change, error, message):
    folder = copied(written, "vit", tmp_path)
    edit(folder, change)
    with pytest.raises(error, match=message):
        load(folder)


def test_weights_of_another_run_are_refused(written, tmp_path):
    folder = copied(written, "llama", tmp_path)
    edit(folder, lambda entry: next(iter(entry["modules"].values())).update(rank=7))
    with pytest.raises(RunError, match=r"has shape .* belong to different runs"):
        load(folder)


def test_altered_weights_are_refused_by_name(written, tmp_path):
    folder = copied(written, "vit", tmp_path)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"model\.safetensors: the weight '.*' was altered"):
        load(folder)


def test_truncated_shard_is_refused_by_name(written, tmp_path):
    folder = copied(written, "gpt2", tmp_path)
    path = sorted(folder.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match=rf"{path.name} is truncated"):
        load(folder)


def test_weights_of_other_programs_without_fingerprints_load(written, tmp_path):
    folder = copied(written, "vit", tmp_path)
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})
    assert any(isinstance(module, StructuredLinear) for module in load(folder).modules())


def test_every_tensor_has_its_fingerprint(written):
    from safetensors import safe_open

    root, _, _ = written
    with safe_open(root / "vit" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) <= set(json.loads(file.metadata()[METADATA_KEY]))


def test_compression_inside_from_pretrained_is_refused(written, tmp_path):
    from transformers import BertModel

    from lowdim.compress.transformers import LowdimConfig

    _, models, _ = written
    config = LowdimConfig(modules=structured_modules(models["bert"][0]))
    architectures.bert().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="lowdim compress MODEL"):
        BertModel.from_pretrained(tmp_path, quantization_config=config)


def test_attach_config_wants_structured_layers():
    from lowdim.compress.transformers import attach_config

    with pytest.raises(DataError, match="no StructuredLinear"):
        attach_config(architectures.bert())


DENSE = """
import json, sys, transformers
from safetensors.torch import load_file, save_file
kinds = {}
for folder, kind in json.loads(sys.argv[1]):
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    output = model(**load_file(folder + "/test_inputs"))[0]
    save_file({"output": output.detach().contiguous()}, folder + "/test_output")
    kinds[folder] = sorted({type(module).__name__ for module in model.modules()})
assert not any(name.split(".")[0] == "lowdim" for name in sys.modules)
print(json.dumps(kinds))
"""


def test_dense_export_loads_without_lowdim(written, tmp_path):
    _, models, _ = written
    jobs = []
    for name in ("bert", "gpt2", "vit"):
        model, batch = models[name]
        write_checkpoint(model, tmp_path / name, dense=True)
        assert structured_modules(model), "the model itself must stay structured"
        assert "quantization_config" not in json.loads((tmp_path / name / "config.json").read_text())
        save_file(batch, tmp_path / name / "test_inputs")
        jobs.append([str(tmp_path / name), type(model).__name__])
    run = subprocess.run(
        [sys.executable, "-c", DENSE, json.dumps(jobs)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    kinds = json.loads(run.stdout.strip().splitlines()[-1])
    assert "Conv1D" in kinds[str(tmp_path / "gpt2")]
    for name in ("bert", "gpt2", "vit"):
        model, batch = models[name]
        output = load_file(tmp_path / name / "test_output")["output"]
        assert torch.allclose(output, architectures.answer(model, batch), atol=1e-4), name


def test_diffusion_transformer_reloads_into_a_fresh_module(tmp_path):
    torch.manual_seed(0)
    model = architectures.compressed(architectures.DiT(), ("blast", "lowrank"))
    write_checkpoint(model, tmp_path)
    fresh = load_weights(architectures.DiT(), tmp_path).eval()
    batch = architectures.inputs(model)
    assert torch.equal(architectures.answer(fresh, batch), architectures.answer(model, batch))
    assert structured_modules(fresh) == structured_modules(model)


def test_wrong_module_for_the_folder_is_refused(tmp_path):
    write_checkpoint(architectures.compressed(architectures.DiT()), tmp_path)
    with pytest.raises(DataError, match=r"does not have: 'blocks\.1\."):
        load_weights(architectures.DiT(depth=1), tmp_path)
    with pytest.raises(RunError, match=r"no lowdim\.json"):
        load_weights(architectures.DiT(), tmp_path / "nothing")


def test_layer_used_twice_is_replaced_in_both_places(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.second = self.first

        def forward(self, x):
            return self.second(self.first(x))

    model = architectures.compressed(Twice())
    assert model.first is model.second
    write_checkpoint(model, tmp_path)
    fresh = load_weights(Twice(), tmp_path)
    assert fresh.first is fresh.second
    x = torch.randn(2, 16)
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("named", [["BertForRiddles"], ["BertForRiddles", "BertForMaskedLM"], None])
def test_an_architecture_that_transformers_lacks_is_refused(tmp_path, named):
    from lowdim.compress.transformers import read_pretrained

    architectures.bert("BertForMaskedLM").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": named}))
    if named is None:  # nothing is promised about a head
        assert type(read_pretrained(str(tmp_path))).__name__ == "BertModel"
    elif len(named) > 1:
        assert type(read_pretrained(str(tmp_path))).__name__ == "BertForMaskedLM"
    else:
        with pytest.raises(DataError, match=r"BertForRiddles.*config.json.*compress\(model, tokenizer="):
            read_pretrained(str(tmp_path))
