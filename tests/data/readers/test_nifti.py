import gzip
import os
from collections import deque

import nibabel as nib
import numpy as np
import pytest
from volume_files import CANARY, all_planes, write_nifti

from pfedsam.core.errors import DataError
from pfedsam.data.images import ImageOptions
from pfedsam.data.readers import kind_of, open_mask, open_volume
from pfedsam.data.readers.base import spacing_of
from pfedsam.data.readers.nifti import NiftiReader
from pfedsam.data.volume import Volume
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 20


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_values_header_and_planes(tmp_path, name):
    affine = np.diag([-1.5, 2, 8, 1])
    affine[:3, 3] = 10, -20, 30
    reader = NiftiReader(write_nifti(tmp_path / name, VALUES, affine))
    header = reader.header()
    assert (header.shape, header.spacing_mm, header.channels, header.dtype) == ((3, 4, 5), (1.5, 2, 8), 1, np.int16)
    np.testing.assert_array_equal(header.affine, affine)
    np.testing.assert_array_equal(all_planes(reader), VALUES)
    np.testing.assert_array_equal(np.stack([plane[..., 0] for plane in reader.planes()], axis=2), VALUES)
    np.testing.assert_array_equal(reader.slice(2, axis=0)[..., 0], VALUES[2])
    np.testing.assert_array_equal(reader.slice(3, axis=1)[..., 0], VALUES[:, 3])


def test_slope_intercept_and_units(tmp_path):
    def change(header):
        header.set_slope_inter(2, -1000)
        header.set_xyzt_units("micron")

    image = nib.nifti1.Nifti1Image(VALUES, np.diag([500, 500, 2000, 1]))
    change(image.header)
    data = image.to_bytes()
    (tmp_path / "a.nii").write_bytes(data)
    stored = np.asarray(nib.nifti1.Nifti1Image.from_bytes(data).dataobj)
    reader = NiftiReader(tmp_path / "a.nii")
    np.testing.assert_allclose(all_planes(reader), stored, atol=1e-3)
    assert reader.header().spacing_mm == (0.5, 0.5, 2.0)


@pytest.mark.parametrize(("codes", "affine", "spacing"), [((0, 0), np.eye(4), None), ((2, 0), np.eye(4), (1, 1, 1))])
def test_spacing_is_unknown_where_nothing_was_written(tmp_path, codes, affine, spacing):
    def change(header):
        header["sform_code"], header["qform_code"] = codes

    assert NiftiReader(write_nifti(tmp_path / "a.nii", VALUES, affine, change)).header().spacing_mm == spacing


def _nifti(path, shape, sizes, *, qform=0, sform=None):
    """A file whose header holds these sizes of voxels, as nibabel would not write it."""
    header = nib.nifti1.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    if sform is not None:
        header.set_sform(np.diag([*sform, 1]), code=1)
    header["qform_code"], header["pixdim"][1:4] = qform, sizes
    path.write_bytes(header.binaryblock + bytes(4 + 2 * int(np.prod(shape))))
    return path


@pytest.mark.parametrize("sizes", [(0.5, 0.5, 0), (0, 0.5, 0.5), (0, 0, 0)])
def test_a_size_of_0_along_several_voxels_is_no_size_of_1(tmp_path, sizes):
    bare = NiftiReader(_nifti(tmp_path / "a.nii", (8, 6, 4), sizes))
    assert bare.header().spacing_mm is None
    assert spacing_of(bare.header().affine) == (1, 1, 1)  # no axis is wider because its size is not known
    with pytest.raises(
        DataError, match=f"its NIfTI header gives voxels the size 0 along axis {sizes.index(0) + 1} of 3"
    ):
        NiftiReader(_nifti(tmp_path / "b.nii", (8, 6, 4), sizes, qform=1))
    own = NiftiReader(_nifti(tmp_path / "c.nii", (8, 6, 4), sizes, qform=1, sform=(0.5, 0.5, 3)))
    assert own.header().spacing_mm == (0.5, 0.5, 3)


@pytest.mark.parametrize(
    ("shape", "sizes", "qform", "known"),
    [
        ((8, 6, 1), (0.5, 0.25, 0), 0, False),
        ((8, 6, 1), (0.5, 0.25, 0), 1, False),
        ((8, 6), (0.5, 0.25, 0), 0, False),
        ((8, 6), (0.5, 0.25, 3), 0, False),  # of a picture of two axes the third size has no meaning
        ((8, 6, 1), (0.5, 0.25, 3), 0, True),
        ((8, 6, 1), (0.5, 0.25, 3), 1, True),
    ],
)
def test_a_single_slice_needs_no_thickness(tmp_path, shape, sizes, qform, known):
    volume = Volume(
        [NiftiReader(_nifti(tmp_path / "a.nii", shape, sizes, qform=qform))], VolumeOptions(), ImageOptions()
    )
    assert volume.known_spacing_mm == ((3, 0.25, 0.5) if known else (0.25, 0.5))
    given = Volume(volume.readers, VolumeOptions(), ImageOptions(), spacing_mm=(5.0, 1.0, 1.0))
    assert given.known_spacing_mm == (5, 1, 1)
    lost = Volume(volume.readers, VolumeOptions(), ImageOptions(), spacing_lost=True)
    assert lost.known_spacing_mm is None


def test_a_mask_keeps_the_sizes_that_its_source_does_not_give(tmp_path):
    reader = NiftiReader(_nifti(tmp_path / "a.nii", (8, 6, 1), (0.5, 0.25, 0)))
    reader.write_mask(tmp_path / "m.nii", np.ones((8, 6, 1), np.uint8))
    written = nib.nifti1.Nifti1Header((tmp_path / "m.nii").read_bytes()[:348], check=False)
    np.testing.assert_array_equal(written["pixdim"][1:4], [0.5, 0.25, 0])
    mask = open_mask(tmp_path / "m.nii", reader, VolumeOptions())
    assert all_planes(mask, mask=True).all()


def test_a_mask_is_written_with_the_geometry_of_its_source_and_nothing_else_of_its_header(tmp_path):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * [0.7, 1.1, 5], [1, 2, 3]

    def change(header):
        header.set_sform(affine, code=4)
        header.set_qform(affine, code=1)
        header.set_xyzt_units("mm", "sec")

    source = write_nifti(tmp_path / "a.nii.gz", VALUES.astype(np.float64), affine, change)
    mask = (VALUES > 0).astype(np.uint16)
    NiftiReader(source).write_mask(tmp_path / "mask.nii.gz", mask)
    written, read = nib.load(tmp_path / "mask.nii.gz"), nib.load(source)
    np.testing.assert_allclose(written.affine, read.affine, atol=1e-6)
    np.testing.assert_allclose(written.get_qform(), read.get_qform(), atol=1e-6)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (4, 1)
    assert written.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
    assert CANARY.encode() not in gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    np.testing.assert_array_equal(all_planes(NiftiReader(tmp_path / "mask.nii.gz"), mask=True), mask)


def test_nifti_2_and_names_that_say_something_else(tmp_path):
    nib.save(nib.nifti2.Nifti2Image(VALUES, np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(tmp_path / "scan")
    assert kind_of(tmp_path / "scan") == "nifti"
    np.testing.assert_array_equal(all_planes(open_volume(tmp_path / "scan", VolumeOptions())), VALUES)


@pytest.mark.parametrize("kind", [nib.nifti1.Nifti1Image, nib.nifti2.Nifti2Image])
def test_extensions_of_the_header_are_passed_over_and_not_copied(tmp_path, kind):
    image = kind(VALUES, np.diag([1, 2, 3, 1]))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", (CANARY * 200).encode()))
    nib.save(image, tmp_path / "a.nii.gz")
    reader = NiftiReader(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(all_planes(reader), VALUES)
    reader.write_mask(tmp_path / "m.nii", np.zeros(VALUES.shape, np.uint8))
    assert CANARY.encode() not in (tmp_path / "m.nii").read_bytes()
    assert nib.load(tmp_path / "m.nii").header.get_zooms() == (1, 2, 3)


@pytest.mark.parametrize(("offset", "read"), [(0, True), (16, False), (1e12, False), (np.nan, False)])
def test_where_the_voxels_begin(tmp_path, offset, read):
    content = bytearray(nib.nifti1.Nifti1Image(VALUES, np.eye(4)).to_bytes())
    content[108:112] = np.float32(offset).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    if read:
        np.testing.assert_array_equal(all_planes(NiftiReader(tmp_path / "a.nii")), VALUES)
        return
    with pytest.raises(DataError, match=r"'a.nii' is damaged or cut off"):
        NiftiReader(tmp_path / "a.nii")


def test_frames(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", np.stack([VALUES, VALUES + 1], axis=3))
    with pytest.raises(
        DataError, match=r"'a.nii.gz' holds 2 volumes .* of 3 x 4 x 5; choose one by data.volume.frame, 0 to 1"
    ):
        NiftiReader(path)
    np.testing.assert_array_equal(all_planes(NiftiReader(path, frame=1)), VALUES + 1)
    with pytest.raises(DataError, match=r"there is no data\.volume\.frame 2; choose 0 to 1"):
        NiftiReader(path, frame=2)
    single = write_nifti(tmp_path / "b.nii", VALUES[..., None])
    assert NiftiReader(single).header().shape == (3, 4, 5)


def _zero(header):
    header.set_sform(np.zeros((4, 4)), code=1)
    header.set_qform(None, code=0)


def _sheared(header):
    affine = np.eye(4)
    affine[1, 2] = 0.3
    header.set_sform(affine, code=1)


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        (VALUES.astype(np.complex64), None, "holds complex values"),
        (np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), None, r"holds colour \(RGB\) values"),
        (VALUES, _zero, "affine that is zero"),
        (VALUES, _sheared, r"not right-angled \(cosine 0.287"),
    ],
)
def test_refused_by_name_from_the_header(tmp_path, values, change, message):
    with pytest.raises(DataError, match=message) as caught:
        NiftiReader(write_nifti(tmp_path / "a.nii", values, None, change))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("shape", [(10_000, 10_000, 1), (1, 10_000, 10_000), (10_000, 1, 10_000)])
def test_a_plane_has_a_largest_size(tmp_path, shape):
    """A file of 0.1 GB by its header, of which one plane alone would take 1.7 GB as it is processed."""
    path = write_nifti(tmp_path / "a.nii", VALUES)
    header = nib.load(path).header
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    path.write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(DataError, match="a plane has 100 million, more than 80 million; crop it"):
        NiftiReader(path)


@pytest.mark.parametrize("shape", [(10000, 10000, 10000), (1200, 1000, 1000)])
def test_what_would_not_fit_is_refused_before_anything_is_decompressed(tmp_path, shape):
    header = nib.nifti1.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(header.binaryblock + b"\0" * 1000)
    with pytest.raises(DataError, match=r"GB, more than 2 GB; crop it, or raise data.volume.max_gigabytes"):
        NiftiReader(tmp_path / "a.nii.gz")


def test_cut_off_and_broken_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", noise)
    content = path.read_bytes()
    for length in (len(content) // 2, 200, 20, 0):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"'a.nii.gz' is damaged or cut off"):
            NiftiReader(path).slice(0)
    plain = write_nifti(tmp_path / "b.nii", noise)
    plain.write_bytes(plain.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"'b.nii' is damaged or cut off"):
        NiftiReader(plain).slice(0)


def test_a_changed_byte_in_a_gzipped_file_is_found_by_its_check_sum(tmp_path):
    content = bytearray(gzip.compress(nib.nifti1.Nifti1Image(VALUES, np.eye(4)).to_bytes(), compresslevel=0))
    place = content.index(VALUES.tobytes(order="F")[:16])  # level 0 stores the voxels as they are
    content[place + 2] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"'a.nii.gz' is damaged or cut off"):
        NiftiReader(tmp_path / "a.nii.gz").slice(0)
    with pytest.raises(DataError, match=r"'a.nii.gz' is damaged or cut off"):
        deque(NiftiReader(tmp_path / "a.nii.gz").planes(), maxlen=0)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_frame_is_read_plane_by_plane_without_the_others(tmp_path, name):
    values = np.stack([VALUES, VALUES + 1000, VALUES + 2000], axis=3)
    reader = NiftiReader(write_nifti(tmp_path / name, values), frame=1)
    assert [plane[..., 0].tolist() for plane in reader.planes()] == [(VALUES[..., k] + 1000).tolist() for k in range(5)]


@pytest.mark.parametrize(("value", "slope"), [(3e38, 1.0), (1e300, 1.0), (2.0, 3e38), (1e308, 3e38), (-np.inf, 1.0)])
@pytest.mark.filterwarnings("error")
def test_values_that_cannot_be_normalised_are_refused_without_a_warning_of_a_library(tmp_path, value, slope):
    values = np.ones((3, 4, 5))
    values[1, 2, 3] = value
    path = write_nifti(tmp_path / "a.nii", values)
    with path.open("r+b") as file:
        file.seek(112)  # scl_slope and scl_inter of NIfTI-1
        file.write(np.array([slope, 0], np.float32).tobytes())
    reader = NiftiReader(path)
    for planes in (reader.planes(), map(reader.slice, (3, 4))):
        with pytest.raises(DataError, match=r"'a.nii' holds [-+.e\dinf]+, where finite numbers between"):
            deque(planes, maxlen=0)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"'{name}' is damaged"):
        NiftiReader(tmp_path / name)
    with pytest.raises(DataError, match=f"'{name}' cannot be opened: it is neither a file nor a folder"):
        open_volume(tmp_path / name, VolumeOptions())
    with pytest.raises(DataError, match=f"'{name}' cannot be opened: it is neither a file nor a folder"):
        open_mask(tmp_path / name, NiftiReader(write_nifti(tmp_path / "b.nii", VALUES)), VolumeOptions())


def test_messages_about_a_mask_say_what_helps_with_a_mask(tmp_path):
    several = write_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5, 2), np.uint8))
    with pytest.raises(DataError, match=r"holds 2 volumes .* of 3 x 4 x 5; save a mask as one volume$"):
        NiftiReader(several, mask=True)
    with pytest.raises(DataError, match=r"^its mask's header gives 3 x 4 x 5 voxels"):
        NiftiReader(write_nifti(tmp_path / "b.nii", VALUES), max_gigabytes=1e-9, mask=True)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_remarks_of_the_library_about_a_header_are_not_shown(tmp_path, name, capfd):
    content = write_nifti(tmp_path / "b.nii", VALUES).read_bytes()
    changed = content[:108] + np.float32(np.nan).tobytes() + content[112:]
    (tmp_path / name).write_bytes(gzip.compress(changed) if name.endswith("gz") else changed)
    with pytest.raises(DataError, match="the voxels begin at byte nan"):
        NiftiReader(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_voxels_that_are_no_numbers_and_masks_that_are_no_ids(tmp_path):
    values = VALUES.astype(np.float32)
    values[1, 2, 3] = np.nan
    reader = NiftiReader(write_nifti(tmp_path / "a.nii", values))
    reader.slice(2)
    with pytest.raises(DataError, match=r"plane 3 of 'a.nii' holds nan, where finite numbers between"):
        reader.slice(3)
    mask = NiftiReader(write_nifti(tmp_path / "m.nii", np.full((3, 4, 5), 0.9999)))
    with pytest.raises(DataError, match=r"its mask 'm.nii' holds 0.9999 where ids"):
        mask.mask_slice(0)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("highest", [2, 4, 7, 14])
def test_ids_that_nibabel_rounded_to_multiples_of_a_slope_are_read(tmp_path, kind, highest):
    """`Nifti1Image(mask, image.affine, image.header)` with a mask of real numbers: nibabel scales them to the integers of the header."""
    image = nib.load(write_nifti(tmp_path / "image.nii", np.zeros((3, 4, 5), kind)))
    ids = np.arange(60.0).reshape(3, 4, 5) % (highest + 1)
    nib.save(nib.Nifti1Image(ids, image.affine, image.header), tmp_path / "m.nii")
    assert np.abs(nib.load(tmp_path / "m.nii").get_fdata() - ids).max() > 1e-5
    np.testing.assert_array_equal(all_planes(NiftiReader(tmp_path / "m.nii", mask=True), mask=True), ids)


def test_soft_values_in_multiples_of_a_slope_are_no_ids(tmp_path):
    image = nib.load(write_nifti(tmp_path / "image.nii", np.zeros((3, 4, 5), np.uint8)))
    nib.save(nib.Nifti1Image(np.linspace(0, 1, 60).reshape(3, 4, 5), image.affine, image.header), tmp_path / "m.nii")
    with pytest.raises(DataError, match=r"where ids \(whole numbers from 0\) are needed"):
        all_planes(NiftiReader(tmp_path / "m.nii", mask=True), mask=True)
