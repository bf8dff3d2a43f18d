"""The update: the one message that leaves a site, and every check on it.

An update holds the shared tensors, the number of training cases and a few named scalars; there is no field for
anything else. Server and sites agree beforehand on an `UpdateSpec`: the names, shapes and types of the shared tensors.
On the wire the values follow one another in the spec's order without names, so that a message has room for exactly
these values, and its size is theirs plus a few hundred bytes (with the names it was 4 % longer for a small LoRA).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from pfedsam.core.errors import StoreError, UpdateError
from pfedsam.core.tensors import NamedTensors, from_bytes, to_bytes

METRICS = frozenset({"loss_global", "loss_local", "dice_shared", "dice_personal", "seconds"})
"""The scalars that a site may report; a closed list, because a free name could carry a patient's."""

MAX_CASES = 1_000_000
"""More training cases than any site has; an upper bound on what one site may weigh."""

MAX_MAGNITUDE = 1e6
"""No weight of a network is this large; a value that is was not trained, and would drown every other site's."""

_SCHEMA = "pfedsam-update-1"
_ENVELOPE_BYTES = 4096
_MAX_SCALAR = 1e15


@dataclass(frozen=True)
class Update:
    """What one site sends after its client round."""

    site: str
    round: int
    tensors: NamedTensors
    cases: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TensorSpec:
    """The shape and the type of one shared tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """The size of the tensor's values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


@dataclass(frozen=True)
class UpdateSpec:
    """The shared tensors of a run: what every update must hold, no more and no less."""

    tensors: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, tensors: NamedTensors) -> "UpdateSpec":
        """The spec that these shared tensors fulfil.

        Raises:
            UpdateError: there are none, or one has no floating-point type and so no mean.
        """
        if not tensors:
            raise UpdateError("there are no shared tensors: a run that averages needs at least one.")
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise UpdateError(
                    f"shared tensor {name} has type {tensor.dtype}; only floating-point ones have a mean."
                )
        return cls({name: TensorSpec(tuple(tensors[name].shape), tensors[name].dtype) for name in sorted(tensors)})

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over names, shapes and types."""
        return hashlib.sha256(json.dumps([[name, str(spec)] for name, spec in self._ordered()]).encode()).hexdigest()

    @property
    def payload_bytes(self) -> int:
        """The size of all values."""
        return sum(spec.bytes for spec in self.tensors.values())

    @property
    def max_bytes(self) -> int:
        """The longest message that can be an update of this run."""
        return self.payload_bytes + _ENVELOPE_BYTES

    def pack(self, tensors: NamedTensors) -> torch.Tensor:
        """The values of tensors that fulfil the spec, as bytes one after another: uint8 [payload_bytes]."""
        parts = [tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8) for name, _ in self._ordered()]
        return torch.cat(parts)

    def unpack(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors whose values `pack` put one after another; `values` is uint8 [payload_bytes]."""
        tensors, start = {}, 0
        for name, spec in self._ordered():
            part = values[start : start + spec.bytes]
            tensors[name] = part.clone().view(spec.dtype).reshape(spec.shape)
            start += spec.bytes
        return tensors

    def _ordered(self) -> list[tuple[str, TensorSpec]]:
        return sorted(self.tensors.items())


def encode(update: Update) -> bytes:
    """An update as a message.

    Raises:
        UpdateError: it holds no tensors, or one of another type than floating point.
    """
    spec = UpdateSpec.of(update.tensors)
    envelope = {"site": update.site, "round": update.round, "cases": update.cases, "metrics": dict(update.metrics)}
    metadata = {"schema": _SCHEMA, "spec": spec.digest, "update": json.dumps(envelope, sort_keys=True)}
    return to_bytes({"values": spec.pack(update.tensors)}, metadata)


def decode(data: bytes, spec: UpdateSpec) -> Update:
    """The update in a message; its content still has to pass `check`.

    Raises:
        UpdateError: the message is too long, malformed, or of other shared tensors than this run's.
    """
    try:
        tensors, metadata = from_bytes(data, max_bytes=spec.max_bytes)
        envelope = json.loads(metadata["update"])
        update = Update(tensors={}, **envelope)
    except StoreError as error:
        raise UpdateError(f"an update cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UpdateError("an update cannot be read: its envelope does not have the agreed form.") from error
    values = tensors.get("values")
    if metadata.get("schema") != _SCHEMA or metadata.get("spec") != spec.digest:
        raise UpdateError(
            f"site {label(update.site)} sent an update of another form or of other shared tensors than this run's; its "
            "configuration or its version of pFedSAM differs from the server's: make them equal."
        )
    if len(tensors) != 1 or values is None or values.dtype != torch.uint8 or values.shape != (spec.payload_bytes,):
        raise UpdateError(f"site {label(update.site)} sent other than {spec.payload_bytes} bytes of values.")
    return Update(update.site, update.round, spec.unpack(values), update.cases, update.metrics)


def check(update: Update, spec: UpdateSpec, *, round: int, registered: Mapping[str, int]) -> None:
    """Let an update pass only if it is one that this round can average.

    Args:
        update: what a site sent; nothing in it is trusted, not even the types of its fields.
        spec: the shared tensors of the run.
        round: the round that is being aggregated.
        registered: the number of training cases of each site, as known when the run started.

    Raises:
        UpdateError: naming the site, and the tensor where one is to blame.
    """
    _check_envelope(update, round, registered)
    _check_metrics(update)
    _check_names(update, spec)
    for name, expected in spec.tensors.items():
        _check_tensor(update.site, name, update.tensors[name], expected)


def label(site: object) -> str:
    """A site's name as it may stand in a message: whoever sent it may have put anything there."""
    text = site if isinstance(site, str) else f"<{type(site).__name__}>"
    return "".join(character if character.isprintable() else "?" for character in text[:64]) or "<none>"


def _check_envelope(update: Update, round: int, registered: Mapping[str, int]) -> None:
    if not isinstance(update.site, str) or update.site not in registered:
        raise UpdateError(f"site {label(update.site)} is not registered in this run; its update is ignored.")
    if not _is_count(update.round) or update.round != round:
        _refuse(update, f"an update for round {_shown(update.round)}; round {round} is being aggregated")
    if not _is_count(update.cases) or update.cases != registered[update.site]:
        _refuse(update, f"a count of {_shown(update.cases)} cases; it registered with {registered[update.site]}")


def _check_metrics(update: Update) -> None:
    if not isinstance(update.metrics, Mapping):
        _refuse(update, "metrics that are not a table of numbers")
    if not set(update.metrics) <= METRICS:
        _refuse(update, f"a metric of another name than {', '.join(sorted(METRICS))}")  # the name is not repeated
    for name, value in update.metrics.items():
        if type(value) not in (int, float) or not abs(value) <= _MAX_SCALAR:
            _refuse(update, f"{_shown(value)} as {name}; numbers up to {_MAX_SCALAR:g} are allowed")


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
    if tensor.dtype != expected.dtype or tuple(tensor.shape) != expected.shape:
        sent = TensorSpec(tuple(tensor.shape), tensor.dtype)
        raise UpdateError(f"site {site} sent tensor {name} as {sent}; expected is {expected}.")
    if not bool(torch.isfinite(tensor).all()):
        raise UpdateError(f"site {site} sent tensor {name} with values that are not finite.")
    if bool((tensor.detach().abs().to(torch.float64) > MAX_MAGNITUDE).any()):
        raise UpdateError(
            f"site {site} sent tensor {name} with values beyond {MAX_MAGNITUDE:g}: its training diverged."
        )


def _refuse(update: Update, what: str) -> NoReturn:
    raise UpdateError(f"site {update.site} sent {what}.")


def _is_count(value: Any) -> bool:  # noqa: ANN401 - it came from elsewhere
    return type(value) is int and value >= 0


def _shown(value: object) -> str:
    """A number as it is, anything else by its type only: text from a site may hold a patient's name."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_SCALAR:
        return str(value)
    return f"<{type(value).__name__}>"
