"""An example of a strategy: regularized evolution (Real et al. 2019, 1802.01548) of architectures that share their
weights.

    python train_search.py --strategy examples/evolution.py:Evolution --space nasbench201 --dataset digits --gpu -1 \
        --layers 1

Every step changes one choice of a good architecture, measures the result on a batch of the validation half, and trains
its weights. Accuracies in the log are those of the best architecture so far. docs/search_spaces.md explains what a
strategy is.
"""

import torch

from experiment import distributed
from nas.strategies import Random


class Evolution(Random):
    size = 20  # architectures in the population; a new one replaces the oldest
    contestants = 5  # sampled from the population; the best one becomes the parent

    def __init__(self, model, args):
        super().__init__(model, args)
        self.population = []  # ((accuracy, -loss), decisions) of each architecture, the oldest first

    def step(self, input_train, target_train, input_valid, target_valid, eta, network_optimizer, unrolled):
        distributed.same_random_numbers(self.device)
        mutator = self.model.mutator
        child = mutator.sample_search()
        if len(self.population) == self.size:
            drawn = torch.randperm(self.size)[: self.contestants].tolist()
            _, parent = max((self.population[index] for index in drawn), key=lambda entry: entry[0])
            changed = list(child)[torch.randint(len(child), ()).item()]
            child = {**parent, changed: child[changed]}
        mutator.decide(child)
        score = self.score(input_valid, target_valid)
        self.population = [*self.population, (score, child)][-self.size :]

    def finalists(self):
        return [decisions for _, decisions in self.population]

    def state_dict(self):
        return {**super().state_dict(), "population": self.population}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.population = state_dict["population"]
