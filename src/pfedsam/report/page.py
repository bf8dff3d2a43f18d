"""The report of a run, and of several runs side by side: one HTML file each, without scripts or references to other files.

All texts from users (names of sites and methods, the configuration) are escaped by jinja2, and pictures are embedded as data URIs. A
content security policy in the page forbids scripts and loading anything from elsewhere.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pfedsam.core import sealed
from pfedsam.core.atomic import write_text
from pfedsam.core.errors import OptionError, RunError, StoreError
from pfedsam.core.files import open_regular
from pfedsam.data.split import same_part
from pfedsam.report import figures
from pfedsam.report.class_styles import class_styles
from pfedsam.report.format import (
    MISSING,
    format_bytes,
    format_cases,
    format_count,
    format_gain,
    format_interval,
    format_seconds,
    format_value,
)
from pfedsam.report.intervals import NO_INTERVALS, difference_interval, difference_note, missing_note, read_intervals
from pfedsam.report.onboarded import read_onboarded, way_rows
from pfedsam.report.overlays import PREDICTION, TRUTH, StoredOverlay, read_overlays
from pfedsam.report.records import Record, last_validation, read_records
from pfedsam.report.summary_file import LOCAL_ONLY, Summary, Values, read_summary, with_local_only
from pfedsam.report.tables import (
    MISSED_NOTE,
    best_marks,
    comparison_note,
    dice_rows,
    difference_rows,
    distance_cells,
    heading_unit,
    interval_rows,
    missed_cell,
    small_numbers_note,
    tested,
    time_note,
    undefined_note,
    volume_cell,
)
from pfedsam.report.words import PHASES, difference_heading, part_sizes, phase_heading, surface_dice_note

# An absolute path, alone or as a value in YAML: its folders would reveal where a site stores its data.
_ABSOLUTE_PATH: Final = re.compile(r"(?<![\w./\\~-])(?:~?/|[A-Za-z]:[\\/]|\\\\)[^\s'\",\]}]*")
_GENERATOR: Final = "pFedSAM"
"""A text in the head of every page, by which a page of this project is recognised."""
_HEAD_BYTES: Final = 4096
REPORT: Final = "report.html"
"""The page in the folder of a finished run."""
DATA_SUMMARIES: Final = Path("summaries") / "compare.html"
"""The page of the summaries of the sites' data in a run's folder; the summaries are files beside it."""
UNNAMED: Final = "run"
"""The default name of a run, which is not shown."""


@dataclass(frozen=True)
class Absence:
    """A site whose update is missing in a round, or that uses an earlier or another model."""

    round: str
    """The round, counted from 1; `end` after the last round."""
    task: str
    site: str
    reason: str


@dataclass(frozen=True)
class SitePanel:
    """The figures of a site; a URI is None if the figure does not exist."""

    name: str
    curve: str | None
    experts: str | None
    overlays: Sequence[StoredOverlay]


def write_page(run_folder: Path, *, baseline: Path | None = None) -> Path:
    """Write `report.html` into the folder of a finished run, and return its path.

    Args:
        run_folder: the folder with `summary.json`; parts of the page whose files are missing in the folder are left out.
        baseline: the folder of a run with method local-only, to show the gain over it.

    Raises:
        RunError: the baseline is not a run with method local-only and the same sites, seed and split.
        StoreError: the summary, the records, the configuration or a picture cannot be read, or the page cannot be written.
        DataError: the file of a site's split is damaged.
    """
    summary, alone = read_summary(run_folder / "summary.json"), None
    if baseline is not None:
        alone_summary = read_summary(baseline / "summary.json")
        summary = with_local_only(summary, alone_summary)
        _refuse_other_test_parts(run_folder, baseline, summary.sites)
        alone = read_intervals(baseline, alone_summary)
    intervals = read_intervals(run_folder, summary)
    records, config = _finished_records(run_folder / "records.jsonl"), _config_text(run_folder / "config.yaml")
    panels = _panels(summary, records, run_folder)
    onboarded = read_onboarded(run_folder)
    gains = [site.gain for site in summary.sites.values() if site.gain is not None]
    content = _parsed(config)
    page = environment().get_template("page.html.j2")
    html = page.render(
        summary=summary,
        onboarded=onboarded,
        ways=list(way_rows(onboarded)) if onboarded else [],
        name=_given_name(content),
        phases=_phases(records),
        has_gain=bool(gains),
        gains=gains,
        unit=heading_unit(summary),
        class_names=_class_names(summary),
        intervals=intervals,
        gained=partial(difference_interval, intervals, alone),
        no_intervals=NO_INTERVALS,
        missing_intervals=missing_note([intervals]),
        note=undefined_note(summary),
        small_numbers=small_numbers_note(summary),
        missed_note=MISSED_NOTE,
        surface_dice_note=surface_dice_note(content),
        difference_heading=difference_heading(_values_by_class(summary)),
        has_lesions=_has_lesions(summary),
        panels=panels,
        picture_legends={names: class_styles(names) for one in panels for names in _classes_shown(one)},
        losses=_losses(records),
        absences=_absences(records, summary.rounds),
        components=_uri(figures.component_bytes(summary.communication.by_component)),
        data_summaries=DATA_SUMMARIES.as_posix() if (run_folder / DATA_SUMMARIES).is_file() else None,
        config=None if config is None else _without_paths(config),
    )
    page_path = run_folder / REPORT
    write_text(page_path, html)
    return page_path


def write_missing_page(run_folder: Path) -> None:
    """Write the page of a finished run that has none: the disk was full, or the command was stopped, after its summary was written."""
    if not (run_folder / REPORT).exists():
        write_page(run_folder)


def _refuse_other_test_parts(run_folder: Path, baseline: Path, sites: Iterable[str]) -> None:
    """Refuse a baseline that was scored on other cases; a study between hospitals has no splits in its folder.

    Raises:
        DataError: the file of a split is damaged.
        RunError: the test part of a site differs.
    """
    for site in sites:
        ours, theirs = (folder / "sites" / site / "split.json" for folder in (run_folder, baseline))
        if ours.exists() and theirs.exists() and not same_part(ours, theirs, site, "test"):
            raise RunError(
                f"site {site!r}: the run and the baseline were not scored on the same test cases. Compare runs of the same data and seed."
            )


def _finished_records(path: Path) -> list[Record]:
    """The records of a finished run; an empty list if the file does not exist.

    Raises:
        StoreError: the file cannot be read, or its last records are missing.
    """
    records = read_records(path) if path.is_file() else []
    if records and records[-1]["kind"] != "timing":
        raise StoreError(
            "records.jsonl does not end like that of a finished run, so lines are missing. Restore the file from a backup, or resume the "
            "run, which writes the missing lines again."
        )
    return records


def _config_text(path: Path) -> str | None:
    """The configuration that the run wrote; None if the file does not exist.

    Raises:
        StoreError: the file was changed.
    """
    if not path.is_file():
        return None
    sealed.check_text(path, "Restore the file that the run wrote.")
    return path.read_text("utf-8")


def _has_lesions(summary: Summary) -> bool:
    """Whether the recall of single lesions is known at a site."""
    return any(site.in_use and site.in_use.lesion_recall is not None for site in summary.sites.values())


def _values_by_class(summary: Summary) -> Iterator[Values]:
    """The measures of each class at each site, of the model in use."""
    return chain.from_iterable(site.in_use.classes.values() for site in summary.sites.values() if site.in_use)


def refuse_other_file(out: Path) -> None:
    """Refuse a path for a page at which there is something else, such as a configuration or a mask.

    Raises:
        OptionError: the path does not end in `.html`, or there is something at it that is no page of this project.
        OSError: the file at the path cannot be read.
    """
    if out.suffix.lower() != ".html":
        raise OptionError(f"A page is written to a file that ends in .html, and {str(out)!r} does not.")
    if not out.exists() and not out.is_symlink():
        return
    if out.is_file():
        with open_regular(out) as file:
            if f'name="generator" content="{_GENERATOR}"'.encode() in file.read(_HEAD_BYTES):
                return
    raise OptionError(
        f"{str(out)!r} exists already and is no page that this version wrote. Nothing was written: give another name, or remove the file."
    )


def write_comparison(runs: Mapping[str, Path], out: Path) -> Path:
    """Write one page about several runs, given by label and folder, to the file `out`, and return its path.

    Raises:
        StoreError: a summary cannot be read, or the page cannot be written.
    """
    summaries = {label: read_summary(folder / "summary.json") for label, folder in runs.items()}
    intervals = {label: read_intervals(folder, summaries[label]) for label, folder in runs.items()}
    against = LOCAL_ONLY if LOCAL_ONLY in runs else next(iter(runs))
    differences = difference_rows(summaries, intervals, against)
    class_names = dict.fromkeys(chain.from_iterable(map(_class_names, summaries.values())))
    html = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            runs=summaries,
            rows=dice_rows(summaries),
            found=interval_rows(summaries, intervals),
            note=comparison_note(summaries, intervals),
            class_names=list(class_names),
            dates=sorted({run.date for run in summaries.values() if run.date}),
            dots=_uri(figures.comparison_dots(summaries)),
            against=against,
            time_note=time_note(summaries),
            difference_note=difference_note(intervals, against),
            bars=_uri(figures.difference_bars(differences, against)) if differences else None,
        )
    )
    write_text(out, html)
    return out


def _class_names(summary: Summary) -> list[str]:
    return list(summary.mean.in_use.classes) if summary.mean.in_use else []


def environment() -> Environment:
    """The environment for the templates beside this module; all values are escaped, and an undefined name is an error."""
    environment = Environment(
        loader=PackageLoader("pfedsam.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": format_value, "gain": format_gain, "bytes": format_bytes, "time": format_seconds}
    environment.filters |= {"counted": format_count, "last_part": _last_part, "missed": missed_cell}
    environment.filters |= {"interval": format_interval, "png_uri": partial(_data_uri, kind="image/png")}
    environment.globals |= {
        "format_cases": format_cases,
        "GENERATOR": _GENERATOR,
        "MISSING": MISSING,
        "distance_cells": distance_cells,
        "volume_cell": volume_cell,
        "best_marks": best_marks,
        "tested": tested,
        "parts": part_sizes,
        "phase_texts": PHASES,
        "phase_heading": phase_heading,
        "colors": {
            "personal": figures.PERSONAL,
            "shared": figures.SHARED,
            "faint": figures.FAINT,
            "truth": TRUTH,
            "prediction": PREDICTION,
        },
    }
    return environment


def _parsed(config: str | None) -> Any:  # noqa: ANN401 - the content of a YAML file
    """The content of a configuration; None without one.

    Raises:
        StoreError: the configuration is not YAML.
    """
    try:
        return yaml.safe_load(config or "")
    except yaml.YAMLError as error:
        raise StoreError("config.yaml is not YAML. Restore the file that the run wrote.") from error


def _given_name(content: Any) -> str | None:  # noqa: ANN401 - the content of a YAML file
    """The run's name in the content of its configuration; None if it has the default name."""
    name = str(content.get("name", UNNAMED)) if isinstance(content, dict) else UNNAMED
    return None if name == UNNAMED else name


def _panels(summary: Summary, records: Sequence[Record], run_folder: Path) -> list[SitePanel]:
    """The panels of all sites, in the order of the summary."""
    usage = _last_usage(records)
    highest = max((share for blocks in usage.values() for shares in blocks.values() for share in shares), default=1.0)
    panels = []
    for name in summary.sites:
        experts = figures.expert_usage(usage[name], highest=highest) if name in usage else None
        panels.append(
            SitePanel(
                name=name,
                curve=_uri(figures.learning_curve(records, name, summary.rounds)),
                experts=_uri(experts),
                overlays=_overlays(run_folder, name),
            )
        )
    return panels


def _overlays(run_folder: Path, site: str) -> list[StoredOverlay]:
    """The overlays of a site; an empty list if the site's name would lead to a path outside the folder of sites."""
    return read_overlays(run_folder / "sites" / site / "overlays") if Path(site).name == site else []


def _classes_shown(panel: SitePanel) -> list[tuple[str, ...]]:
    """The classes in the pictures of a site: more than one entry only if its pictures were made by different versions."""
    return list(dict.fromkeys(picture.classes for picture in panel.overlays))


def _last_usage(records: Sequence[Record]) -> dict[str, dict[int, list[float]]]:
    """The shares of the tokens of each expert by site and block, from the last round that recorded them."""
    usage: dict[str, dict[int, list[float]]] = {}
    for record in records:
        if record["kind"] == "experts":
            usage.setdefault(record["site"], {})[record["block"]] = record["usage"]
    return usage


def _phases(records: Sequence[Record]) -> list[str]:
    """The phases of the client round, in the order in which they first occur."""
    return list(dict.fromkeys(one["phase"] for one in records if one["kind"] == "round" and "phase" in one))


def _losses(records: Sequence[Record]) -> list[tuple[str, str]]:
    """The phases that have a loss, with the figures of their loss curves."""
    drawn = [(phase, _uri(figures.loss_curve(records, phase))) for phase in _phases(records)]
    return [(phase, uri) for phase, uri in drawn if uri is not None]


def _absences(records: Sequence[Record], rounds: int) -> list[Absence]:
    """Every site that was absent or rejected, or does not use its latest personal model, in the order of the rounds."""
    last = last_validation(records)
    return [
        Absence(_count_from_1(row["round"], rounds) if "round" in row else "", task, site, reason)
        for row in records
        for task, site, reason in _absent_sites(row, rounds, last)
    ]


def _absent_sites(row: Record, rounds: int, last: int | None) -> Iterator[tuple[str, str, str]]:
    """The task, the site and the reason of each absence in one record; `last` is the round of the last validation."""
    match row["kind"]:
        case "absent":
            yield from ((row["task"], site, reason) for site, reason in row["sites"].items())
        case "aggregate":
            yield from (("train", site, reason) for site, reason in row["rejected"].items())
        case "kept":
            kept = _count_from_1(row["from_round"], rounds)
            yield (
                "validate",
                row["site"],
                f"uses an earlier model, of round {kept}: this one is worse on its validation part",
            )
        case "plain" if row["round"] == last:
            reason = "uses the shared model: its personal one does clearly worse on its validation part"
            yield "validate", row["site"], reason


def _count_from_1(round_: int, rounds: int) -> str:
    """The number of a round as it is shown, counted from 1; records count from 0."""
    return str(round_ + 1) if round_ < rounds else "end"


def _without_paths(text: str) -> str:
    """The text with absolute paths shortened to their last part, because a report may be passed on, but paths should not."""
    return _ABSOLUTE_PATH.sub(lambda match: "…/" + _last_part(match[0]), text)


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _uri(svg: bytes | None) -> str | None:
    return None if svg is None else _data_uri(svg, "image/svg+xml")


def _data_uri(data: bytes, kind: str) -> str:
    """A file of this media type, such as `image/png`, as a URI that contains it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
