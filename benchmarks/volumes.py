"""Measures the cost of volumes, and checks that they are read and written correctly, in all orientations and five transfer syntaxes.

    python benchmarks/volumes.py DATA [PART ...]

Parts are `predict`, `check`, `orientations`, `syntaxes` and `dicom`; without one all are measured. Each part replaces its own figures in
`benchmarks/results/volumes.json`; the other figures are kept. `predict` and `check` measure wall time and peak resident memory of `pfedsam`
commands, each in a process of its own; nothing else should run on the machine. DATA contains a folder `dicom` with public test files, whose
README says what a reader should do with each of its folders; only the part `dicom` needs it. The other volumes are generated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from common import write_part
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from pfedsam.core.errors import DataError
from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.readers.base import Reader
from pfedsam.data.volume_options import VolumeOptions

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from volume_files import write_series

SHAPE = (256, 256, 64)
VOLUMES = 200
DIFFERENT_IMAGES = 4
"""Number of images of the checked site that are generated; the others are links to them, so that less is stored."""
SMALL = (24, 20, 6)
"""Shape of the volume that is predicted in all orientations."""
GOALS = {
    "predict_s": 40.0,
    "predict_mib": 1229.0,
    "check_mib": 1024.0,
    "orientations_right": 48.0,
    "syntaxes_right": 5.0,
    "dicom_rows_right": 19.0,
}
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def main() -> None:
    """Measure the named parts, or all of them; the figures of the other parts are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("part", nargs="*", help=f"one of {', '.join(PARTS)}; default: all")
    given = parser.parse_args()
    unknown = [part for part in given.part if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; choose among {', '.join(PARTS)}")
    for part in given.part or list(PARTS):
        with tempfile.TemporaryDirectory() as folder:
            figures = PARTS[part](Path(folder), given.data)
        write_part("volumes", part, figures, command=f"python benchmarks/volumes.py DATA {part}", goals=GOALS)
        print(json.dumps(figures, indent=2), flush=True)


def make_volume(seed: int, shape: tuple[int, int, int]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """A noisy volume with a bright ball, and the ball's mask."""
    drawn = np.random.default_rng(seed)
    place = np.indices(shape).astype(np.float32) / np.array(shape, np.float32)[:, None, None, None]
    middle = drawn.uniform(0.35, 0.65, 3)[:, None, None, None]
    mask = (((place - middle) ** 2).sum(axis=0) < 0.03).astype(np.uint8)
    return (drawn.normal(0, 60, shape) + 500.0 * mask).astype(np.int16), mask


def write_site(folder: Path, count: int, shape: tuple[int, int, int], different: int | None = None) -> None:
    """Write a site of `count` volumes; the images after the first `different` are links to these."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        values, mask = make_volume(number, shape)
        image = folder / "images" / f"v{number:03d}.nii.gz"
        if different is None or number < different:
            nib.save(nib.Nifti1Image(values, AFFINE), image)
        else:
            os.link(folder / "images" / f"v{number % different:03d}.nii.gz", image)
        nib.save(nib.Nifti1Image(mask, AFFINE), folder / "masks" / f"v{number:03d}.nii.gz")


def write_study(path: Path, sites: Mapping[str, Path], rounds: int = 1, image_size: int | None = None) -> None:
    """Write a configuration with one class and a fixed plane of the slices, so that volumes of every orientation are cut alike."""
    listed = ", ".join(f"{name}: {folder}" for name, folder in sites.items())
    size = "" if image_size is None else f"model: {{image_size: {image_size}}}\n"
    path.write_text(
        f"data: {{sites: {{{listed}}}, classes: {{ball: [1]}}, volume: {{axis: axial}}}}\n{size}"
        f"training: {{rounds: {rounds}, steps_per_round: 4}}\nevaluation: {{validate_every: 0}}\n"
    )


def measured(*command: object) -> tuple[float, float]:
    """Seconds and peak resident MiB of a `pfedsam` command.

    Raises:
        RuntimeError: the command failed.
    """
    started = time.perf_counter()
    program = [Path(sys.executable).with_name("pfedsam"), *map(str, command)]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"pfedsam {' '.join(map(str, command))} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def predict_figures(folder: Path, _: Path) -> dict[str, Any]:
    """Time and memory of predicting one volume with the shipped backbone."""
    write_site(folder / "small", 6, (64, 64, 6))
    write_study(folder / "small.yaml", {"small": folder / "small"})
    measured("run", folder / "small.yaml", "--out", folder / "run")
    nib.save(nib.Nifti1Image(make_volume(0, SHAPE)[0], AFFINE), folder / "large.nii.gz")
    seconds, mib = measured(
        "predict", folder / "run", folder / "large.nii.gz", "--site", "small", "--out", folder / "masks"
    )
    return {"predict_s": round(seconds, 1), "predict_mib": round(mib)}


def check_figures(folder: Path, _: Path) -> dict[str, Any]:
    """Time and memory of checking and splitting a site of large volumes."""
    write_site(folder / "many", VOLUMES, SHAPE, different=DIFFERENT_IMAGES)
    write_study(folder / "many.yaml", {"many": folder / "many"})
    seconds, checked = measured("data", "check", folder / "many.yaml")
    _, split = measured("data", "split", folder / "many.yaml", "--out", folder / "split")
    return {"check_s": round(seconds, 1), "check_mib": round(max(checked, split))}


def small_run(folder: Path) -> Path:
    """Train a model that finds the ball of `make_volume`, and return the folder of its run."""
    write_site(folder / "small", 6, SMALL)
    write_study(folder / "small.yaml", {"small": folder / "small"}, rounds=15, image_size=64)
    measured("run", folder / "small.yaml", "--out", folder / "run")
    return folder / "run"


def orientation_figures(folder: Path, _: Path) -> dict[str, Any]:
    """In how many of the 48 orientations of a volume, as NIfTI and as DICOM, the mask equals that of the first, on the volume's own grid.

    Raises:
        RuntimeError: the model finds nothing, so that equal masks would say nothing.
    """
    run, values = small_run(folder), make_volume(1, SMALL)[0]
    affines = {}
    for number, (order, signs) in enumerate(product(permutations(range(3)), product((1, -1), repeat=3))):
        image = nib.Nifti1Image(values, AFFINE).as_reoriented(np.array(list(zip(order, signs, strict=True))))
        (folder / "nifti").mkdir(exist_ok=True)
        nib.save(image, folder / "nifti" / f"n{number}.nii.gz")
        write_series(folder / "dicom" / f"d{number}", np.asarray(image.dataobj), image.affine, seed=number)
        affines[number] = image.affine
    measured("predict", run, folder / "nifti", folder / "dicom", "--site", "small", "--out", folder / "masks")
    reference = _canonical(folder / "masks" / "n0.nii.gz")
    if not reference.any():
        raise RuntimeError("The model finds nothing, so that all masks are equal: train it longer.")
    right, farthest = {"n": 0, "d": 0}, 0.0
    for number, affine in affines.items():
        for kind in right:
            path = folder / "masks" / f"{kind}{number}.nii.gz"
            right[kind] += bool(np.array_equal(_canonical(path), reference))
        off = np.abs(nib.load(folder / "masks" / f"n{number}.nii.gz").affine - affine).max()
        farthest = max(farthest, float(off))
    return {
        "orientations_right": min(right.values()),
        "orientations_right_nifti": right["n"],
        "orientations_right_dicom": right["d"],
        "orientations_affine_difference": farthest,
    }


def _canonical(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def syntax_figures(folder: Path, _: Path) -> dict[str, Any]:
    """In how many of five transfer syntaxes the voxels and the mask of a series equal those of the uncompressed one."""
    run, values = (
        small_run(folder),
        make_volume(1, (64, 64, SMALL[2]))[0],
    )  # OpenJPEG packs nothing that is much smaller
    plain = write_series(folder / "dicom" / "plain", values, AFFINE)
    for syntax in (JPEG2000Lossless, JPEGLSLossless, RLELossless, DeflatedExplicitVRLittleEndian):

        def pack(dataset: Dataset, _: int, syntax: Any = syntax) -> None:  # noqa: ANN401 - pydicom's type
            if syntax == DeflatedExplicitVRLittleEndian:
                dataset.file_meta.TransferSyntaxUID = syntax
            else:
                dataset.compress(syntax)

        write_series(folder / "dicom" / syntax.keyword, values, AFFINE, change=pack)
    measured("predict", run, folder / "dicom", "--site", "small", "--out", folder / "masks")
    mask, voxels = _canonical(folder / "masks" / "plain.nii.gz"), _voxels(plain)
    same = [
        np.array_equal(_voxels(path), voxels)
        and np.array_equal(_canonical(folder / "masks" / f"{path.name}.nii.gz"), mask)
        for path in sorted((folder / "dicom").iterdir())
    ]
    return {"syntaxes_right": sum(same) if mask.any() else 0}


def dicom_figures(_: Path, data: Path) -> dict[str, Any]:
    """How many folders of the corpus are read, or refused, as its README says."""
    rows = dicom_rows(data / "dicom")
    return {"dicom_rows_right": sum(rows.values()), "dicom_rows": len(rows), "dicom_rows_by_folder": rows}


def dicom_rows(folder: Path) -> dict[str, bool]:
    """Whether each folder of the corpus is read or refused as its README says, by the name of the folder."""
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
    return found == {0, 1, 2, 3} and "on slices that it does not have" in mask.notes[0]


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


PARTS: Mapping[str, Callable[[Path, Path], dict[str, Any]]] = {
    "predict": predict_figures,
    "check": check_figures,
    "orientations": orientation_figures,
    "syntaxes": syntax_figures,
    "dicom": dicom_figures,
}


if __name__ == "__main__":
    main()
