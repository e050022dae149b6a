"""How well does a supernet rank architectures? Its accuracy of random ones against a tabular benchmark."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from scipy import stats
from torch import Tensor

import utils
from architectures import Architecture
from experiment import distributed
from experiment.run import Run
from nas.benchmark import Benchmark
from nas.mutators import chosen_in, mask_of
from pictures import benchmark, curves, drawing

IMAGES = 1000  # of the validation half, about, on which the supernet's accuracy of an architecture is measured


def rank(
    model: Any,
    space: type[Architecture],
    table: Benchmark,
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int,
    run: Run,
) -> None:
    """Compares the supernet's accuracy of `count` random architectures with the table's, after the search.

    Logs Kendall's tau, writes `ranking.json`, rows with `architecture`, `supernet_acc` and `true_acc` in percent, and
    draws `ranking.png`.

    Args:
        model: the search model of a space of layer choices.
        batches: of the validation half; the first ones are used, the same for all architectures.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    images = 0
    for batch in batches:
        kept.append(batch)
        images += distributed.total(len(batch[1]))  # all processes take the same number of batches
        if images >= IMAGES:
            break
    device, rows = next(model.parameters()).device, list[dict[str, Any]]()
    for text in random.Random(0).sample(sorted(table.accuracies), min(count, len(table))):
        chosen = chosen_in(model.network, space.read(text).choices)
        masks = {choice.key: mask_of(indices, len(choice)).to(device) for choice, indices in chosen.items()}
        model.mutator.decide(masks)
        accuracy = utils.evaluate(model.network, kept, F.cross_entropy).top1.avg
        rows.append({"architecture": text, "supernet_acc": accuracy, "true_acc": table.accuracies[text][table.dataset]})
    tau = kendall_tau([row["supernet_acc"] for row in rows], [row["true_acc"] for row in rows])
    run.log(
        "Kendall's tau %.3f between %s and the supernet's accuracy on %d images, of %d random architectures",
        tau,
        table.dataset,
        images,
        len(rows),
    )
    run.write_json("ranking.json", rows)
    if distributed.rank() == 0:
        picture = curves.save(benchmark.ranking(rows, tau, table.dataset))
        run.log("picture: %s", *drawing.write({"ranking.png": picture}, run.folder))


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b, from -1 (the opposite order) to 1 (the same order); 0 if all values of one are equal."""
    found = float(stats.kendalltau(first, second).statistic)
    return 0.0 if math.isnan(found) else found
