"""The description of the sites' data by `pfedsam data check`: rows for the terminal, and a page with pictures and outlines.

The page shows images of every site, so only persons who may see the images of all sites should get it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pfedsam.core.atomic import write_text
from pfedsam.core.errors import DataError
from pfedsam.core.text import some_of
from pfedsam.data.check import DataReport, ImageCounts, SiteReport
from pfedsam.data.facts import SiteFacts
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import CaseTruth, load_case_truth
from pfedsam.data.readers.series_table import SeriesRow
from pfedsam.data.suspicions import Study
from pfedsam.report.class_styles import ClassStyle, class_styles
from pfedsam.report.format import MISSING, format_count
from pfedsam.report.overlays import OverlayItem, draw_overlay
from pfedsam.report.page import environment

_PICTURES: Final = 6
"""Number of cases of a site that the page shows."""
_LISTED: Final = 3
"""Number of sizes or ids that a row lists individually."""


SERIES_COLUMNS: Final = ("case", "series", "plane", "image type", "time", "slices", "size", "spacing in mm", "chosen")
"""The size is width x height, and the spacing slices x height x width as in a manifest."""


@dataclass(frozen=True)
class Thumbnail:
    """The picture of a case on the page."""

    case: str
    patient: str
    png: bytes


def site_rows(site: SiteReport) -> dict[str, str]:
    """The properties of a site's data as text, by the name of the property."""
    parts = ", ".join(f"{part} {count}" for part, count in site.parts.items())
    rows = {
        "images": str(site.cases),
        "patients": str(site.patients),
        "split": parts or MISSING,
        "size: width x height (x slices)": _listed({_size(size): count for size, count in site.images.sizes.items()}),
        "spacing in mm: (slices x) height x width": _listed(
            {_spacing(spacing): count for spacing, count in site.images.spacings.items()}
        ),
        "bits per value": _listed({**site.images.depths, **site.images.kinds}),
        "values used": _values(site.images),
        "channels": _listed(site.images.channels),
        "ids in the masks": _listed(site.masks.ids, always=True, most=8),
    }
    masks = site.masks
    rows |= {f"class {name}": _class_text(count, masks.shares.get(name)) for name, count in masks.classes.items()}
    return rows | {
        "empty masks": str(site.masks.empty),
        "unlabelled images": str(site.masks.missing),
        "refused images": str(site.refused),
        "problems": str(len(site.problems)),
    }


def _class_text(count: int | None, share: float | None) -> str:
    """The cases that have a class, and its share of their pixels; `count` is None where the class is not annotated."""
    if count is None:
        return "not annotated"
    filled = MISSING if share is None else f"median {100 * share:.2g} % of the pixels"
    return f"{format_count(count, 'case')}, {filled}"


def series_rows(site: SiteReport) -> list[tuple[str, ...]]:
    """A row of text for each series of the folders that hold several, with the columns `SERIES_COLUMNS`; cases without a choice first."""
    cases = sorted(site.series.items(), key=lambda item: any(row.chosen for row in item[1]))
    return [
        (case if number == 0 else "", *_series_cells(series))
        for case, found in cases
        for number, series in enumerate(found)
    ]


def _series_cells(series: SeriesRow) -> tuple[str, ...]:
    """The properties of a series, in the order of `SERIES_COLUMNS`."""
    return (
        f"{series.number} {series.modality}",
        series.plane or MISSING,
        series.image_type or MISSING,
        _after(series.seconds),
        f"{series.slices}" if series.times == 1 else f"{series.slices}, {series.times} each",
        _size(series.size),
        _spacing(series.spacing_mm),
        "yes" if series.chosen else "no",
    )


def write_data_page(report: DataReport, study: Study, out: Path, *, problems: Sequence[str]) -> Path:
    """Write the page to the file `out`, and return its path.

    Args:
        report: result of the check.
        study: settings for reading images, and the meaning of the ids.
        out: path of the page.
        problems: all problems, including those of sites that could not be read at all.

    Raises:
        StoreError: the page cannot be written.
    """
    rows = [site_rows(site) for site in report.sites]
    html = (
        environment()
        .get_template("data.html.j2")
        .render(
            names=[site.site for site in report.sites],
            labels=list(dict.fromkeys(label for row in rows for label in row)),
            rows=rows,
            problems=list(problems),
            warnings=list(report.warnings),
            panels={facts.name: list(_thumbnails(facts, study)) for facts in report.facts},
            legends={facts.name: _legend(study.labels_of(facts.name)) for facts in report.facts},
        )
    )
    write_text(out, html)
    return out


def _legend(labels: LabelMap) -> list[ClassStyle]:
    """The outlines of the classes that a site annotates."""
    return [style for style in class_styles(labels.names) if style.name not in labels.not_annotated]


def _thumbnails(facts: SiteFacts, study: Study) -> Iterable[Thumbnail]:
    """Pictures of evenly spaced cases without problems, each with the outlines of its classes."""
    sound = [one.case for one in facts.cases if not one.problems and one.labelled]
    chosen = np.linspace(0, len(sound) - 1, min(_PICTURES, len(sound))).round().astype(int)
    for case in (sound[i] for i in chosen):
        try:
            truth = load_case_truth(case, study.labels_of(facts.name), study.image, study.volume)
            image, classes = _fullest(truth)
        except DataError:  # a file that could not be read has been reported by the check already
            continue
        picture = draw_overlay(OverlayItem(image, classes, None, None, study.labels.overlap))
        yield Thumbnail(case.id, case.patient, picture)


def _fullest(truth: CaseTruth) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Image [H, W, 3] and classes [H, W] of a case; for a volume, those of the slice with the most foreground.

    Raises:
        DataError: the image cannot be read.
    """
    if truth.classes.ndim == 2:
        return truth.picture(0), truth.classes
    fullest = int((truth.classes > 0).sum(axis=(1, 2)).argmax())
    return truth.picture(fullest), truth.classes[fullest]


def _listed(counts: Mapping[Any, int], *, always: bool = False, most: int = _LISTED) -> str:
    """The values, the most frequent first; if there are several (or with `always`), each with its number of cases."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    texts = [f"{value} ({count})" if always or len(ranked) > 1 else str(value) for value, count in ranked]
    return some_of(texts, most) if texts else MISSING


def _size(size: tuple[int, ...]) -> str:
    """A size (H, W) or (D, H, W) as width x height (x slices)."""
    return " x ".join(map(str, reversed(size)))


def _spacing(spacing: tuple[float, ...] | None) -> str:
    """A spacing (H, W) or (D, H, W) as a cell of a manifest, such as 5x0.5x0.4, in the opposite order of `_size`."""
    return "none" if spacing is None else "x".join(f"{value:.4g}" for value in spacing)


def _after(seconds: float | None) -> str:
    """The time between the first series of a folder and another one, as text."""
    if seconds is None:
        return MISSING
    days, minutes = divmod(round(seconds / 60), 24 * 60)
    return f"{days} days" if days else f"{minutes} min"


def _values(images: ImageCounts) -> str:
    """The lowest and highest value, in the units of the files if all files are volumes or have the same type."""
    if images.voxel_values is not None:
        return "{:.6g} to {:.6g}".format(*images.voxel_values)
    if images.values is None:
        return MISSING
    low, high = images.values
    if len(images.depths) == 1:
        (bits,) = images.depths
        top = 2**bits - 1
        return f"{low * top:.0f} to {high * top:.0f} of 0 to {top}"
    return f"{100 * low:.0f} to {100 * high:.0f} % of the type's range"
