"""The study's manifest: the work of a federation over several machines, and a list of everything that may leave a site.

The coordinator writes the manifest, and the operator of each site approves it. A site refuses a study whose manifest differs from the
approved one, and sends nothing that the manifest does not list.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import Field, ValidationError

from pfedsam.core import sealed
from pfedsam.core.errors import RunError, StoreError
from pfedsam.core.options import Options
from pfedsam.core.small_numbers import OFF
from pfedsam.core.tensors import NamedTensors
from pfedsam.federation.pipeline.build import CommunicationOptions, build_pipeline
from pfedsam.federation.tasks import Task
from pfedsam.federation.update import TensorSpec, UpdateSpec

WITHOUT_PARAMETERS: Final[frozenset[Task]] = frozenset({"join", "summarize"})
"""The tasks that do not need the shared parameters; a request for them does not contain any."""

MAX_MANIFEST_BYTES: Final = 4 * 2**20
CLASSES: Final = "data.classes"
"""The key of the classes in a configuration; their order is that of the model's outputs."""
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SharedTensor(Options):
    """The form of one shared tensor."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "float16", "bfloat16"]


class StudyManifest(Options):
    """The description of a study on which coordinator and sites agree before anything is sent."""

    version: Literal[2] = 2
    study: str = Field(pattern=r"^[0-9a-f]{16}$", description="Identity of configuration and backbone.")
    name: str = Field(description="Title of the study, for messages and reports.")
    method: str = Field(description="Name of the federated method.")
    rounds: int = Field(ge=1, description="Number of rounds of the study.")
    configuration: dict[str, Any] = Field(description="The run's options without the sites' folders.")
    backbone: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the frozen weights.")
    tensors: dict[str, SharedTensor] = Field(description="All shared tensors.")
    components: dict[str, tuple[str, ...]] = Field(description="The shared tensors by component of the model.")
    class_tensors: dict[str, tuple[str, ...]] = Field(
        default={},
        description="Shared tensors that belong to single classes: the class of each row, or the one class of the whole tensor. Each is "
        "averaged over the sites that annotate the class.",
    )
    pipeline: tuple[str, ...] = Field(
        description="The steps that an update goes through before it leaves a site, in order."
    )
    min_cases: int = Field(
        default=OFF,
        ge=1,
        description="Counts and scores over fewer cases than this stay at the site.",
    )
    max_change: float = Field(gt=0, description="Largest L2 norm by which one round may change the shared tensors.")
    scalar_metrics: dict[Task, tuple[str, ...]] = Field(
        description="The scalars that the reply to each task may hold; a site refuses a task that is not listed."
    )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything in the manifest."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @property
    def spec(self) -> UpdateSpec:
        """The specification that every update must match."""
        specs = {n: TensorSpec(tuple(t.shape), _DTYPES[t.dtype]) for n, t in sorted(self.tensors.items())}
        return UpdateSpec(specs, build_pipeline(communication_of(self.configuration)).codec)

    def component_bytes(self) -> dict[str, int]:
        """Bytes of the shared values in an update, by component of the model."""
        sizes = self.spec.sizes
        return {part: sum(sizes[name] for name in names) for part, names in self.components.items()}

    def differences(self, other: "StudyManifest") -> list[str]:
        """The fields in which two manifests differ, configuration keys by their path."""
        return differences(self.model_dump(mode="json"), other.model_dump(mode="json"))


def communication_of(configuration: Mapping[str, Any]) -> CommunicationOptions:
    """The options of the update pipeline in a study's configuration.

    Raises:
        RunError: the configuration contains no valid options of the pipeline.
    """
    try:
        return CommunicationOptions.model_validate(configuration.get("communication", {}))
    except (ValidationError, RecursionError) as error:
        raise RunError("the manifest's configuration does not say how updates are written (communication).") from error


def shared_tensors(values: NamedTensors) -> dict[str, SharedTensor]:
    """The manifest's entries for these shared tensors.

    Raises:
        RunError: the type of a tensor cannot be averaged.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    for name, tensor in values.items():
        if tensor.dtype not in names:
            raise RunError(f"shared tensor {name} has type {tensor.dtype}; allowed are {', '.join(_DTYPES)}.")
    return {
        n: SharedTensor(shape=tuple(t.shape), dtype=names[t.dtype])  # type: ignore[arg-type]
        for n, t in sorted(values.items())
    }


def largest_change(values: NamedTensors, learning_rate: float, steps: int) -> float:
    """An upper bound of the L2 norm by which AdamW changes N values in S steps: 4 eta S sqrt(N).

    One step changes a parameter by at most (1 - beta1) / sqrt(1 - beta2) = 3.2 learning rates (Kingma and Ba, 2015, section 2.1); the
    factor 4 leaves room for the weight decay. The change of an ordinary round is far below this bound.
    """
    count = sum(tensor.numel() for tensor in values.values())
    return 4.0 * learning_rate * steps * math.sqrt(max(1, count))


def write_manifest(path: Path, manifest: StudyManifest) -> None:
    """Write a manifest to a file in one step.

    Raises:
        StoreError: the file could not be written.
    """
    sealed.write_json(path, manifest.model_dump(mode="json"))


def read_manifest(path: Path) -> StudyManifest:
    """The manifest in a file.

    Raises:
        RunError: the file is missing, or is not a manifest.
    """
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise RunError(f"{path.name} has more than the {MAX_MANIFEST_BYTES} bytes that a manifest may have.")
        content = sealed.read_json(path, "Get the study's manifest.json again.")
        return parse_manifest(json.dumps(content).encode())
    except OSError as error:
        raise RunError(f"{path.name} cannot be read: {error.strerror}. Give the study's manifest.json.") from error
    except StoreError as error:
        raise RunError(str(error)) from error
    except RunError as error:
        raise RunError(f"{path.name}: {error} Move the file away, or get the study's manifest.json again.") from error


def parse_manifest(data: bytes) -> StudyManifest:
    """The manifest in a message or a file, whose content is not trusted.

    Raises:
        RunError: the manifest is too long or malformed.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise RunError(f"a manifest of {len(data)} bytes is refused; allowed are {MAX_MANIFEST_BYTES}.")
    try:
        manifest = StudyManifest.model_validate_json(data)
    except (ValidationError, RecursionError) as error:
        raise RunError(
            "this is not a study's manifest, or one of another version of pFedSAM: submit the study again with this version."
        ) from error
    _check_sections(manifest.configuration)
    if manifest.pipeline != build_pipeline(communication_of(manifest.configuration)).describe():
        raise RunError("the manifest's pipeline is not the one of its configuration (communication).")
    _check_tensors(manifest)
    return manifest


def _check_sections(configuration: Mapping[str, Any]) -> None:
    """Check the sections of a study's configuration in which a site replaces values by its own.

    Raises:
        RunError: a section is missing or not a table, or no backbone is named.
    """
    for section in ("data", "model"):
        if not isinstance(configuration.get(section), dict):
            raise RunError(f"the manifest's configuration has no table {section!r}, so it is not that of a study.")
    if not isinstance(configuration["model"].get("backbone"), str):
        raise RunError("the manifest's configuration names no backbone (model.backbone).")


def _check_tensors(manifest: StudyManifest) -> None:
    """Check that the parts of a manifest name the same shared tensors.

    Raises:
        RunError: the components do not contain exactly the shared tensors, or a tensor of single classes is not one of them or does not
            have a row for each of its classes.
    """
    named = list(chain.from_iterable(manifest.components.values()))
    if sorted(named) != sorted(manifest.tensors):
        raise RunError("the manifest's components do not add up to its shared tensors.")
    for name, classes in manifest.class_tensors.items():
        if name not in manifest.tensors or len(classes) not in (1, *manifest.tensors[name].shape[:1]):
            raise RunError(
                "the manifest's tensors of single classes are not among its shared tensors, or of another shape."
            )


def differences(one: object, other: object, path: str = "") -> list[str]:
    """The paths of the keys at which two plain configurations differ; of the classes, the order counts too."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        found = [d for k in keys for d in differences(one.get(k), other.get(k), f"{path}.{k}" if path else str(k))]
        return [path] if path.endswith(CLASSES) and list(one) != list(other) else found
    return [] if one == other else [path]
