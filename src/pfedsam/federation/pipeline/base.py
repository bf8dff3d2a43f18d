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
        """What the step does, with its numbers, as the manifest lists it."""

    def apply(self, values: NamedTensors, received: NamedTensors, memory: NamedTensors) -> dict[str, Tensor]:
        """The values that go to the next step.

        Args:
            values: the shared parameters as the site trained them, or as the step before returned them.
            received: the shared parameters that the site started the round from.
            memory: what the steps kept in the last round; empty in the first one.
        """

    def remember(self, values: NamedTensors, arrived: NamedTensors) -> dict[str, Tensor]:
        """What the step keeps at the site for the next round, by names that no other step uses.

        Args:
            values: what the step returned in this round.
            arrived: the values as the server reads them from the message.
        """


@dataclass(frozen=True)
class Sent:
    """The outcome of a round's pipeline."""

    message: bytes
    memory: dict[str, Tensor]
    """What the steps keep for the next round; it never leaves the site."""


@dataclass(frozen=True)
class Pipeline:
    """The steps of a study in order, and its codec."""

    steps: tuple[Step, ...]
    codec: Codec

    def describe(self) -> tuple[str, ...]:
        """All steps with their numbers, the encoding last."""
        return (*map(str, self.steps), f"encode as {self.codec}")

    def send(self, update: Update, received: NamedTensors, memory: NamedTensors) -> Sent:
        """Take an update through all steps.

        Args:
            update: with the shared parameters as the site trained them.
            received: the shared parameters that the site started the round from.
            memory: what the last round left.

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
