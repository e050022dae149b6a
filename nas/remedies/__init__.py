"""Remedies for what DARTS is known to suffer from, memory and collapse, over the one supernet of `model_search.py`; docs/remedies.md.

`edges` holds what stands around a mixed operation's sum, `supernet` what changes the weights of that sum, `sampling` GDAS, `cells` how a
genotype is read from the weights, `recipes` the papers' settings, and `options` the command line.
"""
