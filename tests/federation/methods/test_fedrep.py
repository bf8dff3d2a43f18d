"""FedRep: FedPer's parts, the head first, then the body over the new head."""

import torch

from pfedsam.federation.methods import fedrep
from pfedsam.training.options import TrainingOptions


def test_what_is_averaged_is_that_of_fedper(make) -> None:
    assert make("fedrep").shared == make("fedper").shared
    assert make("fedrep").local == make("fedper").local


def test_head_first_then_body() -> None:
    head, body = fedrep.METHOD.phases(TrainingOptions(steps_per_round=10, global_share=0.2))
    assert (head.trains, head.steps, body.trains, body.steps) == (("local",), 8, ("shared",), 2)


def test_the_body_is_trained_over_the_new_head(make, train) -> None:
    made = make("fedrep")
    train(made)
    still = train(make("fedrep")).state.local
    # After the round the model holds what the body's last step was computed with: the head that the first phase left.
    assert all(torch.equal(made.model.get_parameter(name), still[name]) for name in made.local)
