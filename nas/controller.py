"""The controller of ENAS (Pham et al., ICML 2018, 1802.03268): an LSTM that samples architectures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.mutables import InputChoice, LayerChoice
from nas.mutators import Decisions, Mutator, mask_of


class EnasMutator(Mutator):
    """Samples one decision per step of an LSTM. The input of a step is the previous decision.

    For a layer choice, it samples from a softmax over the candidates. For an input choice, it uses attention over the
    steps of the mutables in `choose_from` (for a scope, the step at its end). It samples one or more inputs from a
    softmax; if any number may be chosen, it samples each input independently. After `reset`, `sample_log_prob`,
    `sample_entropy` and `sample_skip_penalty` are those of the sample, with gradients.

    Args:
        model: the space.
        lstm_size: hidden units.
        lstm_num_layers: number of stacked LSTM layers.
        tanh_constant: logits are limited to +- this value by a tanh; None for no limit.
        skip_target: the target probability of skip connections (inputs of which any number may be chosen) in the
            penalty.
        branch_bias: in reduction layers (modules whose attribute `reduction` is True), added to the logits of
            convolutions larger than 1x1 and subtracted from those of other candidates.
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
        self.embedding = nn.Embedding(most + 1, lstm_size)  # of the candidates' positions, and of the first input
        self.classify = nn.Linear(lstm_size, most, bias=False)
        self.attend_anchor = nn.Linear(lstm_size, lstm_size, bias=False)
        self.attend_query = nn.Linear(lstm_size, lstm_size, bias=False)
        self.attend = nn.Linear(lstm_size, 1, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)
        self.baseline: Tensor  # of the rewards; a buffer, to be saved with the controller
        self.register_buffer("baseline", torch.tensor(torch.nan))
        self._bias = {
            choice.key: [branch_bias if _is_convolution(candidate) else -branch_bias for candidate in choice]
            for layer in model.modules()
            if getattr(layer, "reduction", False) is True
            for choice in layer.modules()
            if isinstance(choice, LayerChoice)
        }

    def sample_search(self) -> Decisions:
        self._input = self.embedding.weight[-1:]
        self._hidden = torch.zeros_like(self._input)  # of the last LSTM layer
        self._states = [(self._hidden, self._hidden) for _ in self.lstm]
        self._anchors: dict[str, Tensor] = {}  # the hidden states at which mutables were decided
        self.sample_log_prob = self.sample_entropy = self.sample_skip_penalty = self._input.new_zeros(())
        decisions: Decisions = {}
        for mutable in self.mutables:
            if isinstance(mutable, InputChoice):
                decisions[mutable.key] = self._sample_input(mutable)
                continue
            if isinstance(mutable, LayerChoice):
                decisions[mutable.key] = self._sample_layer(mutable)
            self._anchors.setdefault(mutable.key, self._hidden)
        return decisions

    @torch.no_grad()
    def sample_final(self) -> Decisions:
        return self.sample_search()

    def _step(self) -> None:
        self._hidden = self._input
        for layer, lstm in enumerate(self.lstm):
            self._hidden, memory = lstm(self._hidden, self._states[layer])
            self._states[layer] = self._hidden, memory

    def _sample_layer(self, choice: LayerChoice) -> Tensor:
        self._step()
        logits = self._bounded(self.classify(self._hidden)[0, : len(choice)])
        if choice.key in self._bias:
            logits = logits + logits.new_tensor(self._bias[choice.key])
        chosen = self._draw(logits, 1)
        self._input = self.embedding(chosen)
        return mask_of(chosen, len(choice))

    def _sample_input(self, choice: InputChoice) -> Tensor:
        anchors = torch.cat([self._anchor(label or f"input {index}") for index, label in enumerate(choice.choose_from)])
        self._step()
        query = torch.tanh(self.attend_anchor(anchors) + self.attend_query(self._hidden))
        logits = self._bounded(self.attend(query)[:, 0])
        count = choice.n_chosen
        mask = self._draw_any(logits) if count is None else mask_of(self._draw(logits, count), len(choice))
        self._input = anchors.where(mask[:, None], 0).sum(0, keepdim=True) / (mask.sum() + (count is None))
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
        self._record(log_probs.gather(1, mask.long()[:, None]).sum(), log_probs)
        target = logits.new_tensor([1 - self.skip_target, self.skip_target])
        self.sample_skip_penalty = self.sample_skip_penalty + (log_probs.exp() * (log_probs - target.log())).sum()
        return mask

    def _record(self, log_prob: Tensor, log_probs: Tensor) -> None:
        """Adds a sample's log probability, (), and the entropy of the distributions that it was drawn from."""
        self.sample_log_prob = self.sample_log_prob + log_prob
        self.sample_entropy = self.sample_entropy - (log_probs.exp() * log_probs).sum()


def _is_convolution(candidate: nn.Module) -> bool:
    """Whether the candidate has a convolution larger than 1x1; those of a strided skip connection do not count."""
    return any(isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 for module in candidate.modules())
