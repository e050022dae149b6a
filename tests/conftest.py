import pytest
import torch

# Tiny networks gain nothing from more threads, and lose much where other processes compete for the cores.
torch.set_num_threads(1)


@pytest.fixture
def double():
    """Double precision by default, for comparisons to the last decimals."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
