"""The network for ImageNet and larger images: which images and commands reach it, its recipe, its loader."""

import json
import os
import shlex
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
from PIL import ExifTags, Image
from scripts import check_measured
from torch import nn
from torchvision import transforms

import data
import genotypes
import predict
import recipes
import train
import utils
from architectures import networks
from architectures.cells import Cells
from experiment.errors import UserError
from image_files import files
from model import NetworkImageNet
from model_search import Network
from pictures import compare, history

V2 = Cells(genotypes.DARTS_V2)


def arguments(**changed):
    sizes = {"network": "auto", "image_size": 32, "init_channels": 4, "layers": 3, "channels": 3}
    return Namespace(**{"space": "darts", "space_arg": None, "auxiliary": True, **sizes, **changed})


# ---- The network


@pytest.mark.parametrize("size", [64, 96, 224])
def test_every_allowed_image_size(size):
    network = NetworkImageNet(4, 5, 3, True, genotypes.DARTS_V2, in_channels=1)
    logits, auxiliary = network(torch.randn(2, 1, size, size))
    assert logits.shape == auxiliary.shape == (2, 5)


@pytest.mark.parametrize(
    ("channels", "millions", "multiply_adds"), [(48, 4.718752, 529.911552), (50, 5.079375, 573.4728)]
)
def test_the_papers_multiply_adds_are_those_of_50_channels(channels, millions, multiply_adds):
    """The paper's 4.7 M parameters are those of 48 channels, its 574 M multiply-adds those of 50."""
    with torch.device("meta"):
        network = networks.build_discrete(arguments(network="imagenet", init_channels=channels, layers=14), 1000, V2)
        assert utils.count_multiply_adds(network, 224) == pytest.approx(multiply_adds, abs=1e-9)
    assert utils.count_parameters_in_MB(network) == pytest.approx(millions, abs=1e-9)


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [("auto", size, "imagenet" if size in (96, 224) else "cifar") for size in (32, 64, 88, 96, 200, 224)]
    + [("cifar", 224, "cifar"), ("imagenet", 64, "imagenet")],
)
def test_auto_goes_by_the_size_of_the_images_and_says_so(network, size, expected):
    args = arguments(network=network, image_size=size)
    note = networks.choose_network(args)
    assert args.network == expected
    assert note.startswith(f"network: {expected},")
    assert network != "auto" or f"{size}x{size}" in note
    assert isinstance(networks.build_discrete(args, 10, V2), NetworkImageNet) == (expected == "imagenet")


# ---- The commands

TINY = shlex.split("--network imagenet --arch DARTS_V2 --init_channels 4 --layers 3 --auxiliary --batch_size 16")


def folder(images, size):
    return ["--dataset", "folder", "--data", images, "--image_size", size, "--workers", 0, "--gpu", -1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--image_size 72", "multiple of 32 pixels, from 64 on: --image_size is 72"),
        ("--image_size 32", "multiple of 32 pixels, from 64 on: --image_size is 32"),
        ("--init_channels 3", "--init_channels 3 is odd"),
        ("--space nasbench201", "--network imagenet needs --space darts"),
        ("--color_jitter 0.4,0.4,0.4,0.2", "--color_jitter goes with --crop resized"),
        ("--color_jitter 1,1,1,0.9", "the last at most 0.5"),
        ("--dataset digits --image_size 32 --network cifar --centre_crop 0.875", "need images in files"),
        ("--decay_period 1 --learning_rate_min 0.001", "leave one of them out"),
        ("--lr_warmup_epochs 600", "all of the 600 epochs"),
        ("--centre_crop 2", "not a number from 0.1 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(flags, words, refused, images):
    assert words in refused("train", *folder(images, 64), *TINY, *flags.split())


# ---- The recipe


def test_the_preset_is_the_authors_and_flags_replace_its_values(monkeypatch):
    def parsed(flags):
        monkeypatch.setattr(sys, "argv", ["train.py", *flags.split()])
        return vars(train.parse_arguments())

    theirs = {"init_channels": 48, "layers": 14, "batch_size": 128, "epochs": 250, "network": "imagenet"}
    theirs |= {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 3e-5, "decay_period": 1, "gamma": 0.97}
    theirs |= {"label_smoothing": 0.1, "grad_clip": 5.0, "auxiliary_weight": 0.4, "drop_path_prob": 0.0}
    theirs |= {"image_size": 224, "crop": "resized"}
    preset = parsed("--preset imagenet")
    assert {name: preset[name] for name in theirs} == theirs
    changed = parsed("--preset imagenet --epochs 3 --decay_period 0 --color_jitter 0,0,0,0 --keep last")
    differing = {name for name in preset if preset[name] != changed[name]}
    assert differing == {"epochs", "decay_period", "color_jitter", "keep"}
    plain = parsed("")
    assert (plain["batch_size"], plain["crop"], plain["label_smoothing"]) == (96, "pad", 0.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"preset": "imagenet", "epochs": 4}, [0.1 * 0.97**epoch for epoch in range(4)]),
        ({"preset": "imagenet", "epochs": 2, "scale_lr": True, "batch_size": 512}, [0.4, 0.4 * 0.97]),
        ({"epochs": 1, "scale_lr": True, "batch_size": 48}, [0.0125]),
        ({"epochs": 4, "decay_period": 2, "gamma": 0.5}, [0.025, 0.025, 0.0125, 0.0125]),
        ({"epochs": 2, "learning_rate": 0.01, "learning_rate_min": 0.004}, [0.01, 0.007]),
        # From a hundredth, evenly, then the schedule from its beginning.
        ({"preset": "imagenet", "epochs": 5, "lr_warmup_epochs": 2}, [0.001, 0.0505, 0.1, 0.097, 0.1 * 0.97**2]),
        ({"epochs": 4, "lr_warmup_epochs": 2, "learning_rate": 0.1}, [0.001, 0.0505, 0.1, 0.05]),
    ],
)
def test_the_learning_rate_falls_and_is_scaled_and_warmed_up(given, expected):
    args = train.parse_arguments(given)
    optimizer = recipes.optimizer(nn.Linear(1, 1), args)
    scheduler, rates = recipes.scheduler(optimizer, args), []
    for _ in expected:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(256, 256), (501, 333), (100, 90)])
def test_validation_resizes_and_cuts_as_torchvision(shape):
    image = picture(*shape)
    expected = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])(image)
    assert torch.equal(files.pixels(image, 224, centre_crop=0.875), expected)


def test_training_crops_flips_and_distorts_as_torchvision(wide):
    """With torchvision's own transforms, seeded with the numbers that stand for an image."""
    images = load(wide, centre_crop=0.875)
    changed = [transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip()]
    changed.append(transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2))
    normalised = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    reference = transforms.Compose([*changed, transforms.ToTensor(), normalised])
    batches = train_batches(images)
    batches.set_epoch(1)
    order = batches._plan(1)
    random = torch.get_rng_state()
    for step, (x, _) in enumerate(batches):
        seeds = np.random.SeedSequence((3, data._TRAIN_CROPS, 1, step)).generate_state(len(x), np.uint64)
        for found, index, seed in zip(x, order[step], seeds, strict=True):
            with torch.random.fork_rng(devices=[]), Image.open(os.fsdecode(images.train.paths[index])) as image:
                torch.manual_seed(int(seed))
                torch.testing.assert_close(found, reference(image.convert("RGB")), atol=1e-6, rtol=1e-5)
    assert torch.equal(random, torch.get_rng_state())


def test_training_crops_are_of_the_upright_photograph(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    levels = np.arange(0, 240, 10, dtype=np.uint8)[:, None, None]  # turned: darker from left to right
    Image.fromarray(levels.repeat(24, 1).repeat(3, 2)).save(tmp_path / "phone.png", exif=exif)
    path = np.array([os.fsencode(tmp_path / "phone.png")])
    x, _ = files.FileImages(path, np.array([0]), data.Options(image_size=8)).__getitems__([(0, 1)])
    assert x.float().std(2).max() < 1 < x.float().std(3).min()  # varies along the width only


# ---- The loader


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


NAMES = ("n01440764", "n01443537", "n02012849", "Opa's Schiffe", "Müllers Frösche", "n0 %d")


@pytest.fixture
def wide(tmp_path):
    """A folder in torchvision's layout, of images of many shapes; ImageNet's test images have no classes."""
    root = tmp_path / "imagenet"
    for part, count in (("train", 5), ("val", 3)):
        for number, name in enumerate(NAMES):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                path = root / part / name / f"{name}_{index}.JPEG"
                picture(70 + 30 * index, 100 - 9 * number, seed=100 * number + index).save(path, "JPEG")
    (root / "test").mkdir()
    picture(70, 70).save(root / "test" / "ILSVRC2012_test_00000001.JPEG", "JPEG")
    return root


def options(root, **changed):
    crops = {"crop": "resized", "color_jitter": "0.4,0.4,0.4,0.2"}
    return data.Options("imagenet", str(root), 64, **{"workers": 0, "batch_size": 8, "seed": 3, **crops, **changed})


def load(root, **changed):
    return data.load(options(root, **changed))


def train_batches(images, **changed):
    return data.train_batches(images, options("", **changed), "cpu")


def test_nothing_is_read_into_memory_and_classes_are_those_of_the_folders(wide):
    images = load(wide, centre_crop=0.875)
    assert isinstance(images.train, files.FileImages)
    assert isinstance(images.test, files.FileImages)
    assert (images.classes, len(images.test)) == (tuple(sorted(NAMES)), 18)
    assert (images.mean, images.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x, y = images.test[4]
    path = os.fsdecode(images.test.paths[4])
    assert torch.equal(x, files.decode(path, 64, centre_crop=0.875))
    assert images.classes[y] == Path(path).parent.name


def test_the_devkit_names_classes(wide):
    known = {"n01440764": ("tench", "Tinca tinca"), "n01443537": ("goldfish",), "n02012849": ("crane",)}
    torch.save((known, ["n01440764"]), wide / "meta.bin")
    expected = tuple(f"{name} {', '.join(known[name])}" if name in known else name for name in sorted(NAMES))
    images = load(wide)
    assert images.classes == expected
    assert data.load_test(options(wide), images.classes, (images.mean, images.std)).classes == expected
    (wide / "meta.bin").write_bytes(b"no such file")
    with pytest.raises(UserError, match=r"meta\.bin"):
        load(wide)


def test_an_epoch_is_the_same_with_any_number_of_workers_and_processes_and_from_the_middle(wide, monkeypatch):
    images = load(wide)

    def epoch(number, start=0, **changed):
        batches = train_batches(images, **changed)
        batches.set_epoch(number, start)
        return list(batches)

    whole = epoch(1)
    scripts.assert_same(epoch(1, workers=2), whole)
    scripts.assert_same(epoch(1, start=2), whole[2:])
    assert not torch.equal(epoch(2)[0][0], whole[0][0])
    monkeypatch.setattr(data.distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(data.distributed, "rank", lambda rank=rank: rank)
        shares.append(epoch(1))
    for (x, _), *of_ranks in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([share for share, _ in of_ranks]), x)


PRESET = shlex.split(
    "--preset imagenet --gpu -1 --workers 0 --arch DARTS_V2 --image_size 64 --init_channels 4 --layers 3"
)


def test_the_preset_trains_tests_and_goes_on(done, script, wide, tmp_path):
    flags = [*PRESET, "--data", wide, "--auxiliary", "--epochs", 2, "--batch_size", 8, "--run_dir", "run"]
    done("train", *flags)
    arguments, rows = scripts.arguments_of("run"), scripts.rows_of("run")
    assert (arguments["epochs"], arguments["gamma"], arguments["label_smoothing"]) == (2, 0.97, 0.1)
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.097])
    assert all(row["test_acc"] <= row["test_top5"] <= 100 for row in rows)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "network: imagenet, whose stem divides" in log
    assert "valid_top5" in log
    best = max(rows, key=lambda row: row["test_acc"])
    assert f"in epoch {best['epoch']}, whose weights are in best.pt: picked on the test set, so not a result" in log
    for weights, row in (("weights.pt", rows[-1]), ("best.pt", best)):
        out = done("test", "run", "--model_path", f"run/{weights}")
        check_measured(out, row)
        assert f"test_top5 {row['test_top5']:f}" in out
    net = predict.load("run")
    sizes = utils.count_parameters_in_MB(net.model), utils.count_multiply_adds(net.model, 64)
    assert compare.size(history.read("run")) == sizes
    path = wide / "val" / NAMES[0] / f"{NAMES[0]}_2.JPEG"
    x = data.normalise(files.decode(str(path), 64, centre_crop=0.875), net.description.mean, net.description.std)
    with Image.open(path) as image:
        assert torch.equal(net.preprocess(path), x)
        assert torch.equal(net.preprocess(image), x)
    assert script("train", "--resume", "run")[0] == 0


def test_bare_weights_are_tested_with_the_validation_images_alone(done, refused, wide, tmp_path):
    val = wide / "validation"
    (wide / "val").rename(val)
    flags = [*PRESET, "--data", wide]
    done("train", *flags, "--epochs", 1, "--batch_size", 8, "--run_dir", "run")
    shutil.rmtree(wide / "train")
    shutil.copy("run/weights.pt", "weights.pt")
    check_measured(done("test", *flags, "--model_path", "weights.pt"), scripts.rows_of("run")[-1])
    shutil.rmtree(val)
    (wide / "test").rename(val)
    assert "ImageNet's validation images come without: docs/imagenet.md sorts them into classes" in refused(
        "test", *flags, "--model_path", "weights.pt"
    )


# ---- The search


def test_the_search_network_behind_the_stem():
    """Its cells see an eighth of the height and width, from C channels, and are those of the other search network."""
    small, large = (Network(4, 5, 3, None, stem=stem) for stem in ("cifar", "imagenet"))
    stem = NetworkImageNet(4, 5, 3, False, genotypes.DARTS_V2).state_dict()
    ours = {name: value.shape for name, value in large.state_dict().items() if name.startswith("stem")}
    assert ours == {name: value.shape for name, value in stem.items() if name.startswith("stem")}
    assert large(torch.randn(2, 3, 64, 96)).shape == (2, 5)
    sizes = []
    for cell in large.cells:
        cell.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2:]))
    large(torch.randn(2, 3, 64, 96))
    assert sizes == [(8, 12), (4, 6), (2, 3)]
    assert large.alphas_normal.shape == small.alphas_normal.shape


def test_a_search_behind_the_stem_and_the_training_that_it_proposes(done, refused, images, tmp_path):
    flags = [
        *folder(images, 64),
        *shlex.split("--stem imagenet --init_channels 4 --layers 3 --epochs 1 --batch_size 8"),
    ]
    done("train_search", *flags, "--partial_channels", 2, "--run_dir", "plain")
    weights = torch.load(tmp_path / "plain" / "weights.pt", weights_only=True)
    assert {"stem0.0.weight", "stem1.1.weight"} <= weights.keys()
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert (config["classes"], len(config["mean"]), len(config["std"])) == (["dark", "light"], 3, 3)
    with torch.device("meta"):
        papers = NetworkImageNet(36, 2, 20, False, Cells.recorded(tmp_path / "plain").genotype)
        sizes = utils.count_parameters_in_MB(papers), utils.count_multiply_adds(papers, 64)
    assert compare.size(history.read(tmp_path / "plain")) == sizes
    command = scripts.said((tmp_path / "plain" / "log.txt").read_text().splitlines(), "train what was found: ")
    small = shlex.split("--epochs 1 --layers 3 --init_channels 4 --run_dir training")
    done("train", *command[2:], *small)
    assert json.loads((tmp_path / "training" / "network.json").read_text())["network"] == "imagenet"
    for wrong, words in (
        ("--image_size 72", "--stem imagenet needs images of a multiple of 32"),
        ("--init_channels 5", "is odd"),
        ("--space nasbench201", "--stem imagenet needs --space darts"),
        ("--strategy random", "--stem imagenet needs --space darts"),
    ):
        assert words in refused("train_search", *flags, *wrong.split())
