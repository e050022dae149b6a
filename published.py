"""Cells that other papers published. `--arch` finds them by name, as it finds those of `genotypes.py`."""

from __future__ import annotations

from genotypes import Genotype


def _cell(text: str) -> list[tuple[str, int]]:
    """The edges in `text`, each `operation:source`, two for each node."""
    return [(operation, int(source)) for operation, source in (edge.split(":") for edge in text.split())]


# The two cells of NNI's DARTS tutorial: from its plain evaluator, and from the paper's recipe (97.12% after 600 epochs, by its authors).
NNI_BASIC = Genotype(
    normal=_cell("sep_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:2 sep_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1 max_pool_3x3:0"),
    normal_concat=[2, 3, 4, 5],
    reduce=_cell("sep_conv_3x3:0 sep_conv_3x3:1 dil_conv_5x5:2 sep_conv_3x3:0 dil_conv_5x5:2 sep_conv_5x5:1 sep_conv_5x5:4 dil_conv_5x5:2"),
    reduce_concat=[2, 3, 4, 5],
)
NNI_FULL = Genotype(
    normal=_cell("sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:1 skip_connect:0 sep_conv_3x3:0 max_pool_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1"),
    normal_concat=[2, 3, 4, 5],
    reduce=_cell("max_pool_3x3:0 sep_conv_5x5:1 dil_conv_5x5:2 max_pool_3x3:0 max_pool_3x3:0 sep_conv_3x3:2 max_pool_3x3:0 skip_connect:2"),
    reduce_concat=[2, 3, 4, 5],
)

# Xu et al. 2020 (1907.05737), searched on CIFAR-10: 2.57% test error there.
PC_DARTS_CIFAR = Genotype(
    normal=_cell("sep_conv_3x3:1 skip_connect:0 sep_conv_3x3:0 dil_conv_3x3:1 sep_conv_5x5:0 sep_conv_3x3:1 avg_pool_3x3:0 dil_conv_3x3:1"),
    normal_concat=[2, 3, 4, 5],
    reduce=_cell("sep_conv_5x5:1 max_pool_3x3:0 sep_conv_5x5:1 sep_conv_5x5:2 sep_conv_3x3:0 sep_conv_3x3:3 sep_conv_3x3:1 sep_conv_3x3:2"),
    reduce_concat=[2, 3, 4, 5],
)

# The same, searched on ImageNet: 24.2% top-1 error there.
PC_DARTS_IMAGENET = Genotype(
    normal=_cell("skip_connect:1 sep_conv_3x3:0 sep_conv_3x3:0 skip_connect:1 sep_conv_3x3:1 sep_conv_3x3:3 sep_conv_3x3:1 dil_conv_5x5:4"),
    normal_concat=[2, 3, 4, 5],
    reduce=_cell("sep_conv_3x3:0 skip_connect:1 dil_conv_5x5:2 max_pool_3x3:1 sep_conv_3x3:2 sep_conv_3x3:1 sep_conv_5x5:0 sep_conv_3x3:3"),
    reduce_concat=[2, 3, 4, 5],
)

# Chu et al. 2020 (1911.12126), the cells of seven searches on CIFAR-10: 2.54 +- 0.05% test error there on average. Their nodes may have
# fewer than two edges: missing ones are `none`, and nodes without edges are not concatenated.
FAIR_DARTS_A = Genotype(
    normal=_cell("sep_conv_3x3:0 sep_conv_5x5:1 none:0 none:1 max_pool_3x3:0 none:1 sep_conv_3x3:0 none:1"),
    normal_concat=[2, 4, 5],
    reduce=_cell("max_pool_3x3:0 avg_pool_3x3:1 avg_pool_3x3:0 dil_conv_5x5:1 avg_pool_3x3:0 sep_conv_5x5:1 skip_connect:0 skip_connect:1"),
    reduce_concat=[2, 3, 4, 5],
)
FAIR_DARTS_B = Genotype(
    normal=_cell("sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:1 none:1 dil_conv_3x3:0 sep_conv_5x5:1 dil_conv_5x5:1 none:1"),
    normal_concat=[2, 3, 4, 5],
    reduce=_cell("skip_connect:0 dil_conv_3x3:1 skip_connect:0 dil_conv_3x3:1 max_pool_3x3:0 sep_conv_3x3:1 skip_connect:2 max_pool_3x3:0"),
    reduce_concat=[2, 3, 4, 5],
)
FAIR_DARTS_C = Genotype(
    normal=_cell("max_pool_3x3:0 sep_conv_5x5:1 none:0 none:1 dil_conv_3x3:0 dil_conv_5x5:2 sep_conv_3x3:0 none:1"),
    normal_concat=[2, 4, 5],
    reduce=_cell("dil_conv_3x3:1 dil_conv_5x5:0 dil_conv_3x3:0 sep_conv_3x3:1 sep_conv_5x5:0 sep_conv_5x5:3 sep_conv_5x5:0 skip_connect:1"),
    reduce_concat=[2, 3, 4, 5],
)
FAIR_DARTS_D = Genotype(
    normal=_cell("sep_conv_3x3:0 sep_conv_5x5:1 dil_conv_3x3:1 max_pool_3x3:0 dil_conv_3x3:0 dil_conv_3x3:1 sep_conv_3x3:0 dil_conv_5x5:1"),
    normal_concat=[2, 3, 4, 5],
    reduce=_cell("max_pool_3x3:0 sep_conv_5x5:1 avg_pool_3x3:0 dil_conv_5x5:2 dil_conv_3x3:3 avg_pool_3x3:0 avg_pool_3x3:0 skip_connect:3"),
    reduce_concat=[2, 3, 4, 5],
)
FAIR_DARTS_E = Genotype(
    normal=_cell("sep_conv_3x3:0 sep_conv_3x3:1 none:0 none:1 dil_conv_3x3:1 dil_conv_3x3:2 dil_conv_3x3:0 dil_conv_5x5:1"),
    normal_concat=[2, 4, 5],
    reduce=_cell("max_pool_3x3:1 max_pool_3x3:0 max_pool_3x3:1 max_pool_3x3:0 sep_conv_5x5:1 max_pool_3x3:0 avg_pool_3x3:0 dil_conv_5x5:1"),
    reduce_concat=[2, 3, 4, 5],
)
FAIR_DARTS_F = Genotype(
    normal=_cell("max_pool_3x3:0 sep_conv_3x3:1 dil_conv_3x3:1 none:1 sep_conv_5x5:1 none:1 sep_conv_3x3:0 sep_conv_3x3:1"),
    normal_concat=[2, 3, 4, 5],
    reduce=_cell("max_pool_3x3:0 max_pool_3x3:1 max_pool_3x3:0 dil_conv_3x3:1 dil_conv_3x3:2 max_pool_3x3:0 max_pool_3x3:0 sep_conv_3x3:1"),
    reduce_concat=[2, 3, 4, 5],
)
FAIR_DARTS_G = Genotype(
    normal=_cell("sep_conv_3x3:0 sep_conv_3x3:1 none:0 none:1 sep_conv_5x5:1 none:1 dil_conv_3x3:0 sep_conv_3x3:1"),
    normal_concat=[2, 4, 5],
    reduce=_cell("avg_pool_3x3:1 skip_connect:0 skip_connect:2 max_pool_3x3:1 sep_conv_5x5:3 max_pool_3x3:0 dil_conv_3x3:1 dil_conv_3x3:4"),
    reduce_concat=[2, 3, 4, 5],
)
