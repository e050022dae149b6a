"""The network for ImageNet and larger images: which images and commands reach it, its recipe, its loader."""

import json
import re
import shutil
from argparse import Namespace

import golden
import pytest
import torch
from torch import nn

import genotypes
import predict
import utils
from experiment.weights import load_weights
from model import AuxiliaryHeadImageNet, NetworkImageNet
from nas import search
from nas.architecture import Architecture
from pictures import compare, history

V2 = Architecture(genotypes.DARTS_V2)


def arguments(**changed):
    plain = {"space": "darts", "space_arg": None, "network": "auto", "image_size": 32, "init_channels": 4, "layers": 3, "channels": 3}
    return Namespace(**{**plain, "auxiliary": True, **changed})


# ---- The network


def test_the_auxiliary_head_pools_as_the_original_s_at_224():
    x = torch.randn(2, 4, 7, 7)
    assert torch.equal(AuxiliaryHeadImageNet(4, 10).features[1](x), nn.AvgPool2d(5, stride=2, padding=0, count_include_pad=False)(x))


@pytest.mark.parametrize("size", [64, 96, 128, 160, 224, 320])
def test_every_allowed_image_size(size):
    network = NetworkImageNet(4, 5, 3, True, genotypes.DARTS_V2, in_channels=1)
    logits, auxiliary = network(torch.randn(2, 1, size, size))
    assert logits.shape == auxiliary.shape == (2, 5)


def test_the_authors_weights_load(tmp_path):
    """A file with the names and shapes of their state_dict(), which lacks BatchNorm's counters."""
    [case] = [case for case in golden.load("darts_cnn.json")["sizes"] if case["imagenet"] and case["arch"] == "DARTS_V2"]
    args = arguments(network="imagenet", init_channels=case["C"], layers=case["layers"], auxiliary=case["auxiliary"])
    with torch.device("meta"):  # which initialises nothing, and so takes no seconds
        network = search.build_discrete(args, 1000, V2)
    ours = network.to_empty(device="cpu")
    weights = {key: torch.rand_like(value) for key, value in ours.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert golden.sha256({key: list(value.shape) for key, value in weights.items()}) == case["keys_shapes_sha256"]
    torch.save(weights, tmp_path / "imagenet.pt")
    load_weights(ours, str(tmp_path / "imagenet.pt"))
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in weights.items())
    assert utils.count_parameters_in_MB(ours) == pytest.approx(4.718752, abs=1e-9)


@pytest.mark.parametrize(("channels", "millions", "multiply_adds"), [(48, 4.718752, 529.911552), (50, 5.079375, 573.4728)])
def test_the_papers_multiply_adds_are_those_of_50_channels(channels, millions, multiply_adds):
    """The paper says 4.7 M parameters, which 48 channels have, and 574 M multiply-adds, which 50 channels need, but for the last digit."""
    with torch.device("meta"):
        network = search.build_discrete(arguments(network="imagenet", init_channels=channels, layers=14), 1000, V2)
        assert utils.count_multiply_adds(network, 224) == pytest.approx(multiply_adds, abs=1e-9)
    assert utils.count_parameters_in_MB(network) == pytest.approx(millions, abs=1e-9)


@pytest.mark.parametrize(
    ("size", "expected"), [(32, "cifar"), (64, "cifar"), (88, "cifar"), (96, "imagenet"), (200, "cifar"), (224, "imagenet")]
)
def test_auto_goes_by_the_size_of_the_images_and_says_so(size, expected):
    args = arguments(image_size=size)
    note = search.choose_network(args)
    assert args.network == expected
    assert note.startswith(f"network: {expected},")
    assert f"{size}x{size}" in note


def test_what_is_asked_for_is_taken():
    for network, size in (("cifar", 224), ("imagenet", 64)):
        args = arguments(network=network, image_size=size)
        assert search.choose_network(args).startswith(f"network: {network},")
        assert args.network == network
        assert isinstance(search.build_discrete(args, 10, V2), NetworkImageNet) == (network == "imagenet")


# ---- The commands

TINY = ["--network", "imagenet", "--arch", "DARTS_V2", "--init_channels", 4, "--layers", 3, "--auxiliary", "--batch_size", 16]


def folder(images, size):
    return ["--dataset", "folder", "--data", images, "--image_size", size, "--workers", 0, "--gpu", -1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*TINY, "--image_size", 72], "multiple of 32 pixels, from 64 on: --image_size is 72"),
        ([*TINY, "--image_size", 32], "multiple of 32 pixels, from 64 on: --image_size is 32"),
        ([*TINY, "--image_size", 64, "--init_channels", 3], "--init_channels 3 is odd"),
        (["--network", "imagenet", "--space", "nasbench201", "--image_size", 64], "--network imagenet is of --space darts"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(flags, words, script, images):
    status, _, err = script("train", *folder(images, 64), *flags)
    assert status == 2
    assert words in err


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A run with the network for ImageNet."""
    import sys

    from scripts import load

    from experiment import cli

    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, [*folder(images, 64), *TINY, "--epochs", 2, "--run_dir", run])])
        cli.run(load("train").main)
    return run


def recorded(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def measured(out):
    return float(re.search(r"^test_loss (\S+)$", out, re.MULTILINE)[1])


def test_a_run_says_which_network_it_is_and_the_other_commands_know(script, trained, images):
    assert json.loads((trained / "config.json").read_text())["arguments"]["network"] == "imagenet"
    assert json.loads((trained / "network.json").read_text())["network"] == "imagenet"
    assert "network: imagenet, whose stem divides" in (trained / "log.txt").read_text()
    status, out, err = script("test", trained)
    assert (status, err) == (0, "")
    assert measured(out) == pytest.approx(recorded(trained)["test_loss"], rel=1e-5)
    status, out, err = script("test", *folder(images, 64), *TINY, "--model_path", trained / "weights.pt")
    assert (status, err) == (0, "")
    assert measured(out) == pytest.approx(recorded(trained)["test_loss"], rel=1e-5)
    net = predict.load(trained)
    assert isinstance(net.model.network, NetworkImageNet)
    status, out, err = script("export", trained, "--format", "safetensors", "--output", "network.safetensors")
    assert (status, err) == (0, "")
    assert f"{utils.count_multiply_adds(net.model, 64):.1f} million multiply-adds" in out
    assert compare.size(history.read(trained)) == (utils.count_parameters_in_MB(net.model), utils.count_multiply_adds(net.model, 64))


def test_a_run_goes_on_with_its_network(script, trained, images, tmp_path):
    """One from before there was a choice, with the network for CIFAR, whatever the size of its images."""
    status, _, err = script("train", "--resume", shutil.copytree(trained, tmp_path / "run"), "--network", "cifar")
    assert status == 2
    assert "--network was imagenet, not cifar" in err

    flags = ["--network", "cifar", *TINY[2:], "--epochs", 1]
    assert script("train", *folder(images, 96), *flags, "--run_dir", "old")[0] == 0
    for name in ("config.json", "network.json"):
        content = json.loads((tmp_path / "old" / name).read_text())
        del (content["arguments"] if name == "config.json" else content)["network"]
        (tmp_path / "old" / name).write_text(json.dumps(content))
    assert script("train", "--resume", "old")[0] == 0
    assert script("test", "old")[0] == 0


def test_a_description_of_images_that_the_network_does_not_take_is_refused(script, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    for field, value in (("image_size", 72), ("image_size", 32), ("network", "vgg"), ("network", 1)):
        content = json.loads((trained / "network.json").read_text())
        (run / "network.json").write_text(json.dumps(content | {field: value}))
        status, _, err = script("test", run)
        assert status == 2
        assert field in err
