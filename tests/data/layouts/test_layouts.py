"""Published layouts, rebuilt small as their authors publish them: sites, patients and classes are right, and no pixel moves."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from pfedsam.core.errors import DataError, OptionError
from pfedsam.data.images import read_mask
from pfedsam.data.layouts import LAYOUTS, find_layout, write_sites
from pfedsam.data.manifest import read_site

VOLUME = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
IDS = np.zeros((6, 8), np.uint8)
IDS[2:4, 3:6] = 255


def volume(path: Path, data: np.ndarray = VOLUME) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 8, 1])), path)


def picture(path: Path, pixels: np.ndarray = IDS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def saml(root: Path) -> None:
    for site, name in (("BIDMC", "Case00"), ("HCRUDB", "Case01"), ("HCRUDB", "Case02")):
        volume(root / site / f"{name}.nii.gz")
        volume(root / site / f"{name}_segmentation.nii.gz", (VOLUME > 9).astype(np.uint8))
    volume(root / "UCL" / "Case09.nii.gz")  # without a mask: no case


def prostate_slices(root: Path) -> None:
    for name in ("train/{}/00_00", "train/{}/00_01", "train/{}/01_00", "test/{}/00_00"):
        for kind in ("image", "mask"):
            picture(root / "RUNMC" / f"{name.format(kind)}.png")


def fundus(root: Path) -> None:
    for name in ("train/ROIs/{}/G-1-L", "test/ROIs/{}/G-1-R", "train/ROIs/{}/G-2-L"):
        for kind in ("image", "mask"):
            picture(root / "Domain2" / f"{name.format(kind)}.png")


def mms(root: Path) -> None:
    times = np.stack([VOLUME + 100 * time for time in range(3)], axis=3)
    for code in ("A0S9V9", "A1D0Q7"):
        volume(root / "Training" / code / f"{code}_sa.nii.gz", times)
        volume(root / "Training" / code / f"{code}_sa_gt.nii.gz", (times % 4).astype(np.uint8))
    rows = "External code,VendorName,Vendor,Centre,ED,ES\nA0S9V9,Siemens,A,1,0,2\nA1D0Q7,Philips,B,2,1,2\n"
    (root / "info.csv").write_text(rows)


def acdc(root: Path) -> None:
    for frame in ("01", "12"):
        volume(root / "training" / "patient001" / f"patient001_frame{frame}.nii.gz")
        volume(root / "training" / "patient001" / f"patient001_frame{frame}_gt.nii.gz", (VOLUME % 4).astype(np.uint8))
    volume(root / "training" / "patient001" / "patient001_4d.nii.gz")


def dsb2018(root: Path) -> None:
    first, second = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    first[0, 0], second[5, 7] = 255, 255
    for name, colour in (("dark", (9, 9, 9)), ("light", (200, 200, 200)), ("violet", (150, 60, 170))):
        picture(root / name / "images" / f"{name}.png", np.full((6, 8, 3), colour, np.uint8))
        picture(root / name / "masks" / "a.png", first)
        picture(root / name / "masks" / "b.png", second)


def retina(root: Path) -> None:
    picture(root / "DRIVE" / "training" / "images" / "21_training.tif", np.full((6, 8, 3), 80, np.uint8))
    picture(root / "DRIVE" / "training" / "1st_manual" / "21_manual1.gif")
    picture(root / "STARE" / "all" / "im0001.ppm", np.full((6, 8, 3), 80, np.uint8))
    picture(root / "STARE" / "labels" / "im0001.ah.ppm", np.stack([IDS] * 3, axis=2))
    for side in "LR":
        picture(root / "CHASE_DB1" / f"Image_01{side}.jpg", np.full((6, 8, 3), 80, np.uint8))
        picture(root / "CHASE_DB1" / f"Image_01{side}_1stHO.png")
    picture(root / "HRF" / "images" / "01_h.jpg", np.full((6, 8, 3), 80, np.uint8))
    picture(root / "HRF" / "manual1" / "01_h.tif")


def nnunet(root: Path) -> None:
    labels = {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz"}
    for name in ("liver_001", "liver_002"):
        for channel in ("0000", "0001"):
            volume(root / "imagesTr" / f"{name}_{channel}.nii.gz")
        volume(root / "labelsTr" / f"{name}.nii.gz", (VOLUME % 3).astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps(content))


def msd(root: Path) -> None:
    for name in ("hippocampus_001", "hippocampus_003"):
        volume(root / "imagesTr" / f"{name}.nii.gz")
        volume(root / "labelsTr" / f"{name}.nii.gz", (VOLUME % 3).astype(np.uint8))
        volume(root / "imagesTr" / f"._{name}.nii.gz")  # as a Mac leaves them
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    content = {"name": "Hippocampus", "modality": {"0": "MRI"}, "labels": labels, "training": []}
    (root / "dataset.json").write_text(json.dumps(content))


def fets(root: Path) -> None:
    rows = ["Partition_ID,Subject_ID", "1,FeTS2022_00000", "1,FeTS2022_00002", "18,FeTS2022_00003"]
    (root / "partitioning_1.csv").write_text("\n".join(rows))
    for row in rows[1:]:
        name = row.partition(",")[2]
        for kind in ("t1", "t1ce", "t2", "flair", "seg"):
            volume(root / name / f"{name}_{kind}.nii.gz")


def folders(root: Path) -> None:
    for name in ("a", "b"):
        picture(root / "north" / "images" / f"{name}.png")
        picture(root / "north" / "masks" / f"{name}.png")
    volume(root / "south side" / "images" / "c.nii.gz")
    volume(root / "south side" / "masks" / "c.nii.gz", (VOLUME % 3).astype(np.uint8))


# For each layout: how it is made, and by site the patient of each case.
CASES: dict[str, tuple[Callable[[Path], None], dict[str, dict[str, str]]]] = {
    "saml": (saml, {"BIDMC": {"Case00": "Case00"}, "I2CVB": {"Case01": "Case01", "Case02": "Case02"}}),
    "prostate-slices": (
        prostate_slices,
        {
            "RUNMC": {
                "train_00_00": "train_00",
                "train_00_01": "train_00",
                "train_01_00": "train_01",
                "test_00_00": "test_00",
            }
        },
    ),
    "fundus": (fundus, {"rim_one_r3": {"G-1-L": "G-1", "G-1-R": "G-1", "G-2-L": "G-2"}}),
    "mms": (
        mms,
        {
            "centre_1": {"A0S9V9_ED": "A0S9V9", "A0S9V9_ES": "A0S9V9"},
            "centre_2": {"A1D0Q7_ED": "A1D0Q7", "A1D0Q7_ES": "A1D0Q7"},
        },
    ),
    "acdc": (acdc, {"acdc": {"patient001_frame01": "patient001", "patient001_frame12": "patient001"}}),
    "dsb2018": (
        dsb2018,
        {"fluorescence_6x8": {"dark": "dark"}, "brightfield": {"light": "light"}, "histology": {"violet": "violet"}},
    ),
    "retina": (
        retina,
        {
            "drive": {"21": "21"},
            "stare": {"im0001": "im0001"},
            "chase": {"Image_01L": "Image_01", "Image_01R": "Image_01"},
            "hrf": {"01_h": "01_h"},
        },
    ),
    "nnunet": (nnunet, {"liver": {"liver_001": "liver_001", "liver_002": "liver_002"}}),
    "msd": (msd, {"hippocampus": {"hippocampus_001": "hippocampus_001", "hippocampus_003": "hippocampus_003"}}),
    "fets": (
        fets,
        {
            "institution_1": {"FeTS2022_00000": "FeTS2022_00000", "FeTS2022_00002": "FeTS2022_00002"},
            "institution_18": {"FeTS2022_00003": "FeTS2022_00003"},
        },
    ),
    "folders": (folders, {"north": {"a": "", "b": ""}, "south_side": {"c": ""}}),
}
CLASSES = {
    "saml": {"prostate": [1, 2]},
    "prostate-slices": {"prostate": [0], "background": [255]},
    "fundus": {"rim": [128], "cup": [0], "background": [255]},
    "mms": {"left_ventricle": [1], "myocardium": [2], "right_ventricle": [3]},
    "acdc": {"left_ventricle": [3], "myocardium": [2], "right_ventricle": [1]},
    "dsb2018": {"nucleus": [1]},
    "retina": {"vessel": [255]},
    "nnunet": {"liver": [1], "tumour": [2]},
    "msd": {"Anterior": [1], "Posterior": [2]},
    "fets": {"necrotic_core": [1], "edema": [2], "enhancing_tumour": [4]},
    "folders": {"class_1": [1], "class_2": [2], "class_255": [255]},
}


def made(name: str, folder: Path) -> Path:
    root = folder / ("Dataset007_Liver" if name == "nnunet" else "source")
    root.mkdir(parents=True)
    CASES[name][0](root)
    return root


def test_every_layout_is_tried() -> None:
    assert set(CASES) == set(CLASSES) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("copy", [False, True])
def test_sites_patients_and_classes_are_right(name: str, copy: bool, tmp_path: Path) -> None:
    source, expected = made(name, tmp_path), CASES[name][1]
    imported = write_sites(LAYOUTS[name], source, tmp_path / "out", copy=copy)
    assert imported.cases == {site: len(cases) for site, cases in expected.items()}
    assert imported.patients == {site: len({*cases.values()} - {""}) for site, cases in expected.items()}
    data = yaml.safe_load(imported.study.read_text())["data"]
    assert set(data["sites"]) == set(expected)
    assert data["classes"] == CLASSES[name]
    for site, cases in expected.items():
        folder = tmp_path / "out" / site
        rows = list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))
        assert {row["case"]: row["patient"] for row in rows} == cases
        files = [folder / cell for row in rows for cell in [*row["image"].split(";"), row["mask"]]]
        assert all(path.is_file() for path in files)
        assert not copy or not any(path.is_symlink() for path in files)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_found_by_itself(name: str, tmp_path: Path) -> None:
    assert find_layout(None, made(name, tmp_path)).name == name


def test_the_masks_of_one_picture_become_one(tmp_path: Path) -> None:
    write_sites(LAYOUTS["dsb2018"], made("dsb2018", tmp_path), tmp_path / "out")
    mask = read_mask(tmp_path / "out" / "histology" / "masks" / "violet.png")
    assert np.argwhere(mask).tolist() == [[0, 0], [5, 7]]
    assert set(np.unique(mask).tolist()) == {0, 1}


def test_each_annotated_time_becomes_a_volume_with_the_same_position(tmp_path: Path) -> None:
    write_sites(LAYOUTS["mms"], made("mms", tmp_path), tmp_path / "out")
    for phase, time in (("ED", 1), ("ES", 2)):
        image = nib.load(tmp_path / "out" / "centre_2" / "images" / f"A1D0Q7_{phase}.nii.gz")
        assert np.array_equal(np.asarray(image.dataobj), VOLUME + 100 * time)
        assert np.allclose(image.affine, np.diag([1.5, 1.5, 8, 1]))


def test_vessels_keep_their_place(tmp_path: Path) -> None:
    write_sites(LAYOUTS["retina"], made("retina", tmp_path), tmp_path / "out")
    for site in ("drive", "stare", "hrf"):
        [mask] = (tmp_path / "out" / site / "masks").iterdir()
        assert np.array_equal(read_mask(mask), IDS)


def test_an_imported_folder_of_pictures_is_read(tmp_path: Path) -> None:
    write_sites(LAYOUTS["fundus"], made("fundus", tmp_path), tmp_path / "out")
    site = read_site("rim", tmp_path / "out" / "rim_one_r3")
    assert {case.id: case.patient for case in site.cases} == CASES["fundus"][1]["rim_one_r3"]


def test_what_is_no_layout_is_refused_with_what_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match=r"not clear.*--layout: saml"):
        find_layout(None, tmp_path / "empty")
    with pytest.raises(OptionError, match=r"no layout 'brats'; known: saml"):
        find_layout("brats", tmp_path / "empty")
    with pytest.raises(DataError, match=r"nothing of the layout 'acdc'; it looks for training/patient001"):
        write_sites(LAYOUTS["acdc"], tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        write_sites(LAYOUTS["acdc"], tmp_path / "none", tmp_path / "out")


def test_a_folder_that_is_not_empty_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="not empty"):
        write_sites(LAYOUTS["acdc"], made("acdc", tmp_path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, r"label 'whole' as \[1, 2\]; regions"),
        (None, "no JSON"),
    ],
)
def test_a_description_that_cannot_be_used_is_named(
    change: dict[str, object] | None, message: str, tmp_path: Path
) -> None:
    source = made("nnunet", tmp_path)
    content = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text("{" if change is None else json.dumps(content | change))
    with pytest.raises(DataError, match=message):
        write_sites(LAYOUTS["nnunet"], source, tmp_path / "out")


def test_a_label_without_an_image_is_named(tmp_path: Path) -> None:
    source = made("nnunet", tmp_path)
    (source / "imagesTr" / "liver_002_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"'liver_002'.*'liver_002_0001.nii.gz'"):
        write_sites(LAYOUTS["nnunet"], source, tmp_path / "out")
