"""Cells that other papers published. `--arch` finds them by name, as it finds those of `genotypes.py`."""

from __future__ import annotations

from genotypes import Genotype


def _genotype(normal: str, reduce: str, normal_concat: list[int] | None = None) -> Genotype:
    """The cells with these edges, each `operation:source`, two for each node."""
    cells = (
        [(name, int(source)) for name, _, source in (edge.partition(":") for edge in text.split())]
        for text in (normal, reduce)
    )
    nodes = [2, 3, 4, 5]
    return Genotype(next(cells), normal_concat or nodes, next(cells), nodes)


# The two cells of NNI's DARTS tutorial: from its plain evaluator, and from the paper's recipe (97.12% after 600 epochs,
# by its authors).
NNI_BASIC = _genotype(
    "sep_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:2 sep_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1 "
    "max_pool_3x3:0",
    "sep_conv_3x3:0 sep_conv_3x3:1 dil_conv_5x5:2 sep_conv_3x3:0 dil_conv_5x5:2 sep_conv_5x5:1 sep_conv_5x5:4 "
    "dil_conv_5x5:2",
)
NNI_FULL = _genotype(
    "sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:1 skip_connect:0 sep_conv_3x3:0 max_pool_3x3:1 sep_conv_3x3:0 "
    "sep_conv_3x3:1",
    "max_pool_3x3:0 sep_conv_5x5:1 dil_conv_5x5:2 max_pool_3x3:0 max_pool_3x3:0 sep_conv_3x3:2 max_pool_3x3:0 "
    "skip_connect:2",
)

# Xu et al. 2020 (1907.05737), searched on CIFAR-10: 2.57% test error there.
PC_DARTS_CIFAR = _genotype(
    "sep_conv_3x3:1 skip_connect:0 sep_conv_3x3:0 dil_conv_3x3:1 sep_conv_5x5:0 sep_conv_3x3:1 avg_pool_3x3:0 "
    "dil_conv_3x3:1",
    "sep_conv_5x5:1 max_pool_3x3:0 sep_conv_5x5:1 sep_conv_5x5:2 sep_conv_3x3:0 sep_conv_3x3:3 sep_conv_3x3:1 "
    "sep_conv_3x3:2",
)

# The same, searched on ImageNet: 24.2% top-1 error there.
PC_DARTS_IMAGENET = _genotype(
    "skip_connect:1 sep_conv_3x3:0 sep_conv_3x3:0 skip_connect:1 sep_conv_3x3:1 sep_conv_3x3:3 sep_conv_3x3:1 "
    "dil_conv_5x5:4",
    "sep_conv_3x3:0 skip_connect:1 dil_conv_5x5:2 max_pool_3x3:1 sep_conv_3x3:2 sep_conv_3x3:1 sep_conv_5x5:0 "
    "sep_conv_3x3:3",
)

# Chu et al. 2020 (1911.12126), the cells of seven searches on CIFAR-10: 2.54 +- 0.05% test error there on average.
# Their nodes may have fewer than two edges: missing ones are `none`, and nodes without edges are not concatenated.
FAIR_DARTS_A = _genotype(
    "sep_conv_3x3:0 sep_conv_5x5:1 none:0 none:1 max_pool_3x3:0 none:1 sep_conv_3x3:0 none:1",
    "max_pool_3x3:0 avg_pool_3x3:1 avg_pool_3x3:0 dil_conv_5x5:1 avg_pool_3x3:0 sep_conv_5x5:1 skip_connect:0 "
    "skip_connect:1",
    [2, 4, 5],
)
FAIR_DARTS_B = _genotype(
    "sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:1 none:1 dil_conv_3x3:0 sep_conv_5x5:1 dil_conv_5x5:1 none:1",
    "skip_connect:0 dil_conv_3x3:1 skip_connect:0 dil_conv_3x3:1 max_pool_3x3:0 sep_conv_3x3:1 skip_connect:2 "
    "max_pool_3x3:0",
)
FAIR_DARTS_C = _genotype(
    "max_pool_3x3:0 sep_conv_5x5:1 none:0 none:1 dil_conv_3x3:0 dil_conv_5x5:2 sep_conv_3x3:0 none:1",
    "dil_conv_3x3:1 dil_conv_5x5:0 dil_conv_3x3:0 sep_conv_3x3:1 sep_conv_5x5:0 sep_conv_5x5:3 sep_conv_5x5:0 "
    "skip_connect:1",
    [2, 4, 5],
)
FAIR_DARTS_D = _genotype(
    "sep_conv_3x3:0 sep_conv_5x5:1 dil_conv_3x3:1 max_pool_3x3:0 dil_conv_3x3:0 dil_conv_3x3:1 sep_conv_3x3:0 "
    "dil_conv_5x5:1",
    "max_pool_3x3:0 sep_conv_5x5:1 avg_pool_3x3:0 dil_conv_5x5:2 dil_conv_3x3:3 avg_pool_3x3:0 avg_pool_3x3:0 "
    "skip_connect:3",
)
FAIR_DARTS_E = _genotype(
    "sep_conv_3x3:0 sep_conv_3x3:1 none:0 none:1 dil_conv_3x3:1 dil_conv_3x3:2 dil_conv_3x3:0 dil_conv_5x5:1",
    "max_pool_3x3:1 max_pool_3x3:0 max_pool_3x3:1 max_pool_3x3:0 sep_conv_5x5:1 max_pool_3x3:0 avg_pool_3x3:0 "
    "dil_conv_5x5:1",
    [2, 4, 5],
)
FAIR_DARTS_F = _genotype(
    "max_pool_3x3:0 sep_conv_3x3:1 dil_conv_3x3:1 none:1 sep_conv_5x5:1 none:1 sep_conv_3x3:0 sep_conv_3x3:1",
    "max_pool_3x3:0 max_pool_3x3:1 max_pool_3x3:0 dil_conv_3x3:1 dil_conv_3x3:2 max_pool_3x3:0 max_pool_3x3:0 "
    "sep_conv_3x3:1",
)
FAIR_DARTS_G = _genotype(
    "sep_conv_3x3:0 sep_conv_3x3:1 none:0 none:1 sep_conv_5x5:1 none:1 dil_conv_3x3:0 sep_conv_3x3:1",
    "avg_pool_3x3:1 skip_connect:0 skip_connect:2 max_pool_3x3:1 sep_conv_5x5:3 max_pool_3x3:0 dil_conv_3x3:1 "
    "dil_conv_3x3:4",
    [2, 4, 5],
)
