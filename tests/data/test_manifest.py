import os
import re
import shutil
import sys

import pytest
from PIL import Image

from pfedsam.core.errors import DataError, OptionError
from pfedsam.data.images import ImageOptions
from pfedsam.data.manifest import Case, orphan_masks, read_site, unlisted_files, unread_files
from pfedsam.data.volume_case import open_case
from pfedsam.data.volume_options import VolumeOptions


def test_folder_layout(site_folder):
    folder = site_folder("b", "a")
    site = read_site("north", folder)
    assert site.cases == (
        Case("north", "a", folder / "images/a.png", folder / "masks/a.png", "a", patient_source="name"),
        Case("north", "b", folder / "images/b.png", folder / "masks/b.png", "b", patient_source="name"),
    )


def test_where_a_patient_comes_from(site_folder):
    folder = site_folder("a_t0", "b_t0", "c")
    site = read_site("north", folder, patient_pattern=r"^(.+)_t\d$")
    assert [case.patient_source for case in site.cases] == ["pattern", "pattern", "name"]
    (folder / "manifest.csv").write_text(
        "image,mask,patient\nimages/a_t0.png,masks/a_t0.png,p1\nimages/b_t0.png,masks/b_t0.png,\nimages/c.png,masks/c.png,\n"
    )
    site = read_site("north", folder, patient_pattern=r"^(.+)_t\d$")
    assert [(case.patient, case.patient_source) for case in site.cases] == [
        ("p1", "manifest"),
        ("b", "pattern"),
        ("c", "name"),
    ]


def test_files_that_the_manifest_does_not_list(site_folder):
    folder = site_folder("a", "b")
    assert unlisted_files(read_site("north", folder)) == ()  # no manifest, all are read
    (folder / "manifest.csv").write_text("image,mask,patient\nimages/a.png,masks/a.png,p1\n")
    assert unlisted_files(read_site("north", folder)) == ("images/b.png", "masks/b.png")


@pytest.mark.parametrize(
    ("pattern", "patients"),
    [
        (r"^(.+)_t\d$", ["9f", "9f", "lone"]),
        (r"_(t)?(?P<patient>\d)$", ["0", "1", "lone"]),
        (r"^(x)?", ["9f_t0", "9f_t1", "lone"]),  # matches, but the group is empty
    ],
)
def test_patient_from_the_case_id(site_folder, pattern, patients):
    site = read_site("north", site_folder("9f_t0", "9f_t1", "lone"), patient_pattern=pattern)
    assert [case.patient for case in site.cases] == patients


@pytest.mark.parametrize("pattern", ["(", "no group"])
def test_pattern_that_cannot_be_used(site_folder, pattern):
    with pytest.raises(OptionError, match="patient_pattern"):
        read_site("north", site_folder("a"), patient_pattern=pattern)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_site_name_must_name_a_folder(site_folder, name):
    with pytest.raises(OptionError, match="cannot name a folder"):
        read_site(name, site_folder("a"))


def test_missing_mask_names_site_case_and_remedy(site_folder):
    folder = site_folder("a", "b", "c")
    (folder / "masks/b.png").unlink()
    (folder / "masks/c.png").unlink()
    with pytest.raises(DataError, match=r"site 'north', case 'b': the image has no mask \(2 such cases\); add a mask"):
        read_site("north", folder)
    assert [case.mask is None for case in read_site("north", folder, masks_required=False).cases] == [False, True, True]


def test_mask_without_image(site_folder):
    folder = site_folder("a", "b")
    (folder / "images/b.png").unlink()
    with pytest.raises(DataError, match=r"site 'north': mask 'b.png' has no image"):
        read_site("north", folder)
    assert orphan_masks(read_site("north", folder, masks_required=False)) == ("b.png",)


def test_two_files_for_one_case(site_folder):
    folder = site_folder("a")
    (folder / "images/a.tif").touch()
    with pytest.raises(DataError, match=r"case 'a': two images, 'a\.png' and 'a\.tif'"):
        read_site("north", folder)
    (folder / "images/a.tif").unlink()
    (folder / "masks/a.tif").touch()
    with pytest.raises(DataError, match=r"case 'a': two masks"):
        read_site("north", folder)


def test_empty_and_missing_sites(site_folder, tmp_path):
    with pytest.raises(DataError, match=r"site 'north' has no cases: put images \(\.jpeg, \.jpg, \.png"):
        read_site("north", site_folder())
    with pytest.raises(DataError, match=r"site 'south': there is no folder '.*nowhere'; correct its path"):
        read_site("south", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"site 'south': there is no folder '.*xxx'; correct its path"):
        read_site("south", tmp_path / ("x" * 5000))
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"neither manifest\.csv nor images/"):
        read_site("bare", tmp_path / "bare")


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_pictures_in_a_folder_for_each_patient_are_refused_with_what_helps(site_folder, ending):
    """Folders of PNGs can be masks of volumes, and are found as cases; those of JPEGs cannot."""
    folder = site_folder("a")
    for patient in ("pat0", "pat1"):
        (folder / "images" / patient).mkdir()
        Image.new("L", (6, 4), 90).save(folder / "images" / patient / f"1.{ending}")
    (folder / "images" / "a.png").unlink()
    with pytest.raises(
        DataError, match=r"'pat0'.* put the pictures themselves into images/ .*the column patient; save the slices"
    ):
        open_case(read_site("north", folder, masks_required=False).cases[0], ImageOptions(), VolumeOptions())


def test_files_that_are_no_pictures_are_ignored(site_folder):
    folder = site_folder("a")
    for name in ("notes.txt", "._a.png", "Thumbs.db"):
        (folder / "images" / name).touch()
    assert [case.id for case in read_site("north", folder).cases] == ["a"]


@pytest.mark.parametrize("name", ["a.mha", "SCAN.NRRD", "a.mgh"])
def test_pictures_of_a_kind_that_is_not_read_are_not_left_out_in_silence(site_folder, name):
    folder = site_folder("a")
    (folder / "images" / name).touch()
    with pytest.raises(
        DataError, match=r"images/ holds .* \(1 such file\(s\)\), which is not read: convert volumes to NIfTI"
    ):
        read_site("north", folder)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such name")
@pytest.mark.parametrize("part", ["images", "masks"])
def test_names_that_are_not_utf8_are_refused(site_folder, part):
    folder = site_folder("a")
    shutil.copy(folder / part / "a.png", os.fsencode(folder / part) + b"/m\xfcller.png")  # "müller" in Latin-1
    with pytest.raises(DataError) as caught:
        read_site("north", folder)
    assert str(caught.value) == (
        rf"site 'north': {part}/ holds 'm\udcfcller.png' (1 such file(s)), whose name is not UTF-8; "
        "rename it, for example to ASCII letters and digits"
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not allow such names")
def test_a_folder_whose_path_is_not_utf8_is_refused(site_folder, tmp_path):
    """In the encoding of Windows for western Europe the byte 0xFC is a letter."""
    above = tmp_path / os.fsdecode(b"M\xfcnchen")
    above.mkdir()
    site_folder("a").rename(above / "north")
    with pytest.raises(
        DataError, match=r"site 'north': the path '.*/M\\udcfcnchen/north' contains bytes that are not UTF-8"
    ):
        read_site("north", above / "north")


def test_every_entry_that_is_not_read_is_found(site_folder):
    folder = site_folder("a")
    (folder / "images" / "p5").mkdir()
    (folder / "images" / "empty").mkdir()
    unread = [
        *(f"images/{name}" for name in ("b.BMP", "c.npy", "d.dcm.gz", "e.h5", "f.mat", "g", "p4.zip", "p5/t2.nii.gz")),
        *("masks/a.gif", "masks/a.npy"),
    ]
    passed_over = ("images/notes.txt", "images/._c.gif", "images/a.json", "images/Thumbs.db", "masks/README")
    for name in (*unread, *passed_over):
        (folder / name).write_bytes(b"abcdefgh" * 50)
    site = read_site("north", folder)
    assert [case.id for case in site.cases] == ["a"]
    assert unread_files(site) == tuple(name.removesuffix("/t2.nii.gz") for name in unread)
    assert unread_files(_manifest(folder, "image,mask,patient\nimages/a.png,masks/a.png,p\n")) == ()


def _manifest(folder, text):
    (folder / "manifest.csv").write_text(text, encoding="utf-8-sig")
    return read_site("north", folder)


def test_manifest_without_patient_uses_the_pattern(site_folder):
    folder = site_folder("9f_t0", "8e_t0")
    (folder / "manifest.csv").write_text(
        "image,mask,patient\nimages/9f_t0.png,masks/9f_t0.png,\nimages/8e_t0.png,masks/8e_t0.png,eva\n"
    )
    site = read_site("north", folder, patient_pattern="^(.+)_t")
    assert site.patients() == {"9f": (site.cases[1],), "eva": (site.cases[0],)}


@pytest.mark.parametrize("kind", ["folder", "dangling link", "pipe"])
def test_a_manifest_that_is_no_file_is_not_ignored(site_folder, kind):
    folder = site_folder("a")
    path = folder / "manifest.csv"
    {"folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere.csv"), "pipe": lambda: os.mkfifo(path)}[
        kind
    ]()
    with pytest.raises(DataError, match=r"site 'north': manifest.csv is not a file but a folder, a pipe, or a link"):
        read_site("north", folder)


@pytest.mark.parametrize(
    "name",
    [
        "manifest.xlsx",
        "Manifest.xls",
        "manifest.ods",
        "manifest.tsv",
        "manifest (1).csv",
        "manifest-1.csv",
        "MANIFEST_v2.XLSX",
    ],
)
def test_a_table_that_is_probably_the_manifest_is_not_ignored(site_folder, name):
    folder = site_folder("a", "b")
    (folder / name).write_text("image,mask,patient\nimages/a.png,masks/a.png,p1\n")
    with pytest.raises(
        DataError,
        match=re.escape(f"site 'north': its folder holds '{name}' and no manifest.csv, so")
        + ".* save it as manifest.csv",
    ):
        read_site("north", folder)
    (folder / "manifest.csv").write_text("image,mask,patient\nimages/a.png,masks/a.png,p1\n")
    assert [case.patient for case in read_site("north", folder).cases] == ["p1"]


def test_other_tables_beside_the_images_are_no_manifest(site_folder):
    folder = site_folder("a", "b")
    for name in ("patients.xlsx", "a_manifest.csv", "manifest.json", "manifest.txt"):
        (folder / name).touch()
    assert len(read_site("north", folder).cases) == 2


@pytest.mark.parametrize("name", ["Manifest.csv", "MANIFEST.CSV", "manifest.csv.txt", "Manifest.csv.bak"])
def test_a_file_that_is_probably_the_manifest_is_not_ignored(site_folder, name):
    folder = site_folder("a", "b")
    (folder / name).write_text("image,mask,patient\nimages/a.png,masks/a.png,p1\n")
    with pytest.raises(
        DataError, match=f"site 'north': its folder holds '{name}' and no manifest.csv, so that .* rename it"
    ):
        read_site("north", folder)
    shutil.copy(folder / name, folder / "manifest.csv")
    assert [case.patient for case in read_site("north", folder).cases] == ["p1"]
