"""Sites whose data can be read and are wrong, one function a fault, and clean ones; also run by `benchmarks/faults.py`."""

import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.check import DataReport, check_sites
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import Site, read_site
from pfedsam.data.split import SplitOptions, split_site
from pfedsam.data.suspicions import Study

LABELS = LabelMap({"organ": [1], "lesion": [2]})
SITES = ("a", "b", "c")
CASES = 10
_ORIENTATION = 274


@dataclass(frozen=True)
class Fault:
    """A fault at one of three sites."""

    make: Callable[[Path], None]
    says: str
    """What the finding must say, beside the site."""
    site: str = "b"
    pattern: str | None = None
    error: bool = False


def clean_site(folder: Path, seed: int, *, names: list[str] | None = None, size: tuple[int, int] = (40, 56)) -> None:
    """Noisy pictures with an ellipse that has a spot in it; no two alike."""
    draw = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names or [f"c{i:02d}" for i in range(CASES)]:
        picture, mask = _scene(draw, size)
        Image.fromarray(picture).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def _scene(draw: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    y, x = np.mgrid[:height, :width]
    centre = draw.uniform(0.4, 0.6) * height, draw.uniform(0.4, 0.6) * width
    radius = draw.uniform(0.15, 0.25) * height
    distance = np.hypot(y - centre[0], (x - centre[1]) / 1.3)
    mask = np.where(distance < radius / 2, 2, np.where(distance < radius, 1, 0)).astype(np.uint8)
    picture = draw.normal(90, 14, size) + 45 * (mask > 0) + 30 * (mask == 2)
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def clean_study(root: Path) -> None:
    """Three clean sites, of different sizes."""
    for number, site in enumerate(SITES):
        clean_site(root / site, number, size=(40 + 8 * number, 56))


def read_and_check(root: Path, pattern: str | None = None, image: ImageOptions | None = None) -> DataReport:
    """What the check finds of the sites in a folder, split where they can be."""
    sites = [_split(read_site(name, root / name, patient_pattern=pattern, masks_required=False)) for name in SITES]
    return check_sites(sites, Study(LABELS, image or ImageOptions(), pattern))


def _split(site: Site) -> Site:
    try:
        return split_site(site, SplitOptions(), 0)
    except DataError:
        return site


def _pictures(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


def _change_masks(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in (folder / "masks").iterdir():
        Image.fromarray(change(np.asarray(Image.open(path))).astype(np.uint8)).save(path)


def _manifest(folder: Path, header: str, row: Callable[[int, str], str], *, leave_out: int = 0) -> None:
    names = [path.stem for path in _pictures(folder)]
    rows = [f"images/{name}.png,masks/{name}.png,{row(i, name)}" for i, name in enumerate(names[leave_out:])]
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def twelve_bits_in_sixteen(root: Path) -> None:
    """Values of 0 to 4095 in files of 16 bits."""
    for path in _pictures(root / "b"):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)


def pattern_partly(root: Path) -> None:
    """Slides cut into twelve tiles, and a pattern of one digit."""
    for site in SITES:
        shutil.rmtree(root / site)
        clean_site(root / site, ord(site), names=[f"slide{p}_t{t}" for p in range(4) for t in range(12)])


def tile_names(root: Path) -> None:
    """Tiles without any pattern."""
    shutil.rmtree(root / "b")
    clean_site(root / "b", 5, names=[f"slide{p}_x{x}_y{y}" for p in range(4) for x in (0, 512) for y in (0, 512)])


def equal_under_two_names(root: Path) -> None:
    """One patient's picture twice."""
    folder = root / "b"
    for part in ("images", "masks"):
        shutil.copy(folder / part / "c00.png", folder / part / "c01.png")
    _manifest(folder, "image,mask,patient", lambda i, _: "p0" if i < 2 else f"p{i}")


def equal_under_two_patients(root: Path) -> None:
    """One picture under two patients, both to train on."""
    folder = root / "b"
    for part in ("images", "masks"):
        shutil.copy(folder / part / "c00.png", folder / part / "c01.png")
    _manifest(folder, "image,mask,patient,split", lambda i, _: f"p{i},{_side(i)}")


def equal_at_two_sites(root: Path) -> None:
    """One picture at two sites, in the training part of both; the copy is saved as TIFF."""
    for site in ("a", "b"):
        _manifest(root / site, "image,mask,patient,split", lambda i, _: f"p{i},{_side(i)}")
    picture, mask = _scene(np.random.default_rng(99), (40, 56))
    for site in ("a", "b"):
        Image.fromarray(picture).save(root / site / "images" / "c00.png")
        Image.fromarray(mask).save(root / site / "masks" / "c00.png")
    text = (root / "b" / "manifest.csv").read_text().replace("images/c00.png", "images/c00.tif")
    (root / "b" / "manifest.csv").write_text(text)
    Image.open(root / "b" / "images" / "c00.png").save(root / "b" / "images" / "c00.tif")
    (root / "b" / "images" / "c00.png").unlink()


def equal_in_two_parts(root: Path) -> None:
    """One picture in train and in test."""
    folder = root / "b"
    for part in ("images", "masks"):
        shutil.copy(folder / part / "c00.png", folder / part / "c09.png")
    _manifest(folder, "image,mask,patient,split", lambda i, _: f"p{i},{_side(i)}")


def _side(number: int) -> str:
    return "train" if number < 6 else "val" if number < 7 else "test"


def exif_half_turn(root: Path) -> None:
    """JPEGs to be turned by 180 degrees, masks drawn on the stored pixels."""
    for path in _pictures(root / "b"):
        exif = Image.Exif()
        exif[_ORIENTATION] = 3
        Image.open(path).save(path.with_suffix(".jpg"), quality=95, exif=exif)
        path.unlink()


def class_absent(root: Path) -> None:
    """One of two classes is nowhere at a site."""
    _change_masks(root / "b", lambda mask: np.minimum(mask, 1))


def inverted_masks(root: Path) -> None:
    """Background and organ exchanged."""
    _change_masks(root / "b", lambda mask: np.where(mask == 0, 1, np.where(mask == 1, 0, mask)))


def spacing_for_some(root: Path) -> None:
    """Spacing on three lines of ten."""
    _manifest(root / "b", "image,mask,patient,spacing", lambda i, name: f"{name},{'0.5' if i < 3 else ''}")


def files_not_listed(root: Path) -> None:
    """A manifest that lacks two of its folder's cases."""
    _manifest(root / "b", "image,mask,patient", lambda _, name: name, leave_out=2)


def empty_patients(root: Path) -> None:
    """A manifest without patients on half of its lines."""
    _manifest(root / "b", "image,mask,patient", lambda i, _: f"p{i}" if i < 5 else "")


def no_validation_case(root: Path) -> None:
    """A manifest whose split has no `val`."""
    _manifest(root / "b", "image,mask,patient,split", lambda i, _: f"p{i},{'train' if i < 7 else 'test'}")


def nfc_and_nfd(root: Path) -> None:
    """One name in both spellings, each with a picture of its own."""
    for form, seed in (("NFC", 1), ("NFD", 2)):
        clean_site(
            root / "b", seed, names=[unicodedata.normalize(form, "m\N{LATIN SMALL LETTER U WITH DIAERESIS}ller")]
        )


FAULTS = {
    "twelve bits in sixteen": Fault(twelve_bits_in_sixteen, "10 cases such as 'c00', 'c01', 'c02': the values use"),
    "pattern matches partly": Fault(pattern_partly, "matches 40 of 48 names and not these", pattern=r"^(.+)_t\d$"),
    "names of tiles": Fault(tile_names, "look like several pictures of one source"),
    "equal under two names": Fault(equal_under_two_names, "equal pictures under two names"),
    "equal under two patients": Fault(equal_under_two_patients, "equal pictures under two patients"),
    "equal at two sites": Fault(equal_at_two_sites, "equal pictures under two sites", site="a"),
    "equal in two parts": Fault(equal_in_two_parts, "they are in two parts of the split", error=True),
    "EXIF half turn": Fault(exif_half_turn, "the image has an EXIF orientation"),
    "class absent": Fault(class_absent, "none of its 10 masks has the class 'lesion' (ids [2])"),
    "inverted masks": Fault(inverted_masks, "they look inverted"),
    "spacing for some": Fault(
        spacing_for_some, "7 cases such as 'c03', 'c04', 'c05': no spacing, where 3 other case(s) have"
    ),
    "files not listed": Fault(files_not_listed, "manifest.csv does not list 4 file(s)"),
    "empty patients": Fault(empty_patients, "5 cases such as 'c05', 'c06', 'c07': no patient in manifest.csv"),
    "no validation case": Fault(no_validation_case, "has no validation case"),
    "NFC and NFD": Fault(nfc_and_nfd, "case names that look alike and differ only in how their accents are written"),
}
"""The faults that must be told, by name."""


def is_told(fault: Fault, root: Path) -> bool:
    """Whether the check tells the fault, at its site, as an error where it is one."""
    clean_study(root)
    fault.make(root)
    report = read_and_check(root, fault.pattern)
    lines = report.problems if fault.error else report.warnings
    return any(line.startswith(f"site {fault.site!r}") and fault.says in line for line in lines)
