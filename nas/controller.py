"""The controller of ENAS (Pham et al., ICML 2018, 1802.03268), an LSTM that samples architectures, and its training by
REINFORCE.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment import distributed
from nas.mutables import InputChoice, LayerChoice, MutableScope
from nas.mutators import Decisions, Mutator, SpaceNode, mask_of


class EnasMutator(Mutator):
    """The controller of ENAS (Pham et al. 2018): an LSTM that samples one decision per step. The input of a step is the
    previous decision.

    For a layer choice, it samples from a softmax over the candidates. For an input choice, it uses attention over the
    steps of the mutables in `choose_from` (for a scope, the step at its end). It samples one or more inputs from a
    softmax; if any number may be chosen, it samples each input independently. After `reset`, `sample_log_prob`,
    `sample_entropy` and `sample_skip_penalty` are those of the sample, with gradients for `Reinforce`.

    Args:
        model: the space.
        lstm_size: hidden units.
        lstm_num_layers: number of stacked LSTM layers.
        tanh_constant: logits are limited to +- this value by a tanh; None for no limit.
        skip_target: the target probability of skip connections (inputs of which any number may be chosen) in the
            penalty.
        branch_bias: in reduction layers (modules whose attribute `reduction` is True), added to the logits of
            convolutions and subtracted from those of other candidates.
    """

    def __init__(
        self,
        model: nn.Module,
        lstm_size: int = 64,
        lstm_num_layers: int = 1,
        tanh_constant: float | None = 1.5,
        skip_target: float = 0.4,
        branch_bias: float = 0.25,
    ) -> None:
        super().__init__(model)
        self.tanh_constant = tanh_constant
        self.skip_target = skip_target
        most = max((len(mutable) for mutable in self.layer_choices), default=1)
        self.lstm = nn.ModuleList(nn.LSTMCell(lstm_size, lstm_size, bias=False) for _ in range(lstm_num_layers))
        self.embedding = nn.Embedding(
            most + 1, lstm_size
        )  # for the position of a candidate; the last one is the first input
        self.classify = nn.Linear(lstm_size, most, bias=False)
        self.attend_anchor = nn.Linear(lstm_size, lstm_size, bias=False)
        self.attend_query = nn.Linear(lstm_size, lstm_size, bias=False)
        self.attend = nn.Linear(lstm_size, 1, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)
        self.baseline: Tensor
        self.register_buffer(
            "baseline", torch.tensor(torch.nan)
        )  # of the rewards; a buffer, to be saved with the controller
        self._bias = {}
        for layer in model.modules():
            if getattr(layer, "reduction", False) is True:
                for mutable in layer.modules():
                    if isinstance(mutable, LayerChoice):
                        self._bias[mutable.key] = [
                            branch_bias if _is_convolution(candidate) else -branch_bias for candidate in mutable
                        ]

    def sample_search(self) -> Decisions:
        self._input = self.embedding.weight[-1:]
        self._hidden = torch.zeros_like(self._input)  # of the last LSTM layer
        self._states = [(self._hidden, self._hidden) for _ in self.lstm]
        self._anchors: dict[str, Tensor] = {}
        self.sample_log_prob = self.sample_entropy = self.sample_skip_penalty = self._input.new_zeros(())
        decisions: Decisions = {}
        self._sample(self._space, decisions)
        del self._hidden, self._states, self._input, self._anchors
        return decisions

    def sample_final(self) -> Decisions:
        with torch.no_grad():
            return self.sample_search()

    def _sample(self, node: SpaceNode, decisions: Decisions) -> None:
        mutable = node.mutable
        if isinstance(mutable, LayerChoice | InputChoice) and mutable.key not in decisions:
            decisions[mutable.key] = (
                self._sample_layer(mutable) if isinstance(mutable, LayerChoice) else self._sample_input(mutable)
            )
        for child in node.children:
            self._sample(child, decisions)
        if isinstance(mutable, LayerChoice | MutableScope):
            self._anchors.setdefault(mutable.key, self._hidden)

    def _step(self) -> None:
        self._hidden = self._input
        for layer, lstm in enumerate(self.lstm):
            self._hidden, memory = lstm(self._hidden, self._states[layer])
            self._states[layer] = self._hidden, memory

    def _sample_layer(self, mutable: LayerChoice) -> Tensor:
        self._step()
        logits = self._bounded(self.classify(self._hidden)[0, : len(mutable)])
        if mutable.key in self._bias:
            logits = logits + logits.new_tensor(self._bias[mutable.key])
        chosen = self._draw(logits, 1)
        self._input = self.embedding(chosen)
        return mask_of(chosen, len(mutable))

    def _sample_input(self, mutable: InputChoice) -> Tensor:
        anchors = torch.cat(
            [self._anchor(label or f"input {index}") for index, label in enumerate(mutable.choose_from)]
        )
        self._step()
        query = torch.tanh(self.attend_anchor(anchors) + self.attend_query(self._hidden))
        logits = self._bounded(self.attend(query)[:, 0])
        if mutable.n_chosen is None:
            mask = self._draw_any(logits)
            self._input = anchors.where(mask[:, None], 0).sum(0, keepdim=True) / (1 + mask.sum())
        else:
            mask = mask_of(self._draw(logits, mutable.n_chosen), len(mutable))
            self._input = anchors.where(mask[:, None], 0).sum(0, keepdim=True) / mask.sum()
        return mask

    def _anchor(self, label: str) -> Tensor:
        """The hidden state at which `label` was decided. An input from outside the space gets an extra step."""
        if label not in self._anchors:
            self._step()
            self._anchors[label] = self._hidden
        return self._anchors[label]

    def _bounded(self, logits: Tensor) -> Tensor:
        return logits if self.tanh_constant is None else self.tanh_constant * torch.tanh(logits)

    def _draw(self, logits: Tensor, count: int) -> Tensor:
        """Samples `count` different candidates, one after the other, from the softmax over the remaining ones."""
        chosen = torch.empty(0, dtype=torch.long, device=logits.device)
        for _ in range(count):
            log_probs = F.log_softmax(logits.index_fill(0, chosen, -torch.inf), dim=0)
            drawn = torch.multinomial(log_probs.detach().exp(), 1)
            self._record(log_probs[drawn].squeeze(0), log_probs.masked_fill(log_probs == -torch.inf, 0))
            chosen = torch.cat([chosen, drawn])
        return chosen

    def _draw_any(self, logits: Tensor) -> Tensor:
        """Samples each candidate independently. Adds KL(p || target) of the probabilities to the skip penalty."""
        log_probs = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
        mask = torch.rand_like(logits) < log_probs[:, 1].detach().exp()
        for log_prob, on in zip(log_probs, mask, strict=True):
            self._record(torch.where(on, log_prob[1], log_prob[0]), log_prob)
        target = logits.new_tensor([1 - self.skip_target, self.skip_target])
        self.sample_skip_penalty = self.sample_skip_penalty + (log_probs.exp() * (log_probs - target.log())).sum()
        return mask

    def _record(self, log_prob: Tensor, log_probs: Tensor) -> None:
        """Records a sample."""
        self.sample_log_prob = self.sample_log_prob + log_prob
        self.sample_entropy = self.sample_entropy - (log_probs.exp() * log_probs).sum()


def _is_convolution(candidate: nn.Module) -> bool:
    """Whether the candidate has a convolution larger than 1x1.

    The 1x1 convolutions of a strided skip connection do not count.
    """
    return any(isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 for module in candidate.modules())


class Reinforce:
    """REINFORCE on an `EnasMutator`, with a moving average of the rewards as the baseline.

    Args:
        mutator: the controller. The baseline is one of its buffers.
        learning_rate: learning rate of Adam.
        entropy_weight: weight of the sample's entropy in the reward.
        skip_weight: weight of the sample's skip penalty in the loss.
        baseline_decay: decay of the moving average, which begins with the first reward.
    """

    def __init__(
        self,
        mutator: EnasMutator,
        learning_rate: float = 3.5e-4,
        entropy_weight: float = 1e-4,
        skip_weight: float = 0.8,
        baseline_decay: float = 0.999,
    ) -> None:
        self.mutator = mutator
        self.optimizer = torch.optim.Adam(mutator.parameters(), lr=learning_rate)
        self.entropy_weight = entropy_weight
        self.skip_weight = skip_weight
        self.baseline_decay = baseline_decay

    def step(self, reward: float) -> None:
        """One step on the controller, with the reward of the sample of its last `reset`."""
        reward += self.entropy_weight * self.mutator.sample_entropy.item()
        baseline = self.mutator.baseline
        baseline.fill_(
            reward if baseline.isnan() else self.baseline_decay * baseline + (1 - self.baseline_decay) * reward
        )
        loss = self.skip_weight * self.mutator.sample_skip_penalty - self.mutator.sample_log_prob * (reward - baseline)
        self.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients(self.mutator.parameters())
        self.optimizer.step()
