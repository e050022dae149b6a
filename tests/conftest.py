import pytest
import torch


@pytest.fixture
def double():
    """Double precision by default, for comparisons to the last decimals."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
