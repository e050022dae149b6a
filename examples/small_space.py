"""An example of a search space: two blocks, each with a choice between two convolutions, and an optional skip
connection over the second.

    python train_search.py --space examples/small_space.py:Net --dataset digits --gpu -1 --epochs 20 \
        --batch_size 16 --learning_rate 0.1
    python train.py --space examples/small_space.py:Net --arch RUN --dataset digits --gpu -1 --epochs 20 \
        --batch_size 16 --learning_rate 0.1

Each takes half a minute on two CPU cores; expect 98% in the search and 99% after the training. docs/search_spaces.md
explains it.
"""

from torch import Tensor, nn

from nas.mutables import InputChoice, LayerChoice


def conv(channels: int, kernel_size: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class Net(nn.Module):
    """Images (B, 3, H, W), H and W multiples of 4, to logits (B, num_classes)."""

    def __init__(self, num_classes: int = 10, init_channels: int = 16) -> None:
        super().__init__()
        C = init_channels
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(C), nn.ReLU())
        self.first = LayerChoice([conv(C, 3), conv(C, 5)], key="first")
        self.pool = nn.MaxPool2d(2)
        self.second = LayerChoice([conv(C, 3), conv(C, 5)], key="second")
        self.skip = InputChoice(n_candidates=1, key="skip")
        self.classifier = nn.Linear(C, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(self.stem(x)))
        out = self.second(x)
        skipped = self.skip([x])
        if skipped is not None:
            out = out + skipped
        return self.classifier(out.mean((2, 3)))
