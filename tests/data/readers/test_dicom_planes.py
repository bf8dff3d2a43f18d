"""What tells pictures at one position from each other, and what makes them one stack."""

import numpy as np
import pytest
from pydicom.dataset import Dataset
from volume_files import all_planes, write_enhanced, write_series

from pfedsam.core.errors import DataError
from pfedsam.data.readers.dicom import DicomReader
from pfedsam.data.readers.series_table import series_of

VALUES = np.random.default_rng(0).integers(0, 500, (6, 8, 5)).astype(np.int16)
SHUFFLED = np.random.default_rng(1).permutation(10)


def _group(sequence: str, **fields: object) -> Dataset:
    own, group = Dataset(), Dataset()
    for keyword, value in fields.items():
        setattr(group, keyword, value)
    setattr(own, sequence, [group])
    return own


def _two_times(folder, groups):
    """Five positions with two pictures each, the second brighter by 1000, in shuffled order; the groups of a frame from slice and time."""
    every = [(VALUES[..., k] + 1000 * time, 3.0 * k, groups(k, time)) for k in range(5) for time in range(2)]
    return write_enhanced(folder, [every[index] for index in SHUFFLED])


@pytest.mark.parametrize(
    "groups",
    [
        lambda k, time: _group("FrameContentSequence", TemporalPositionIndex=time + 1),
        lambda k, time: _group("FrameContentSequence", DimensionIndexValues=[1, k + 1, time + 1]),
        lambda k, time: _group("FrameContentSequence", FrameAcquisitionDateTime=f"202401011015{30 * time + k:02d}"),
        lambda k, time: _group("CardiacSynchronizationSequence", NominalCardiacTriggerDelayTime=40.0 * time),
        lambda k, time: _group("MREchoSequence", EffectiveEchoTime=20.0 * time + 5),
        lambda k, time: _group("MRDiffusionSequence", DiffusionBValue=800.0 * time),
    ],
    ids=["time", "dimension", "date", "trigger", "echo", "b-value"],
)
def test_shuffled_frames_of_two_times_are_told_by_their_groups(tmp_path, groups):
    path = _two_times(tmp_path / "s", groups)
    for time in range(2):
        np.testing.assert_array_equal(all_planes(DicomReader(path, frame=time)), VALUES + 1000 * time)


def test_magnitude_and_phase_in_one_file_are_two_series(tmp_path):
    def groups(_: int, time: int) -> Dataset:
        return _group("MRImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "MP"[time], "NONE"])

    path = _two_times(tmp_path / "s", groups)
    with pytest.raises(DataError, match=r"holds 2 series or stacks .* \(1: MR, 5 picture\(s\) of 8 x 6; 2: MR"):
        DicomReader(path)
    reader = DicomReader(path, series="2")
    np.testing.assert_array_equal(all_planes(reader), VALUES + 1000)
    assert [row.image_type for row in series_of(reader)] == ["ORIGINAL PRIMARY M NONE", "ORIGINAL PRIMARY P NONE"]


def test_rounding_of_orientation_and_spacing_does_not_divide_a_stack(tmp_path):
    cosine, sine = 0.995, float(np.sqrt(1 - 0.995**2))  # rounds to 0.99 or 1.00, as 0.4125 to 0.412 or 0.413

    def jitter(dataset: Dataset, k: int) -> None:
        tiny = (-1) ** k * 1e-6
        direction = [cosine + tiny, sine, 0, -sine, cosine + tiny, 0]
        dataset.ImageOrientationPatient = [f"{value:.8f}" for value in direction]
        dataset.PixelSpacing = [f"{0.4125 + tiny:.7f}"] * 2
        dataset.ImagePositionPatient = [0, 0, 3 * k]

    np.testing.assert_array_equal(all_planes(DicomReader(write_series(tmp_path / "s", VALUES, change=jitter))), VALUES)


@pytest.mark.parametrize(("distance", "expected"), [(-5, 5), (5, 5), (0, 2)])
def test_a_distance_of_slices_has_no_sign(tmp_path, distance, expected):
    def change(dataset: Dataset, _: int) -> None:
        del dataset.ImagePositionPatient
        dataset.PixelSpacing, dataset.SliceThickness, dataset.SpacingBetweenSlices = [0.5, 0.25], 2, distance

    reader = DicomReader(write_series(tmp_path / "s", VALUES[..., :1], change=change))
    assert reader.header().spacing_mm == (0.5, 0.25, expected)


def test_a_slope_of_a_frame_that_is_no_number_is_told(tmp_path):
    own = _group("PixelValueTransformationSequence", RescaleSlope=["1", "2"], RescaleIntercept=0)
    path = write_enhanced(tmp_path / "s", [(VALUES[..., 0], 0.0, own)])
    with pytest.raises(DataError, match="is a damaged or cut off DICOM file"):
        DicomReader(path)


@pytest.mark.parametrize(
    "keyword",
    [
        *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
        *("BitsStored", "PixelRepresentation"),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_a_field_without_which_a_picture_cannot_be_decoded_is_named(tmp_path, keyword, empty):
    def change(dataset: Dataset, k: int) -> None:
        if k == 1:
            delattr(dataset, keyword)
        if k == 1 and empty:
            setattr(dataset, keyword, None)

    with pytest.raises(DataError, match=rf"the header of 'IM\S+' lacks {keyword}, without which") as caught:
        DicomReader(write_series(tmp_path / "s", VALUES, change=change))
    assert "Canary" not in str(caught.value)
