"""The plane of the training volumes is stored, and other volumes are cut in it."""

from pathlib import Path

import numpy as np
import pytest
from volume_files import write_nifti

from pfedsam.core.errors import DataError, StoreError
from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.images import ImageOptions
from pfedsam.data.manifest import Case, Site, Split
from pfedsam.data.planes import PLANE, cut_as_trained, read_plane, trained_plane, write_plane
from pfedsam.data.volume_options import Plane, VolumeOptions


def _facts(*cases: tuple[Plane | None, Split]) -> SiteFacts:
    made = [Case("s", str(n), Path(), None, str(n), split, volume=True) for n, (_, split) in enumerate(cases)]
    facts = tuple(CaseFacts(case, plane=plane) for case, (plane, _) in zip(made, cases, strict=True))
    return SiteFacts(Site("s", Path(), tuple(made)), facts, False, (), (), ())


@pytest.mark.parametrize(
    ("facts", "plane"),
    [
        (_facts(("axial", "train"), ("axial", "train"), ("coronal", "test")), "axial"),
        (_facts(("axial", "train"), ("coronal", "train")), None),
        (_facts(("axial", "train"), (None, "train")), None),
        (_facts(("axial", "test")), None),
    ],
    ids=["one", "two", "oblique", "no training"],
)
def test_the_plane_of_the_training_volumes_is_read_back(facts: SiteFacts, plane: Plane | None, tmp_path: Path) -> None:
    assert trained_plane(facts) == plane
    write_plane(tmp_path, facts)
    assert read_plane(tmp_path) == plane


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"plane": "slanted"}', '{"plane": 1}'])
def test_a_damaged_file_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / PLANE).write_text(content)
    with pytest.raises(StoreError, match=r"plane\.json of the site is damaged"):
        read_plane(tmp_path)


def _cut(
    folder: Path, spacing: tuple[float, float, float], trained: Plane | None, turn: float = 0, **options: str
) -> str:
    """The plane in which a volume is cut that is turned by some degrees about the axis to the front."""
    values, s = np.zeros((4, 5, 6), np.int16), np.sin(np.deg2rad(turn))
    c = np.sqrt(1 - s**2)
    about_y = np.array([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])
    path = write_nifti(folder / "a.nii", values, about_y @ np.diag([*spacing, 1.0]))
    case = Case("s", "a", path, None, "a", volume=True)
    return cut_as_trained(case, ImageOptions(), VolumeOptions(**options), trained).axis  # type: ignore[arg-type]


def test_a_volume_is_cut_as_those_of_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _cut(tmp_path, (1, 1, 3), "axial") == "auto"  # the same plane anyway
    assert _cut(tmp_path, (1.5, 1, 1), None) == "auto"
    assert _cut(tmp_path, (1.5, 1, 1), "axial", axis="coronal") == "coronal"
    assert caplog.text == ""
    assert _cut(tmp_path, (1.5, 1, 1), "axial") == "axial"
    assert "a.nii: it is cut in the axial plane, as the training volumes were" in caplog.text


def test_a_volume_is_not_cut_across_thick_slices(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"case 'a': its slices are sagittal and 3 mm apart, and the model was trained on axial ones; .*axis=sagittal or axial",
    ):
        _cut(tmp_path, (3, 1, 1), "axial")
    assert _cut(tmp_path, (3, 1, 1), "axial", turn=40) == "auto"  # an oblique acquisition
    assert _cut(tmp_path, (1.5, 1, 1), "axial", turn=40) == "axial"
