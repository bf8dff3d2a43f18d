from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from volume_files import write_nifti, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.images import ImageOptions
from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.volume import Volume, percentiles
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.random.default_rng(0).integers(0, 2000, (5, 6, 4)).astype(np.int16)
AFFINE = np.diag([1.0, 1.5, 4, 1])
ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def _volume(path, **options) -> Volume:
    chosen = VolumeOptions(**options)
    return Volume([open_volume(path, chosen)], chosen, ImageOptions())


def _slices(volume: Volume) -> np.ndarray:
    return np.stack([volume.pixels(number) for number in range(volume.shape[0])])


def _turned(values: np.ndarray, affine: np.ndarray, order, signs):
    image = nib.Nifti1Image(values, affine).as_reoriented(np.array(list(zip(order, signs, strict=True))))
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("plane", ["auto", "sagittal", "coronal"])
def test_48_orientations_of_a_nifti_file_give_the_same_slices(tmp_path, plane):
    expected = _volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), axis=plane)
    for order, signs in ORIENTATIONS:
        values, affine = _turned(VALUES, AFFINE, order, signs)
        volume = _volume(write_nifti(tmp_path / "b.nii", values, affine), axis=plane)
        assert volume.spacing_mm == expected.spacing_mm
        np.testing.assert_array_equal(_slices(volume), _slices(expected))
        stacked = np.arange(VALUES.size, dtype=np.uint16).reshape(volume.shape)
        volume.write_mask(tmp_path / "m.nii", stacked)
        written = nib.load(tmp_path / "m.nii")
        np.testing.assert_allclose(written.affine, affine, atol=1e-6)
        mask = open_mask(tmp_path / "m.nii", volume.readers[0], VolumeOptions())
        np.testing.assert_array_equal(np.stack(list(volume.all_ids(mask))), stacked)


def test_48_orientations_of_a_dicom_series_give_the_same_slices(tmp_path):
    expected = _slices(_volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), axis="axial"))
    for number, (order, signs) in enumerate(ORIENTATIONS):
        values, affine = _turned(VALUES, AFFINE, order, signs)
        series = write_series(tmp_path / str(number), values, affine, seed=number)
        np.testing.assert_array_equal(_slices(_volume(series, axis="axial")), expected)


def test_slices_lie_as_radiologists_look_at_them(tmp_path):
    """In an RAS file the first index grows to the right, the second to the front, the third to the head."""
    volume = _volume(
        write_nifti(tmp_path / "a.nii", VALUES, AFFINE), axis="axial", normalise="window", window=(0, 2000)
    )
    assert volume.shape == (4, 6, 5)
    assert volume.spacing_mm == (4, 1.5, 1)
    np.testing.assert_allclose(volume.pixels(1)[0, 0], VALUES[-1, -1, 1] / 2000)  # front right of the patient
    sagittal = _volume(
        write_nifti(tmp_path / "a.nii", VALUES, AFFINE), axis="sagittal", normalise="window", window=(0, 2000)
    )
    np.testing.assert_allclose(
        sagittal.pixels(0)[0, 0], VALUES[-1, -1, -1] / 2000, rtol=1e-6
    )  # right side: head, front


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [((1, 1, 1), (4, 6, 5)), ((1, 3, 1), (6, 4, 5)), ((2, 1, 1), (5, 4, 6)), ((3, 3, 1), (6, 4, 5))],
)
def test_slices_lie_across_the_largest_spacing(tmp_path, spacing, plane):
    assert _volume(write_nifti(tmp_path / "a.nii", VALUES, np.diag([*spacing, 1.0]))).shape == plane


@pytest.mark.parametrize("spacing", [(1.02, 1, 1), (1, 1.02, 1), (1, 1, 1.02), (1.2, 1, 1), (1.2, 1.2, 1)])
def test_small_differences_of_spacings_do_not_decide_the_plane(tmp_path, spacing):
    """The voxels of one file with two headers give equal slices."""
    cubes = _volume(write_nifti(tmp_path / "a.nii", VALUES, np.eye(4)))
    other = _volume(write_nifti(tmp_path / "b.nii", VALUES, np.diag([*spacing, 1.0])))
    np.testing.assert_array_equal(_slices(other), _slices(cubes))
    assert other.slicing.plane == "axial"


@pytest.mark.parametrize(("turn", "oblique"), [(0, False), (29, False), (31, True)])
def test_slices_that_are_turned_by_more_than_30_degrees_are_oblique(tmp_path, turn, oblique):
    s, c = np.sin(np.deg2rad(turn)), np.cos(np.deg2rad(turn))
    affine = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1.0]]) @ np.diag([1, 1, 3, 1.0])
    slicing = _volume(write_nifti(tmp_path / "a.nii", VALUES, affine)).slicing
    assert (slicing.plane, slicing.oblique) == ("axial", oblique)


def test_neighbours_and_sequences_are_channels(tmp_path):
    path = write_nifti(tmp_path / "a.nii", VALUES, AFFINE)
    plain, with_neighbours = _slices(_volume(path)), _slices(_volume(path, neighbours=1))
    np.testing.assert_array_equal(plain[..., 0], plain[..., 2])
    np.testing.assert_array_equal(
        with_neighbours[1], np.stack([plain[0, ..., 0], plain[1, ..., 0], plain[2, ..., 0]], axis=2)
    )
    np.testing.assert_array_equal(with_neighbours[0, ..., 0], plain[0, ..., 0])
    np.testing.assert_array_equal(with_neighbours[3, ..., 2], plain[3, ..., 0])
    other = write_nifti(tmp_path / "b.nii", 2000 - VALUES, AFFINE)
    options = VolumeOptions()
    both = Volume([open_volume(p, options) for p in (path, other)], options, ImageOptions())
    np.testing.assert_array_equal(both.pixels(2)[..., 0], plain[2, ..., 0])
    np.testing.assert_array_equal(both.pixels(2)[..., 1], both.pixels(2)[..., 2])
    assert not np.array_equal(both.pixels(2)[..., 0], both.pixels(2)[..., 1])
    # People are shown the slice itself, in grey.
    np.testing.assert_array_equal(_volume(path, neighbours=1).picture(1), plain[1])
    np.testing.assert_array_equal(both.picture(2), plain[2])


def test_normalisation_is_of_the_whole_volume(tmp_path):
    path = write_nifti(tmp_path / "a.nii", VALUES, AFFINE)
    low, high = (np.percentile(VALUES, share, method="inverted_cdf") for share in (1, 99))
    expected = np.clip((VALUES - low) / (high - low), 0, 1)
    np.testing.assert_allclose(_slices(_volume(path))[2, ..., 0], expected[::-1, ::-1, 2].T, atol=1e-6)
    z = (VALUES - VALUES.mean()) / VALUES.std()
    np.testing.assert_allclose(
        _slices(_volume(path, normalise="zscore"))[2, ..., 0], np.clip(z / 6 + 0.5, 0, 1)[::-1, ::-1, 2].T, atol=1e-5
    )
    lung = _slices(_volume(path, normalise="window", window="lung"))
    np.testing.assert_allclose(lung[2, ..., 0], np.clip((VALUES + 1350) / 1500, 0, 1)[::-1, ::-1, 2].T, atol=1e-6)
    bits = write_nifti(tmp_path / "b.nii", VALUES.astype(np.uint16) * 30, AFFINE)
    np.testing.assert_allclose(
        _slices(_volume(bits, normalise="none"))[2, ..., 0], (VALUES / 65535 * 30)[::-1, ::-1, 2].T, atol=1e-6
    )
    shares = _scaled(write_nifti(tmp_path / "d.nii", np.abs(VALUES).astype(np.uint16), AFFINE), 1 / 4096)
    np.testing.assert_allclose(
        _slices(_volume(shares, normalise="none"))[2, ..., 0], (np.abs(VALUES) / 4096)[::-1, ::-1, 2].T, atol=1e-6
    )
    with pytest.raises(DataError, match=r"its values go from .*, and data.volume.normalise: none needs values in 0..1"):
        _slices(_volume(path, normalise="none"))
    flat = write_nifti(tmp_path / "c.nii", np.full((3, 4, 5), 7, np.int16), AFFINE)
    assert not _slices(_volume(flat)).any()


def test_a_volume_with_nearly_one_value_is_not_black(tmp_path):
    """A block of 200 voxels among 288,000: both percentiles are the value around it."""
    values = np.full((120, 120, 20), -7, np.int16)
    values[50:60, 60:70, 8:10] = np.arange(200).reshape(10, 10, 2)
    path = write_nifti(tmp_path / "a.nii", values, AFFINE)
    expected = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(_slices(_volume(path))[8, ..., 0], expected[::-1, ::-1, 8].T, atol=1e-6)


def _scaled(path, slope: float):
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, 0], np.float32).tobytes()  # scl_slope and scl_inter
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_percentiles_are_exact_in_the_memory_of_a_slice(scale):
    values = (np.random.default_rng(0).normal(size=(7, 11, 13)) * scale).astype(np.float32)
    values[0, 0] = 0.0
    for shares in ((0, 100), (1, 99), (37.5, 50)):
        expected = tuple(float(np.percentile(values, share, method="inverted_cdf")) for share in shares)
        assert percentiles(lambda: iter(values), shares) == expected


def test_resampling_to_a_pixel_size(tmp_path):
    path = write_nifti(tmp_path / "a.nii", VALUES, AFFINE)
    frame = _volume(path, spacing=0.5).frame(32)
    assert (frame.native, frame.resized) == ((6, 5), (18, 10))  # 9 x 5 mm
    with pytest.raises(
        DataError,
        match=r"at 0.1 mm its slices have 50 x 90 pixels, .* 32 x 32; set data.volume.spacing to 0.281 or more",
    ):
        _volume(path, spacing=0.1).frame(32)
    lost = Volume([open_volume(path, VolumeOptions())], VolumeOptions(spacing=1), ImageOptions(), spacing_lost=True)
    with pytest.raises(DataError, match="its spacing is not known"):
        lost.frame(32)


@pytest.mark.parametrize(
    ("order", "axis", "given", "spacing"),
    [
        ("xyz", "auto", (4, 0.7, 0.6), (4, 0.7, 0.6)),
        ("xyz", "axial", (4, 0.7, 0.6), (4, 0.7, 0.6)),
        ("xyz", "coronal", (4, 0.7, 0.6), None),
        ("xyz", "sagittal", (4, 0.7, 0.6), None),
        ("xyz", "coronal", (2, 2, 2), (2, 2, 2)),
        ("xzy", "coronal", (4, 0.7, 0.6), (4, 0.7, 0.6)),  # a coronal series: its last axis is that of its slices
        ("zxy", "axial", (4, 0.7, 0.6), (4, 0.7, 0.6)),
    ],
)
@pytest.mark.parametrize("source", ["spacing_mm", "spacing_else"])
def test_a_given_spacing_has_one_meaning_whatever_the_plane(tmp_path, order, axis, given, spacing, source):
    affine = np.eye(4)[["xyz".index(letter) for letter in order] + [3]].T
    chosen = VolumeOptions(axis=axis)
    readers = [open_volume(write_nifti(tmp_path / "a.nii", VALUES, affine), chosen)]
    lost = {source: given, "spacing_lost": source == "spacing_else"}
    if spacing is not None:
        assert Volume(readers, chosen, ImageOptions(), **lost).spacing_mm == spacing
        return
    with pytest.raises(DataError, match=rf"^the spacing that is given for it, 4x0.7x0.6 mm, .*{axis} cuts it across"):
        Volume(readers, chosen, ImageOptions(), **lost)
    Volume(readers, chosen, ImageOptions())  # the spacing of the file is along its own axes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "window"}, "window and normalise: window belong together"),
        ({"normalise": "window", "window": "liverx"}, "no window 'liverx'; known: abdomen"),
        ({"normalise": "window", "window": (5, 5)}, "must be below"),
        ({"neighbours": 1, "channels": ["_a", "_b"]}, "both fill the three channels"),
        ({"channels": ["_a"]}, "two or three different endings"),
        ({"segments": {"liver": 0}}, "1 to 65535"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        VolumeOptions(**options)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_directions_are_those_of_a_file_that_needs_no_turning(tmp_path, plane):
    """A file whose axes run in these directions, by nibabel's reading of its affine, is shown as it is stored."""
    directions = _volume(write_nifti(tmp_path / "a.nii", VALUES, AFFINE), axis=plane).slicing.directions
    image = nib.Nifti1Image(VALUES, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(directions)))
    stored = image.as_reoriented(turn)
    assert "".join(nib.aff2axcodes(stored.affine)) == directions
    slicing = _volume(write_nifti(tmp_path / "b.nii", np.asarray(stored.dataobj), stored.affine), axis=plane).slicing
    assert (slicing.axes, slicing.flipped) == ((0, 1, 2), (False, False, False))


def test_a_header_with_more_slices_than_any_scan_is_refused_at_once(tmp_path):
    most = write_nifti(tmp_path / "most.nii", np.zeros((1, 1, 10_000), np.uint8), np.diag([1, 1, 2, 1]))
    assert _volume(most).shape == (10_000, 1, 1)
    for shape, spacing in (
        ((1, 1, 10_001), (1, 1, 2, 1)),
        ((10_001, 1, 1), (2, 1, 1, 1)),
        ((2, 2, 10_001), (2, 1, 1, 1)),
    ):
        image = nib.Nifti2Image(np.zeros(shape, np.uint8), np.diag(spacing))
        nib.save(image, tmp_path / "more.nii")
        with pytest.raises(
            DataError, match=r"^its header gives 10001 slices, and at most 10000 are read; cut another plane"
        ):
            _volume(tmp_path / "more.nii")
