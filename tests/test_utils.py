"""Accuracy, meters, multiply-adds, drop path, and the networks at sizes other than the paper's."""

from argparse import Namespace

import pytest
import torch
from torch import nn

import genotypes
import utils
from experiment.errors import UserError
from model import AuxiliaryHeadCIFAR, AuxiliaryHeadImageNet, Cell, NetworkCIFAR
from model_search import Network
from operations import drop_path


def test_accuracy():
    logits = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    top1, top2, top5 = utils.accuracy(logits, torch.tensor([1, 0, 0, 1]), topk=(1, 2, 5))
    assert (top1, top2, top5) == (50.0, 75.0, 100.0)  # of three classes, all are among the five most likely


@pytest.mark.parametrize(("classes", "words"), [(5, "loss 2.000 top1 50.0"), (6, "loss 2.000 top1 50.0 top5 75.0")])
def test_meters_average_over_images_and_five_of_five_classes_are_no_accuracy(classes, words):
    meters, again = utils.Meters(), utils.Meters()
    logits = torch.eye(classes)[:4]
    logits[3, -1] = -1
    target = torch.tensor([0, 1, 0, classes - 1])
    for part, loss in ((slice(3), 1.0), (slice(3, 4), 5.0)):
        meters.update(torch.tensor(loss), logits[part], target[part])
    assert str(meters) == words
    again.load_state_dict(meters.state_dict())
    assert again.state_dict() == meters.state_dict()


def test_evaluation_counts_what_is_taken_for_what():
    logits, classes = torch.eye(3)[[0, 2, 2, 1, 0, 0, 2]], torch.tensor([0, 2, 1, 1, 1, 2, 2])
    batches = [(logits[part], classes[part]) for part in (slice(4), slice(4, 7))]
    measured = utils.evaluate(nn.Identity(), batches, nn.functional.cross_entropy)
    assert measured.confusion.tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 2]]
    assert measured.top1.avg == pytest.approx(100 * 4 / 7)


def test_parameters_and_multiply_adds_of_the_paper_s_network():
    with torch.device("meta"):
        network = NetworkCIFAR(36, 10, 20, True, genotypes.DARTS_V2)
        assert utils.count_multiply_adds(network, 32) == pytest.approx(528.35904)
    assert utils.count_parameters_in_MB(network) == pytest.approx(3.349342)  # as the original prints
    assert network.training


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, 3)
    y = drop_path(x, 0.3)
    per_image = y.flatten(1)
    assert torch.equal(per_image.min(1).values, per_image.max(1).values)
    assert sorted(set(per_image[:, 0].tolist())) == pytest.approx([0, 1 / 0.7])
    assert y.mean().item() == pytest.approx(1, abs=0.05)


def test_drop_path_spares_skip_connections_and_evaluation():
    x = torch.randn(20, 4, 8, 8)
    for operation, changes in (("skip_connect", False), ("max_pool_3x3", True)):
        edges = [(operation, 0), (operation, 1)]
        cell = Cell(genotypes.Genotype(edges, [2], edges, [2]), 4, 4, 4, reduction=False, reduction_prev=False)
        assert torch.equal(cell(x, x, 0.5), cell(x, x, 0.0)) != changes
        assert torch.equal(cell.eval()(x, x, 0.5), cell(x, x, 0.0))


@pytest.mark.parametrize("size", [8, 24, 96])
def test_every_allowed_image_size(size):
    x = torch.randn(2, 3, size, size)
    logits, auxiliary = NetworkCIFAR(2, 5, 3, True, genotypes.DARTS_V2)(x)
    assert logits.shape == auxiliary.shape == (2, 5)
    assert Network(2, 5, 3, nn.CrossEntropyLoss())(x).shape == (2, 5)


@pytest.mark.parametrize(("head", "size", "stride"), [(AuxiliaryHeadCIFAR, 8, 3), (AuxiliaryHeadImageNet, 7, 2)])
def test_auxiliary_heads_pool_as_the_originals(head, size, stride):
    """At 32 and at 224 pixels."""
    x = torch.randn(2, 4, size, size)
    expected = nn.functional.avg_pool2d(x, 5, stride, padding=0, count_include_pad=False)
    assert torch.equal(head(4, 10).features[1](x), expected)


@pytest.mark.parametrize(("layers", "reductions"), [(1, [0]), (2, [0, 1]), (3, [1, 2]), (5, [1, 3])])
def test_reductions_are_at_a_third_and_two_thirds(layers, reductions):
    expected = [32 >> sum(reduction <= number for reduction in reductions) for number in range(layers)]
    with torch.device("meta"):
        for network in (Network(2, 10, layers, None), NetworkCIFAR(2, 10, layers, True, genotypes.DARTS_V2)):
            sizes = []
            for cell in network.cells:
                cell.register_forward_hook(lambda cell, inputs, output, sizes=sizes: sizes.append(output.size(-1)))
            network(torch.zeros(2, 3, 32, 32))
            assert sizes == expected


def test_alphas_move_and_are_saved_but_are_no_weights():
    network = Network(2, 10, 3, nn.CrossEntropyLoss()).to(torch.float64)
    assert all(alphas.dtype == torch.float64 and alphas.requires_grad for alphas in network.arch_parameters())
    assert {"alphas_normal", "alphas_reduce"} <= network.state_dict().keys()
    weights = {id(weight) for weight in network.weight_parameters()}
    assert not weights & {id(alphas) for alphas in network.arch_parameters()}
    assert len(weights) + 2 == len(list(network.parameters()))


def test_devices(monkeypatch, capsys):
    assert utils.select_device(-1).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert utils.select_device(1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="0 to 1"):
        utils.select_device(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("network", "batch_size", "given", "expected"),
    [
        (lambda: Network(4, 10, 4, None), 32, None, 1),  # README.md's first command
        (lambda: Network(16, 10, 8, None), 64, None, 8),  # the paper's search
        (lambda: Network(4, 10, 4, None), 32, 5, 5),
    ],
)
def test_small_networks_have_one_thread(monkeypatch, network, batch_size, given, expected):
    """On 8 cores."""
    monkeypatch.setattr(utils, "most_threads", lambda: 8)
    multiply_adds = 1e6 * utils.count_multiply_adds(network(), 32) * batch_size
    utils.set_threads(Namespace(threads=given), multiply_adds, torch.device("cpu"))
    assert torch.get_num_threads() == expected


def test_threads_that_one_run_asks_for_do_not_limit_the_next():
    utils.most_threads.cache_clear()  # as in a new process
    before = torch.get_num_threads()
    utils.set_threads(Namespace(threads=before + 1), 1e6, torch.device("cpu"))
    assert utils.most_threads() == before
