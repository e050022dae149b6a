"""Steps of a search and of a training on small networks, in every way in which they can be computed."""

from argparse import Namespace

import torch
from torch import nn
from torch.utils import _pytree as pytree

import genotypes
import model_search
import speed
import train
import train_search
import utils
from architect import Architect
from architectures import networks
from architectures.cells import Cells
from experiment.loop import FiniteCheck
from speed import capture

CPU = torch.device("cpu")
SIZE, CLASSES, BATCH = 8, 5, 4
REMEDIES = {"perturb": "random", "auxiliary_skip": 1.0, "partial_channels": 2, "epochs": 8}


def arguments(**given):
    """The arguments of a small search, with those of a training beside them."""
    defaults = vars(train.parse_arguments({})) | vars(train_search.parse_arguments({}))
    small = {"init_channels": 2, "layers": 3, "image_size": SIZE, "arch_learning_rate": 3e-2, "epochs": 1}
    return Namespace(**defaults | small | {"network": "cifar", "auxiliary": True} | given)


def learn(steps, unrolled=None, *, captured=False, compiled=False, device=CPU, drop_path=True, **given):
    """The state after a search's (or with `unrolled` None a training's) steps, the last on a smaller batch; and what
    each step gave.

    Every step of a search is in another epoch. `given`: arguments of the command line. Everything that is returned is
    on the CPU.
    """
    torch.manual_seed(0)
    args, criterion = arguments(unrolled=unrolled, **given), nn.CrossEntropyLoss()
    if unrolled is None:
        model = networks.build_discrete(args, CLASSES, Cells.of(genotypes.DARTS_V2)).to(device)
        optimizer = utils.optimizer(
            torch.optim.SGD, list(model.parameters()), lr=0.025, momentum=0.9, weight_decay=3e-4
        )
        step, parts = train.training_step(model, criterion, optimizer, args), [optimizer]
    else:
        model, architect = train_search.build(args, CLASSES, criterion, device)
        optimizer = utils.optimizer(
            torch.optim.SGD, model.weight_parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4
        )
        step, parts = train_search.search_step(model, architect, criterion, optimizer, args), [optimizer, architect]
    if compiled or device != CPU:
        speed.apply(model, device, compiled_for=BATCH if compiled else None)
    if captured:
        step = capture.CapturedStep(step, model, parts, BATCH)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    results, generator = [], torch.Generator().manual_seed(1)
    for number in range(steps):
        if unrolled is None:
            model.drop_path_prob = 0.3 * (number + 1) / steps * drop_path  # where it is 0, ordinary steps draw nothing
        else:
            architect.begin_epoch(number)
        size = BATCH - 1 if number == steps - 1 else BATCH
        pairs = [
            [
                torch.randn(size, 3, SIZE, SIZE, generator=generator),
                torch.randint(CLASSES, (size,), generator=generator),
            ]
            for _ in range(2)
        ]
        pairs = [[tensor.to(device) for tensor in pair] for pair in pairs]
        results.append([value.cpu() for value in step(*pairs[0], *(pairs[1] if unrolled is not None else []))])
        scheduler.step()
    assert all(type(group["lr"]) is float for group in optimizer.param_groups)
    state = model.state_dict() | {
        f"grad {name}": parameter.grad.clone() for name, parameter in model.named_parameters()
    }
    states = [part.state_dict()["state"] for part in parts]
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, (state, states, results))


# ---- On a supernet alone


def batch(size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def supernet():
    torch.manual_seed(0)
    return model_search.Network(2, 5, 3, nn.CrossEntropyLoss(), steps=2, multiplier=2)


def learn_cell(network, unrolled, hvp, steps=2):
    """Alpha steps and weight steps, the last on a smaller batch; everything that they left in the network."""
    optimizer = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9)
    architect = Architect(network, arguments(hvp=hvp))
    for step in range(steps):
        train, valid = batch(4 - step, step), batch(4 - step, 10 + step)
        architect.step(*train, *valid, 0.025, optimizer, unrolled)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(train[0]), train[1]).backward(inputs=network.weight_parameters())
        optimizer.step()
    return network.state_dict()


class SmallCell(nn.Module):
    """A search model of one cell with one node, so that there is little to compile."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell = model_search.Cell(1, 1, 4, 4, 4, False, False)
        self.classifier = nn.Linear(4, 5)
        self.alphas = nn.Parameter(torch.randn(2, len(model_search.PRIMITIVES)))

    def arch_parameters(self):
        return [self.alphas]

    def weight_parameters(self):
        return [*self.cell.parameters(), *self.classifier.parameters()]

    def forward(self, x):
        x = nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
        return self.classifier(self.cell(x, x, self.alphas.softmax(-1)).square().mean((2, 3)))


def take_epoch(model, batches, step):
    """Takes a step on every batch, as `experiment.loop.Loop` does, without a run. Returns the meters."""
    model.train()
    meters, finite = utils.Meters(), FiniteCheck(0, 0.1, "")
    for number, (x, y, *others) in enumerate(batches):
        loss, logits, norm, *auxiliary_loss = step(x, y, *others)
        finite.note(loss, norm, number)
        meters.update(loss, logits, y, *auxiliary_loss)
    return meters
