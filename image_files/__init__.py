"""Datasets: their names, folders of images, and the decoding of image files."""
