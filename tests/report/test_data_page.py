"""Rows and page of `pfedsam data check`."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from volume_files import write_nifti

from pfedsam.data.check import check_sites
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.manifest import read_site
from pfedsam.data.readers.series_table import SeriesRow
from pfedsam.data.suspicions import Study
from pfedsam.report.class_styles import CLASS_COLORS
from pfedsam.report.data_page import SERIES_COLUMNS, series_rows, site_rows, write_data_page
from pfedsam.report.format import MISSING

STUDY = Study(LabelMap({"organ": [1], "other": [2]}), ImageOptions())


def _report(folder: Path):
    mask = np.zeros((6, 8, 5), np.uint8)
    mask[:3, :4, 2] = 1  # 12 of 240 voxels
    for name in ("a", "b"):
        write_nifti(
            folder / f"images/{name}.nii", np.arange(240, dtype=np.int16).reshape(6, 8, 5), np.diag([1, 2, 5, 1])
        )
        write_nifti(folder / f"masks/{name}.nii", mask, np.diag([1, 2, 5, 1]))
    return check_sites([read_site("north", folder)], STUDY)


def test_rows_say_what_was_counted(tmp_path):
    rows = site_rows(_report(tmp_path).sites[0])
    expected = {
        "images": "2",
        "patients": "2",
        "size: width x height (x slices)": "6 x 8 x 5",
        "spacing in mm: (slices x) height x width": "5x2x1",
        "bits per value": "int16",
        "values used": "0 to 239",
        "channels": "1",
        "ids in the masks": "0 (2), 1 (2)",
        "class organ": "2 cases, median 5 % of the pixels",
        "class other": f"0 cases, {MISSING}",
        "empty masks": "0",
        "unlabelled images": "0",
        "refused images": "0",
        "problems": "0",
    }
    assert {name: rows[name] for name in expected} == expected


def test_the_printed_spacing_can_be_copied_into_a_manifest(tmp_path):
    """With the copied text, the volume has the same spacing as by its file."""
    site = _report(tmp_path).sites[0]
    text = site_rows(site)["spacing in mm: (slices x) height x width"]
    (tmp_path / "manifest.csv").write_text(f"image,mask,patient,spacing\nimages/a.nii,masks/a.nii,a,{text}\n")
    (case,) = read_site("north", tmp_path).cases
    assert {case.spacing_mm: 2} == site.images.spacings


def test_refused_images_with_a_mask_are_not_counted_as_unlabelled(tmp_path):
    _report(tmp_path)
    (tmp_path / "images" / "a.nii").write_bytes(b"no volume")
    (tmp_path / "masks" / "b.nii").unlink()
    site = check_sites([read_site("north", tmp_path, masks_required=False)], STUDY).sites[0]
    rows = site_rows(site)
    assert (rows["images"], rows["refused images"], rows["unlabelled images"]) == ("2", "2", "1")
    assert rows["size: width x height (x slices)"] == "6 x 8 x 5"


def test_the_page_holds_a_picture_of_each_case_and_what_is_wrong(tmp_path):
    report = _report(tmp_path)
    page = write_data_page(report, STUDY, tmp_path / "check.html", problems=["site 'north': <b> is wrong"])
    html = page.read_text("utf-8")
    assert len(re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{100,}"', html)) == 2
    assert "&lt;b&gt; is wrong" in html
    assert report.warnings[0].split("'")[0] in html.replace("&#39;", "'")


def test_the_page_names_the_colour_of_each_class_that_a_site_annotates(tmp_path):
    report = _report(tmp_path)
    html = write_data_page(report, STUDY, tmp_path / "check.html", problems=[]).read_text("utf-8")
    found = re.findall(r'stroke="(#\w+)"[^<]*/></svg>([^<]*)</span>', html)
    assert found == [(CLASS_COLORS[0], "organ"), (CLASS_COLORS[1], "other")]
    partial = replace(STUDY, site_labels={"north": LabelMap({"organ": [], "other": [1]}, frozenset({"organ"}))})
    html = write_data_page(report, partial, tmp_path / "check.html", problems=[]).read_text("utf-8")
    assert re.findall(r"</svg>([^<]*)</span>", html) == ["other"]


def test_on_a_phone_long_names_do_not_widen_the_page_and_one_hint_tells_of_scrolling(tmp_path):
    html = write_data_page(_report(tmp_path), STUDY, tmp_path / "check.html", problems=[]).read_text("utf-8")
    columns = re.findall(r"\.cases[^{]*\{[^}]*grid-template-columns: ([^;]*);", html)
    assert columns == ["repeat(3, minmax(0, 1fr))", "minmax(0, 1fr)", "repeat(2, minmax(0, 1fr))"]
    assert "overflow-wrap: anywhere" in re.search(r"figcaption \{([^}]*)\}", html)[1]
    assert len(re.findall("scrolls? sideways", html, re.IGNORECASE)) == 1


def test_series_are_rows_with_the_undecided_cases_first(tmp_path):
    first = SeriesRow(1, "MR", "axial", "ORIGINAL PRIMARY", 0.0, 20, 1, (64, 32), (3.0, 0.4, 0.5), True)
    second = SeriesRow(2, "MR", "", "", None, 20, 4, (64, 32), None, False)
    late = replace(first, number=2, seconds=3 * 86400.0 + 60, chosen=False)
    site = replace(_report(tmp_path).sites[0], series={"a": (first, second), "b": (replace(first, chosen=False), late)})
    rows = [dict(zip(SERIES_COLUMNS, row, strict=True)) for row in series_rows(site)]
    assert [row["case"] for row in rows] == ["b", "", "a", ""]
    assert rows[2] == {
        "case": "a",
        "series": "1 MR",
        "plane": "axial",
        "image type": "ORIGINAL PRIMARY",
        "time": "0 min",
        "slices": "20",
        "size": "32 x 64",
        "spacing in mm": "3x0.4x0.5",
        "chosen": "yes",
    }
    assert rows[3] == rows[3] | {
        "plane": MISSING,
        "time": MISSING,
        "slices": "20, 4 each",
        "spacing in mm": "none",
        "chosen": "no",
    }
    assert rows[1]["time"] == "3 days"
