from dataclasses import replace
from itertools import product
from pathlib import Path

import faulty_sites as faulty
import numpy as np
import pytest
from PIL import Image
from volume_files import write_nifti

from pfedsam.data.check import check_sites
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import read_site
from pfedsam.data.split import SplitOptions, split_site
from pfedsam.data.suspicions import Study
from pfedsam.data.volume_options import WINDOWS, VolumeOptions


def test_a_small_range_does_not_matter_where_contrast_is_stretched(tmp_path):
    faulty.clean_study(tmp_path)
    faulty.twelve_bits_in_sixteen(tmp_path)
    assert faulty.read_and_check(tmp_path, image=ImageOptions(contrast="percentile")).warnings == ()


@pytest.mark.parametrize(
    ("values", "share"),
    [
        (np.arange(360, dtype=np.uint16) + 459, "1.2"),  # up to 818 of 65535
        (np.arange(360, dtype=np.uint16) * 11 + 146, "6.2"),  # 12 bits: up to 4095 of 65535
        (np.arange(360, dtype=np.uint16) * 182, None),
        (np.arange(360).astype(np.uint8) % 60, "23"),  # 59 of 255
        (np.arange(360).astype(np.uint8), None),
        (np.arange(360, dtype=np.float32) / 3590, "10"),
        (np.arange(360, dtype=np.float32) / 359, None),
    ],
)
def test_volumes_that_are_not_normalised_and_use_a_small_range_are_a_warning(
    tmp_path: Path, values: np.ndarray, share: str | None
) -> None:
    write_nifti(tmp_path / "a/images/p.nii", values.reshape(8, 9, 5), np.diag([1, 1, 3, 1]))
    site = read_site("a", tmp_path / "a", masks_required=False)
    for normalise, expected in (("none", share), ("percentile", None)):
        study = Study(LabelMap({"x": [1]}), ImageOptions(), validation=False, volume=VolumeOptions(normalise=normalise))
        found = [warning for warning in check_sites([site], study).warnings if "almost black" in warning]
        assert [one.startswith(f"site 'a', case 'p': the values use {expected} % of") for one in found] == [True] * (
            expected is not None
        )


def _scan(*, padding: float = -1000) -> np.ndarray:
    """A CT in Hounsfield units: air, and a body of a third of the volume that is fat, water, soft tissue and, by a twelfth, bone."""
    draw = np.random.default_rng(0)
    values = np.full((40, 40, 4), padding) + (draw.normal(0, 10, (40, 40, 4)) if padding else 0)
    tissue = np.repeat([-100, 0, 30, 40, 50, 60, 70, 1000, 45, 35, 55, 20], 192).reshape(24, 24, 4)
    values[8:32, 8:32] = tissue + draw.integers(0, 5, tissue.shape)
    return values.astype(np.int16)


def _outside_window(folder: Path, values: np.ndarray, window: str | tuple[float, float]) -> list[str]:
    """The warnings about values outside of the window."""
    write_nifti(folder / "a/images/p.nii", values, np.diag([1, 1, 3, 1]))
    options = VolumeOptions(normalise="window", window=window)
    study = Study(LabelMap({"liver": [1]}), ImageOptions(), validation=False, volume=options)
    warnings = check_sites([read_site("a", folder / "a", masks_required=False)], study).warnings
    return [warning for warning in warnings if "Hounsfield" in warning]


@pytest.mark.parametrize("window", sorted(WINDOWS))
def test_a_ct_without_its_intercept_is_a_warning_with_every_window_and_one_in_hounsfield_units_with_none(
    tmp_path: Path, window: str
) -> None:
    assert _outside_window(tmp_path, _scan(), window) == []
    (warning,) = _outside_window(tmp_path, (_scan() + 1024 + 40).astype(np.uint16), window)
    assert warning.startswith("site 'a', case 'p': are these Hounsfield units? The values go from ")
    assert "look for a missing rescale intercept" in warning


def test_masked_and_dark_volumes_are_compared_with_their_window(tmp_path: Path) -> None:
    """The values of a skull-stripped brain are 0 outside of it; those in 0..1 are all below a window from 50 to 90."""
    brain = np.clip(_scan(padding=0), 0, 79)
    assert _outside_window(tmp_path, brain, "brain") == []
    assert _outside_window(tmp_path, brain, (-20, 100)) == []
    (warning,) = _outside_window(tmp_path, (brain > 0).astype(np.uint8), (50, 90))
    assert "The values go from 0 to 1, with up to 0 % of the voxels above the window of 50 to 90" in warning


def test_images_of_a_single_value_are_named(tmp_path: Path) -> None:
    """A black and a bright picture, and a volume of zeros, among images with content."""
    for name, values in (
        ("a", np.zeros((8, 9), np.uint8)),
        ("b", np.full((8, 9), 200, np.uint8)),
        ("c", np.arange(72, dtype=np.uint8).reshape(8, 9)),
    ):
        (tmp_path / "a/images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / f"a/images/{name}.png")
    write_nifti(tmp_path / "a/images/d.nii", np.zeros((8, 9, 5), np.int16))
    write_nifti(tmp_path / "a/images/e.nii", np.arange(360, dtype=np.int16).reshape(8, 9, 5))
    site = split_site(read_site("a", tmp_path / "a", masks_required=False), SplitOptions(), 0)
    warnings = check_sites([site], Study(labels=LabelMap({"liver": [1]}), image=ImageOptions())).warnings
    assert ["'a', 'b', 'd': 3 of 5 image(s) have a single value" in one for one in warnings].count(True) == 1


def test_masks_that_are_turned_like_their_images_are_no_fault(tmp_path):
    faulty.clean_study(tmp_path)
    faulty.exif_half_turn(tmp_path)
    exif = Image.Exif()
    exif[274] = 3
    for path in (tmp_path / "b" / "masks").iterdir():
        Image.open(path).save(path, exif=exif)
    assert faulty.read_and_check(tmp_path).warnings == ()


@pytest.mark.parametrize(
    ("affine", "spacing", "lost", "warned"),
    [
        (np.eye(4), None, False, True),
        (np.diag([-1.0, -1.0, 1.0, 1.0]), None, False, True),  # SimpleITK's, without SetSpacing and SetOrigin
        (np.array([[-1.0, 0, 0, -0.0], [0, -1, 0, -0.0], [0, 0, 1, 0], [0, 0, 0, 1]]), None, False, True),
        (np.eye(4), (4.0, 1.0, 1.0), False, False),
        (np.eye(4), None, True, False),
        (np.diag([1.0, 1.0, 4.0, 1.0]), None, False, False),
        (np.array([[1.0, 0, 0, -90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]]), None, False, False),
    ],
)
def test_a_site_whose_volumes_have_an_identity_matrix_may_have_lost_its_spacing(
    affine: np.ndarray, spacing: tuple[float, ...] | None, lost: bool, warned: bool, tmp_path: Path
) -> None:
    for number, folder in product(range(6), ("images", "masks")):
        values = np.zeros((8, 9, 5), np.uint8)
        values[1 : 2 + number, 2:6, 1:4] = 1
        write_nifti(tmp_path / "a" / folder / f"p{number}.nii", values, affine)
    site = read_site("a", tmp_path / "a")
    cases = tuple(replace(case, spacing_mm=spacing, spacing_lost=lost) for case in site.cases)
    site = split_site(replace(site, cases=cases), SplitOptions(), 0)
    study = Study(labels=LabelMap({"liver": [1]}), image=ImageOptions())
    warnings = check_sites([site], study).warnings
    assert ["identity matrix" in warning for warning in warnings] == [True] * warned


@pytest.mark.parametrize(
    ("image", "mask", "kept", "warning"),
    [
        (
            1,
            3,
            True,
            "the mask has the EXIF orientation 3 and is turned when it is read; the image has no EXIF orientation.",
        ),
        (3, 1, True, "the image has an EXIF orientation and is turned when it is read; the mask has none"),
        (
            3,
            4,
            True,
            "the mask has the EXIF orientation 4 and is turned when it is read; the image has the EXIF orientation 3.",
        ),
        (1, 6, False, "the mask has the EXIF orientation 6 and is turned"),
        (6, 1, False, None),  # drawn on the turned image
        (6, 6, True, None),
        (0, 9, True, None),  # no orientations
    ],
)
def test_an_image_and_its_mask_have_one_orientation(tmp_path, image, mask, kept, warning):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for part, values, orientation in (
        ("images", pixels, image),
        ("masks", pixels % 2 if kept else (pixels % 2).T, mask),
    ):
        exif = Image.Exif()
        exif[274] = orientation
        (tmp_path / part).mkdir()
        Image.fromarray(values).save(tmp_path / part / "a.png", exif=exif)
    study = Study(LabelMap({"organ": [1]}), ImageOptions(contrast="percentile"))
    report = check_sites([read_site("a", tmp_path)], study)
    assert report.problems == ()
    found = [str(one) for one in report.findings if one.kind == "EXIF orientation"]
    assert len(found) == (warning is not None)
    assert all(one.startswith(f"site 'a', case 'a': {warning}") for one in found)


def _sequences(folder: Path, images: dict[str, str]) -> None:
    """A site whose manifest has these cells in the column `image`, by case."""
    draw = np.random.default_rng(len(folder.name))
    rows = ["image,mask,patient,case,split"]
    for case, cell in images.items():
        for path in {*cell.split(";"), f"masks/{case}.nii"}:
            values = draw.integers(0, 2 if path.startswith("masks") else 900, (8, 8, 3)).astype(np.int16)
            write_nifti(folder / path, values, np.diag([1, 1, 3, 1]))
        rows.append(f"{cell},masks/{case}.nii,{case},{case},{'unused' if case == 'unused' else 'train'}")
    (folder / "manifest.csv").write_text("\n".join(rows))


def _problems(root: Path, **options: object) -> list[str]:
    sites = [read_site(path.name, path) for path in sorted(root.iterdir())]
    study = Study(LabelMap({"organ": [1]}), ImageOptions(), validation=False, volume=VolumeOptions(**options))
    return [problem for problem in check_sites(sites, study).problems if "sequence" in problem]


def test_cases_with_another_number_of_sequences_are_an_error_at_one_site_and_at_another(tmp_path):
    pair = "{0}_t1.nii;{0}_t2.nii"
    _sequences(tmp_path / "a", {name: pair.format(name) for name in ("p0", "p1")} | {"unused": "u.nii"})
    _sequences(tmp_path / "b", {name: pair.format(name) for name in ("q0", "q1")})
    assert _problems(tmp_path) == []
    assert _problems(tmp_path, channels=["_t1", "_t2"]) == []
    _sequences(tmp_path / "a", {"p0": pair.format("p0"), "p1": "p1_t1.nii"})
    (problem,) = _problems(tmp_path)
    assert problem.startswith(
        "site 'a', case 'p1': 1 sequence(s) in the case, where most volumes of the study have 2; give every case"
    )
    _sequences(tmp_path / "a", {"p0": "p0_t1.nii"})
    (problem,) = _problems(tmp_path)
    assert problem.startswith("site 'a', case 'p0': 1 sequence(s)")


def test_the_number_of_sequences_is_that_of_the_options(tmp_path):
    _sequences(tmp_path / "a", {"p0": "p0.nii", "p1": "p1.nii"})
    assert _problems(tmp_path, neighbours=1) == []
    (problem,) = _problems(tmp_path, channels=["_t1", "_t2"])
    assert problem.startswith(
        "site 'a', 2 cases 'p0', 'p1': 1 sequence(s) in the case, where data.volume.channels names 2"
    )
    _sequences(tmp_path / "a", {"p0": "p0_t1.nii;p0_t2.nii"})
    (problem,) = _problems(tmp_path, neighbours=1)
    assert "2 sequence(s) in the case, where data.volume.neighbours fills the channels with slices of one" in problem


def test_single_volumes_among_those_of_several_times_are_a_warning(tmp_path):
    draw = np.random.default_rng(0)
    for name, times in (("a/images/p0", 3), ("a/images/p1", 1), ("b/images/q0", 1), ("b/images/q1", 1)):
        values = draw.integers(0, 900, (6, 7, 4, times)).astype(np.int16)
        write_nifti(tmp_path / f"{name}.nii", values if times > 1 else values[..., 0], np.diag([1, 1, 3, 1]))
    sites = {name: read_site(name, tmp_path / name, masks_required=False) for name in "ab"}

    def warnings(names: str) -> list[str]:
        study = Study(LabelMap({"x": [1]}), ImageOptions(), validation=False, volume=VolumeOptions(frame=1))
        found = check_sites([sites[name] for name in names], study).warnings
        return [one for one in found if "data.volume.frame 1" in one]

    assert [one.split(": its file")[0] for one in warnings("ab")] == [
        "site 'a', case 'p1'",
        "site 'b', 2 cases 'q0', 'q1'",
    ]
    assert warnings("b") == []  # no file of the study holds several


def _planes(folder: Path, **spacings: list[tuple[float, float, float]]) -> list[str]:
    """The warnings about planes of sites with volumes of these spacings."""
    draw = np.random.default_rng(0)
    for name, every in spacings.items():
        for number, spacing in enumerate(every):
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = 5.0
            values = draw.integers(0, 900, (6, 7, 8)).astype(np.int16)
            write_nifti(folder / name / "images" / f"p{number}.nii", values, affine)
            write_nifti(folder / name / "masks" / f"p{number}.nii", (values > 600).astype(np.uint8), affine)
    study = Study(LabelMap({"organ": [1]}), ImageOptions(), validation=False)
    sites = [read_site(name, folder / name, masks_required=False) for name in spacings]
    found = [warning for warning in check_sites(sites, study).warnings if " slices, perpendicular" in warning]
    fixed = replace(study, volume=VolumeOptions(axis="axial"))
    assert not any(" slices, perpendicular" in warning for warning in check_sites(sites, fixed).warnings)
    return found


def test_volumes_of_one_site_in_two_planes_are_a_warning(tmp_path):
    (warning,) = _planes(tmp_path, a=[(1, 1, 3), (1, 1, 1), (3, 1, 1)])
    assert warning.startswith("site 'a', case 'p2': data.volume.axis: auto gives sagittal slices, perpendicular to the")
    assert "for most volumes of the study axial ones" in warning


def test_sites_in_two_planes_are_a_warning(tmp_path):
    (warning,) = _planes(tmp_path, a=[(1, 1, 3)] * 2, b=[(1, 4, 1)] * 2, c=[(1.2, 1.2, 1)] * 2)
    assert warning.startswith("site 'b', 2 cases 'p0', 'p1': data.volume.axis: auto gives coronal slices")


@pytest.mark.parametrize(
    ("name", "is_reported"),
    [("same", False), ("moved", False), ("ones", False), ("damaged", False), ("sizes", True), ("mirrored", True)],
)
def test_a_header_with_two_sizes_or_two_sets_of_axes_is_a_warning(tmp_path: Path, name: str, is_reported: bool) -> None:
    """A registration moves the sform alone, and programs that write an sform may leave the sizes (pixdim) at 1."""
    sform = np.diag([0.5, 0.5, 3.0, 1.0])
    moved, mirrored = sform.copy(), sform * [-1, 1, 1, 1]
    moved[:3, 3] = 7, -8, 9

    def change(header):
        header.set_sform(np.eye(4) if name == "sizes" else sform, code=1)
        header.set_qform({"moved": moved, "mirrored": mirrored}.get(name, sform), code=1)
        if name == "ones":
            header["qform_code"], header["pixdim"][1:4] = 0, 1
        if name == "damaged":
            header["quatern_b"] = header["quatern_c"] = 2

    write_nifti(tmp_path / "a/images/p.nii", np.arange(360, dtype=np.int16).reshape(8, 9, 5), change=change)
    site = read_site("a", tmp_path / "a", masks_required=False)
    study = Study(LabelMap({"x": [1]}), ImageOptions(), validation=False)
    found = [warning for warning in check_sites([site], study).warnings if "the sform of its NIfTI header" in warning]
    assert [warning.startswith("site 'a', case 'p': ") for warning in found] == [True] * is_reported
