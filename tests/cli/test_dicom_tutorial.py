"""The commands of docs/dicom.md in their order, on DICOM files that contain a patient's name in every field that can hold one."""

import csv
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from volume_files import CANARY, write_series

from pfedsam.experiment.options import RunOptions

Call = Callable[..., int]
PAGE = Path(__file__).parents[2] / "docs" / "dicom.md"
SHAPE = (32, 24, 4)
AFFINE = np.diag([1.5, 1.5, 5.0, 1.0])


def _patient(folder: Path, name: str, seed: int, *, segmented: bool = True) -> str:
    """A CT with a bright liver, and its DICOM-SEG with two segments; returns the identifier of the series."""
    liver = np.zeros(SHAPE, np.uint8)
    liver[6 : 18 + seed % 12, 8:18, 1:3] = 1
    drawn = np.random.default_rng(seed)
    values = (drawn.normal(-100, 20, SHAPE) + 250 * liver).astype(np.int16)
    series = generate_uid()

    def date(dataset: Dataset, _: int) -> None:
        dataset.AcquisitionDate, dataset.AcquisitionTime = "20240229", "101500"

    files = write_series(
        folder / "images" / name if segmented else folder / name, values, AFFINE, series=series, change=date
    )
    if segmented:
        ids = liver.copy()
        ids[0, 0, 0] = 2  # a segment that the study does not use
        sources = sorted(
            (pydicom.dcmread(file) for file in files.iterdir()), key=lambda one: one.ImagePositionPatient[2]
        )
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        _write_seg(folder / "masks" / f"{name}.dcm", sources, np.moveaxis(ids, 2, 0))
    return series


def _write_seg(path: Path, sources: list[Dataset], ids: np.ndarray) -> None:
    names = ["Liver", "Marker"]
    kind, manual = codes.SCT.Organ, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    segments = [hd.seg.SegmentDescription(n, name, kind, kind, manual) for n, name in enumerate(names, start=1)]
    origin = {
        "manufacturer": "m",
        "manufacturer_model_name": "m",
        "software_versions": "1",
        "device_serial_number": "1",
    }
    hd.seg.Segmentation(sources, ids, "BINARY", segments, generate_uid(), 9, generate_uid(), 1, **origin).save_as(path)


def _second_scan(folder: Path) -> None:
    def date(dataset: Dataset, _: int) -> None:
        dataset.AcquisitionDate, dataset.AcquisitionTime, dataset.SeriesNumber = "20240229", "104530", 2

    write_series(folder, np.zeros(SHAPE, np.int16), AFFINE, change=date, seed=1)


@pytest.fixture
def hospitals(toy_options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The files of the page's first section, in the working folder; returns what the toy model needs in a configuration."""
    monkeypatch.chdir(tmp_path)
    for number in range(1, 5):
        _patient(Path("north"), f"p{number:02d}", number)
        _patient(Path("south"), f"s{number:02d}", 10 + number)
    _second_scan(Path("north/images/p02"))
    for number in (1, 2):
        _patient(Path("new"), f"new{number:02d}", 20 + number, segmented=False)
    content = toy_options.model_dump(mode="json", exclude_unset=True)
    return {"model": content["model"], "training": {"rounds": 1, "steps_per_round": 2, "batch_size": 2}}


def _blocks() -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)


def test_the_page_runs_as_it_stands_and_no_name_leaves_the_headers(
    call: Call, hospitals: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for language, text in _blocks():
        if language == "yaml":
            Path("study.yaml").write_text(yaml.safe_dump(yaml.safe_load(text) | hospitals))
        elif language == "csv":
            Path("north/manifest.csv").write_text(text)
        elif language == "sh":
            expected = int(found.group(1)) if (found := re.search(r"# ends with exit code (\d)", text)) else 0
            assert call(*shlex.split(text, comments=True)[1:]) == expected
            said.append(capsys.readouterr())
        elif language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            rows = csv.DictReader(Path("seg/volumes.csv").read_text().splitlines())
            (row,) = (row for row in rows if row["image"] == "new01")
            assert capsys.readouterr().out == f"liver {row['voxels']} voxels\n"
    listed, refused = (" ".join(text.split()) for text in said[0])
    assert "north: folders that hold several series" in listed
    assert "30 min" in listed
    assert "north: names in the masks" in listed
    assert "│ 2 │ Marker │ 4 │ left out │" in listed
    assert "choose one by data.volume.series" in refused
    for out, err in said:
        assert "Canary" not in out + err
        assert "20240229" not in out + err
    _check_files()
    for name in ("new01", "new02"):
        _check_references(name)


def _check_files() -> None:
    """Only a DICOM-SEG, which is filed under the patient, holds a name of the headers."""
    files = [path for folder in ("runs", "seg") for path in Path(folder).rglob("*") if path.is_file()]
    assert Path("runs/liver/report.html") in files
    holding = {path.name for path in files if b"Canary" in path.read_bytes()}
    assert holding == {"new01.dcm", "new02.dcm"}


def _check_references(name: str) -> None:
    written = pydicom.dcmread(f"seg/{name}.dcm")
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in Path("new", name).iterdir()]
    (referenced,) = written.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in referenced.ReferencedInstanceSequence} == {
        one.SOPInstanceUID for one in sources
    }
    assert written.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert (written.PatientName, written.StudyInstanceUID) == (CANARY, sources[0].StudyInstanceUID)
    assert [one.SegmentLabel for one in written.SegmentSequence] == ["liver"]
