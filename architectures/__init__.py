"""Architectures of every space, in every form, and the networks that they describe."""
