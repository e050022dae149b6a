"""Matrix products of compiled code on a CPU, computed by oneDNN.

PyTorch computes products of float32 matrices with MKL, and convolutions with oneDNN. On an AMD EPYC with AVX-512,
oneDNN computes products as large as those of the recurrent search in less than half of MKL's time (docs/recurrent.md).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx


@functools.cache
def options() -> dict[str, Any]:
    """The options that make torch.compile use oneDNN; empty if this PyTorch cannot."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    try:
        onednn = torch.ops.mkldnn._linear_pointwise
    except AttributeError:
        return {}

    @torch.library.custom_op("darts::product", mutates_args=())
    def product(a: Tensor, b: Tensor) -> Tensor:
        """The product of two float32 matrices on the CPU, (M, K) and (K, N)."""
        return onednn(a, b.t(), None, "none", [], "")

    @product.register_fake
    def _(a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty(a.size(0), b.size(1))

    class UseOneDNN(CustomGraphPass):
        """Replaces products of float32 matrices on a CPU by `product`, in what torch.compile compiles."""

        def __call__(self, graph: fx.Graph) -> None:
            _replace_products(graph, torch.ops.darts.product.default)

        def uuid(self) -> bytes:
            """The key of this pass in the compiler's cache."""
            return get_hash_for_files((__file__,))

    return {"post_grad_custom_post_pass": UseOneDNN()}


def _replace_products(graph: fx.Graph, product: Any) -> None:
    aten = torch.ops.aten
    for node in [node for node in graph.nodes if node.target in (aten.mm.default, aten.addmm.default)]:
        value = node.meta["val"]
        *bias, a, b = node.args
        if value.device.type != "cpu" or value.dtype != torch.float32 or a.meta["val"].numel() == 0:
            continue
        if node.kwargs:  # `addmm` with factors stays as it is
            continue
        with graph.inserting_before(node):
            faster = graph.call_function(product, (a, b))
            faster.meta = dict(node.meta)
            for term in bias:
                faster = graph.call_function(aten.add.Tensor, (faster, term))
                faster.meta = dict(node.meta)
        node.replace_all_uses_with(faster)
        graph.erase_node(node)
