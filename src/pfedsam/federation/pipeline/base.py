"""The update pipeline: the steps that a site's trained shared parameters go through, in order, before they leave the site.

The last step always is the encoding as a message (`federation.codec`). A new step is one file with a class that fulfils `Step`, and one
line in `federation.pipeline.build`. The study's manifest lists the steps, so that a site approves them.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.codec import Codec
from pfedsam.federation.update import Update, write_update


class Step(Protocol):
    """One step before the encoding. Values are float32, by name, in the shapes of the shared parameters."""

    def __str__(self) -> str:
        """The description of the step, with its numbers, in the manifest."""

    def apply(self, values: NamedTensors, received: NamedTensors, memory: NamedTensors) -> dict[str, Tensor]:
        """The values for the next step.

        Args:
            values: the trained shared parameters, or the result of the step before.
            received: the shared parameters with which the site started the round.
            memory: the tensors that the steps kept in the last round; empty in the first one.
        """

    def remember(self, values: NamedTensors, arrived: NamedTensors) -> dict[str, Tensor]:
        """The tensors that the step keeps at the site for the next round, by names that no other step uses.

        Args:
            values: the result of the step in this round.
            arrived: the values as the server decodes them from the message.
        """


@dataclass(frozen=True)
class Sent:
    """The outcome of a round's pipeline."""

    message: bytes
    memory: dict[str, Tensor]
    """The tensors that the steps keep for the next round; they never leave the site."""


@dataclass(frozen=True)
class Pipeline:
    """The steps of a study in order, and its codec."""

    steps: tuple[Step, ...]
    codec: Codec

    def describe(self) -> tuple[str, ...]:
        """All steps with their numbers, the encoding last."""
        return (*map(str, self.steps), f"encode as {self.codec}")

    def send(self, update: Update, received: NamedTensors, memory: NamedTensors) -> Sent:
        """Apply all steps to an update, and encode it.

        Args:
            update: the update with the trained shared parameters.
            received: the shared parameters with which the site started the round.
            memory: the tensors that the steps kept in the last round.

        Raises:
            UpdateError: the update cannot be encoded.
        """
        start = {name: received[name].to(torch.float32) for name in update.tensors} if self.steps else {}
        values = {name: value.to(torch.float32) for name, value in update.tensors.items()}
        returned: list[dict[str, Tensor]] = []
        for step in self.steps:
            values = step.apply(values, start, memory)
            returned.append(values)
        sent = {name: value.to(update.tensors[name].dtype) for name, value in values.items()}
        written = write_update(replace(update, tensors=sent), self.codec, received)
        kept: dict[str, Tensor] = {}
        arrived = written.arrived() if self.steps else {}
        for step, after in zip(self.steps, returned, strict=True):
            kept |= step.remember(after, arrived)
        return Sent(written.message, kept)
