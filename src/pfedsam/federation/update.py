"""The update of the shared tensors that leaves a site in a round, and all checks of it.

An update contains its site, its round, the number of training cases and the shared tensors; there is no field for anything else. (The
scalar metrics of a reply are defined in `federation.messages`.) Server and sites agree beforehand on an `UpdateSpec`: the names, shapes and
types of the shared tensors, and the codec (`federation.codec`). A message contains the values one after the other in the order of the
specification, without names. So it has room for exactly these values, and a few hundred bytes more.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import torch
from torch import Tensor

from pfedsam.core.errors import StoreError, UpdateError
from pfedsam.core.tensors import NamedTensors, digest, from_bytes, to_bytes
from pfedsam.federation.codec import LOSSLESS, Codec

MAX_CASES = 1_000_000
"""Upper bound of the number of training cases of a site, and therefore of its weight."""

MAX_MAGNITUDE = 1e6
"""Upper bound of the absolute value of a parameter. A larger value does not come from training and would dominate the average."""

_SCHEMA = "pfedsam-update-1"
_ENVELOPE_BYTES = 4096
_BASE_DIGITS = 16
_LARGEST_SHOWN = 1e15
_SCALE_TOLERANCE = 1.001
"""Scales are rounded up to half floats, at most by one part in a thousand."""


@dataclass(frozen=True)
class Update:
    """The message that a site sends after its client round."""

    site: str
    round: int
    tensors: NamedTensors
    cases: int


@dataclass(frozen=True)
class TensorSpec:
    """The shape and the type of one shared tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        """The specification that a tensor, of any shape, matches."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def bytes(self) -> int:
        """The size of the tensor's values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


@dataclass(frozen=True)
class UpdateSpec:
    """The names, shapes and types of the shared tensors of a run, exactly those that every update must contain."""

    tensors: Mapping[str, TensorSpec]
    codec: Codec = LOSSLESS

    @classmethod
    def of(cls, tensors: NamedTensors, codec: Codec = LOSSLESS) -> "UpdateSpec":
        """The specification of these shared tensors with a codec.

        Raises:
            UpdateError: there is no tensor, or the type of a tensor is not a floating-point type, so that it has no mean.
        """
        if not tensors:
            raise UpdateError("there are no shared tensors: a run that averages needs at least one.")
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise UpdateError(
                    f"shared tensor {name} has type {tensor.dtype}; only floating-point ones have a mean."
                )
        specs = {name: TensorSpec.of(tensors[name]) for name in sorted(tensors)}
        return cls(specs, codec)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over names, shapes, types and codec."""
        content = [str(self.codec), [[name, str(spec)] for name, spec in self._ordered()]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        """The number of bytes of each tensor's values in a message."""
        if self.codec.lossless:
            return {name: spec.bytes for name, spec in self.tensors.items()}
        return {name: self.codec.size(math.prod(spec.shape)) for name, spec in self.tensors.items()}

    @property
    def payload_bytes(self) -> int:
        """The size of all values in a message."""
        return sum(self.sizes.values())

    @property
    def max_bytes(self) -> int:
        """The largest size of a message with an update of this run."""
        return self.payload_bytes + _ENVELOPE_BYTES

    def pack(self, tensors: NamedTensors, received: NamedTensors | None = None) -> torch.Tensor:
        """Encode tensors that match the specification as consecutive bytes, uint8 of shape [payload_bytes].

        Args:
            tensors: the shared parameters to send.
            received: the shared parameters that the site received in this round; not needed by the lossless codec.

        Raises:
            UpdateError: `received` does not match the specification.
        """
        if self.codec.lossless:
            parts = [
                tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8) for name, _ in self._ordered()
            ]
        else:
            base = self._base(received)
            parts = [self.codec.pack(tensors[name].detach().cpu().float() - base[name]) for name, _ in self._ordered()]
        return torch.cat(parts)

    def unpack(self, values: torch.Tensor, received: NamedTensors | None = None) -> dict[str, torch.Tensor]:
        """Decode bytes that `pack` wrote, uint8 of shape [payload_bytes], to tensors in the shapes of the specification.

        Raises:
            UpdateError: the codec does not write such bytes, or `received` does not match the specification.
        """
        base = {} if self.codec.lossless else self._base(received)
        tensors, start, sizes = {}, 0, self.sizes
        for name, spec in self._ordered():
            part = values[start : start + sizes[name]]
            if self.codec.lossless:
                tensors[name] = part.clone().view(spec.dtype).reshape(spec.shape)
            else:
                change = self.codec.unpack(part, math.prod(spec.shape)).reshape(spec.shape)
                tensors[name] = (base[name] + change).to(spec.dtype)
            start += sizes[name]
        return tensors

    def least_norm(self, values: torch.Tensor) -> float:
        """A lower bound of the L2 norm of the change in these bytes, uint8 of shape [payload_bytes], from the scales alone."""
        start, squares = 0, 0.0
        for name, spec in self._ordered():
            size = self.sizes[name]
            squares += self.codec.least_norm(values[start : start + size], math.prod(spec.shape)) ** 2
            start += size
        return math.sqrt(squares)

    def _base(self, received: NamedTensors | None) -> dict[str, torch.Tensor]:
        """The parameters to which changes refer, in float32.

        Raises:
            UpdateError: they are missing, or do not match the specification.
        """
        if received is None or UpdateSpec.of(received, self.codec) != self:
            raise UpdateError(
                f"codec {self.codec} needs the shared tensors of the round, which are not those of the spec."
            )
        return {name: tensor.detach().cpu().float() for name, tensor in received.items()}

    def _ordered(self) -> list[tuple[str, TensorSpec]]:
        return sorted(self.tensors.items())


class Written(NamedTuple):
    """An update as a message."""

    message: bytes
    spec: UpdateSpec
    values: torch.Tensor
    """The values in the message, bytes uint8 `[payload_bytes]`."""
    received: NamedTensors | None

    def arrived(self) -> dict[str, torch.Tensor]:
        """The tensors, in their shapes, as the server decodes them from the message."""
        return self.spec.unpack(self.values, self.received)


def encode(update: Update, codec: Codec = LOSSLESS, received: NamedTensors | None = None) -> bytes:
    """The message of `write_update`."""
    return write_update(update, codec, received).message


def write_update(update: Update, codec: Codec = LOSSLESS, received: NamedTensors | None = None) -> Written:
    """Encode an update as a message.

    Args:
        update: the update; its tensors are the shared parameters themselves, also if the codec encodes their changes.
        codec: the codec of the run.
        received: the shared tensors that the site received in this round; not needed by the lossless codec.

    Raises:
        UpdateError: the update has no tensors, a tensor whose type is not a floating-point type, or other tensors than were received.
    """
    spec = UpdateSpec.of(update.tensors, codec)
    envelope = {"site": update.site, "round": update.round, "cases": update.cases}
    metadata = {"schema": _SCHEMA, "spec": spec.digest, "update": json.dumps(envelope, sort_keys=True)}
    values = spec.pack(update.tensors, received)
    message = to_bytes({"values": values}, metadata | _base_entry(spec, received))
    return Written(message, spec, values, received)


def decode(
    data: bytes, spec: UpdateSpec, received: NamedTensors | None = None, *, max_change: float = math.inf
) -> Update:
    """Decode the update in a message; `check` still has to check its content.

    Args:
        data: the message.
        spec: the specification of the run's updates.
        received: the shared tensors that were broadcast in this round; not needed by the lossless codec.
        max_change: the largest allowed L2 norm of a change; a message whose scales alone exceed it is refused before it is decoded.

    Raises:
        UpdateError: the message is too long or malformed, contains other tensors or has another codec than this run, or its changes refer
            to other shared parameters than were broadcast.
    """
    tensors, metadata, update = _opened(data, spec.max_bytes)
    site = label(update.site)
    if metadata.get("schema") != _SCHEMA or metadata.get("spec") != spec.digest:
        raise UpdateError(
            f"site {site} sent an update of another form or of other shared tensors than this run's; its "
            "configuration or its version of pFedSAM differs from the server's: make them equal."
        )
    values = _payload(tensors, spec, site)
    if {key: metadata[key] for key in metadata.keys() - {"schema", "spec", "update"}} != _base_entry(spec, received):
        raise UpdateError(f"site {site} counted its changes from other parameters than this round's.")
    if spec.least_norm(values) > max_change * _SCALE_TOLERANCE:
        raise UpdateError(f"site {site} sent scales that no encoder writes for a change within the bound.")
    try:
        unpacked = spec.unpack(values, received)
    except UpdateError as error:
        raise UpdateError(f"the update of site {site} cannot be read: {error}") from error
    return Update(update.site, update.round, unpacked, update.cases)


def _opened(data: bytes, max_bytes: int) -> tuple[dict[str, Tensor], dict[str, str], Update]:
    """The tensors (of any shape) and the metadata of a message, and the update in its envelope, without tensors.

    Raises:
        UpdateError: the message is too long or malformed.
    """
    try:
        tensors, metadata = from_bytes(data, max_bytes=max_bytes)
        envelope = json.loads(metadata["update"])
        return tensors, metadata, Update(tensors={}, **envelope)
    except StoreError as error:
        raise UpdateError(f"an update cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UpdateError("an update cannot be read: its envelope does not have the agreed form.") from error


def _payload(tensors: NamedTensors, spec: UpdateSpec, site: str) -> Tensor:
    """The packed values of a message, of shape `[payload_bytes]`.

    Raises:
        UpdateError: the message contains something else.
    """
    values = tensors.get("values")
    if len(tensors) != 1 or values is None or values.dtype != torch.uint8 or values.shape != (spec.payload_bytes,):
        raise UpdateError(f"site {site} sent other than {spec.payload_bytes} bytes of values.")
    return values


def _base_entry(spec: UpdateSpec, received: NamedTensors | None) -> dict[str, str]:
    """The metadata about the parameters to which the changes in a message refer; empty if the message contains no changes."""
    return {} if spec.codec.lossless or received is None else {"base": digest(received)[:_BASE_DIGITS]}


def check(update: Update, spec: UpdateSpec, *, round: int, registered: Mapping[str, int]) -> None:
    """Refuse an update that cannot be averaged in this round.

    Args:
        update: the update that a site sent; nothing in it is trusted, not even the types of its fields.
        spec: the shared tensors of the run.
        round: the round that is being aggregated.
        registered: the number of training cases of each site, as known when the run started.

    Raises:
        UpdateError: the update is refused; the message names the site and, where there is one, the tensor.
    """
    _check_envelope(update, round, registered)
    _check_names(update, spec)
    for name, expected in spec.tensors.items():
        _check_tensor(update.site, name, update.tensors[name], expected)


def label(site: object) -> str:
    """A site's name for error messages; the name is not trusted, so it is shortened and control characters are replaced."""
    text = site if isinstance(site, str) else f"<{type(site).__name__}>"
    return "".join(character if character.isprintable() else "?" for character in text[:64]) or "<none>"


def _check_envelope(update: Update, round: int, registered: Mapping[str, int]) -> None:
    if not isinstance(update.site, str) or update.site not in registered:
        raise UpdateError(f"site {label(update.site)} is not registered in this run; its update is ignored.")
    if not _is_count(update.round) or update.round != round:
        said = update.round + 1 if _is_count(update.round) else update.round  # messages to users count from 1
        _refuse(update, f"an update for round {_shown(said)}; round {round + 1} is being aggregated")
    if not _is_count(update.cases) or update.cases != registered[update.site]:
        _refuse(update, f"a count of {_shown(update.cases)} cases; it registered with {registered[update.site]}")


_DIVERGED: Final = "its training diverged; try a smaller training.optimizer.learning_rate."


def _check_names(update: Update, spec: UpdateSpec) -> None:
    if not isinstance(update.tensors, Mapping):
        _refuse(update, "tensors that are not a table by name")
    missing = sorted(spec.tensors.keys() - update.tensors.keys())
    extra = sorted(map(label, update.tensors.keys() - spec.tensors.keys()))
    if missing:
        _refuse(update, f"no value for {len(missing)} shared tensor(s), first {missing[0]}")
    if extra:
        _refuse(update, f"{len(extra)} tensor(s) that this run does not share, first {extra[0]}")


def _check_tensor(site: str, name: str, tensor: object, expected: TensorSpec) -> None:
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        raise UpdateError(f"site {site} sent tensor {name} as {type(tensor).__name__}, not as {expected}.")
    if (sent := TensorSpec.of(tensor)) != expected:
        raise UpdateError(f"site {site} sent tensor {name} as {sent}; expected is {expected}.")
    if not bool(torch.isfinite(tensor).all()):
        raise UpdateError(f"site {site} sent tensor {name} with values that are not finite: {_DIVERGED}")
    if bool((tensor.detach().abs().to(torch.float64) > MAX_MAGNITUDE).any()):
        raise UpdateError(f"site {site} sent tensor {name} with values beyond {MAX_MAGNITUDE:g}: {_DIVERGED}")


def _refuse(update: Update, what: str) -> NoReturn:
    raise UpdateError(f"site {update.site} sent {what}.")


def _is_count(value: Any) -> bool:  # noqa: ANN401 - it came from elsewhere
    return type(value) is int and value >= 0


def _shown(value: object) -> str:
    """A number as text; of any other value only its type, because a text from a site may contain a patient's name."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_SHOWN:
        return str(value)
    return f"<{type(value).__name__}>"
