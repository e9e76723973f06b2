"""Small problems are computed with one thread, large ones with what the caller has."""

import pytest
import torch

from lowdim.phase import threads
from lowdim.phase.threads import SMALL, few_threads


def test_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    with few_threads(SMALL - 1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with few_threads(SMALL):
        assert torch.get_num_threads() == before


def test_recoveries_are_small_or_large_by_their_matrices(monkeypatch):
    from lowdim.phase import methods, recover, simulate

    seen = []
    monkeypatch.setattr(
        methods, "few_threads", lambda numbers: seen.append(numbers) or threads.few_threads(numbers)
    )
    recover(simulate(torch.ones(6, 4, 5), measurements=1), ranks=(1, 1, 1), n_init=1, max_iter=2)
    assert seen == [6 * 20 * 20]


def test_it_is_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), few_threads(1):
        raise KeyError
    assert torch.get_num_threads() == before
