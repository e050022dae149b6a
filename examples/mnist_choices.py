"""The network of NNI's page on choices: PyTorch's MNIST example with a choice of the first convolution, and of a skip
connection.

    python train_search.py --space examples/mnist_choices.py:Net --strategy enas --dataset mnist --channels 1 --gpu 0
    python train_search.py --space examples/mnist_choices.py:Net --strategy enas --dataset digits --channels 1 --gpu -1
    python train.py --space examples/mnist_choices.py:Net --arch RUN --dataset digits --channels 1 --gpu -1

The outputs of the two convolutions differ in size, so DARTS cannot add them. The search needs a strategy that runs one
candidate at a time, `enas` or `random`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nas.mutables import InputChoice, LayerChoice


class Net(nn.Module):
    """Images (B, in_channels, H, W), of 28x28 in MNIST, to logits (B, num_classes)."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = LayerChoice([nn.Conv2d(in_channels, 32, 3, 1), nn.Conv2d(in_channels, 32, 5, 3)])
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.conv3 = nn.Conv2d(64, 64, 1, 1)
        self.skip = InputChoice(n_candidates=1)  # an optional skip connection over conv3
        self.dropout1 = nn.Dropout2d(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        skipped = self.skip([x])
        x = self.conv3(x)
        if skipped is not None:
            x = x + skipped
        x = F.adaptive_avg_pool2d(self.dropout1(F.max_pool2d(x, 2)), 12)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(self.dropout2(x))
