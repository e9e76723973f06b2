"""What every smaller embedding table must obey, whatever it stores."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from lowdim.compress.embedding import CompactEmbedding, Int8Embedding, LowRankEmbedding

ROWS, DIM = 40, 12


def int8(padding_idx=None) -> Int8Embedding:
    table = Int8Embedding(ROWS, DIM, padding_idx=padding_idx)
    generator = torch.Generator().manual_seed(0)
    table.integers.copy_(torch.randint(-128, 128, (ROWS, DIM), generator=generator))
    table.scales.copy_(torch.rand(ROWS, 1, generator=generator))
    return table


def low_rank(padding_idx=None) -> LowRankEmbedding:
    table = LowRankEmbedding(ROWS, DIM, rank=5, padding_idx=padding_idx)
    table.reset_parameters(torch.Generator().manual_seed(0))
    return table


EMBEDDINGS = {"int8": int8, "low-rank": low_rank}

each = pytest.mark.parametrize("build", EMBEDDINGS.values(), ids=EMBEDDINGS.keys())


def test_every_kind_is_in_the_table():
    assert {type(build()) for build in EMBEDDINGS.values()} == set(CompactEmbedding.__subclasses__())
    assert all(build().how == how for how, build in EMBEDDINGS.items())


@each
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0), (2, 3, 4)])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_lookup_gives_the_rows_of_the_dense_table(build, shape, kind, dtype):
    table = build().to(dtype)
    ids = torch.randint(0, ROWS, shape, generator=torch.Generator().manual_seed(1)).to(kind)
    rows, dense = table(ids), nn.functional.embedding(ids, table.weight)
    assert rows.shape == (*shape, DIM)
    assert rows.dtype == table.weight.dtype == dtype
    if isinstance(table, Int8Embedding):
        assert torch.equal(rows, dense)
    else:
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
        assert torch.allclose(rows, dense, rtol=tolerance, atol=tolerance)


@each
@pytest.mark.parametrize("wrong", [ROWS, -1])
def test_ids_outside_the_table_are_refused_as_by_torch(build, wrong):
    with pytest.raises(IndexError):
        nn.Embedding(ROWS, DIM)(torch.tensor([wrong]))
    with pytest.raises(IndexError):
        build()(torch.tensor([wrong]))


@each
def test_the_dense_copy_is_an_ordinary_table_of_the_same_rows(build):
    table = build(padding_idx=3)
    dense = table.densify()
    assert type(dense) is nn.Embedding
    assert (dense.num_embeddings, dense.embedding_dim, dense.padding_idx) == (ROWS, DIM, 3)
    assert torch.equal(dense.weight, table.weight)
    before = table.weight.clone()
    with torch.no_grad():
        dense.weight.zero_()
    assert torch.equal(table.weight, before)


@each
def test_the_description_rebuilds_it_also_without_memory(build):
    table = build(padding_idx=2)
    config = json.loads(json.dumps(table.config()))
    twin = CompactEmbedding.from_config(config, device="meta")
    assert all(tensor.is_meta for tensor in twin.state_dict().values())
    with torch.device("meta"):
        assert all(t.is_meta for t in CompactEmbedding.from_config(config).state_dict().values())
    twin = CompactEmbedding.from_config(config, dtype=torch.bfloat16)
    assert twin.weight.dtype == torch.bfloat16
    twin = CompactEmbedding.from_config(config)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in table.state_dict().items()
    }
    twin.load_state_dict(table.state_dict())
    assert torch.equal(twin.weight, table.weight)
    assert twin.config() == table.config()
    assert twin.padding_idx == 2


@each
def test_copies_and_casts_are_the_table(build):
    table = build()
    twin = copy.deepcopy(table)
    assert torch.equal(twin.weight, table.weight)
    cast = twin.half()
    assert cast.weight.dtype == torch.float16
    assert torch.allclose(cast.weight.float(), table.weight, rtol=5e-3, atol=5e-3)
    # Integers stay integers whatever the model is cast to.
    kinds = {tensor.dtype for tensor in cast.state_dict().values()}
    assert kinds == ({torch.int8, torch.float16} if isinstance(table, Int8Embedding) else {torch.float16})


@each
def test_it_holds_fewer_bytes(build):
    table = build()
    held = sum(tensor.nbytes for tensor in table.state_dict().values())
    assert held < table.densify().weight.nbytes
