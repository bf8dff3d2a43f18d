"""What volumes cost: predicting one of 256 x 256 x 64, checking 200 of them, and whether files of DATA are read as they should.

    python benchmarks/volumes.py DATA --out benchmarks/results/volumes.json

DATA is a folder that holds `dicom/`, whose README says of each folder what a reader should do; without it those rows are left out. Time
(wall, of a quiet machine) and peak resident memory are of `pfedsam` commands, each a process of its own. The volumes are generated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from common import machine

from pfedsam.core.errors import DataError
from pfedsam.data.images import ImageOptions
from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.readers.base import Reader
from pfedsam.data.volume import Volume
from pfedsam.data.volume_options import VolumeOptions
from pfedsam.report.result_file import commit

SHAPE = (256, 256, 64)
VOLUMES = 200
GOALS = {"predict_s": 40.0, "predict_mib": 1229.0, "check_mib": 1024.0, "orientations_right": 48.0}
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "volumes.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, float] = {**predict_figures(Path(folder)), **check_figures(Path(folder))}
        figures["orientations_right"] = float(orientations_right(Path(folder)))
    rows = dicom_rows(given.data / "dicom") if (given.data / "dicom").is_dir() else {}
    if rows:
        figures |= {"dicom_rows_right": float(sum(rows.values())), "dicom_rows": float(len(rows))}
    content = {
        "command": f"python benchmarks/volumes.py DATA --out {given.out.name}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "goals": GOALS,
        **figures,
        "rows": rows,
    }
    given.out.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2))


def make_volume(seed: int, shape: tuple[int, int, int]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """A noisy volume with a bright ball, and the ball's mask."""
    drawn = np.random.default_rng(seed)
    place = np.indices(shape).astype(np.float32) / np.array(shape, np.float32)[:, None, None, None]
    middle = drawn.uniform(0.35, 0.65, 3)[:, None, None, None]
    mask = (((place - middle) ** 2).sum(axis=0) < 0.03).astype(np.uint8)
    return (drawn.normal(0, 60, shape) + 500.0 * mask).astype(np.int16), mask


def write_site(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """A site of so many volumes."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        values, mask = make_volume(number, shape)
        nib.save(nib.Nifti1Image(values, AFFINE), folder / "images" / f"v{number:03d}.nii.gz")
        nib.save(nib.Nifti1Image(mask, AFFINE), folder / "masks" / f"v{number:03d}.nii.gz")


def write_study(path: Path, sites: Mapping[str, Path]) -> None:
    """A configuration with one class."""
    listed = ", ".join(f"{name}: {folder}" for name, folder in sites.items())
    path.write_text(
        f"data: {{sites: {{{listed}}}, classes: {{ball: [1]}}}}\n"
        "training: {rounds: 1, steps_per_round: 2}\nevaluation: {validate_every: 0}\n"
    )


def measured(*command: str) -> tuple[float, float]:
    """Seconds and peak resident MiB of a `pfedsam` command.

    Raises:
        RuntimeError: It failed.
    """
    started = time.perf_counter()
    with subprocess.Popen([Path(sys.executable).with_name("pfedsam"), *command], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"pfedsam {' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def predict_figures(folder: Path) -> dict[str, float]:
    """Time and memory of predicting one volume with the shipped backbone."""
    write_site(folder / "small", 6, (64, 64, 6))
    write_study(folder / "small.yaml", {"small": folder / "small"})
    measured("run", str(folder / "small.yaml"), "--out", str(folder / "run"))
    nib.save(nib.Nifti1Image(make_volume(0, SHAPE)[0], AFFINE), folder / "large.nii.gz")
    seconds, mib = measured(
        *(
            "predict",
            str(folder / "run"),
            str(folder / "large.nii.gz"),
            "--site",
            "small",
            "--out",
            str(folder / "masks"),
        )
    )
    return {"predict_s": round(seconds, 1), "predict_mib": round(mib)}


def check_figures(folder: Path) -> dict[str, float]:
    """Time and memory of checking and splitting a site of large volumes."""
    write_site(folder / "many", VOLUMES, SHAPE)
    write_study(folder / "many.yaml", {"many": folder / "many"})
    seconds, checked = measured("data", "check", str(folder / "many.yaml"))
    _, split = measured("data", "split", str(folder / "many.yaml"), "--out", str(folder / "split"))
    return {"check_s": round(seconds, 1), "check_mib": round(max(checked, split))}


def slices(volume: Volume) -> npt.NDArray[np.float32]:
    """All slices, [D, H, W, 3]."""
    return np.stack([volume.pixels(number) for number in range(volume.shape[0])])


def orientations_right(folder: Path) -> int:
    """In how many of the 48 orientations of a NIfTI file the slices are those of the first, and a mask keeps its grid."""
    values, mask = make_volume(1, (24, 20, 12))
    options, right = VolumeOptions(axis="axial"), 0
    expected: npt.NDArray[np.float32] | None = None
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        change = np.array(list(zip(order, signs, strict=True)))
        image, truth = (nib.Nifti1Image(one, AFFINE).as_reoriented(change) for one in (values, mask))
        nib.save(image, folder / "o.nii.gz")
        volume = Volume([open_volume(folder / "o.nii.gz", options)], options, ImageOptions())
        expected = slices(volume) if expected is None else expected
        volume.readers[0].write_mask(folder / "m.nii.gz", np.asarray(truth.dataobj))
        read = open_mask(folder / "m.nii.gz", volume.readers[0], options)
        same_mask = all(
            np.array_equal(read.mask_slice(k), np.asarray(truth.dataobj)[..., k]) for k in range(truth.shape[2])
        )
        same_place = np.abs(nib.load(folder / "m.nii.gz").affine - image.affine).max() <= 1e-6
        right += bool(np.array_equal(slices(volume), expected) and same_mask and same_place)
    return right


def dicom_rows(folder: Path) -> dict[str, bool]:
    """Folder of the corpus to whether its files do what its README says."""
    return {name: _holds(check, folder) for name, check in _ROWS.items()}


def _holds(check: Callable[[Path], bool], folder: Path) -> bool:
    try:
        return bool(check(folder))
    except (DataError, OSError):
        return False


def _open(path: Path, **options: object) -> Reader:
    return open_volume(path, VolumeOptions.model_validate(options))


def _voxels(path: Path, **options: object) -> npt.NDArray[np.float32]:
    reader = _open(path, **options)
    return np.stack([reader.slice(k) for k in range(reader.header().shape[2])], axis=2)


def _ids(image: Reader, path: Path, **options: object) -> npt.NDArray[np.int64]:
    mask = open_mask(path, image, VolumeOptions.model_validate(options))
    return np.stack([mask.mask_slice(k) for k in range(mask.header().shape[2])], axis=2)


def _refused(path: Path, *words: str, **options: object) -> bool:
    try:
        _open(path, **options)
    except DataError as error:
        return all(word in str(error) for word in words)
    return False


def _equal(paths: list[Path]) -> bool:
    first, *others = [_voxels(path) for path in paths]
    return all(np.array_equal(first, other) for other in others)


def _four_syntaxes(folder: Path) -> bool:
    return _equal([folder / f"mr_{name}" for name in ("jpeg2000", "jpegls", "jpeg_lossless", "rle")])


def _two_series(folder: Path) -> bool:
    path = folder / "two_series_in_one_folder"
    shapes = [_open(path, series=number).header().shape for number in ("1", "2")]
    return _refused(path, "2 series") and sorted(shape[2] for shape in shapes) == [32, 35]


def _liver(folder: Path) -> bool:
    image = _open(folder / "seg_liver_with_ct")
    names = {"GREEN": 1, "ORANGE": 2, "PURPLE": 3, "LIGHT_BLUE": 4, "DARK_BLUE": 5}
    try:
        _ids(image, folder / "seg_liver_with_ct" / "partial_overlaps.dcm")
    except DataError as error:
        told = "overlap" in str(error)
    else:
        told = False
    named = _ids(image, folder / "seg_liver_with_ct" / "partial_overlaps.dcm", segments=names)
    return (
        told
        and set(np.unique(named)) == {0, 1, 2, 3, 4, 5}
        and _ids(image, folder / "seg_liver_with_ct/liver.dcm").any()
    )


def _fractional(folder: Path) -> bool:
    image = _open(folder / "seg_highdicom_sources", resample=True)
    parts = folder / "seg_binary_fractional_overlap"
    binary = _ids(image, parts / "seg_image_ct_binary.dcm")
    single = _ids(_open(parts / "ct_image.dcm"), parts / "seg_image_ct_binary_single_frame.dcm")
    fractional = _ids(image, parts / "seg_image_ct_true_fractional.dcm", fractional_threshold=0.5)
    return bool(binary.any() and single.any() and set(np.unique(fractional)) <= {0, 1})


def _phantom(folder: Path) -> bool:
    image = _open(folder / "rtstruct_chest_phantom")
    path = next((folder / "rtstruct_chest_phantom").glob("SS*"))
    mask = open_mask(path, image, VolumeOptions(segments={"R Lung": 1, "L Lung": 2, "Spinal Cord": 3}))
    found = {value for k in range(3) for value in np.unique(mask.mask_slice(k)).tolist()}
    return found == {0, 1, 2, 3} and "slices that the image does not have" in mask.notes[0]


def _tilt(folder: Path) -> bool:
    path = folder / "ct_tilt_and_two_gaps_ge"
    return _refused(path, "18.5 degrees", "unevenly") and _open(path, resample=True).header().shape[2] > 6


_ROWS: Mapping[str, Callable[[Path], bool]] = {
    "ct_tilt_and_two_gaps_ge": _tilt,
    "mr_uncompressed": lambda f: _open(f / "mr_uncompressed").header().shape == (256, 256, 4),
    "mr_implicit_vr": lambda f: _voxels(f / "mr_implicit_vr").shape == (256, 256, 4, 1),
    "mr_jpeg2000": _four_syntaxes,
    "mr_jpegls": _four_syntaxes,
    "mr_jpeg_lossless": _four_syntaxes,
    "mr_rle": _four_syntaxes,
    "mr_siemens_mosaic": lambda f: _refused(f / "mr_siemens_mosaic", "mosaic"),
    "mr_enhanced_five_syntaxes": lambda f: _equal(sorted((f / "mr_enhanced_five_syntaxes").iterdir())),
    "ct_small_signed": lambda f: -1024 <= _voxels(f / "ct_small_signed").min() < 0,
    "cr_monochrome1_no_spacing": lambda f: (
        _open(f / "cr_monochrome1_no_spacing").header().spacing_mm is None
        and _voxels(f / "cr_monochrome1_no_spacing").max() == 1023
    ),
    "us_ybr_rct": lambda f: _voxels(f / "us_ybr_rct").shape[-1] == 3,
    "sc_rgb": lambda f: all(_voxels(path).shape == (100, 100, 1, 3) for path in (f / "sc_rgb").iterdir()),
    "not_images": lambda f: _refused(f / "not_images", "1 ECG", "1 RTDOSE", "1 RTPLAN", "2 SR"),
    "seg_liver_with_ct": _liver,
    "seg_highdicom_sources": lambda f: _refused(f / "seg_highdicom_sources", "missing"),
    "seg_binary_fractional_overlap": _fractional,
    "rtstruct_chest_phantom": _phantom,
    "two_series_in_one_folder": _two_series,
}


if __name__ == "__main__":
    main()
