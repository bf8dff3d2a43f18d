"""FedRep (Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021): head first, then body.

In each round a site first trains its own head with the received body fixed, then the body with the head fixed, and sends the body
(algorithm 1). Ours differs: body and head are those of our `fedper`; `training.global_share` divides the round's steps between them (the
paper does many steps for the head and one epoch for the body).
"""

from dataclasses import replace

from pfedsam.federation.methods import fedper
from pfedsam.federation.methods.base import split_steps
from pfedsam.training.options import TrainingOptions
from pfedsam.training.phases import PhaseSpec


def phases(options: TrainingOptions) -> tuple[PhaseSpec, ...]:
    """One phase for the head, then one for the body."""
    body_steps, head_steps = split_steps(options)
    head = PhaseSpec("local", ("local",), ("personal",), steps=head_steps)
    body = PhaseSpec("global", ("shared",), ("personal",), steps=body_steps)
    return head, body


METHOD = replace(
    fedper.METHOD,
    name="fedrep",
    summary="the encoder's LoRA averaged, the decoder local, head first, then body (Collins et al., 2021)",
    phases=phases,
)
