"""Search spaces of the literature: `darts`, `enas` (micro and macro) and `nasbench201`, each with its operations.

The classes that NNI documents with these spaces can be imported from here, under the same names.
"""

from nas.spaces.darts import DartsCell, PoolBN
from nas.spaces.enas import (
    ConvBranch,
    ENASMacroGeneralModel,
    ENASMacroLayer,
    ENASMicroLayer,
    Pool,
    PoolBranch,
    SepConvBN,
)
from nas.spaces.nasbench201 import NASBench201Cell, Pooling, Zero
from operations import DilConv, FactorizedReduce, ReLUConvBN, SepConv

__all__ = [
    "ConvBranch",
    "DartsCell",
    "DilConv",
    "ENASMacroGeneralModel",
    "ENASMacroLayer",
    "ENASMicroLayer",
    "FactorizedReduce",
    "NASBench201Cell",
    "Pool",
    "PoolBN",
    "PoolBranch",
    "Pooling",
    "ReLUConvBN",
    "SepConv",
    "SepConvBN",
    "Zero",
]
