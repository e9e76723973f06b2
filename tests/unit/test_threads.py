"""Small problems are computed with one thread, large ones with what the caller has."""

import pytest
import torch

from lowdim.threads import few_threads


def test_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    with few_threads(99, small=100):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with few_threads(100, small=100):
        assert torch.get_num_threads() == before


def test_it_comes_back_after_an_error_too():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), few_threads(1, small=2):
        raise KeyError
    assert torch.get_num_threads() == before
