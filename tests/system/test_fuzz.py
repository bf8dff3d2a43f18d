"""Row 27 of docs/reliability.md: 28,000 inputs from elsewhere, each of which is read or refused by an error of this package."""

import gzip
import io
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from volume_files import write_nifti, write_series

from pfedsam.core import tensors
from pfedsam.core.errors import PfedsamError
from pfedsam.core.yaml_files import parse_yaml
from pfedsam.data.images import ImageOptions, read_image, read_mask
from pfedsam.data.readers import open_volume
from pfedsam.data.volume import Volume
from pfedsam.data.volume_options import VolumeOptions
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.scalar_metrics import check_values, to_summaries
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.load import validate
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.codec import Codec
from pfedsam.federation.manifest import parse_manifest
from pfedsam.federation.messages import Reply, reply_from_wire, reply_to_wire
from pfedsam.federation.update import Update, UpdateSpec, check, decode, encode

pytestmark = pytest.mark.system
EACH = 4000
FUZZ = settings(
    max_examples=EACH, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
NUMBERS = st.one_of(
    st.integers(),
    st.integers(10**20, 10**500),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
)
JSON = st.recursive(
    NUMBERS, lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=4) | st.lists(inner, max_size=4)
)
KINDS = {"configuration", "manifest", "update", "reply", "image", "nifti", "dicom"}
slowest: dict[str, float] = {}


def survives(name: str, read: Callable[[], object]) -> None:
    """Read something: it may be refused by an error of this package; anything else fails the test."""
    started = time.monotonic()
    with suppress(PfedsamError, ValidationError):
        read()
    slowest[name] = max(slowest.get(name, 0.0), time.monotonic() - started)


def bent(data: st.DataObject, good: bytes) -> bytes:
    """A good piece with some bytes changed, cut off, put in or repeated."""
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(changed) - 1)))
        how = data.draw(st.sampled_from(["set", "cut", "put", "repeat"]))
        if how == "set" and changed:
            changed[place] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del changed[place : place + data.draw(st.integers(1, 64))]
        elif how == "put":
            changed[place:place] = data.draw(st.binary(max_size=16))
        else:
            changed[place:place] = changed[place : place + data.draw(st.integers(1, 64))]
    return bytes(changed)


def replaced(data: st.DataObject, value: object) -> object:
    """A good value with one part, however deep, replaced by anything."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: replaced(data, value[key])}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], replaced(data, value[place]), *value[place + 1 :]]
    return data.draw(JSON)


@pytest.fixture(scope="module")
def content(toy_folder: Path) -> dict:
    return {
        "name": "fuzz",
        "data": {"sites": {"north": str(toy_folder)}, "classes": {"a": [1], "b": [2, 3]}, "patient_pattern": "^(.)"},
        "training": {"rounds": 3, "optimizer": {"learning_rate": 1e-3}},
        "communication": {"codec": "int4"},
        "evaluation": {"max_drop": 0.1},
    }


@FUZZ
@given(data=st.data())
def test_configurations(content: dict, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        survives("configuration", lambda: validate(RunOptions, replaced(data, content), "x"))  # type: ignore[arg-type]
    else:
        text = bent(data, json.dumps(content).encode()).decode("utf-8", "replace")
        survives("configuration", lambda: validate(RunOptions, parse_yaml(text), "x"))


@pytest.fixture(scope="module")
def manifest(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    sites = {path.name: str(path) for path in (toy_folder / "sites").iterdir() if path.is_dir()}
    options = {
        "data": {"sites": sites, "classes": {"a": [1]}},
        "model": {"backbone": str(toy_folder / "backbone"), "adapt_last": 1},
    }
    study = create_study(RunOptions.model_validate(options), tmp_path_factory.mktemp("fuzz"), RoundPolicy())
    return (study / "manifest.json").read_bytes()


@FUZZ
@given(data=st.data())
def test_manifests(manifest: bytes, data: st.DataObject) -> None:
    changed = bent(data, manifest)
    if data.draw(st.booleans()):
        changed = json.dumps(replaced(data, json.loads(manifest))).encode()

    def read() -> None:
        found = parse_manifest(changed)
        assert found.digest
        assert found.spec
        assert found.component_bytes()

    survives("manifest", read)


RECEIVED = {"lora.a": torch.linspace(-1, 1, 30).reshape(5, 6), "token": torch.zeros(3)}


@FUZZ
@given(data=st.data(), name=st.sampled_from(["fp32", "fp16", "int8", "int4"]))
def test_updates(data: st.DataObject, name: str) -> None:
    codec = Codec(name, 8)  # type: ignore[arg-type]
    spec = UpdateSpec.of(RECEIVED, codec)
    changed = bent(data, encode(Update("north", 2, RECEIVED, 7), codec, RECEIVED))

    def read() -> None:
        update = decode(changed, spec, RECEIVED, max_change=1.0)
        check(update, spec, round=2, registered={"north": 7})
        assert set(update.tensors) == set(RECEIVED)

    survives("update", read)
    survives("update", lambda: tensors.from_bytes(changed, max_bytes=10**6))


MEASURES = ("dice", "iou", "hd95", "assd")
NAMES = ("cases", "unit", *(f"{g}.{p}{m}" for g in ("mean", "class.a") for m in MEASURES for p in ("", "undefined_")))


@FUZZ
@given(data=st.data())
def test_replies(data: st.DataObject) -> None:
    names = {f"test.shared.{name}": data.draw(NUMBERS) for name in NAMES}
    wire: dict = reply_to_wire(Reply("test", "0123456789abcdef", 1))
    head = {**json.loads(wire["head"]), "scalar_metrics": names}
    if data.draw(st.booleans()):
        wire["head"] = bent(data, json.dumps(head).encode())
    else:
        wire["head"] = json.dumps(replaced(data, head)).encode()

    def read() -> None:
        reply = reply_from_wire(wire)
        check_values(reply.scalar_metrics)
        if set(reply.scalar_metrics) == set(names):
            to_summaries(reply.scalar_metrics, ("a",))

    survives("reply", read)


def pictures() -> list[tuple[str, bytes]]:
    noise = np.random.default_rng(0).integers(0, 255, (9, 11, 3), np.uint8)
    made = []
    for suffix, image, options in (
        (".png", Image.fromarray(noise), {}),
        (".png", Image.fromarray(noise[..., 0].astype(np.uint16) * 200), {}),
        (".jpg", Image.fromarray(noise), {}),
        (".tif", Image.fromarray(noise), {"compression": "tiff_lzw"}),
        (".tif", Image.fromarray(noise[..., 0]), {}),
    ):
        file = io.BytesIO()
        image.save(file, {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}[suffix], **options)
        made.append((suffix, file.getvalue()))
    return made


PICTURES = pictures()
NIFTI_ENDINGS = (".nii", ".nii.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@FUZZ
@given(data=st.data(), which=st.integers(0, len(PICTURES) - 1))
def test_image_headers(folder: Path, data: st.DataObject, which: int) -> None:
    suffix, good = PICTURES[which]
    path = folder / f"x{suffix}"
    path.write_bytes(bent(data, good[: len(good) // 2]) + good[len(good) // 2 :])
    survives("image", lambda: read_image(path, max_megapixels=1))
    survives("image", lambda: read_mask(path, max_megapixels=1))


@pytest.fixture(scope="module")
def nifti_files(folder: Path) -> list[tuple[str, bytes]]:
    """A plain and a compressed volume of 5 x 4 x 3 voxels."""
    values = np.random.default_rng(0).integers(0, 900, (5, 4, 3)).astype(np.int16)
    files = [write_nifti(folder / f"good{ending}", values, np.diag([1.0, 1.5, 4.0, 1.0])) for ending in NIFTI_ENDINGS]
    return [(ending, path.read_bytes()) for ending, path in zip(NIFTI_ENDINGS, files, strict=True)]


@FUZZ
@given(data=st.data(), which=st.integers(0, 1))
def test_nifti_files(folder: Path, nifti_files: list[tuple[str, bytes]], data: st.DataObject, which: int) -> None:
    ending, good = nifti_files[which]
    path = folder / f"volume{ending}"
    if ending.endswith(".gz") and data.draw(st.booleans()):
        path.write_bytes(gzip.compress(bent(data, gzip.decompress(good)), 1))
    else:
        path.write_bytes(bent(data, good))
    survives("nifti", lambda: read_all_slices(path))


@pytest.fixture(scope="module")
def dicom_file(folder: Path) -> bytes:
    """The first of a series of three slices of 5 x 4 pixels."""
    values = np.random.default_rng(0).integers(0, 900, (5, 4, 3)).astype(np.int16)
    series = write_series(folder / "series", values, np.diag([1.0, 1.5, 4.0, 1.0]))
    return sorted(series.iterdir())[0].read_bytes()


@FUZZ
@given(data=st.data())
def test_dicom_files(folder: Path, dicom_file: bytes, data: st.DataObject) -> None:
    path = folder / "series" / "0-bent.dcm"
    path.write_bytes(bent(data, dicom_file))
    survives("dicom", lambda: read_all_slices(path))
    survives("dicom", lambda: read_all_slices(path.parent))


def read_all_slices(path: Path) -> None:
    """Open a volume as the loader does, and decode all of it."""
    options = VolumeOptions()
    volume = Volume([open_volume(path, options)], options, ImageOptions())
    for number in range(volume.shape[0]):
        assert np.isfinite(volume.pixels(number)).all()


def test_all_of_them_were_quick(result: Callable[..., None]) -> None:
    """The slowest piece of each kind, in seconds."""
    assert set(slowest) == KINDS
    late = {name: round(found, 2) for name, found in slowest.items() if found > 1}
    part = {27: f"no other exception; slower than 1 s: {late}"} if late else {}
    result(27, in_part=part, fuzz_cases=len(KINDS) * EACH, fuzz_slowest_s=round(max(slowest.values()), 3))
