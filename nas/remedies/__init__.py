"""Remedies against the memory use and the collapse of DARTS, on top of the supernet in `model_search.py`; see docs/remedies.md.

`edges` extends mixed operations, `supernet` changes their weights, `sampling` is GDAS, `cells` derives genotypes, `recipes` has the
settings of the papers, and `options` the command line.
"""
