import copy
import json

import architectures
import pytest
import torch
from torch import nn

from lowdim.compress import compress
from lowdim.compress.evaluate import evaluate
from lowdim.compress.loading import device_of, folder_of, load
from lowdim.compress.timing import file_bytes, parameter_bytes
from lowdim.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")
COMMIT = "0123456789" * 4


def test_a_module_that_fits_is_not_copied():
    net = nn.Sequential(nn.Linear(4, 4)).double()
    assert load(net).model is net
    assert load(net, dtype="float64", device="cpu").model is net


@pytest.mark.parametrize("option", [{"dtype": "bf16"}, {"device": "meta"}])
def test_a_module_that_does_not_fit_is_copied(option):
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net[0].eval()
    before = copy.deepcopy(net.state_dict())
    found = load(net, **option).model
    assert found is not net
    if "dtype" in option:
        assert found[0].weight.dtype == torch.bfloat16
        assert found[1].num_batches_tracked.dtype == torch.int64
    else:
        assert found[0].weight.device.type == "meta"
    after = net.state_dict()
    assert all(
        torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items()
    )
    assert [module.training for module in net.modules()] == [True, False, True]


@pytest.fixture
def gpus(monkeypatch):
    """Four GPUs that torch believes in."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    return monkeypatch


def test_cuda_without_a_number_is_the_gpu_of_the_rank(gpus):
    gpus.setenv("LOCAL_RANK", "3")
    for given in ("cuda", torch.device("cuda"), "auto"):
        assert device_of(given) == torch.device("cuda", 3)
    assert device_of("cuda:1") == torch.device("cuda", 1)
    assert device_of("cpu") == torch.device("cpu")
    gpus.setattr(torch.cuda, "device_count", lambda: 1)  # the launcher shows each process its own one only
    assert device_of("cuda") == torch.device("cuda", 0)
    gpus.delenv("LOCAL_RANK")
    assert device_of("cuda") == torch.device("cuda", 2)


def test_cuda_where_there_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def none(*size, device):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", none)
    with pytest.raises(DataError, match=r"device='cuda' cannot be used here .Torch not compiled"):
        device_of("cuda")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hub with one model, tiny/bert, and no network."""
    import huggingface_hub.constants as constants
    from huggingface_hub import file_download

    root = tmp_path / "models--tiny--bert"
    snapshot = root / "snapshots" / COMMIT
    model = architectures.bert()
    model.half().save_pretrained(snapshot)  # half: the files are not as large as the module in float32
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(file_download, "HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_bytes_of_a_hub_model_are_those_of_its_files(hub):
    source = load("tiny/bert", dtype="float32", device="cpu")
    assert (source.folder, source.name) == (hub, "tiny/bert")
    assert folder_of(source.model) == hub
    options = {"dtype": "float32", "method": "svd", "device": "cpu"}
    report = compress("tiny/bert", **options).report
    assert report["bytes"]["before"] == file_bytes(hub) == compress(hub, **options).report["bytes"]["before"]
    assert report["bytes"]["before"] < 0.6 * parameter_bytes(source.model)
    assert load(source.model).folder == hub
    assert load(source.model).name == "BertModel"


def test_pooling_of_a_hub_model_is_read_from_its_snapshot(hub):
    (hub / "1_Pooling").mkdir()
    (hub / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    model = load("tiny/bert", dtype="float32", device="cpu").model
    assert evaluate(model, model, [architectures.inputs(model)])["pooling"] == "cls"


def test_modules_of_no_folder_have_none(tmp_path):
    assert folder_of(nn.Linear(2, 2)) is None
    model = architectures.bert()
    assert folder_of(model) is None
    for gone in (str(tmp_path / "gone"), "owner/absent", "a/b/c"):
        model.config._name_or_path = gone
        assert folder_of(model) is None
    model.config._name_or_path = str(tmp_path)
    assert folder_of(model) == tmp_path
