"""Folders of runs that never ran: what the pictures of runs are tested on."""

import json
import random

from architectures.cells import Cells
from genotypes import PRIMITIVES, Genotype, edge_key


def cell_alphas(rng):
    """Softmaxed alphas of both cells of DARTS."""
    edges = {}
    for cell in ("normal", "reduce"):
        for node in range(2, 6):
            for source in range(node):
                weights = [rng.random() for _ in PRIMITIVES]
                edges[edge_key(cell, node, source)] = {
                    name: weight / sum(weights) for name, weight in zip(PRIMITIVES, weights, strict=True)
                }
    return edges


def some_genotype(rng):
    def edges():
        return [(rng.choice(PRIMITIVES[1:]), source) for node in range(2, 6) for source in rng.sample(range(node), 2)]

    return Genotype(edges(), range(2, 6), edges(), range(2, 6))


def write_run(folder, rows, stage="search", **arguments):
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {"seed": 7, "epochs": len(rows), "dataset": "cifar10", "image_size": 32, "gpu": -1}
    config = {
        "stage": stage,
        "classes": [f"class {number}" for number in range(10)],
        "arguments": defaults | {"space": "darts", "strategy": "darts"} | arguments,
        "command": ["a.py", "--seed", "7"],
        "commit": "c0ffee",
        "versions": {},
        "gpu": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("architecture", "genotype"):
        if rows and name in rows[-1]:
            (folder / f"{name}.json").write_text(json.dumps(rows[-1][name]))
    return folder


def losses(epoch, phase):
    return {
        "epoch": epoch,
        "lr": 0.1,
        "train_loss": 2 / (epoch + 1),
        "train_acc": 90.0 + epoch,
        f"{phase}_loss": 2.5 / (epoch + 1),
        f"{phase}_acc": 80.0 + epoch,
        **{"seconds_per_step": 0.5, "memory_mb": 12.0, "seconds": 3.0},
    }


def search_run(folder, epochs=3, seed=0):
    """A search of cells by DARTS."""
    rng, rows = random.Random(seed), []
    for epoch in range(epochs):
        alphas, genotype = cell_alphas(rng), some_genotype(rng)
        rows.append(losses(epoch, "valid") | {"eigenvalue": 0.1 * epoch} | Cells(genotype).metrics(alphas))
    return write_run(folder, rows)


def nasbench201_run(folder, epochs=2, seed=0):
    """A search of the cell of NAS-Bench-201 by DARTS."""
    rng, rows = random.Random(seed), []
    operations = ["none", "skip_connect", "conv_1x1", "conv_3x3", "avg_pool_3x3"]
    for epoch in range(epochs):
        edges = ["0_1", "0_2", "1_2", "0_3", "1_3", "2_3"]
        alphas = {edge: dict(zip(operations, rng.choices([0.1, 0.2, 0.3], k=5), strict=True)) for edge in edges}
        architecture = {edge: max(weights, key=weights.get) for edge, weights in alphas.items()}
        rows.append(
            losses(epoch, "valid") | {"alphas": alphas, "architecture": architecture, "skips": 1, "entropy": 1.5}
        )
    return write_run(folder, rows, space="nasbench201")


def macro_run(folder, epochs=2):
    """A search of whole networks by ENAS, which has no alphas."""
    architecture = {"LayerChoice1": 0, "LayerChoice2": 5, "InputChoice3": ["layer_0"], "LayerChoice4": 2}
    found = {"alphas": {}, "architecture": architecture | {"InputChoice5": []}, "skips": 1}
    rows = [losses(epoch, "valid") | found for epoch in range(epochs)]
    return write_run(folder, rows, space="enas_macro", strategy="enas")


def training_run(folder, genotype, epochs=2, **arguments):
    """A training of a genotype."""
    rows = [losses(epoch, "test") for epoch in range(epochs)]
    write_run(folder, rows, "eval", **{"network": "cifar"} | arguments)
    (folder / "genotype.json").write_text(json.dumps(Cells(genotype).json))
    return folder
