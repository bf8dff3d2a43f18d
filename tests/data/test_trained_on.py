"""The properties of a site's training images are stored, and other images are compared with them."""

from pathlib import Path

import numpy as np
import pytest
from volume_files import write_nifti

from pfedsam.core.errors import DataError, StoreError
from pfedsam.data.facts import CaseFacts, SiteFacts
from pfedsam.data.images import ImageOptions
from pfedsam.data.manifest import Case, Site
from pfedsam.data.manifest_lines import Split
from pfedsam.data.trained_on import (
    FILES,
    IntensityRange,
    TrainedOn,
    common,
    cut_as_trained,
    far_from_training,
    joins_other_kind,
    other_kind,
    refuse_other_number,
)
from pfedsam.data.volume_options import Plane, VolumeOptions


def _facts(cases: list[CaseFacts]) -> SiteFacts:
    return SiteFacts(Site("s", Path(), tuple(one.case for one in cases)), tuple(cases), False, (), (), ())


def _pictures(*cases: tuple[Split, float | None]) -> SiteFacts:
    made = [Case("s", str(number), Path(), None, str(number), split) for number, (split, _) in enumerate(cases)]
    return _facts([CaseFacts(case, high=high) for case, (_, high) in zip(made, cases, strict=True)])


def _volumes(*cases: tuple[Split, Plane | None, int]) -> SiteFacts:
    found = []
    for number, (split, plane, sequences) in enumerate(cases):
        further = (Path("b"),) * (sequences - 1)
        case = Case("s", str(number), Path("a"), None, str(number), split, volume=True, sequences=further)
        found.append(CaseFacts(case, plane=plane))
    return _facts(found)


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (
            _pictures(("train", 0.5), ("train", 0.25), ("test", 1.0), ("train", None), ("val", 0.01)),
            TrainedOn(IntensityRange(0.25, 0.5)),
        ),
        (_pictures(("test", 0.5), ("train", None)), TrainedOn()),
        (
            _volumes(("train", "axial", 1), ("train", "axial", 1), ("test", "coronal", 2)),
            TrainedOn(plane="axial", sequences=1),
        ),
        (_volumes(("train", "axial", 3), ("train", "coronal", 3)), TrainedOn(sequences=3)),
        (_volumes(("train", "axial", 1), ("train", None, 2)), TrainedOn()),
        (_volumes(("test", "axial", 1)), TrainedOn()),
    ],
    ids=["pictures", "unreadable", "one plane", "two planes", "mixed", "no training"],
)
def test_what_a_site_trained_on_is_read_as_it_was_written(facts: SiteFacts, found: TrainedOn, tmp_path: Path) -> None:
    assert TrainedOn.of(facts) == found
    found.write(tmp_path)
    assert TrainedOn.read(tmp_path) == found
    assert {path.name for path in tmp_path.iterdir()} <= FILES


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("intensity", text) for text in ("{", "[]", '{"darkest": "x", "brightest": 1}', '{"darkest": 0.1}')),
        *(("plane", text) for text in ("", "{}", "[1]", '{"plane": "slanted"}', '{"plane": 1}')),
        *(("sequences", text) for text in ("", "null", "{}", '{"sequences": "x"}')),
    ],
)
def test_the_message_about_a_damaged_file_says_what_is_lost(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(StoreError, match=rf"^{name}\.json of the site is damaged\. .* `predict` works, but (does|may)"):
        TrainedOn.read(tmp_path)


@pytest.mark.parametrize(
    ("values", "found"), [([], None), ([2, 2], 2), ([2, 3], None), ([None, 2], None), ([None], None)]
)
def test_a_common_value_is_one_that_all_have(values: list[int | None], found: int | None) -> None:
    assert common(iter(values)) == found


@pytest.mark.parametrize(("value", "how"), [(0.4, None), (0.05, None), (0.04, "darker"), (0.0, "darker"), (1.0, None)])
def test_an_image_is_far_where_it_is_four_times_darker_than_every_training_image(value: float, how: str | None) -> None:
    said = far_from_training(np.full((8, 8, 3), value, np.float32), IntensityRange(0.2, 0.5))
    assert (said is None) == (how is None)
    assert how is None or f"much {how} than the images that the site trained on" in str(said)


def test_an_image_may_be_too_bright_and_black_ones_are_alike() -> None:
    bright = np.ones((8, 8, 3), np.float32)
    assert "much brighter" in str(far_from_training(bright, IntensityRange(0.1, 0.2)))
    black = np.zeros((8, 8, 3), np.float32)
    assert far_from_training(black, IntensityRange(0.0, 0.0)) is None


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


def test_another_number_of_sequences_is_refused_with_what_to_do() -> None:
    for number, trained in ((1, None), (3, None), (1, 1), (2, 2)):
        refuse_other_number(number, trained)
    with pytest.raises(DataError, match=r"trained on 2 sequences .* one of 1; .*channels=\['_t1', '_t2'\]"):
        refuse_other_number(1, 2)
    with pytest.raises(DataError, match=r"trained on one sequence .* one of 2; leave data\.volume\.channels empty"):
        refuse_other_number(2, 1)


@pytest.mark.parametrize(
    ("known", "trained"),
    [(TrainedOn(sequences=1), True), (TrainedOn(IntensityRange(0, 1)), False), (TrainedOn(), None)],
)
@pytest.mark.parametrize("volume", [True, False])
def test_only_the_other_kind_is_a_warning(known: TrainedOn, trained: bool | None, volume: bool) -> None:
    assert known.volumes is trained
    said, joins = other_kind("north", trained, volume=volume), joins_other_kind("new", trained, volume=volume)
    if trained in (None, volume):
        assert said is joins is None
        return
    kinds = ("volumes (NIfTI or DICOM)", "pictures (PNG, JPEG or TIFF)")
    first, second = kinds if trained else reversed(kinds)
    assert said is not None
    assert f"the model of site 'north' was trained on {first} and is used on {second}" in said
    assert joins is not None
    assert f"site 'new' has {second}, and the federation was trained on {first}" in joins
