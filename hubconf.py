"""torch.hub.load("path/to/this/repository", "trained", "runs/x", source="local"): what `predict.load` returns."""

from predict import load as trained  # noqa: F401

dependencies = ["torch", "torchvision", "numpy", "PIL", "filelock", "tqdm", "sklearn"]
