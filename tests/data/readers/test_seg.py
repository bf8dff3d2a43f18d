import highdicom as hd
import numpy as np
import pydicom
import pytest
from mask_files import IDS, UNEVEN, VALUES, assert_refused, moved, read_ids, write_ct, write_seg_of, write_uneven
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.pixels.utils import pack_bits
from pydicom.uid import generate_uid
from volume_files import all_planes, write_nifti, write_series

from pfedsam.data.labels import LabelMap
from pfedsam.data.readers import open_mask, open_volume
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.volume_options import VolumeOptions


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_dicom_seg_of_ids(tmp_path, kind):
    image = write_ct(tmp_path / "ct")
    path = write_seg_of(tmp_path / "m.dcm", image, np.moveaxis(IDS, 2, 0), kind)
    np.testing.assert_array_equal(read_ids(path, image), IDS)
    np.testing.assert_array_equal(read_ids(path, image, segments={"organ 2": 7}), 7 * (IDS == 2))
    assert_refused(path, image, "2 named parts, none of which data.volume.segments names", segments={"liver": 1})


def test_a_name_that_no_segment_has_is_told_if_another_segment_is_left_out(tmp_path):
    image = write_ct(tmp_path / "ct")
    path = write_seg_of(tmp_path / "m.dcm", image, np.moveaxis(IDS, 2, 0))

    def notes(**segments: int) -> tuple[str, ...]:
        return open_mask(path, image, VolumeOptions(segments=segments)).notes

    (note,) = notes(**{"organ 1": 1, "Organ two": 2})
    assert note.startswith(
        "no part of the mask has the name 'Organ two', and 1 part(s) have a name that is not in data.v"
    )
    assert "organ 2" not in note.lower()  # names of a file are not shown
    assert notes(**{"Organ 1": 1, "organ 2": 2, "Organ two": 2}) == ()  # two spellings of one id
    assert notes(**{"Organ 1": 1, "Organ 2": 2, "lesion": 3}) == ()  # no other part that it could be
    assert notes(**{"Organ 1": 1}) == ()  # a segment that is not wanted
    assert notes() == ()


def test_frames_of_a_seg_are_placed_by_position_and_empty_ones_may_be_missing(tmp_path):
    image = write_ct(tmp_path / "ct")
    ids = IDS.copy()
    ids[..., [0, 3]] = 0
    path = write_seg_of(tmp_path / "m.dcm", image, np.moveaxis(ids, 2, 0), "BINARY")
    np.testing.assert_array_equal(read_ids(path, image), ids)
    flipped = write_nifti(tmp_path / "a.nii", np.asarray(VALUES[::-1]), _flipped(image.header().affine))
    np.testing.assert_array_equal(read_ids(path, open_volume(flipped, VolumeOptions())), ids[::-1])


def test_a_binary_seg_may_have_any_number_of_pixels_and_is_refused_where_it_is_cut_off(tmp_path):
    """Slices of 7 x 5 pixels begin and end inside bytes, as those of 181 x 217 do; highdicom reads the same."""
    masks = np.random.default_rng(2).integers(0, 2, (6, 7, 5)).astype(np.uint8)
    image = DicomReader(write_series(tmp_path / "ct", np.zeros((7, 5, 6), np.int16)))
    path = write_seg_of(tmp_path / "m.dcm", image, masks)
    sources = [plane.instance for plane in image.stack.planes]
    read = hd.seg.segread(path).get_pixels_by_source_instance(sources, combine_segments=True)
    np.testing.assert_array_equal(read, masks)
    np.testing.assert_array_equal(read_ids(path, image), np.moveaxis(masks, 0, 2))
    dataset = pydicom.dcmread(path)
    dataset.PixelData = dataset.PixelData[:26]  # 210 bits need 27 bytes
    dataset.save_as(path)
    assert_refused(path, image, "'m.dcm' is a damaged or cut off DICOM file")


def _flipped(affine: np.ndarray) -> np.ndarray:
    turned = affine.copy()
    turned[:, 3] += turned[:, 0] * 5
    turned[:, 0] *= -1
    return turned


def test_a_fractional_seg_is_a_share_and_not_an_id(tmp_path):
    image = write_ct(tmp_path / "ct")
    share = np.zeros((5, 6, 8, 2))
    share[..., 0], share[0, 0, 0, 0] = 0.3, 0.8
    path = write_seg_of(tmp_path / "m.dcm", image, share, "FRACTIONAL")
    found = read_ids(path, image)
    assert found[0, 0, 0] == 1
    assert found.sum() == 1
    assert read_ids(path, image, fractional_threshold=0.2).sum() == found.size


def test_segments_that_overlap_are_named(tmp_path):
    image = write_ct(tmp_path / "ct")
    both = np.zeros((5, 6, 8, 2), np.uint8)
    both[1:3, ..., 0], both[2, :2, :, 1] = 1, 1
    path = write_seg_of(tmp_path / "m.dcm", image, both, "BINARY")
    assert_refused(path, image, "parts that overlap in 16 voxels, .* data.volume.segments, the one that wins last")
    found = read_ids(path, image, segments={"Organ 1": 1, "Organ 2": 2})
    assert [(found == value).sum() for value in (1, 2)] == [80, 16]
    assert (read_ids(path, image, segments={"Organ 2": 2, "Organ 1": 1}) == 2).sum() == 0


def _time(number: int):
    def change(dataset: Dataset, _: int) -> None:
        dataset.TemporalPositionIdentifier = number

    return change


def _two_times(folder, change=_time):
    """The readers of two times at the same positions of one series."""
    series, frame = generate_uid(), generate_uid()
    write_series(folder, VALUES + 1, series=series, frame=frame, change=change(2))
    for file in list(folder.iterdir()):
        file.rename(folder / f"late{file.name}")
    write_series(folder, VALUES, series=series, frame=frame, change=change(1))
    return [DicomReader(folder, frame=time) for time in (0, 1)]


def _join(path, first, second):
    """The frames of two segmentations as those of one."""
    both, other = pydicom.dcmread(first), pydicom.dcmread(second)
    both.PixelData = pack_bits(np.concatenate([pixel_array(both), pixel_array(other)]).ravel())
    both.NumberOfFrames += other.NumberOfFrames
    both.PerFrameFunctionalGroupsSequence += list(other.PerFrameFunctionalGroupsSequence)
    both.save_as(path)
    return path


def test_frames_of_a_seg_belong_to_the_time_that_they_were_drawn_on(tmp_path):
    early, late = _two_times(tmp_path / "ct")
    paths = [
        write_seg_of(tmp_path / f"{value}.dcm", image, np.moveaxis(value == IDS, 2, 0).astype(np.uint8))
        for value, image in ((1, early), (2, late))
    ]
    np.testing.assert_array_equal(read_ids(paths[0], early), IDS == 1)
    assert_refused(
        paths[0], late, r"other pictures of the series \(another time or echo\) than data.volume.frame chooses"
    )
    both = _join(tmp_path / "both.dcm", *paths)
    for value, image in ((1, early), (2, late)):
        np.testing.assert_array_equal(read_ids(both, image), value == IDS)


def test_frames_at_one_place_that_do_not_say_their_time_are_refused(tmp_path):
    early, late = _two_times(tmp_path / "ct")
    ids = np.moveaxis(IDS == 1, 2, 0).astype(np.uint8)
    both = _join(
        tmp_path / "both.dcm",
        *(write_seg_of(tmp_path / f"{n}.dcm", image, ids) for n, image in enumerate((early, late))),
    )
    dataset = pydicom.dcmread(both)
    for own in dataset.PerFrameFunctionalGroupsSequence:
        del own.DerivationImageSequence
    dataset.save_as(both)
    assert_refused(both, early, r"several frames of one segment at the same place \(5 too many\)")
    assert_refused(both, early, r"several frames of one segment at the same place \(5 too many\)", resample=True)


def test_a_seg_of_a_sequence_with_the_same_coordinates_is_placed_and_that_is_said(tmp_path):
    image = write_ct(tmp_path / "ct")
    path = write_seg_of(tmp_path / "m.dcm", image, np.moveaxis(IDS, 2, 0))
    other = write_series(tmp_path / "other", VALUES, image.header().affine, frame=image.header().frame_of_reference)
    mask = open_mask(path, DicomReader(other), VolumeOptions())
    np.testing.assert_array_equal(all_planes(mask, mask=True), IDS)
    assert mask.notes == (
        "the segmentation refers to another series of the same coordinates, and was placed by position",
    )
    assert not open_mask(path, image, VolumeOptions()).notes


def test_damaged_lists_of_segments_are_told(tmp_path):
    image = write_ct(tmp_path / "ct")
    path = write_seg_of(tmp_path / "m.dcm", image, np.moveaxis(IDS, 2, 0))
    dataset = pydicom.dcmread(path)
    for left, message in ((1, "'m.dcm' is a damaged"), (0, "'m.dcm' is a damaged")):
        dataset.SegmentSequence = dataset.SegmentSequence[:left]
        dataset.save_as(path)
        assert_refused(path, image, message)


def test_a_seg_that_does_not_describe_each_of_its_frames_is_damaged(tmp_path):
    image = write_ct(tmp_path / "ct")
    path = write_seg_of(tmp_path / "m.dcm", image, np.moveaxis(IDS == 1, 2, 0).astype(np.uint8))
    dataset = pydicom.dcmread(path)
    assert dataset.NumberOfFrames == 5
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:2]
    dataset.save_as(path)
    assert_refused(path, image, r"'m.dcm' is a damaged DICOM file: it has 5 frame\(s\), and functional groups of 2;")


def test_a_seg_of_another_series_is_refused(tmp_path):
    image = write_ct(tmp_path / "ct")
    path = write_seg_of(tmp_path / "m.dcm", image, np.moveaxis(IDS, 2, 0), "BINARY")
    other = DicomReader(write_series(tmp_path / "other", VALUES))
    assert_refused(path, other, "another frame of reference")
    frame = image.header().frame_of_reference
    away = DicomReader(write_series(tmp_path / "away", VALUES, moved(origin=7)[:, [1, 0, 2, 3]], frame=frame))
    assert_refused(path, away, "which is not a slice of it; export the segmentation of this image")


def test_a_seg_of_another_place_is_refused_where_it_would_be_resampled(tmp_path):
    """Of a table position 500 mm away, with other pixels; and one that lies beside the image in part."""
    path = write_seg_of(tmp_path / "m.dcm", write_ct(tmp_path / "ct"), np.moveaxis(IDS, 2, 0), "BINARY")
    frame = DicomReader(tmp_path / "ct").header().frame_of_reference
    for slices, message in ((125, "all of its"), (1, "")):
        affine = DicomReader(tmp_path / "ct").header().affine.copy()
        affine[:, 3] += slices * affine[:, 2]
        affine[:3, 0] *= 1.02
        image = DicomReader(write_series(tmp_path / f"{slices}", VALUES, affine, frame=frame))
        if message:
            assert_refused(path, image, f"its DICOM-SEG lies outside its image with {message}", resample=True)
            continue
        mask = open_mask(path, image, VolumeOptions(resample=True))
        total, outside = np.count_nonzero(IDS), np.count_nonzero(IDS[..., 0])  # the image begins at the second slice
        assert f"{outside} of {total} voxels of the DICOM-SEG lie outside its image and are left out" in mask.notes


def _measured(path, between, thickness, *, references=True):
    """Change the distance and the thickness of slices that a segmentation names; None: it does not."""
    dataset = pydicom.dcmread(path)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    for keyword, value in (("SpacingBetweenSlices", between), ("SliceThickness", thickness)):
        measures.pop(keyword, None)
        if value is not None:
            setattr(measures, keyword, value)
    for own in dataset.PerFrameFunctionalGroupsSequence if not references else ():
        own.pop("DerivationImageSequence", None)
    dataset.save_as(path)
    return path


def _thin(folder, thick, after=0.0):
    """A series of 17 slices 1 mm apart in the coordinates of the CT, whose slices are 4 mm apart, from `after` mm after its first slice."""
    affine = thick.header().affine @ np.diag([1, 1, 0.25, 1])
    affine[:, 3] += after * affine[:, 2]
    values = np.zeros((6, 8, 17), np.int16)
    return DicomReader(write_series(folder, values, affine, frame=thick.header().frame_of_reference))


def _drawn_on(path, image, *slices, of=5):
    """One segment that fills some of the slices of a series."""
    ids = np.zeros((of, 6, 8), np.uint8)
    ids[list(slices)] = 1
    return write_seg_of(path, image, ids)


@pytest.mark.parametrize(
    ("measures", "slices"),
    [
        ((4, 4), (2,)),
        ((4, 1), (2,)),
        ((None, 4), (2,)),
        ((None, 4), (0, 2)),
        ((None, None), (1, 2)),
        ((0, 0), (0, 1, 4)),
    ],
)
def test_a_seg_of_thicker_slices_is_on_another_grid(tmp_path, measures, slices):
    thick = write_ct(tmp_path / "ct")
    path = _measured(_drawn_on(tmp_path / "m.dcm", thick, *slices), *measures)
    image = _thin(tmp_path / "thin", thick)
    assert_refused(
        path,
        image,
        "slices of the segmentation are 4 mm apart, those of the image 1 mm; export the segmentation of this",
    )
    assert read_ids(path, thick).any(axis=(0, 1)).nonzero()[0].tolist() == list(slices)


@pytest.mark.parametrize(
    ("measures", "slices", "references"),
    [
        (
            (None, 9),
            (0, 1, 2, 3, 4),
            False,
        ),  # thicker than they are distant, but their positions are those of the slices
        ((9, None), (0, 3, 4), False),
        ((4, 9), (0, 2, 4), False),
        ((None, 4), (0, 2, 4), False),
        ((None, 9), (0, 2, 4), True),  # refers to these slices
        ((None, None), (0, 2, 4), True),
        ((None, None), (2,), False),
    ],
)
def test_a_seg_of_the_same_slices_is_placed_whatever_their_thickness(tmp_path, measures, slices, references):
    image = write_ct(tmp_path / "ct")
    path = _measured(_drawn_on(tmp_path / "m.dcm", image, *slices), *measures, references=references)
    assert read_ids(path, image).any(axis=(0, 1)).nonzero()[0].tolist() == list(slices)


@pytest.mark.parametrize("measures", [(4, 4), (4, 1), (None, 4), (None, 9)])
@pytest.mark.parametrize("slices", [(2,), (1, 3), (1, 2), (0, 1, 4)])
def test_a_resampled_seg_fills_the_thickness_of_its_slices(tmp_path, measures, slices):
    """Slice k reaches from 4k - 2 to 4k + 2 mm; slices of the thin series are at 0.5, 1.5, ... mm. A second segment is on all slices."""
    thick = write_ct(tmp_path / "ct")
    ids = np.zeros((5, 6, 8), np.uint8)
    ids[:, 4:] = 2
    ids[list(slices), :4] = 1
    path = _measured(write_seg_of(tmp_path / "m.dcm", thick, ids), *measures)
    expected = [k for k in range(17) if any(4 * at - 2 < k + 0.5 < 4 * at + 2 for at in slices)]
    image = _thin(tmp_path / "thin", thick, 0.5)
    assert (read_ids(path, image, resample=True) == 1).any(axis=(0, 1)).nonzero()[0].tolist() == expected
    if measures != (None, 9):
        path = _measured(_drawn_on(tmp_path / "one.dcm", thick, *slices), *measures)
        assert read_ids(path, image, resample=True).any(axis=(0, 1)).nonzero()[0].tolist() == expected


@pytest.mark.parametrize(("places", "nearest", "added"), UNEVEN)
@pytest.mark.parametrize("references", [True, False])
def test_a_slice_that_a_series_lacks_has_the_mask_of_the_nearest_one(tmp_path, places, nearest, added, references):
    """The image is interpolated there, so that a structure on the slices around it is in it as well."""
    image = write_uneven(tmp_path / "ct", *places)
    ids = np.zeros((len(places), 6, 8), np.uint8)
    for k in range(len(places)):
        ids[k, 1:5, : k + 1] = 1 + k % 2
    path = _measured(write_seg_of(tmp_path / "m.dcm", image, ids), None, 3, references=references)
    mask = open_mask(path, image, VolumeOptions(resample=True))
    np.testing.assert_array_equal(all_planes(mask, mask=True), np.moveaxis(ids[list(nearest)], 0, 2))
    assert mask.header().shape == image.header().shape == (6, 8, len(nearest))
    assert mask.notes == (
        f"{added} of {len(nearest)} slices are not in the DICOM series and were interpolated; their mask is that of the nearest slice",
    )


def test_the_mask_of_an_oblique_uneven_series_fits_although_its_positions_are_rounded(tmp_path):
    axes = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = axes * [0.7, 0.7, 3]
    affine[:3, 2] *= np.sign(np.linalg.det(axes)) * -1  # along the normal, the row direction x the column direction
    places = np.array([0, 1, 2, 4, 5])

    def place(dataset, k):
        position = (affine[:3, 2] * places[k]) * [-1, -1, 1]
        dataset.ImagePositionPatient = [f"{value:.3f}" for value in position]

    ids = np.random.default_rng(6).integers(0, 3, (5, 6, 8)).astype(np.uint8)
    folder = write_series(tmp_path / "ct", np.zeros((6, 8, 5), np.int16), affine, change=place)
    image = DicomReader(folder, resample=True)
    assert image.header().shape == (6, 8, 6)
    path = write_seg_of(tmp_path / "m.dcm", image, ids)
    np.testing.assert_array_equal(read_ids(path, image, resample=True), np.moveaxis(ids[[0, 1, 2, 2, 3, 4]], 0, 2))


def test_a_gap_that_is_too_wide_is_refused_where_a_structure_reaches_it(tmp_path):
    """The middle of 12 mm is 6 mm from all slices, which are usually 3 mm apart."""
    image = write_uneven(tmp_path / "ct", 0, 3, 6, 18, 21, 24)
    message = r"has a gap of 12 mm beside a structure of its mask, where its slices are usually 3 mm apart"
    for drawn in ((2,), (3,), (1, 2, 3)):
        path = _drawn_on(tmp_path / "m.dcm", image, *drawn, of=6)
        assert_refused(path, image, message, resample=True)
    found = read_ids(_drawn_on(tmp_path / "m.dcm", image, 0, 1, 4, of=6), image, resample=True)
    assert found.any(axis=(0, 1)).tolist() == [True, True, False, False, False, False, False, True, False]


def test_a_seg_on_the_even_grid_keeps_its_slices(tmp_path):
    """Such as one that was drawn on the image after it was resampled: its frames are no slices of the series."""
    image = write_uneven(tmp_path / "ct", 0, 3, 6, 12, 15)
    frame = image.header().frame_of_reference
    even = DicomReader(
        write_series(tmp_path / "even", np.zeros((6, 8, 6), np.int16), image.header().affine, frame=frame)
    )
    ids = np.random.default_rng(3).integers(0, 3, (6, 6, 8)).astype(np.uint8)
    path = write_seg_of(tmp_path / "m.dcm", even, ids)
    np.testing.assert_array_equal(read_ids(path, image, resample=True), np.moveaxis(ids, 0, 2))
    thick = _measured(_drawn_on(tmp_path / "t.dcm", even, 0, 2, 4, of=6), 6, 6)  # each fills 6 mm: -3 to 3, 3 to 9, ...
    assert read_ids(thick, image, resample=True).any(axis=(0, 1))[:5].all()


def _placed(path, *places):
    """Change the place of each frame, in mm after the first slice; a pair also has a shift along the rows."""
    dataset = pydicom.dcmread(path)
    first = np.array(dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient, float)
    for own, (place, shift) in zip(dataset.PerFrameFunctionalGroupsSequence, places, strict=True):
        own.PlanePositionSequence[0].ImagePositionPatient = np.add(first, [shift, 0, place]).tolist()
    dataset.save_as(path)
    return path


def test_frames_of_a_seg_that_make_no_volume_are_refused(tmp_path):
    """Frames 0.02 mm apart over 16 mm would be 801 slices of 48 bytes."""
    thick = write_ct(tmp_path / "ct")
    image = _thin(tmp_path / "thin", thick)
    near = _measured(_drawn_on(tmp_path / "m.dcm", thick, 0, 1, 4), None, None)
    _placed(near, (0, 0), (0.02, 0), (16, 0))
    assert_refused(near, image, "its DICOM-SEG header gives 6 x 8 x 801 voxels", resample=True, max_gigabytes=3e-5)
    _placed(near, (0, 0), (0.002, 0), (16, 0))
    assert_refused(near, image, r"several frames of one segment at the same place \(1 too many\)", resample=True)
    _placed(near, (0, 0), (4, 0), (9.5, 0))
    assert_refused(near, image, "slices of the segmentation are 4.75 mm apart, those of the image 1 mm")
    assert_refused(near, image, "or its frames are unevenly spaced, so that it cannot be resampled", resample=True)
    alone = _measured(_drawn_on(tmp_path / "a.dcm", thick, 2), None, None)
    far = _thin(tmp_path / "far", thick, 100)
    assert_refused(alone, far, "its DICOM-SEG does not give the distance of its slices", resample=True)
    tilted = _placed(_drawn_on(tmp_path / "t.dcm", thick, 0, 1, 2), (0, 0), (4, 1.2), (8, 2.4))
    assert_refused(tilted, image, "frames of its DICOM-SEG are not a right-angled stack", resample=True)


def test_segments_that_cross_keep_both_and_are_regions_of_sums(tmp_path):
    image = write_ct(tmp_path / "ct")
    both = np.zeros((5, 6, 8, 2), np.uint8)
    both[1:3, ..., 0], both[2:4, :2, :, 1] = 1, 1
    path = write_seg_of(tmp_path / "m.dcm", image, both, "BINARY")
    found = read_ids(path, image, segments={"Organ 1": 1, "Organ 2": 2}, sum_segments=True)
    np.testing.assert_array_equal(found, np.moveaxis(both[..., 0] + 2 * both[..., 1], 0, 2))
    assert {value: int((found == value).sum()) for value in (1, 2, 3)} == {1: 80, 2: 16, 3: 16}
    regions = LabelMap({"one": [1, 3], "two": [2, 3]}, overlap=True)
    np.testing.assert_array_equal(regions.to_classes(found) & 2 > 0, np.moveaxis(both[..., 1] > 0, 0, 2))
