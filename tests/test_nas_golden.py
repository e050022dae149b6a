"""NNI 2.0's numbers for its search spaces, in float64 (tests/golden/nni_spaces.json)."""

import golden
import numpy as np
import pytest
import torch

from nas.mutables import reset_mutable_counter
from nas.mutators import RandomMutator, apply_fixed_architecture
from nas.spaces.darts import DartsCell
from nas.spaces.enas import ENASMacroGeneralModel, ENASMicroLayer
from nas.spaces.nasbench201 import NASBench201Cell

GOLDEN = golden.load("nni_spaces.json")
SPACES = {
    "DartsCell(normal)": (lambda: DartsCell(4, 12, 16, 4, False, False), [(2, 12, 8, 8), (2, 16, 8, 8)]),
    "DartsCell(reduce)": (lambda: DartsCell(4, 12, 16, 4, False, True), [(2, 12, 8, 8), (2, 16, 8, 8)]),
    "ENASMicroLayer: num_nodes=5, in_channels_pp=6, in_channels_p=8, out_channels=4, reduction=False": (
        lambda: ENASMicroLayer(5, 6, 8, 4, False),
        [(2, 6, 8, 8), (2, 8, 8, 8)],
    ),
    "ENASMicroLayer: num_nodes=5, in_channels_pp=6, in_channels_p=8, out_channels=4, reduction=True": (
        lambda: ENASMicroLayer(5, 6, 8, 4, True),
        [(2, 6, 8, 8), (2, 8, 8, 8)],
    ),
    "ENASMacroGeneralModel: num_layers=6, out_filters=6": (lambda: ENASMacroGeneralModel(6, 6), [(2, 3, 16, 16)]),
    "NASBench201Cell: C_in=6, C_out=6, stride=1": (lambda: NASBench201Cell("cell", 6, 6, 1), [(2, 6, 8, 8)]),
}

pytestmark = pytest.mark.usefixtures("double")


def space_of(name):
    """(build, shapes of the inputs) of a space in the golden file."""
    known = [space for start, space in SPACES.items() if name.startswith(start)]
    assert len(known) == 1, name
    reset_mutable_counter()
    build, shapes = known[0]
    return build(), shapes


def fill(model):
    """By shape alone, so that names need not agree."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            b = np.cos(0.7 * np.arange(tensor.numel()) + tensor.dim()).reshape(tensor.shape)
            if tensor.dim() <= 1:
                b = (1 if name.endswith(("weight", "running_var")) else 0) + 0.1 * b
            else:
                b = b * np.sqrt(2 / np.prod(tensor.shape[1:]))
            tensor.copy_(torch.as_tensor(b))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in GOLDEN.items() for row in rows], ids=str)
def test_numbers_of_nni(name, row):
    model, shapes = space_of(name)
    assert parameters(model) == row["supernet_params"]
    model = apply_fixed_architecture(model, row["arch"])
    assert parameters(model) == row["fixed_params"]
    fill(model)
    inputs = [torch.as_tensor(np.random.RandomState(seed).randn(*shape)) for seed, shape in enumerate(shapes, start=1)]
    with torch.no_grad():
        output = model(*inputs)
    if isinstance(output, tuple):
        output = output[1]
    assert list(output.shape) == row["out_shape"]
    first = torch.as_tensor(row["out_first"])
    assert torch.allclose(output.flatten()[: len(first)], first, rtol=1e-10, atol=1e-12)
    assert abs(output.norm().item() - row["out_norm"]) < 1e-10 * row["out_norm"]
    assert abs(output.mean().item() - row["out_mean"]) < 1e-12


@pytest.mark.parametrize("name", GOLDEN)
def test_exported_keys_are_those_of_nni(name):
    """In the same order, too: whoever numbers keys must construct the choices in NNI's order."""
    model, _ = space_of(name)
    mutator = RandomMutator(model)
    assert list(mutator.export()) == list(GOLDEN[name][0]["arch"])
