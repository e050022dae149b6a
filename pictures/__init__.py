"""Architectures and runs as pictures and pages. Nothing here computes a network."""
