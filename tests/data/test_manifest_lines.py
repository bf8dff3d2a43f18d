import re
import shutil

import pytest

from pfedsam.core.errors import DataError
from pfedsam.data.manifest import Site, read_site


def _manifest(folder, text) -> Site:
    (folder / "manifest.csv").write_text(text, encoding="utf-8-sig")
    return read_site("north", folder)


def test_manifest_with_every_column(site_folder):
    folder = site_folder("a", "b")
    site = _manifest(
        folder,
        "patient,image,mask,split,case,spacing\n"
        "anna,images/b.png,masks/a.png,test,second,0.5x0.25\n"
        "anna,images/a.png,masks/a.png,unused,first,2\n",
    )
    assert [(c.id, c.image.name, c.patient, c.split, c.spacing_mm) for c in site.cases] == [
        ("first", "a.png", "anna", "unused", (2.0, 2.0)),
        ("second", "b.png", "anna", "test", (0.5, 0.25)),
    ]
    assert site.of("test") == (site.cases[1],)


@pytest.mark.parametrize("images", ["images/a.png;images/b.png", "images/a.png;images/b.nii.gz"])
def test_only_volumes_have_several_sequences(site_folder, images):
    folder = site_folder("a", "b")
    (folder / "images/b.nii.gz").touch()
    (folder / "manifest.csv").write_text(f"image,mask,patient\n{images},masks/a.png,p1\n")
    with pytest.raises(DataError, match=r"line 2: 'a\.png' is a picture, and only volumes can have several sequences"):
        read_site("north", folder)


@pytest.mark.parametrize("empty", ["\n", ",,,\n", ",\n", " , ,,,,\n"])
def test_empty_lines_of_a_manifest_are_passed_over(site_folder, empty):
    lines = [f"images/{name}.png,masks/{name}.png,p{name},\n" for name in "ab"]
    site = _manifest(site_folder("a", "b"), empty.join(["image,mask,patient,split\n", *lines, 3 * empty]))
    assert [(case.id, case.patient) for case in site.cases] == [("a", "pa"), ("b", "pb")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask,patient\n,masks/a.png,p\n", "line 2: the cell 'image' is empty"),
        ("image,mask\n", "line 1: the columns are"),
        ("image;mask;patient\n", "separated by commas"),
        ("image,mask,patient,splt\n", "'splt'"),
        ("image,mask,patient\nimages/a.png,masks/a.png\n", "line 2: not as many values as columns"),
        ("image,mask,patient\nimages/a.png,masks/a.png,p,q\n", "line 2: not as many values as columns"),
        ("image,mask,patient\nimages/z.png,masks/a.png,p\n", "line 2: there is no file 'images/z.png'"),
        ("image,mask,patient\n/etc/hosts,masks/a.png,p\n", "not a path inside the site's folder"),
        ("image,mask,patient\nimages/../../a.png,masks/a.png,p\n", "not a path inside the site's folder"),
        ("image,mask,patient\nmanifest.csv,masks/a.png,p\n", "not an image that can be read"),
        ("image,mask,patient,split\nimages/a.png,masks/a.png,p,Train\n", "split 'Train'; use train, val, test, unused"),
        ("image,mask,patient,spacing\nimages/a.png,masks/a.png,p,0\n", "spacing '0'; write mm"),
        ("image,mask,patient,spacing\nimages/a.png,masks/a.png,p,1x2x3\n", "spacing '1x2x3'; write mm"),
        ("image,mask,patient,spacing\nimages/a.png,masks/a.png,p,nan\n", "spacing 'nan'; write mm"),
        ("image,mask,patient,case\nimages/a.png,masks/a.png,p,../x\n", "case '../x' cannot name a file"),
        ("image,mask,patient\n" + 2 * "images/a.png,masks/a.png,p\n", "case 'a': two images"),
        ("image,mask,patient\n", "has no cases"),
        ("", "image, mask, patient are required"),
        ("image,mask,patient\nimages/a.png,,p\n", "case 'a': the image has no mask"),
    ],
)
def test_wrong_manifests(site_folder, text, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        _manifest(site_folder("a"), text)
    assert "site 'north'" in str(caught.value)


PATHS = [
    "../a.png",
    "./../a.png",
    "images/../../a.png",
    "images/./../../a.png",
    "images//..//..//a.png",
    "images/a.png/../../../a.png",
    "../north/images/a.png",
    "images/../images/a.png",
    "..",
    "../",
    "images/..",
    "/etc/hosts",
    "//etc/hosts",
    "/images/a.png",
    "..\\a.png",
    "images\\a.png",
    "C:\\a.png",
    "\\\\host\\share\\a.png",
    "~/a.png",
    "file:///etc/hosts",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("column", ["image", "mask"])
def test_20_of_20_paths_that_lead_out_are_refused(site_folder, path, column):
    """Row 25 of reliability; kits are in `tests/deploy/test_provision.py`, names of tensors and studies in their own tests."""
    assert len(PATHS) == 20
    folder = site_folder("a")
    shutil.copy(folder / "images" / "a.png", folder.parent / "a.png")  # it is there: not missing, but not for us
    cells = {"image": "images/a.png", "mask": "masks/a.png", "patient": "p", column: path}
    with pytest.raises(DataError, match=r"not a path inside the site's folder|there is no file"):
        _manifest(
            folder, "image,mask,patient\n" + ",".join(cells[name] for name in ("image", "mask", "patient")) + "\n"
        )


def test_manifest_that_is_not_text(site_folder):
    folder = site_folder("a")
    (folder / "manifest.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_site("north", folder)
