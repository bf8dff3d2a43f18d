"""`pfedsam predict` on NIfTI files and DICOM series: which files are written, and their position in space."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset
from torch import Tensor
from volume_files import write_enhanced, write_nifti, write_series

from pfedsam.cli import predicting
from pfedsam.core.errors import DataError, OptionError, StoreError
from pfedsam.data.examples import VolumeExamples
from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.trained_on import TrainedOn
from pfedsam.data.volume import Volume
from pfedsam.data.volume_case import open_case
from pfedsam.data.volume_options import VolumeOptions
from pfedsam.engine.predict_jobs import Job
from pfedsam.engine.predict_volume import PredictedVolume
from pfedsam.evaluation.predict import flip_mean, predict_volume
from pfedsam.evaluation.regions import clean_regions
from pfedsam.experiment.build import single_regions
from pfedsam.experiment.load import load_options

Call = Callable[..., int]
VALUES = np.random.default_rng(0).integers(0, 2000, (9, 10, 6)).astype(np.int16)
AFFINE = np.array([[1.0, 0, 0, -5], [0, 1.5, 0, 7], [0, 0, 4, 30], [0, 0, 0, 1]])
SIDE = 24


def _forward(pixels: Tensor) -> Tensor:
    """Two classes whose place in the picture matters: bright pixels, of class 2 in the upper left triangle."""
    ramp = torch.linspace(-1, 1, SIDE)
    upper = (ramp[:, None] + ramp[None, :] < -0.2).float()
    bright = 20 * (pixels[:, 0] - 0.55)
    return torch.stack([bright, bright + 4 * upper - 2], dim=1)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes every folder a run whose model is `_forward`."""
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(
        "data: {sites: {north: north}, classes: {liver: [5], spleen: [300]}}\nevaluation: {batch_size: 4}\n"
    )

    def open_run(_: Path, overrides: list[str]) -> SimpleNamespace:
        options = load_options(Path("study.yaml"), overrides)

        def volume(case, predict_options, tell):
            data = options.data
            slices = VolumeExamples([case], labels=None, image=data.image, side=SIDE, options=data.volume)
            forward = flip_mean(_forward) if options.evaluation.flips else _forward
            overlap = data.overlap
            found = predict_volume(
                forward, slices, batch_size=4, probabilities=predict_options.probabilities, overlap=overlap, tell=tell
            )
            single = single_regions(options)
            classes = clean_regions(found.classes, smallest=predict_options.smallest, single=single, overlap=overlap)
            return PredictedVolume(open_case(case, data.image, data.volume), classes, found.probabilities)

        known = TrainedOn.read(tmp_path)
        site = SimpleNamespace(options=options, name="north", predict_volume=volume, uses="personal", trained_on=known)
        return SimpleNamespace(site=lambda *_: site)

    monkeypatch.setattr("pfedsam.engine.opened.open_run", open_run)


def _predict(call: Call, *arguments: str) -> int:
    return call("predict", "run", *arguments, "--site", "north", "--out", "masks")


def _rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((Path("masks") / name).read_text().splitlines()))


def _canonical(path: Path) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


@pytest.mark.slow
def test_48_orientations_come_back_on_their_own_grid(call: Call, run: None) -> None:
    write_nifti(Path("nifti/reference.nii.gz"), VALUES, AFFINE)
    orientations = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
    affines = {}
    for number, (order, signs) in enumerate(orientations):
        image = nib.Nifti1Image(VALUES, AFFINE).as_reoriented(np.array(list(zip(order, signs, strict=True))))
        write_nifti(Path(f"nifti/n{number}.nii"), np.asarray(image.dataobj), image.affine)
        write_series(Path(f"dicom/d{number}"), np.asarray(image.dataobj), image.affine, seed=number)
        affines[number] = image.affine
    assert _predict(call, "nifti", "dicom", "--set", "data.volume.axis=axial") == 0
    reference = _canonical(Path("masks/reference.nii.gz"))
    assert {0, 5, 300} == set(np.unique(reference))
    for number, affine in affines.items():
        written = nib.load(f"masks/n{number}.nii.gz")
        np.testing.assert_allclose(written.affine, affine, atol=1e-6)
        assert written.get_data_dtype() == np.uint16
        for name in (f"n{number}", f"d{number}"):
            np.testing.assert_array_equal(_canonical(Path(f"masks/{name}.nii.gz")), reference)


def test_tables_probabilities_flips_and_clean_parts(call: Call, run: None) -> None:
    write_nifti(Path("a.nii.gz"), VALUES, AFFINE)
    flags = ("--probabilities", "--tta", "--smallest", "3")
    overrides = ("--set", "data.volume.axis=axial", "--set", "data.augment.flips=true")  # trained with mirrored slices
    assert _predict(call, "a.nii.gz", *flags, *overrides) == 0
    mask = np.asarray(nib.load("masks/a.nii.gz").dataobj)
    rows = _rows("volumes.csv")
    assert [row["structure"] for row in rows] == ["liver", "spleen"]
    for row, value in zip(rows, (5, 300), strict=True):
        assert int(row["voxels"]) == (mask == value).sum()
        assert float(row["volume_ml"]) == pytest.approx((mask == value).sum() * 6 / 1000)
    areas = [row for row in _rows("areas.csv") if row["structure"] == "liver"]
    assert sum(float(row["area_mm2"]) for row in areas) == pytest.approx((mask == 5).sum() * 1.5)
    maps = np.asarray(nib.load("masks/a_probabilities.nii.gz").dataobj)
    assert maps.shape == (9, 10, 6, 2)
    assert maps.min() >= 0
    assert maps.sum(axis=3).max() <= 1 + 1e-6
    assert (maps[mask == 5].argmax(axis=1) == 0).all()


def test_mirror_images_are_refused_once_for_a_model_of_volumes(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default slices are not mirrored for training, so that the option is wrong, and not the images."""
    for name in ("a", "b"):
        write_nifti(Path(f"new/{name}.nii.gz"), VALUES, AFFINE)
    assert _predict(call, "new", "--tta") == 2
    said = capsys.readouterr()
    assert " ".join(said.err.split()).count("evaluation.flips (--tta) averages predictions over mirror images") == 1
    assert "Model:" not in said.out
    assert not Path("masks").exists()


def test_images_that_are_no_dicom_files_get_no_seg_and_the_output_says_so(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nifti(Path("new/a.nii.gz"), VALUES, AFFINE)
    write_series(Path("new/b"), VALUES, AFFINE)
    assert _predict(call, "new", "--dicom-seg") == 0
    assert "--dicom-seg has no effect on 1 image(s) that are no DICOM files" in capsys.readouterr().out
    assert {path.name for path in Path("masks").iterdir()} >= {"a.nii.gz", "b.dcm"}
    assert _predict(call, "new/b", "--dicom-seg", "--resume") == 0
    assert "no effect" not in capsys.readouterr().out


def test_probabilities_of_a_series_lie_on_the_grid_of_its_mask(call: Call, run: None) -> None:
    write_series(Path("scan"), VALUES, AFFINE)
    assert _predict(call, "scan", "--probabilities") == 0
    mask, maps = nib.load("masks/scan.nii.gz"), nib.load("masks/scan_probabilities.nii.gz")
    np.testing.assert_array_equal(maps.affine, mask.affine)
    ids, shares = np.asarray(mask.dataobj), np.asarray(maps.dataobj)
    assert shares.shape == (*ids.shape, 2)
    for number, value in enumerate((5, 300)):
        assert (shares[ids == value].argmax(axis=1) == number).all()
        assert (shares[ids == value].max(axis=1) > 1 / 3).all()


OVERLAP = ("--set", "data.volume.axis=axial", "--set", "data.overlap=true")


def test_classes_that_overlap_have_a_mask_each(call: Call, run: None) -> None:
    write_nifti(Path("a.nii.gz"), VALUES, AFFINE)
    assert _predict(call, "a.nii.gz", "--probabilities", *OVERLAP) == 0
    maps = np.asarray(nib.load("masks/a_probabilities.nii.gz").dataobj)
    liver, spleen = (nib.load(f"masks/{name}/a.nii.gz") for name in ("liver", "spleen"))
    np.testing.assert_array_equal(np.asarray(liver.dataobj), np.where(maps[..., 0] > 0.5, 5, 0))
    np.testing.assert_array_equal(np.asarray(spleen.dataobj), np.where(maps[..., 1] > 0.5, 300, 0))
    both = (np.asarray(liver.dataobj) > 0) & (np.asarray(spleen.dataobj) > 0)
    assert both.any()
    assert not both.all()
    np.testing.assert_allclose(spleen.affine, AFFINE, atol=1e-6)
    for row, mask in zip(_rows("volumes.csv"), (liver, spleen), strict=True):
        assert int(row["voxels"]) == np.count_nonzero(np.asarray(mask.dataobj))


def test_classes_that_overlap_are_overlapping_segments_of_one_dicom_seg(call: Call, run: None) -> None:
    write_series(Path("series"), VALUES, AFFINE)
    assert _predict(call, "series", *OVERLAP) == 0
    assert _predict(call, "series", "--dicom-seg", *OVERLAP) == 0
    image = open_volume(Path("series"), VolumeOptions())
    segments = VolumeOptions(segments={"liver": 1, "spleen": 2}, sum_segments=True)
    planes = range(image.header().shape[2])

    def ids(path: str, options: VolumeOptions) -> np.ndarray:
        mask = open_mask(Path(path), image, options)
        return np.stack([mask.mask_slice(k) for k in planes])

    together = ids("masks/series.dcm", segments)
    liver, spleen = (ids(f"masks/{name}/series.nii.gz", VolumeOptions()) > 0 for name in ("liver", "spleen"))
    assert (together == 3).any()
    np.testing.assert_array_equal(together, liver + 2 * spleen)


def test_nothing_of_a_class_that_overlaps_is_overwritten_and_resuming_skips_it(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nifti(Path("a.nii.gz"), VALUES, AFFINE)
    assert _predict(call, "a.nii.gz", *OVERLAP) == 0
    assert _predict(call, "a.nii.gz", *OVERLAP) == 2
    assert "exists already" in " ".join(capsys.readouterr().err.split())
    assert _predict(call, "a.nii.gz", "--resume", *OVERLAP) == 0
    assert "1 image(s) had a mask already" in capsys.readouterr().out


def test_masks_of_overlapping_classes_of_which_some_were_written_are_completed(call: Call, run: None) -> None:
    write_nifti(Path("a.nii.gz"), VALUES, AFFINE)
    assert _predict(call, "a.nii.gz", *OVERLAP) == 0
    masks = [Path(f"masks/{name}/a.nii.gz") for name in ("liver", "spleen")]
    before = [nib.load(mask).get_fdata() for mask in masks]
    masks[1].unlink()  # as if the call had been interrupted between the two
    assert _predict(call, "a.nii.gz", "--resume", *OVERLAP) == 0
    for mask, values in zip(masks, before, strict=True):
        np.testing.assert_array_equal(nib.load(mask).get_fdata(), values)


def test_an_image_that_the_model_cannot_segment_does_not_stop_the_others(
    call: Call, run: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = predicting._predict

    def refuse_a(job: Job, *rest: object) -> Path:
        if job.stem == "a":
            raise OptionError("a.nii.gz is a volume, and the model is one of tiles")
        return segment(job, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(predicting, "_predict", refuse_a)
    for name in ("a", "b"):
        write_nifti(Path(f"{name}.nii.gz"), VALUES, AFFINE)
    assert _predict(call, "a.nii.gz", "b.nii.gz") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "1 mask(s) written; 1 image(s) could not be segmented" in said
    assert "'a.nii.gz': a.nii.gz is a volume, and the model is one of tiles" in said
    assert Path("masks/b.nii.gz").exists()


@pytest.mark.parametrize("flags", [(), ("--probabilities",)])
def test_an_image_whose_results_cannot_be_written_does_not_stop_the_others(
    call: Call, run: None, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    long = "l" * 250  # its mask l....nii.gz has 257 bytes, and a name of Linux at most 255
    for name in (f"{long}.nii", "ok.nii"):
        write_nifti(Path("new") / name, VALUES, AFFINE)
    assert _predict(call, "new", *flags) == 3
    said = "".join(capsys.readouterr().err.split())
    assert f"1mask(s)written;1image(s)couldnotbesegmented:'{long}.nii':{long}" in said
    assert Path("masks/ok.nii.gz").exists()
    assert {row["image"] for row in _rows("volumes.csv")} == {"ok"}


def test_a_volume_whose_name_is_not_utf8_is_refused_and_does_not_stop_the_others(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs of Windows write names in its own encoding, in which the byte 0xFC is a letter."""
    name = os.fsdecode(b"M\xfcller.nii")
    for one in (name, "Z.nii"):
        write_nifti(Path("new") / one, VALUES, AFFINE)
    assert _predict(call, "new") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"1 image(s) could not be segmented: {name!r} or its folder has a name that is not UTF-8" in said
    assert {path.name for path in Path("masks").glob("*.nii.gz")} == {"Z.nii.gz"}
    assert {row["image"] for row in _rows("volumes.csv")} == {"Z"}


def test_series_of_a_folder_a_bad_one_among_them_and_resuming(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(Path("scans/both"), VALUES, series="1.2.1")
    write_series(Path("scans/both"), VALUES[:8], series="1.2.2")
    firsts = sorted(path.name for path in Path("scans/both").iterdir())
    bad = write_series(Path("scans/bad"), VALUES)
    next(bad.iterdir()).unlink()  # the names are shuffled: a slice in the middle, or an end
    (bad / "zz").write_bytes(b"\0" * 128 + b"DICM")
    write_nifti(Path("scans/ok.nii.gz"), VALUES, AFFINE)
    assert _predict(call, "scans") == 3
    said = capsys.readouterr()
    assert "'zz' is a damaged or cut off DICOM file" in " ".join(said.err.split())
    assert "Canary" not in said.err + said.out
    for number in (1, 2):
        assert f"both (series of {firsts[number - 1]}) -> masks/both_series{number}.nii.gz" in " ".join(
            said.out.split()
        )
    shutil.rmtree(bad)
    assert _predict(call, "scans/*", "--resume") == 0
    assert sorted(path.name for path in Path("masks").glob("*.nii.gz")) == [
        "both_series1.nii.gz",
        "both_series2.nii.gz",
        "ok.nii.gz",
    ]
    before = Path("masks/ok.nii.gz").stat().st_mtime_ns
    assert _predict(call, "scans") == 2
    assert _predict(call, "scans", "--resume") == 0
    assert "3 image(s) had a mask already" in capsys.readouterr().out
    assert Path("masks/ok.nii.gz").stat().st_mtime_ns == before
    assert len(_rows("volumes.csv")) == 3 * 2


@pytest.mark.parametrize("table", ["volumes.csv", "areas.csv"])
@pytest.mark.parametrize("content", ["image,ml\n", "Größe;Bild\n", 'image,"a\n'])
def test_a_table_of_another_program_is_refused_before_a_volume_is_segmented(
    call: Call, run: None, capsys: pytest.CaptureFixture[str], table: str, content: str
) -> None:
    write_nifti(Path("scan.nii.gz"), VALUES, AFFINE)
    Path("masks").mkdir()
    (Path("masks") / table).write_bytes(content.encode("latin-1"))
    assert _predict(call, "scan.nii.gz") == 3
    assert f"'{table}' in the output folder is another table" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in Path("masks").iterdir()] == [table]


def test_dicom_seg_is_read_back_equal_by_us_and_by_dcmqi(call: Call, run: None) -> None:
    write_series(Path("scan"), VALUES, AFFINE)
    assert _predict(call, "scan") == 0
    assert _predict(call, "scan", "--dicom-seg") == 0
    options = VolumeOptions()
    image = open_volume(Path("scan"), options)
    found = open_mask(Path("masks/scan.dcm"), image, options)
    expected = open_mask(Path("masks/scan.nii.gz"), image, options)
    ids = np.stack([found.mask_slice(k) for k in range(VALUES.shape[2])])
    wanted = np.stack([expected.mask_slice(k) for k in range(VALUES.shape[2])])
    np.testing.assert_array_equal(ids, np.searchsorted([0, 5, 300], wanted))
    tool = Path(sys.executable).parent / "segimage2itkimage"
    if not tool.exists():
        pytest.skip("dcmqi is not installed")
    subprocess.run(
        [tool, "--inputDICOM", "masks/scan.dcm", "--outputDirectory", ".", "--prefix", "q", "--outputType", "nii"],
        check=True,
        capture_output=True,
    )
    written = nib.load("masks/scan.nii.gz")
    for number, value in ((1, 5), (2, 300)):
        theirs = nib.load(f"q-{number}.nii.gz" if Path(f"q-{number}.nii.gz").exists() else f"q-{number}.nii")
        points = np.argwhere(np.asarray(theirs.dataobj) > 0)
        there = np.linalg.inv(written.affine) @ theirs.affine @ np.c_[points, np.ones(len(points))].T
        mine = np.zeros(written.shape, bool)
        mine[tuple(np.rint(there[:3]).astype(int))] = True
        np.testing.assert_array_equal(mine, np.asarray(written.dataobj) == value)


def test_a_picture_without_a_position_gets_a_png_and_that_is_what_is_printed(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(dataset: Dataset, _: int) -> None:
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.SliceThickness

    write_series(Path("leg"), VALUES[..., :1], change=change)
    assert _predict(call, "leg") == 0
    assert "leg -> masks/leg.png" in capsys.readouterr().out
    assert sorted(path.name for path in Path("masks").iterdir()) == [
        ".volumes.csv.lock",
        "areas.csv",
        "leg.png",
        "series.csv",
        "volumes.csv",
    ]
    assert {row["volume_ml"] for row in _rows("volumes.csv")} == {""}  # a picture without a thickness has no volume
    assert all(float(row["area_mm2"]) > 0 for row in _rows("areas.csv"))
    assert _predict(call, "leg") == 2
    assert "would overwrite" in capsys.readouterr().err
    assert _predict(call, "leg", "--resume") == 0


def test_every_stack_of_a_file_is_predicted_and_no_seg_refers_to_a_part_of_one(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_kind(kind: str) -> Dataset:
        own, group = Dataset(), Dataset()
        group.FrameType, own.MRImageFrameTypeSequence = ["ORIGINAL", "PRIMARY", kind, "NONE"], [group]
        return own

    frames = [(VALUES[..., k], 4.0 * k, of_kind(kind)) for k in range(3) for kind in "MP"]
    write_enhanced(Path("scan"), frames).rename("both")
    assert _predict(call, "both") == 0
    assert sorted(path.name for path in Path("masks").glob("*.nii.gz")) == [
        "both_series1.nii.gz",
        "both_series2.nii.gz",
    ]
    capsys.readouterr()
    assert _predict(call, "both", "--dicom-seg") == 3
    assert "a part of the frames of a multi-frame DICOM file" in " ".join(capsys.readouterr().err.split())


def test_files_with_one_identifier_get_no_seg(call: Call, run: None, capsys: pytest.CaptureFixture[str]) -> None:
    def same(dataset: Dataset, _: int) -> None:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"

    write_series(Path("scan"), VALUES, change=same)
    assert _predict(call, "scan", "--dicom-seg") == 3
    assert "have one SOP instance UID" in " ".join(capsys.readouterr().err.split())


def test_an_image_without_a_seg_is_refused_by_name_before_it_is_segmented(
    call: Call, run: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flat(dataset: Dataset, _: int) -> None:
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    def without_study(dataset: Dataset, _: int) -> None:
        del dataset.StudyInstanceUID

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the image was segmented")

    write_series(Path("new/leg"), VALUES[..., :1], change=flat)
    write_series(Path("new/scan"), VALUES, change=without_study)
    monkeypatch.setattr(sys.modules[__name__], "predict_volume", refuse)
    assert _predict(call, "new", "--dicom-seg") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "case 'leg': a DICOM-SEG needs a series with positions" in said
    assert "case 'scan': its DICOM headers lack what a DICOM-SEG needs (StudyInstanceUID); write NIfTI instead" in said
    assert not Path("masks").exists()


def test_sizes_are_not_kept_without_a_mask(call: Call, run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(Path("a.nii.gz"), VALUES, AFFINE)
    write_nifti(Path("b.nii.gz"), VALUES, AFFINE)

    def full(_: Volume, path: Path, ids: np.ndarray) -> None:
        raise StoreError(f"{path.name} could not be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Volume, "write_mask", full)
        assert _predict(call, "a.nii.gz") > 0
    assert [path.name for path in Path("masks").iterdir()] == [".volumes.csv.lock"]
    assert _predict(call, "a.nii.gz") == 0
    before = {name: (Path("masks") / name).read_bytes() for name in ("volumes.csv", "areas.csv")}
    with monkeypatch.context() as patched:
        patched.setattr(Volume, "write_mask", full)
        assert _predict(call, "b.nii.gz") > 0
    assert {name: (Path("masks") / name).read_bytes() for name in before} == before


def test_the_folder_that_one_is_in_and_masks_in_it(
    call: Call, run: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Path("study.yaml").read_text()
    write_series(tmp_path / "here", VALUES, AFFINE)
    monkeypatch.chdir(tmp_path / "here")
    Path("study.yaml").write_text(study)
    assert call("predict", "run", ".", "--site", "north", "--out", "../found") == 0
    assert (tmp_path / "found" / "here.nii.gz").exists()
    for resume in ([], ["--resume"]):  # the masks of the first call are no files of the series that are left out
        assert call("predict", "run", ".", "--site", "north", "--out", "masks", *resume) == 0
    shutil.rmtree("masks")
    monkeypatch.chdir(tmp_path)
    Path("new").mkdir()
    Path("here").rename("new/here")
    for resume in ([], ["--resume"]):
        assert call("predict", "run", "new", "--site", "north", "--out", "new/masks", "--dicom-seg", *resume) == 0


def test_an_image_without_pictures_is_told(call: Call, run: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes").mkdir()
    Path("notes/a.txt").touch()
    assert _predict(call, "notes") == 2
    assert "holds no image" in capsys.readouterr().err


def test_files_of_a_folder_that_are_not_read_are_named(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nifti(Path("d/a.nii.gz"), VALUES, AFFINE)
    write_series(Path("d/scan"), VALUES)
    unread = ["d/b.mha", "d/c.nrrd", "d/deep/e.bmp", "d/p5.dcm.gz", "d/scan/f.zip", "d/scan/g.nii.gz", "d/scans.zip"]
    passed_over = ["d/notes.txt", "d/.DS_Store", "d/deep/protocol.json", "d/scan/preview.jpg", "d/Thumbs.db"]
    Path("d/deep").mkdir()
    for name in (*unread, *passed_over):
        Path(name).write_bytes(b"abcdefgh" * 50)
    assert _predict(call, "d") == 3
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert "2 mask(s) written; 7 file(s) were left out" in " ".join(lines)
    assert [line for line in lines if line.startswith("d/")] == unread
    assert {path.name for path in Path("masks").glob("*.nii.gz")} == {"a.nii.gz", "scan.nii.gz"}
    for name in unread:
        Path(name).unlink()
    assert _predict(call, "d", "--resume") == 0


def test_a_sequence_of_another_grid_is_refused(run: None) -> None:
    from pfedsam.data.images import ImageOptions
    from pfedsam.data.manifest import Case

    first, second = write_nifti(Path("a.nii"), VALUES, AFFINE), write_nifti(Path("b.nii"), VALUES[:8], AFFINE)
    case = Case("north", "a", first, None, "a", volume=True, sequences=(second,))
    with pytest.raises(
        DataError, match=r"site 'north', case 'a': its sequence 'b\.nii' has another grid than its first"
    ):
        open_case(case, ImageOptions(), VolumeOptions())


def test_the_sequences_of_a_case_are_found_beside_its_first_one(
    call: Call, run: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("new").mkdir()
    for name, values in (("a_t1", VALUES), ("a_t2", VALUES[::-1].copy()), ("_t1_b_t1", VALUES), ("_t1_b_t2", VALUES)):
        write_nifti(Path("new") / f"{name}.nii", values, AFFINE)
    write_nifti(Path("new") / "c.nii", VALUES, AFFINE)
    sequences = ("--set", "data.volume.channels=[_t1, _t2]")
    assert call("predict", "run", "new", "--site", "north", "--out", "both", *sequences) == 3
    assert "'c.nii' does not end with '_t1'" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in Path("both").glob("*.nii.gz")) == ["_t1_b_t1.nii.gz", "a_t1.nii.gz"]
    Path("alone").mkdir()
    write_nifti(Path("alone") / "a_t1.nii", VALUES, AFFINE)
    assert call("predict", "run", "alone", "--site", "north", "--out", "lacking", *sequences) == 3
    assert "a_t2.nii" in capsys.readouterr().err
    assert not list(Path("lacking").glob("*.nii.gz"))


def test_a_model_of_several_sequences_does_not_segment_one_of_them(
    call: Call, run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, values in (("a_t1", VALUES), ("a_t2", VALUES[::-1].copy())):
        write_nifti(Path("new") / f"{name}.nii", values, AFFINE)
    TrainedOn(sequences=2).write(Path())
    assert _predict(call, "new") == 3
    assert "the model was trained on 2 sequences for each case, and this is one of 1" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not Path("masks").exists()
    sequences = ("--set", "data.volume.channels=[_t1, _t2]")
    assert _predict(call, "new", *sequences) == 0
    assert [path.name for path in Path("masks").glob("*.nii.gz")] == ["a_t1.nii.gz"]
    TrainedOn(sequences=1).write(Path())
    assert _predict(call, "new/a_t1.nii", "--resume", *sequences) == 0  # nothing is left to segment
    Path("masks/a_t1.nii.gz").unlink()
    assert _predict(call, "new/a_t1.nii", *sequences) == 3
    assert "leave data.volume.channels empty" in " ".join(capsys.readouterr().err.split())


def test_slices_in_the_table_of_areas_are_those_of_the_written_mask(call: Call, run: None) -> None:
    upside_down = np.diag([1, 1, -4.0, 1])
    ramp = (VALUES // 8 + np.arange(6) * 300).astype(np.int16)  # bright at one end, so that slices differ
    write_nifti(Path("a.nii.gz"), ramp, upside_down)
    assert _predict(call, "a.nii.gz") == 0
    mask = np.asarray(nib.load("masks/a.nii.gz").dataobj)
    counts = {k: int((mask[:, :, k] == 5).sum()) for k in range(6) if (mask[:, :, k] == 5).any()}
    assert list(counts.values()) != list(counts.values())[::-1]
    rows = [row for row in _rows("areas.csv") if row["structure"] == "liver"]
    assert {int(row["slice"]): int(row["pixels"]) for row in rows} == counts


def test_the_mask_of_a_picture_is_not_that_of_a_volume_of_the_same_name(call: Call, run: None) -> None:
    write_nifti(Path("new/a.nii.gz"), VALUES, AFFINE)
    Path("masks").mkdir()
    Path("masks/a.png").write_bytes(b"the mask of new/a.png")
    assert _predict(call, "new/a.nii.gz", "--resume") == 0
    assert Path("masks/a.nii.gz").exists()
    assert Path("masks/a.png").read_bytes() == b"the mask of new/a.png"


def test_results_of_two_images_never_share_a_file(
    call: Call, run: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_nifti(Path("new/a.nii.gz"), VALUES, AFFINE)
    write_nifti(Path("new/a_probabilities.nii.gz"), VALUES, AFFINE)
    assert _predict(call, "new", "--probabilities") == 2
    assert "a result of both would be" in " ".join(capsys.readouterr().err.split())
    write_series(Path("scans/leg"), VALUES[..., :1])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("scans/leg.png")
    assert _predict(call, "scans") == 2
    assert "a result of both would be" in " ".join(capsys.readouterr().err.split())
    write_series(Path("twins/a"), VALUES)
    write_nifti(Path("twins/a.nii.gz"), VALUES, AFFINE)
    assert _predict(call, "twins", "--dicom-seg") == 2
    assert "a result of both would be the lines of 'a' in volumes.csv" in " ".join(capsys.readouterr().err.split())
    assert not Path("masks").exists()
    Path("masks").mkdir()
    Path("masks/a_probabilities.nii.gz").write_bytes(b"mine")
    assert _predict(call, "new/a.nii.gz", "--probabilities") == 2
    assert "The probabilities of 'new/a.nii.gz' would overwrite" in " ".join(capsys.readouterr().err.split())
    assert Path("masks/a_probabilities.nii.gz").read_bytes() == b"mine"
    assert _predict(call, "new", "--resume") == 0
