"""The state that a site stores between rounds: local parameters, optimiser state, and the number of the last round.

Each commit writes one new file, a *generation*, which is renamed into place when it is complete, so that no incomplete file can be read.
The last two generations are kept: if both processes stopped while the site was one round ahead of the server, the site returns to the
server's round. Only the owner can read the files, and they are never sent.

A small index file beside the folder lists the generations that must exist, so that a site whose state was lost is reported as damaged and
not treated as a new site. The index is written after the generations; a generation that it does not list yet is valid as well.

Files of earlier versions are migrated step by step when they are read; the next commit is written in the present version.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pfedsam.core import sealed, tensors
from pfedsam.core.errors import StoreError
from pfedsam.core.tensors import NamedTensors

SCHEMA: Final = 4
"""The version of the file format."""

_LOCAL, _OPTIMIZER, _MEMORY, _SHARED = "local:", "optimizer:", "feedback:", "shared:"
_PATTERN = "generation-*.safetensors"


@dataclass(frozen=True)
class SiteState:
    """The state of one site at the end of a phase."""

    study: str
    """The identity of the run or study."""
    site: str
    round: int
    phase: str
    """The phase that was completed."""
    local: NamedTensors
    """The parameters that never leave the site."""
    optimizer: NamedTensors
    """The state of the optimiser."""
    memory: NamedTensors = field(default_factory=dict)
    """The tensors that the steps of the update pipeline keep for the next round (`federation.pipeline`)."""
    shared: NamedTensors = field(default_factory=dict)
    """The shared parameters of an earlier round that the site uses; empty if it uses the received ones (`engine.model_selection`)."""
    shared_round: int | None = None
    """The round after which the site received these shared parameters."""
    best: float | None = None
    """The best validation Dice so far."""
    uses: Literal["personal", "shared"] = "personal"
    """The model that the site uses since this validation."""
    kept: bool = False
    """Whether these parameters are those of an earlier validation, because the current ones were much worse."""


class SiteStore:
    """The folder of one site; only one process at a time may commit to it."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep
        self._index = folder.with_name(f"{folder.name}.json")
        self._remedy = (
            f"With it the site's state ({folder.name}) is lost: bring {folder.name!r} and {self._index.name!r} back from a copy of the "
            f"folder {folder.parent.name!r}; without one, remove both, and the site begins anew."
        )

    def commit(self, state: SiteState) -> None:
        """Commit a state as a new generation in one step, and remove the generations that are no longer kept.

        Raises:
            StoreError: the state could not be written; the earlier generations are intact.
        """
        named = {_LOCAL + name: tensor for name, tensor in state.local.items()}
        named |= {_OPTIMIZER + name: tensor for name, tensor in state.optimizer.items()}
        named |= {_MEMORY + name: tensor for name, tensor in state.memory.items()}
        named |= {_SHARED + name: tensor for name, tensor in state.shared.items()}
        before = self._generations()
        number = max(before, default=0) + 1
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the folder of site {state.site} cannot be made: {error.strerror}.") from error
        if not self._index.exists():
            self._write_index(())
        tensors.save(self._file(number), named, {"state": _describe(state)})
        self._write_index((*before, number)[-self.keep :])
        self._prune()

    def load(self, *, round: int | None = None) -> SiteState | None:
        """The state that was committed last, or the last one of a given round; None if there is no such state.

        Args:
            round: the round; only the stored generations are searched.

        Raises:
            StoreError: a generation is damaged, missing or of another version.
        """
        for number in reversed(self._checked()):
            state = self._read(number)
            if round is None or state.round == round:
                return state
        return None

    def rewind(self, round: int) -> SiteState | None:
        """The last state of a round; later states are removed, so that the following round can be repeated.

        For a site that missed rounds, this is the state of the nearest earlier round.

        Raises:
            StoreError: a generation is damaged, missing or of another version.
        """
        numbers = self._checked()
        while numbers:
            state = self._read(numbers[-1])
            if state.round <= round:
                return state
            removed = numbers.pop()
            self._write_index(numbers)
            self._file(removed).unlink()
        return None

    def _checked(self) -> list[int]:
        """The numbers of the stored generations, after a check that all generations in the index exist.

        Raises:
            StoreError: a generation is missing, or the index is damaged or missing.
        """
        there = self._generations()
        if not self._index.exists():
            if there and _schema(self._file(there[-1])) > 2:  # earlier versions had no index
                raise StoreError(f"{self._index.name} is missing. {self._remedy}")
            return there
        missing = [self._file(number).name for number in self._read_index() if number not in there]
        if missing:
            raise StoreError(f"{' and '.join(missing)} of {self.folder.name!r} is missing. {self._remedy}")
        return there

    def _read_index(self) -> list[int]:
        """The numbers of the generations that the index lists.

        Raises:
            StoreError: the index is damaged.
        """
        content = sealed.read_json(self._index, self._remedy)
        named = content.get("generations")
        if set(content) != {"generations"} or not isinstance(named, list) or not all(type(n) is int for n in named):
            raise StoreError(f"{self._index.name} is damaged: it does not name the generations. {self._remedy}")
        return named

    def _read(self, number: int) -> SiteState:
        try:
            return _read(self._file(number))
        except StoreError as error:
            raise StoreError(f"{error} {self._remedy}") from error

    def _write_index(self, numbers: Sequence[int]) -> None:
        sealed.write_json(self._index, {"generations": list(numbers)})

    def _file(self, number: int) -> Path:
        return self.folder / f"generation-{number:06d}.safetensors"

    def _generations(self) -> list[int]:
        numbers = [path.stem.removeprefix("generation-") for path in self.folder.glob(_PATTERN)]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def _prune(self) -> None:
        old = [self._file(number) for number in self._generations()[: -self.keep]]
        # Temporary files of a process that was killed.
        interrupted = [
            *self.folder.glob(f".{_PATTERN}.*.tmp"),
            *self.folder.parent.glob(f".{self._index.name}.*.tmp"),
        ]
        for path in [*old, *interrupted]:
            with contextlib.suppress(OSError):  # the commit is complete; the next one tries again to remove the file
                path.unlink()


def _describe(state: SiteState) -> str:
    try:
        return json.dumps(
            {
                "schema": SCHEMA,
                "study": state.study,
                "site": state.site,
                "round": state.round,
                "phase": state.phase,
                "shared_round": state.shared_round,
                "best": state.best,
                "uses": state.uses,
                "kept": state.kept,
            },
            allow_nan=False,
        )
    except (TypeError, ValueError) as error:
        raise StoreError(f"the state of site {state.site} holds what JSON cannot: {error}.") from error


def _read(path: Path) -> SiteState:
    """The state in a file.

    Raises:
        StoreError: the file is damaged or of another version.
    """
    named, metadata = tensors.load(path, unsealed=("state",))
    try:
        described = _migrated(json.loads(metadata["state"]), named, path.name)
        kinds = {"local": _LOCAL, "optimizer": _OPTIMIZER, "memory": _MEMORY, "shared": _SHARED}
        parts: dict[str, Any] = {kind: _part(named, prefix) for kind, prefix in kinds.items()}
        return SiteState(**parts, **described)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{path.name} is not a site's state.") from error


def _migrated(described: dict[str, Any], named: NamedTensors, file: str) -> dict[str, Any]:
    """The description of a state, migrated to the present version.

    Raises:
        StoreError: the state is of a later version, or the digest that states before version 3 contain is not that of the tensors.
    """
    schema, digest = described.pop("schema"), described.pop("digest", None)
    if schema != SCHEMA and schema not in MIGRATIONS:
        raise StoreError(
            f"{file} has version {schema} and this pFedSAM reads up to {SCHEMA}: use the version that wrote it."
        )
    if schema < 3 and digest != tensors.digest(named):  # files since version 3 have a digest of their whole content
        raise StoreError(f"{file} is damaged: it does not have the digest that was written with it.")
    for version in range(schema, SCHEMA):
        described = MIGRATIONS[version](described)
    return described


def _schema(path: Path) -> int:
    """The version of a state file; if the file cannot be read, the present version, because the error is reported when it is loaded."""
    try:
        return int(json.loads(tensors.load(path, unsealed=("state",))[1]["state"])["schema"])
    except (StoreError, KeyError, TypeError, ValueError):
        return SCHEMA


def _from_1(described: dict[str, Any]) -> dict[str, Any]:
    """Migrate version 1, which had a table `extra` that was always empty, and no record of an earlier model in use."""
    return {name: value for name, value in described.items() if name != "extra"} | {"shared_round": None, "best": None}


def _from_3(described: dict[str, Any]) -> dict[str, Any]:
    """Migrate version 3, in which the phase named the model in use (`good-shared`), and whether it is an earlier one (`kept`)."""
    phase = str(described["phase"])
    selected = phase.removesuffix("-shared") in {"good", "kept"}
    return described | {
        "phase": "validation" if selected else phase,
        "uses": "shared" if selected and phase.endswith("-shared") else "personal",
        "kept": selected and phase.startswith("kept"),
    }


MIGRATIONS: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {1: _from_1, 2: dict, 3: _from_3}
"""Version -> the function that migrates a state's description to the next version."""


def _part(named: NamedTensors, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
