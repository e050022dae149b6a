"""Drawings and reports of architectures and runs. Nothing here computes a network."""
