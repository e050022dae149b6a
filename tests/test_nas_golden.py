"""NNI 2.0's numbers for its search spaces, in float64, and what it exported (tests/golden/nni_*.json)."""

import json
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from torch import nn

from nas.loading import load_network
from nas.mutables import InputChoice, LayerChoice, MutableScope, reset_mutable_counter
from nas.mutators import RandomMutator, apply_fixed_architecture
from nas.spaces.darts import DartsCell
from nas.spaces.enas import ENASMacroGeneralModel, ENASMicroLayer
from nas.spaces.nasbench201 import NASBench201Cell

GOLDEN = golden.load("nni_spaces.json")
MNIST = Path(__file__).parent.parent / "examples" / "mnist_choices.py"
MICRO = "ENASMicroLayer: num_nodes=5, in_channels_pp=6, in_channels_p=8, out_channels=4, reduction="
SPACES = {
    "DartsCell(normal)": (lambda: DartsCell(4, 12, 16, 4, False, False), [(2, 12, 8, 8), (2, 16, 8, 8)]),
    "DartsCell(reduce)": (lambda: DartsCell(4, 12, 16, 4, False, True), [(2, 12, 8, 8), (2, 16, 8, 8)]),
    f"{MICRO}False": (lambda: ENASMicroLayer(5, 6, 8, 4, False), [(2, 6, 8, 8), (2, 8, 8, 8)]),
    f"{MICRO}True": (lambda: ENASMicroLayer(5, 6, 8, 4, True), [(2, 6, 8, 8), (2, 8, 8, 8)]),
    "ENASMacroGeneralModel: num_layers=6, out_filters=6": (lambda: ENASMacroGeneralModel(6, 6), [(2, 3, 16, 16)]),
    "NASBench201Cell: C_in=6, C_out=6, stride=1": (lambda: NASBench201Cell(6, 6, 1), [(2, 6, 8, 8)]),
}

pytestmark = pytest.mark.usefixtures("double")


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in GOLDEN.items() for row in rows], ids=str)
def test_numbers_of_nni(name, row):
    reset_mutable_counter()
    [(build, shapes)] = [space for start, space in SPACES.items() if name.startswith(start)]
    model = build()
    assert parameters(model) == row["supernet_params"]
    # In this order, too: whoever numbers keys must construct the choices in NNI's order.
    assert list(RandomMutator(model).export()) == list(GOLDEN[name][0]["arch"])
    model = apply_fixed_architecture(model, row["arch"])
    assert parameters(model) == row["fixed_params"]
    golden.fill_by_shape(model)
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


class Conv(MutableScope):
    def __init__(self, key):
        super().__init__(key)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)


class Keys(nn.Module):
    """Inputs from two scopes, from a layer choice, and from nowhere."""

    def __init__(self):
        super().__init__()
        self.cell1, self.cell2 = Conv("cell1"), Conv("cell2")
        self.op = LayerChoice([nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 5, padding=2)], key="op")
        self.input = InputChoice(choose_from=["cell1", "cell2", "op", InputChoice.NO_KEY], key="in")


EXPORTS = golden.load("nni_exports.json")
EXPORTERS = {
    "mnist": lambda: load_network(f"{MNIST}:Net")(),
    "keys": Keys,
    "micro": lambda: ENASMicroLayer(5, 8, 8, 8, False),
    "nb": lambda: NASBench201Cell(8, 8, 1),
    "macro": lambda: ENASMacroGeneralModel(6, 8),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_what_nni_exported_is_read_as_it_is(name, tmp_path):
    reset_mutable_counter()
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps(EXPORTS[name]["arch"]))
    fixed = apply_fixed_architecture(EXPORTERS[name.partition("_")[0]](), file)
    assert parameters(fixed) == EXPORTS[name]["params"]
