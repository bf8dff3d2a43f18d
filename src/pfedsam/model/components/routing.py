"""The assignment of tokens to experts, and its load-balancing loss."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """The assignment of the tokens of one block to experts."""

    probabilities: Tensor
    """The router's softmax, `[..., E]`."""
    selected: Tensor
    """Whether an expert is among the k selected ones of a token, `[..., E]` bool."""

    def usage(self) -> Tensor:
        """The share of the assignments that each expert received, shape `[E]`; the sum is 1."""
        chosen = self.selected.flatten(0, -2).float()
        return chosen.sum(0) / chosen.sum()

    def balance_loss(self) -> Tensor:
        """The scalar (shape `[]`) E * sum_e f_e P_e (Fedus et al., 2021, eq. 4): 1 if balanced, at most E, differentiable through P."""
        importance = self.probabilities.flatten(0, -2).mean(0)
        return importance.numel() * (self.usage() * importance).sum()
