"""The augmentation against torchvision's and the original's, the search split, reproducibility, every error."""

import os
import pickle
import re
import resource
import shutil
import signal
import time
import urllib.error
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, combinations, pairwise, product

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.functional as TF
from PIL import ExifTags, Image, ImageOps
from scipy.stats import chisquare
from scripts import save_image
from sklearn.datasets import load_digits

import data
import image_files
import selection
from experiment import cli
from experiment.errors import UserError
from image_files import files, folders


def make(count: int, size: int = 8, tests: int = 5, flip: bool = True) -> data.ImageData:
    """Images of noise whose labels are their numbers, so that a batch tells which images are in it."""
    pixels = torch.randint(
        256, (count + tests, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
    )
    train = data.MemoryImages(pixels[:count], torch.arange(count))
    test = data.MemoryImages(pixels[count:], torch.arange(tests))
    return data.ImageData("noise", train, test, ("a", "b"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), size, flip)


def options(**changed) -> data.Options:
    return data.Options(**{"workers": 0, "batch_size": 4, "cutout": True, "cutout_length": 2, **changed})


def load(root, **changed) -> data.ImageData:
    return data.load(options(dataset="folder", data=str(root), image_size=16, **changed))


def search(images: data.ImageData, seed: int = 0, **changed):
    return data.search_batches(images, options(seed=seed, **changed), "cpu")


def train_batches(images: data.ImageData, **changed) -> data.Batches:
    return data.train_batches(images, options(**changed), "cpu")


def evaluation(images: data.ImageData, **changed) -> data.Batches:
    return data.test_batches(images, options(**changed), "cpu")


def labels(batches: data.Batches) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def everything(images):
    return zip(*images.__getitems__(range(len(images))), strict=True)


def same(first, second) -> bool:
    first, second = list(first), list(second)
    return len(first) == len(second) > 0 and all(
        torch.equal(x, other_x) and torch.equal(y, other_y)
        for (x, y), (other_x, other_y) in zip(first, second, strict=True)
    )


@pytest.fixture
def folder(tmp_path):
    """Two classes of noise, 9 and 7 images to train on, 3 each to test on, 16x16."""
    random = np.random.RandomState(3)
    for part, name, count in (("train", "cat", 9), ("train", "dog", 7), ("test", "cat", 3), ("test", "dog", 3)):
        for number in range(count):
            save_image(tmp_path / part / name / f"{number}.png", random.randint(256, size=(16, 16, 3)).astype(np.uint8))
    return tmp_path


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 0)


# ---- Augmentation


def crops_and_flips(images: data.ImageData) -> list[bytes]:
    """All results of torchvision's RandomCrop with padding, RandomHorizontalFlip, ToTensor and Normalize."""
    size, results = images.image_size, []
    padded = TF.pad(TF.to_pil_image(images.train.images[0]), size // 8)
    for top, left in product(range(2 * (size // 8) + 1), repeat=2):
        crop = TF.crop(padded, top, left, size, size)
        for view in (crop, TF.hflip(crop)) if images.flip else (crop,):
            results.append(TF.normalize(TF.to_tensor(view), images.mean, images.std).numpy().tobytes())
    return results


@pytest.mark.parametrize(("size", "flip", "count"), [(8, True, 18), (16, False, 25)])
def test_crops_and_flips_are_torchvisions_and_those_of_neighbours_independent(size, flip, count):
    images = make(1, size=size, flip=flip)
    number = {result: index for index, result in enumerate(crops_and_flips(images))}
    assert len(number) == count
    pairs = np.zeros((count, count))
    batch = images.train.images.expand(2 * 10 * pairs.size, -1, -1, -1)
    found = [number[x.numpy().tobytes()] for x in data.Augment(images)(batch, torch.Generator().manual_seed(1))]
    for first, second in zip(found[::2], found[1::2], strict=True):
        pairs[first, second] += 1
    assert chisquare(pairs.flatten()).pvalue > 0.001


def original_cutout(y: int, x: int, size: int, length: int) -> bytes:
    kept = np.ones((size, size), dtype=bool)
    rows, columns = (np.clip([centre - length // 2, centre + length // 2], 0, size) for centre in (y, x))
    kept[rows[0] : rows[1], columns[0] : columns[1]] = False
    return kept.tobytes()


@pytest.mark.parametrize("length", [4, 5, 20])
def test_cutout_is_the_originals(length):
    size = 8
    possible = Counter(original_cutout(y, x, size, length) for y in range(size) for x in range(size))
    white = torch.full((64 * 60, 3, size, size), 255, dtype=torch.uint8)
    x = data.Augment(make(1), length)(white, torch.Generator().manual_seed(2))
    # No pixel is 0 but by cutout: neither white nor black is the mean.
    assert torch.equal(x == 0, (x == 0)[:, :1].expand(-1, 3, -1, -1))
    seen = Counter(kept.numpy().tobytes() for kept in x[:, 0] != 0)
    assert set(seen) == set(possible)
    if len(possible) > 1:
        assert chisquare([seen[mask] for mask in possible], [60 * possible[mask] for mask in possible]).pvalue > 0.001


# ---- The search split and the order of the images


def test_the_search_split():
    train, draws, validation = search(make(30), train_portion=0.46)  # 13 images for w, 17 for alpha
    assert [len(batch) for batch in labels(train)] == [4, 4, 4]  # 12 of 13: a last batch of one image is left out
    assert [len(batch) for batch in labels(validation)] == [4, 4, 4, 4, 1]
    assert flat(labels(validation)) == list(range(13, 30))
    assert len(labels(draws)) == len(draws) == len(train) == 3
    seen = set()
    for epoch in range(20):
        train.set_epoch(epoch)
        draws.set_epoch(epoch)
        once = flat(labels(train))
        assert len(once) == len(set(once))
        assert set(once) <= set(range(13))
        for batch in labels(draws):
            assert len(batch) == len(set(batch)) == 4
            seen |= set(batch)
    assert seen == set(range(13, 30))


def test_draws_are_uniform_and_start_afresh_at_every_step():
    _, draws, _ = search(make(2000), batch_size=4, train_portion=0.99)  # 495 steps, each draws 4 of 20
    batches = labels(draws)
    counts = Counter(flat(batches))
    assert len(counts) == 20
    assert chisquare(list(counts.values())).pvalue > 0.001
    repeated = sum(len(set(a) & set(b)) for a, b in pairwise(batches))
    # 494 * 4 * 4 / 20 = 395 expected, with a deviation of 16; shuffling once would give less.
    assert 300 < repeated < 500


def test_a_smaller_last_batch_is_kept():
    images = make(10, tests=5)
    train, test = train_batches(images), evaluation(images)
    assert [len(batch) for batch in labels(train)] == [4, 4, 2]
    assert sorted(flat(labels(train))) == list(range(10))
    assert labels(test) == [[0, 1, 2, 3], [4]]  # measured in evaluation mode, where one image is enough
    assert (len(train), len(test)) == (3, 2)
    assert len(labels(train_batches(make(3), batch_size=1))) == 3


def test_both_halves_are_augmented_and_the_test_set_is_only_normalised():
    images = make(30)
    plain = TF.normalize(images.train.images / 255, images.mean, images.std)
    for batches in search(images):
        x, y = next(iter(batches))
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert (x == 0).all(dim=1).flatten(1).any(dim=1).all()  # cutout, in every image: no pixel has the mean colour
        assert not any(torch.equal(a[a != 0], b[a != 0]) for a, b in zip(x, plain[y], strict=True))  # crop
    assert all((x == 0).all(dim=1).flatten(1).any(dim=1).all() for x, _ in train_batches(images))
    [(x, _)] = evaluation(images, batch_size=5)
    assert torch.equal(x, TF.normalize(images.test.images / 255, images.mean, images.std))


def test_a_batch_is_a_function_of_seed_epoch_and_step():
    images = make(40)
    before = torch.get_rng_state()
    for batches, again, *others in zip(*(search(images, seed) for seed in (1, 1, 2, 2**32 + 1)), strict=True):
        first = list(batches)
        assert same(first, batches)  # iterating again changes nothing
        assert same(first, again)
        assert not any(same(first, other) for other in others)
        batches.set_epoch(1)
        assert not same(first, batches)
        batches.set_epoch(0)
        assert same(first, batches)
        batches.set_epoch(0, start_step=4)
        assert same(batches, first[4:])
        batches.set_epoch(0, start_step=len(first))
        assert (list(batches), len(batches)) == ([], len(first))
    assert torch.equal(before, torch.get_rng_state())


def test_the_streams_of_random_numbers_are_independent():
    """The same image in every place: batches that differ have other crops."""
    images = make(40)
    alike = data.MemoryImages(images.train.images[:1].expand(40, -1, -1, -1), torch.arange(40))
    first = [next(iter(batches))[0] for batches in search(replace(images, train=alike), batch_size=8)]
    assert not any(torch.equal(x, other) for x, other in combinations(first, 2))


# ---- Datasets


def check_stats(images: data.ImageData) -> None:
    pixels = images.train.images.numpy() / 255.0
    np.testing.assert_allclose(images.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(images.std, pixels.std(axis=(0, 2, 3)), rtol=1e-10)


def test_digits():
    """Complete, the classes in proportion; every image with its label."""
    grey, images = (data.load(options(dataset="digits", channels=channels)) for channels in (1, 3))
    source, train, test = load_digits(), images.train, images.test
    assert (train.images.shape, len(test), train.images.dtype) == ((1437, 3, 32, 32), 360, torch.uint8)
    assert (images.num_classes, images.image_size, images.flip) == (10, 32, False)
    check_stats(images)
    assert torch.equal(grey.train.images.expand(-1, 3, -1, -1), train.images)
    assert (grey.mean, grey.std) == (images.mean[:1], images.std[:1])
    assert len({pixels.numpy().tobytes() for pixels in torch.cat([train.images, test.images])}) == 1797
    assert torch.cat([train.labels, test.labels]).bincount().tolist() == np.bincount(source.target).tolist()
    for digit in range(10):
        mine = train.images[train.labels == digit][:, 0].double().mean(0).view(8, 4, 8, 4).mean(dim=(1, 3))
        theirs = torch.from_numpy(source.images[source.target == digit].mean(0))
        assert torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("name", "channels", "key", "names"),
    [("cifar10", 3, "labels", "label_names"), ("cifar100", 1, "fine_labels", "fine_label_names")],
)
def test_cifar(tmp_path, monkeypatch, name, channels, key, names):
    """Grey images are those of Pillow."""
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(kind, attribute, [[file, None] for file, _ in getattr(kind, attribute)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": None})
    pixels = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    (tmp_path / kind.base_folder).mkdir()
    for file, _ in kind.train_list + kind.test_list:
        (tmp_path / kind.base_folder / file).write_bytes(pickle.dumps({"data": pixels, key: [1, 0]}))
    (tmp_path / kind.base_folder / kind.meta["filename"]).write_bytes(pickle.dumps({names: ["a", "b"]}))
    images = data.load(options(dataset=name, data=str(tmp_path), channels=channels))
    assert (len(images.train), len(images.test)) == (2 * len(kind.train_list), 2)
    [image], [label] = images.test.__getitems__([1])
    expected = Image.fromarray(pixels[1].reshape(3, 32, 32).transpose(1, 2, 0)).convert("L" if channels == 1 else "RGB")
    assert torch.equal(image, TF.pil_to_tensor(expected))
    assert (label, images.classes, images.flip) == (0, ("a", "b"), True)
    assert images.train.images.is_contiguous()


def test_a_failed_download_says_what_to_do_and_two_that_begin_at_once_wait_for_each_other(tmp_path, monkeypatch):
    events = []

    def download(*args, **kwargs):
        events.append("begins")
        time.sleep(0.1)
        events.append("ends")
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(data.load, options(dataset="cifar10", data=str(tmp_path))) for _ in range(2)]
    for failed in loads:
        with pytest.raises(UserError, match=rf"{tmp_path}.*no route to host.*cifar-10-python.tar.gz.*--dataset digits"):
            failed.result()
    assert events == ["begins", "ends"] * 2


@pytest.mark.parametrize(
    ("name", "folder", "channels", "flip", "first"),
    [("mnist", "MNIST", 3, False, "0 - zero"), ("fashion_mnist", "FashionMNIST", 1, True, "T-shirt/top")],
)
def test_mnist_and_a_damaged_file_of_it(tmp_path, capsys, name, folder, channels, flip, first):
    """3 images to learn from, 2 to test on."""
    pixels = np.random.RandomState(0).randint(256, size=(5, 28, 28)).astype(np.uint8)
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for part, images in (("train", pixels[:3]), ("t10k", pixels[3:])):
        count, size = len(images).to_bytes(4, "big"), (28).to_bytes(4, "big")
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + count + 2 * size + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + count + bytes(range(len(images))))
    chosen = options(dataset=name, data=str(tmp_path), channels=channels)
    images = data.load(chosen)
    assert (len(images.train), len(images.test), images.channels, images.image_size) == (3, 2, channels, 32)
    assert (images.flip, images.num_classes, images.classes[0]) == (flip, 10, first)
    expected = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))[:, None].repeat(channels, 1)
    assert np.array_equal(torch.cat([images.train.images, images.test.images]).numpy(), expected)
    assert images.train.labels.tolist() == [0, 1, 2]
    check_stats(images)

    file = raw / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])
    message = rf"^{name} is not in the folder .*, or damaged.*{folder}/raw, unpacked, .*--dataset digits"
    with pytest.raises(UserError, match=message):
        data.load(chosen)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_folder(folder, channels, mode):
    """Every file is there once, as Pillow decodes it, with its class. The seed does not choose the alphas' images."""
    images = load(folder, workers=2, channels=channels)
    assert isinstance(images.train, data.MemoryImages)
    assert (images.classes, images.image_size, len(images.train), len(images.test)) == (("cat", "dog"), 16, 16, 6)
    check_stats(images)
    for part, dataset in (("train", images.train), ("test", images.test)):
        expected = sorted(
            (np.array(Image.open(path).convert(mode)).reshape(16, 16, -1).transpose(2, 0, 1).tobytes(), label)
            for label, name in enumerate(images.classes)
            for path in (folder / part / name).iterdir()
        )
        assert sorted((x.numpy().tobytes(), int(y)) for x, y in everything(dataset)) == expected
    assert labels(search(images, seed=1)[2]) == labels(search(images, seed=2)[2])


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_val_takes_the_place_of_test(folder, val):
    tested = load(folder)
    shutil.copytree(folder / "test", folder / val)
    unused = f"the test set is {folder}/test; without --valid_folder, the images in {folder}/{val} are not used"
    assert load(folder).notes == (unused,)
    shutil.rmtree(folder / "test")
    images = load(folder)
    assert torch.equal(images.test.images, tested.test.images)
    taken = f"there is no folder {folder}/test: the images in {folder}/{val} are the test set"
    assert (tested.notes, images.notes) == ((), (taken,))


def test_a_validation_folder_is_the_validation_side(folder):
    with pytest.raises(UserError, match=r"--valid_folder needs --dataset folder with val/ beside train/ and test/"):
        load(folder, valid_folder=True)
    for name, count in (("cat", 2), ("dog", 3)):
        for number in range(count):
            save_image(folder / "valid" / name / f"{number}.png", np.full((16, 16, 3), 100 + number, dtype=np.uint8))
    images, plain = load(folder, valid_folder=True), load(folder)
    assert images.notes == (f"the 5 images in {folder}/valid are the validation images",)
    left, held_out = selection.hold_out(images, 0.0)
    for part, expected in ((left.train, plain.train), (left.test, plain.test)):
        assert same(everything(part), everything(expected))
    found = sorted(str(int(x.max()) - 100) + images.classes[y] for x, y in everything(held_out.test))
    assert found == ["0cat", "0dog", "1cat", "1dog", "2dog"]
    for_weights, _, for_alphas = search(images)
    assert (len(flat(labels(for_weights))), sorted(flat(labels(for_alphas)))) == (16, [0, 0, 1, 1, 1])


# ---- Images held out to choose the best epoch on


def imbalanced(counts=(60, 30, 10)):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    pixels = torch.arange(len(labels))[:, None, None, None].expand(-1, 1, 8, 8).to(torch.uint8)
    parts = data.MemoryImages(pixels, labels), data.MemoryImages(pixels[:5], labels[:5])
    return data.ImageData("made", *parts, ("a", "b", "c"), (0.5,), (0.2,), 8, True, notes=("a note",))


def test_held_out_images_are_stratified_and_the_same_in_every_run():
    images = imbalanced()
    left, held_out = selection.hold_out(images, 0.2)
    assert held_out.test.labels.bincount().tolist() == [12, 6, 2]
    assert left.train.labels.bincount().tolist() == [48, 24, 8]
    for part in (left.train, held_out.test):  # every image with its label
        assert torch.equal(images.train.labels[part.images[:, 0, 0, 0].long()], part.labels)
    numbers = torch.cat([left.train.images, held_out.test.images])[:, 0, 0, 0]
    assert sorted(numbers.tolist()) == list(range(100))
    assert left.test is images.test
    assert left.notes == ("a note", "20 of 100 training images are held out, to choose the best epoch on")
    again = selection.hold_out(images, 0.2)[1]
    assert torch.equal(again.test.images, held_out.test.images)
    for same_images in selection.hold_out(images, 0.0):
        assert same_images is images


def test_a_class_in_one_part_only_is_named():
    images = imbalanced((40, 40, 1))
    _, held_out = selection.hold_out(images, 0.1)
    advice = "add images of them, or choose another portion"
    assert held_out.notes[-1] == f"warning: all images of these classes are on one side of the split: c: {advice}"
    assert data.one_sided(images, *data.search_split(images, 0.5)) == [held_out.notes[-1].replace(": c:", ": a; b; c:")]
    assert data.one_sided(imbalanced((2, 2, 2)), np.arange(0, 6, 2), np.arange(1, 6, 2)) == []


def test_kinds_of_images(tmp_path):
    """Wide and tall images keep their centre; grey, palette and RGBA ones become RGB."""
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40] = (255, 0, 0)
    red = np.full((8, 8, 3), (204, 0, 0), dtype=np.uint8)
    opaque = np.dstack([red, np.full((8, 8), 255, dtype=np.uint8)])
    for name, pixels, mode, colour in (
        ("wide.png", stripes, "RGB", (255, 0, 0)),
        ("tall.png", stripes.transpose(1, 0, 2), "RGB", (255, 0, 0)),
        ("grey.png", np.full((40, 40), 77, dtype=np.uint8), "L", (77, 77, 77)),
        ("palette.png", red, "P", (204, 0, 0)),
        ("opaque.png", opaque, "RGBA", (204, 0, 0)),
        ("grey.jpg", np.full((8, 8, 3), 77, dtype=np.uint8), "RGB", (77, 77, 77)),
    ):
        save_image(tmp_path / name, pixels, mode)
        inside = files.decode(str(tmp_path / name), 16)[:, 1:-1, 1:-1]  # the border mixes in what lies beyond
        assert {tuple(pixel) for pixel in inside.flatten(1).T.tolist()} == {colour}, name


def test_images_of_one_colour_do_not_divide_by_zero():
    assert image_files.mean_std([torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)]) == ((0.2,) * 3, (1.0,) * 3)


def test_a_folder_is_read_in_the_order_of_torchvision(folder):
    for path in ("cat/b/0.png", "cat/b/c/1.JPEG", "cat/b.png", "cat/B/0.webp", "dog/a b/1.png"):
        save_image(folder / "train" / path, np.zeros((16, 16, 3), dtype=np.uint8))
    expected = torchvision.datasets.ImageFolder(folder / "train")
    classes, samples = folders.walk(folder / "train", [])
    assert list(classes) == expected.classes
    assert samples == expected.samples


@pytest.mark.parametrize("orientation", [None, *range(1, 10)])
def test_photographs_stand_upright(tmp_path, orientation):
    pixels = np.random.RandomState(0).randint(256, size=(24, 40, 3)).astype(np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    with Image.open(tmp_path / "0.png") as image:
        upright = ImageOps.exif_transpose(image)
    assert upright.size == ((24, 40) if orientation in (5, 6, 7, 8) else (40, 24))
    expected = np.array(ImageOps.fit(upright, (16, 16), Image.Resampling.BILINEAR))
    assert torch.equal(files.decode(str(tmp_path / "0.png"), 16), torch.from_numpy(expected).permute(2, 0, 1))


def test_transparent_pixels_are_white(tmp_path):
    """Whatever colour they hide, in every way in which an image can be transparent."""
    hidden = np.zeros((16, 16, 4), dtype=np.uint8)
    hidden[:8] = (255, 0, 0, 255)
    hidden[8:] = (0, 255, 0, 0)
    expected = np.full((16, 16, 3), 255, dtype=np.uint8)
    expected[:8] = (255, 0, 0)
    rgba, rgb = Image.fromarray(hidden), Image.fromarray(hidden[:, :, :3])
    rgba.save(tmp_path / "rgba.png")
    rgba.save(tmp_path / "rgba.webp", lossless=True)
    rgb.save(tmp_path / "key.png", transparency=(0, 255, 0))
    palette = rgb.quantize(2)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 15)))
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(files.decode(str(path), 16).permute(1, 2, 0).numpy(), expected), path
    grey = Image.merge("LA", (Image.new("L", (16, 16), 0), Image.new("L", (16, 16), 127)))
    grey.save(tmp_path / "grey.png")
    assert (files.decode(str(tmp_path / "grey.png"), 16) == 128).all()


def test_hidden_files_and_files_of_other_kinds_are_left_out_counted_and_named(folder):
    plain = load(folder)
    for path in ["train/cat/a.gif", "train/cat/b.GIF", "train/dog/c.svg", "test/dog/README", "train/cat/._0.png"]:
        (folder / path).touch()
    for path in ".ipynb_checkpoints", "__MACOSX/cat", "cat/.ipynb_checkpoints", "dog/__MACOSX":
        save_image(folder / "train" / path / "0.png", np.zeros((16, 16, 3), dtype=np.uint8))
    images = load(folder)
    assert (images.classes, same(search(images)[0], search(plain)[0])) == (plain.classes, True)
    hidden, others = images.notes
    first = f"{folder}/train/.ipynb_checkpoints; {folder}/train/__MACOSX; "
    assert hidden.startswith(f"left out hidden files and folders (5): {first}")
    assert re.fullmatch(r"left out files of other kinds than \.jpg, .* \(4\): .*cat/a\.gif; .*; \.\.\.", others)


def truncate(root):
    path = root / "train" / "cat" / "4.png"
    path.write_bytes(path.read_bytes()[:200])


def save_deep(root):
    Image.fromarray(np.full((16, 16), 4000, dtype=np.uint16)).save(root / "train" / "dog" / "2.png")


DAMAGE = {
    "there is no folder .*/test; .* holds Testing, train: needed are .*/train/<class>/": lambda root: (
        root / "test"
    ).rename(root / "Testing"),
    "cannot use the folder .*train: it holds no folders of classes ": lambda root: (
        [path.rename(root / path.name) for path in (root / "train").iterdir()]
    ),
    "cannot use the folder .*train: it has no image of emu": lambda root: (root / "train" / "emu").mkdir(),
    "same classes; in only one of them: dog, eel": lambda root: (root / "test/dog").rename(root / "test/eel"),
    "only one class, cat": lambda root: [shutil.rmtree(path) for path in root.glob("*/dog")],
    "^cannot decode the image .*train/cat/4.png: .*; --skip_bad_images leaves out such images$": truncate,
    "^cannot decode the image .*train/dog/2.png: it has more than 8 bits": save_deep,
}


@pytest.mark.parametrize("message", DAMAGE)
def test_errors_of_a_folder(folder, message):
    DAMAGE[message](folder)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_classes_of_bad_images_only(folder):
    """As files of Git LFS that were not fetched."""
    for path in (folder / "test").rglob("*.png"):
        path.write_text("version https://git-lfs")
    with pytest.raises(UserError, match=r"test: it has no image of cat, dog; skipped 6 of 6 images.*needed are"):
        load(folder, skip_bad_images=True)


# ---- Folders that do not fit into memory


@pytest.mark.parametrize(("in_memory", "workers"), [(True, 0), (False, 2)])
def test_bad_images_are_skipped_and_counted_when_asked_for(folder, monkeypatch, workers, in_memory):
    """What is left is the folder without them."""
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 2**30 * in_memory)
    truncate(folder)
    save_deep(folder)
    for path in ("train/dog/0.png", "test/dog/1.png"):
        (folder / path).write_text("")
    images = load(folder, workers=workers, skip_bad_images=True)
    [note] = images.notes
    assert note.startswith("skipped 4 of 22 images, which cannot be decoded: ")
    for path in ("train/cat/4.png", "train/dog/0.png", "train/dog/2.png", "test/dog/1.png"):
        assert path.startswith("test") or f"{path}: " in note
        (folder / path).unlink()
    without = load(folder, workers=workers)
    assert without.notes == ()
    assert (images.mean, images.std, len(images.train), len(images.test)) == (without.mean, without.std, 13, 5)
    for batches, expected in zip(search(images), search(without), strict=True):
        assert same(batches, expected)


def test_what_is_not_the_image_s_fault_is_not_skipped(folder):
    """Another time the file may be there, and the run another one."""
    (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(UserError, match=r"^cannot read the image .*train/cat/gone\.png: No such file"):
        load(folder, skip_bad_images=True)


@pytest.mark.parametrize("channels", [3, 1])
def test_a_large_folder_is_the_same_data(folder, monkeypatch, channels):
    small = load(folder, channels=channels)
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 22 * channels * 16 * 16)
    assert isinstance(load(folder, channels=channels).train, data.MemoryImages)
    monkeypatch.setattr(folders, "IN_MEMORY_BYTES", 22 * channels * 16 * 16 - 1)
    lazy, before = load(folder, channels=channels, workers=2), torch.get_rng_state()
    assert isinstance(lazy.train, files.FileImages)
    assert (lazy.mean, lazy.std) == (small.mean, small.std)
    for expected, *others in zip(search(small), search(lazy), search(lazy, workers=2), strict=True):
        next(iter(others[1]))  # an epoch left early leaves nothing behind
        for epoch, start in ((0, 0), (1, 0), (1, 1)):
            for batches in (expected, *others):
                batches.set_epoch(epoch, start)
            assert all(same(batches, expected) for batches in others)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", [None, "forkserver"])
def test_workers_need_no_shared_memory(folder, monkeypatch, method):
    """Neither for batches nor for the list of files; here a limit of files' sizes keeps it small."""
    monkeypatch.setattr(files, "_start_method", lambda workers: method)
    monkeypatch.setattr(files, "PATIENCE", 60)
    paths = np.array([os.fsencode(folder / "train" / "cat" / "0.png")] * 2000)
    many = files.FileImages(paths, np.zeros(2000, dtype=np.int64), options(image_size=128))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        [(images, labels)] = files.loader(many, [[0, 1, 2, 3]], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(images, many.__getitems__([0, 1, 2, 3])[0])
    assert labels.tolist() == [0] * 4


@pytest.mark.parametrize("decode", [lambda *_: os.kill(os.getpid(), signal.SIGKILL), lambda *_: time.sleep(60)])
def test_a_worker_that_dies_or_hangs_ends_the_run(folder, large, monkeypatch, decode):
    images = load(folder)
    monkeypatch.setattr(files, "decode", decode)
    monkeypatch.setattr(files, "PATIENCE", 2)
    with pytest.raises(RuntimeError, match=r"^DataLoader ") as caught:
        list(evaluation(images, workers=1))
    assert "a process that decodes images has died or hangs; if memory is short, lower --workers" in cli._unforeseen(
        caught.value
    )


def test_an_image_damaged_later(folder, large):
    images = load(folder)
    truncate(folder)
    train = train_batches(images, workers=2)
    with pytest.raises(UserError, match=r"^(?!.*Traceback)cannot decode the image .*train/cat/4.png: "):
        list(train)


def test_images_that_do_not_fit_on_the_device_stay(monkeypatch):
    """Of a device with room for 1000 images of 8x8: half of it may be taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * 3 * 8 * 8, 0))
    moved = []
    monkeypatch.setattr(data.MemoryImages, "to", lambda self, device: moved.append(device) or self)
    gpu, small, large = torch.device("cuda", 0), make(400, tests=100), make(401, tests=100)
    assert data.on_device(small, gpu).notes == ()
    assert moved == [gpu, gpu]
    [note] = data.on_device(large, gpu).notes
    assert "too large" in note
    with pytest.raises(UserError, match="--data_on_device yes"):
        data.on_device(large, gpu, "yes")
    for choice, device in (("no", gpu), ("yes", torch.device("cpu"))):
        assert data.on_device(small, device, choice) is small
    assert len(moved) == 2
