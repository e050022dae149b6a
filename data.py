"""Images on their way to a network: the search split, the order, and the augmentation of batches.

    options = Options(dataset="cifar10", data="data", batch_size=96, cutout=True)
    batches = train_batches(load(options), options, "cuda")
    for epoch in range(600):
        batches.set_epoch(epoch)
        for x, y in batches:
            ...

Decoding is deterministic. A whole batch is augmented at once, on its device, with different random numbers for each
image. These depend only on the seed, the epoch and the step. Therefore the number of workers does not change results,
and a run can be resumed in the middle of an epoch without a stored random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiment import distributed, errors
from experiment.errors import UserError
from image_files import ImageData, Images, Levels, MemoryImages, Options
from image_files.sources import DATASETS, FOLDERS, load, load_test, source  # noqa: F401  # what commands need


def prepare(options: Options, device: torch.device) -> ImageData:
    """Loads the images of a run, then calls `distributed.join`."""
    images = on_device(load(options), device, options.data_on_device)
    distributed.join(device)  # not earlier: loading may take longer than the processes wait for each other
    return images


def on_device(data: ImageData, device: torch.device, choice: str = "auto") -> ImageData:
    """`data` with its decoded images on `device`, so that batches are assembled and augmented there without waiting for
    the CPU.

    `choice` is `no`, which leaves them; `auto`, which leaves them if they need more than half of the free memory; or
    `yes`, which is then an error.
    """
    if choice == "no" or device.type == "cpu":
        return data
    train, test = data.train, data.test
    needed = (len(train) + len(test)) * data.channels * data.image_size**2
    free, _ = torch.cuda.mem_get_info(device)
    if isinstance(train, MemoryImages) and isinstance(test, MemoryImages) and needed <= free // 2:
        return replace(data, train=train.to(device), test=test.to(device))
    if choice == "yes":
        raise UserError(f"--data_on_device yes: the images, {needed / 2**20:.0f} MiB, do not fit: leave it out")
    return replace(data, notes=(*data.notes, "the images are too large to be kept in the GPU's memory"))


# ---- Augmentation


def normalise(images: Tensor, mean: Levels, std: Levels) -> Tensor:
    """uint8 (..., C, H, W) -> float32 on the same device: fractions of white, minus the mean, divided by the deviation
    of the channel.
    """
    levels = torch.tensor([mean, std])[..., None, None].to(images.device, non_blocking=True)
    return (images / 255).sub_(levels[0]).div_(levels[1]).contiguous()


class Augment:
    """The original's augmentation of CIFAR images, for a whole batch, with different random numbers for each image.

    For training: pad with black and crop at random, flip at random (if `data.flip`), normalise, cut out a square
    (DeVries & Taylor 2017, 1708.04552). As in the original, the padding is 4 pixels for images of 32 pixels (an eighth
    of the size) and is added before normalisation. The centre of the square is anywhere in the image, and the square is
    filled with 0, the mean.

    Args:
        cutout_length: the side of the square in pixels, rounded down to an even number, as in the original; 0 for none.
        train: whether to augment, and not only to normalise.
        crop: whether to crop and flip; workers may have done so already (`FileImages`).
    """

    def __init__(self, data: ImageData, cutout_length: int = 0, train: bool = True, crop: bool = True) -> None:
        self.flip, self.crop, self.cutout_length, self.train = data.flip, crop, cutout_length, train
        self.mean, self.std = data.mean, data.std

    def __call__(
        self, images: Tensor, generator: torch.Generator | None, whole: int | None = None, share: slice = slice(None)
    ) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W) on the same device. The generator is the CPU's, so results do not
        depend on the device.

        `images` are the `share` of a batch of `whole` images (None: B), whose random numbers are drawn.
        """
        if not self.train:
            return normalise(images, self.mean, self.std)
        batch, _, height, width = images.shape
        padding = height // 8
        limits = (2 * padding + 1, 2 * padding + 1, 2, height, width)
        draws = [torch.randint(limit, (whole or batch,), generator=generator)[share] for limit in limits]
        top, left, mirrored, y, x = torch.stack(draws).to(images.device, non_blocking=True)[..., None]  # (B, 1) each

        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        if self.crop:
            from_rows = rows + top  # (B, H), in the padded image
            from_columns = left + (torch.where(mirrored == 1, columns.flip(0), columns) if self.flip else columns)
            source = from_rows[:, :, None] * (width + 2 * padding) + from_columns[:, None, :]  # (B, H, W)
            padded = F.pad(images, [padding] * 4).flatten(2)
            images = padded.gather(2, source.flatten(1)[:, None].expand(*images.shape[:2], -1)).view(images.shape)

        normalised = normalise(images, self.mean, self.std)
        if self.cutout_length:
            half = self.cutout_length // 2
            cut_rows = (rows >= y - half) & (rows < y + half)  # (B, H)
            cut_columns = (columns >= x - half) & (columns < x + half)  # (B, W)
            normalised.masked_fill_((cut_rows[:, :, None] & cut_columns[:, None, :])[:, None], 0.0)
        return normalised


# ---- Batches

# Streams of random numbers. The number of the stream is part of the seed, so the streams are independent.
_TRAIN_ORDER, _TRAIN_AUGMENT, _DRAWS_ORDER, _DRAWS_AUGMENT, _VALIDATION_AUGMENT, _TRAIN_CROPS = range(6)

# Indices of the images of every batch of an epoch.
Plan = Callable[[int], Sequence[np.ndarray]]


def _sequence(seed: int, stream: int, epoch: int, step: int = 0) -> np.random.SeedSequence:
    """A seed that hashes all arguments, so that the random numbers of neighbouring seeds, epochs and steps are
    independent.
    """
    return np.random.SeedSequence([seed, stream, epoch, step])


class Batches:
    """The batches of one epoch: (float32 images (B, C, H, W), int64 labels (B,)) on `device`. Can be iterated again.

    `plan(epoch)` gives the images and their order. The augmentation depends on (seed, `stream`, epoch, step). The
    length is that of a whole epoch. With several processes, each gets and decodes its share of every batch; together,
    the shares are the batch of a single process.
    """

    def __init__(
        self,
        images: Images,
        plan: Plan,
        steps: int,
        augment: Augment,
        stream: int,
        options: Options,
        device: torch.device | str,
    ) -> None:
        self.augment, self.epoch, self.start_step = augment, 0, 0
        self._plan, self._steps, self._seed, self._stream = plan, steps, options.seed, stream
        self._device = torch.device(device)
        self._items: list[Any] = []  # of every batch; filled at the beginning of an epoch
        self._batches = images.batches(self._items, options.workers, pin_memory=self._device.type == "cuda")

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """The next iteration yields the batches of `epoch` (counted from 0) from `start_step` on. Those before are not
        decoded.
        """
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = self.epoch, self.start_step
        whole = self._plan(epoch)[start : self._steps]
        shares = [distributed.share(len(indices)) for indices in whole]
        self._items.clear()
        for step, (indices, share) in enumerate(zip(whole, shares, strict=True), start):
            if self.augment.crop:
                self._items.append(indices[share])
            else:  # the workers crop, and need a seed for each image
                seeds = _sequence(self._seed, _TRAIN_CROPS, epoch, step).generate_state(len(indices), np.uint64)
                self._items.append(list(zip(indices[share].tolist(), seeds[share].tolist(), strict=True)))
        for i, (images, labels) in enumerate(self._batches()):
            [state] = _sequence(self._seed, self._stream, epoch, start + i).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state))
            x = self.augment(images.to(self._device, non_blocking=True), generator, len(whole[i]), shares[i])
            yield x, labels.to(self._device, non_blocking=True)


def _split(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def _in_order(indices: np.ndarray, batch_size: int) -> Plan:
    """The batches of an evaluation, which leaves out no image: a last batch with fewer images than processes joins the
    one before.
    """
    batches = _split(indices, batch_size)
    if len(batches[-1]) < distributed.world_size():
        batches[-2:] = [np.concatenate(batches[-2:])]
    return lambda epoch: batches


def _shuffled(indices: np.ndarray, options: Options) -> Plan:
    def plan(epoch: int) -> Sequence[np.ndarray]:
        random = np.random.default_rng(_sequence(options.seed, _TRAIN_ORDER, epoch))
        return _split(random.permutation(indices), options.batch_size)

    return plan


def _drawn(indices: np.ndarray, steps: int, options: Options) -> Plan:
    def plan(epoch: int) -> Sequence[np.ndarray]:
        seeds = (_sequence(options.seed, _DRAWS_ORDER, epoch, step) for step in range(steps))
        return [np.random.default_rng(seed).choice(indices, options.batch_size, replace=False) for seed in seeds]

    return plan


def _training_steps(images: int, batch_size: int) -> int:
    """The number of batches. A last, smaller batch is kept, as in the original, unless a process would get a single
    image: BatchNorm of 1x1 maps needs more than one.
    """
    processes = distributed.world_size()
    if batch_size < 2 * processes and processes > 1:
        raise UserError(
            f"--batch_size {batch_size} is shared by {processes} processes, which need two images each: raise it"
        )
    return images // batch_size + (images % batch_size >= 2 * processes)


def search_batches(data: ImageData, options: Options, device: torch.device | str) -> tuple[Batches, Batches, Batches]:
    """The search split (DARTS, section 3.1): w is trained on one part of the training images, alpha on the other.

    As in the original, both parts are augmented, also to measure the supernet's accuracy.

    Returns:
        train: all images for w in a new random order, for the weight steps.
        validation_draws: the same number of batches for the alpha steps, each sampled from all images for alpha,
            without replacement within a batch. (The original restarts its shuffled loader in every step: the same, but
            slower.)
        validation: all images for alpha in order, to measure the accuracy.

    Raises:
        UserError: a half holds fewer images than a batch; or a batch cannot be shared by all processes.
    """
    size = options.batch_size
    for_w, for_alpha = search_split(data, options.train_portion)
    for half, images in (("weights", for_w), ("alphas", for_alpha)):
        if len(images) < size:
            raise UserError(
                f"the search split leaves {len(images)} of {len(data.train)} images for the {half}, less than a batch "
                f"of {size}: lower --batch_size"
            )
    augment = Augment(data, options.cutout_length if options.cutout else 0)
    steps, in_order = _training_steps(len(for_w), size), _in_order(for_alpha, size)

    def batches(plan: Plan, steps: int, stream: int) -> Batches:
        return Batches(data.train, plan, steps, augment, stream, options, device)

    return (
        batches(_shuffled(for_w, options), steps, _TRAIN_AUGMENT),
        batches(_drawn(for_alpha, steps, options), steps, _DRAWS_AUGMENT),
        batches(in_order, len(in_order(0)), _VALIDATION_AUGMENT),
    )


def search_split(data: ImageData, train_portion: float) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the first floor(`train_portion` * n) training images, for w, and of the others, for alpha. With a
    `valid_folder`, its images are those for alpha.
    """
    split = len(data.train) - data.valid if data.valid else math.floor(train_portion * len(data.train))
    return np.arange(split), np.arange(split, len(data.train))


def one_sided(data: ImageData, *parts: np.ndarray) -> list[str]:
    """A warning for the log if some classes are not in all of these parts of the training images."""
    present = [{data.classes[label] for label in data.train.labels[torch.from_numpy(part)].unique()} for part in parts]
    lacking = sorted(set.union(*present) - set.intersection(*present))
    if not lacking:
        return []
    advice = "add images of them, or choose another portion"
    return [f"warning: all images of these classes are on one side of the split: {errors.first(lacking)}: {advice}"]


def train_batches(data: ImageData, options: Options, device: torch.device | str) -> Batches:
    """Batches to train a fixed network: all training images, augmented, in a new random order in every epoch.

    Raises:
        UserError: fewer training images than a batch; or a batch cannot be shared by all processes.
    """
    count, size = len(data.train), options.batch_size
    if count < size:
        raise UserError(f"there are only {count} training images, less than a batch of {size}: lower --batch_size")
    augment = Augment(data, options.cutout_length if options.cutout else 0, crop=options.crop == "pad")
    plan, steps = _shuffled(np.arange(count), options), _training_steps(count, size)
    return Batches(data.train, plan, steps, augment, _TRAIN_AUGMENT, options, device)


def test_batches(data: ImageData, options: Options, device: torch.device | str) -> Batches:
    """All test images in order, without augmentation."""
    plan = _in_order(np.arange(len(data.test)), options.batch_size)
    return Batches(data.test, plan, len(plan(0)), Augment(data, train=False), 0, options, device)
