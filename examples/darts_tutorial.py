"""NNI 3.0's DARTS tutorial with this code: search, export, pictures, retraining plainly and by the paper's recipe.

    python -m examples.darts_tutorial

It uses digits and small networks. docs/nni_tutorial.md explains it, shows its output, and has the tutorial's own sizes.
"""

from architectures.cells import to_nni
from pictures import drawing
from train import train
from train_search import search

IMAGES, FOLDER = "digits", "runs/tutorial"
SEARCH = {"gpu": -1, "init_channels": 2, "layers": 3, "epochs": 2, "batch_size": 32}
RETRAIN = {"gpu": -1, "init_channels": 4, "layers": 4, "epochs": 5, "batch_size": 48}


def show(epoch, metrics):
    losses = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name.endswith("_loss"))
    print(f"after epoch {epoch}: {losses}")


def main():
    # Search: the model space, the strategy, and what candidates are evaluated on
    architecture = search("darts", "darts", IMAGES, [show], run_dir=f"{FOLDER}/search", **SEARCH)

    # Export, and draw both cells
    print(to_nni(architecture.genotype))
    print(*drawing.write({"cells.png": drawing.both(architecture)}, FOLDER))

    # Retrain what was found: plainly
    constant = {"optimizer": "adam", "learning_rate": 1e-3, "learning_rate_min": 1e-3, "weight_decay": 1e-4}
    nothing_else = {"grad_clip": 1e9, "drop_path_prob": 0}
    result = train(architecture, IMAGES, [show], run_dir=f"{FOLDER}/plain", **constant, **nothing_else, **RETRAIN)
    print(f"plainly: {result.accuracy:.2f}% in {result.folder}")

    # The same by the paper's recipe
    descent = {"learning_rate": 0.025, "learning_rate_min": 1e-3, "weight_decay": 3e-4, "grad_clip": 5}
    tricks = {"cutout": True, "cutout_length": 16, "drop_path_prob": 0.2, "auxiliary": True, "auxiliary_weight": 0.4}
    result = train(architecture, IMAGES, [show], run_dir=f"{FOLDER}/recipe", **descent, **tricks, **RETRAIN)
    print(f"by the paper's recipe: {result.accuracy:.2f}% in {result.folder}")


if __name__ == "__main__":
    main()
