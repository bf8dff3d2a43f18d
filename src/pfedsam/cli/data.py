"""`pfedsam data`: check, compare, split and import the data of the sites before training."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pfedsam.cli.console import ERR, OUT, fitted, warn
from pfedsam.core.small_numbers import DEFAULT
from pfedsam.core.text import some_of

if TYPE_CHECKING:
    from pfedsam.data.check import DataReport, SiteReport
    from pfedsam.data.manifest import Site
    from pfedsam.data.readers.part_table import PartRow
    from pfedsam.experiment.options import RunOptions

T = TypeVar("T")
app = typer.Typer(help="Check, compare, split and import the data of the sites before training.", no_args_is_help=True)
Config = Annotated[Path, typer.Argument(help="YAML file with data.sites and data.classes.")]
_LABELS, _COLUMN = 24, 26
"""Widths of the table's first column and of the column of a site."""
_MOST_ROWS = 60
"""Largest number of series, and of names in masks, that are listed for a site."""


@app.command("check")
def check_command(
    config: Config,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Also write a page with example images and outlines of every site to this file."),
    ] = None,
) -> None:
    """Read all images and masks of all sites, describe them, and report what is recognised as wrong or suspicious.

    If there are problems, the command ends with exit code 3, and no run can start with these data. Warnings name properties that
    may be intended. `run`, `compare` and `onboard` make the same checks. Lists the series of folders that hold several, and the names of
    the segments and structures in DICOM-SEGs and RTSTRUCTs.
    Example: pfedsam data check study.yaml --html check.html
    """  # noqa: DOC501 - shown as help
    from pfedsam.core.errors import DataError
    from pfedsam.data.readers.part_table import absent_names
    from pfedsam.experiment.build import build_study
    from pfedsam.experiment.load import read_options
    from pfedsam.report.data_page import write_data_page
    from pfedsam.report.page import refuse_other_file

    if html is not None:
        refuse_other_file(html)
    options = read_options(config)
    sites, problems = _read(options)
    study = build_study(options)
    report = _check(sites, options)
    problems = list(dict.fromkeys([*report.problems, *problems]))
    for shown in _groups(report.sites):
        OUT.print(_table(shown))
    for site in report.sites:
        if site.series:
            _print_series(site)
    segments = options.data.volume.segments
    parts = _parts_of(sites, segments)
    for name, rows in parts.items():
        _print_parts(name, rows, segments)
    if html is not None:
        OUT.print(f"Page: {write_data_page(report, study, html, problems=problems)}", soft_wrap=True)
    warnings = [*report.warnings, *absent_names(parts.values())]
    for warning in warnings:
        warn(warning)
    if problems:
        raise DataError("\n".join(problems))
    OUT.print(f"No problem, {len(warnings)} warning(s).")


def _read(options: "RunOptions") -> "tuple[list[Site], list[str]]":
    """The sites that can be read, split by patient where that is possible, and the errors of all others."""
    from pfedsam.core.errors import DataError, OptionError
    from pfedsam.experiment.build import check_kinds, divide_site, read_one_site

    sites, problems = [], []
    for name in options.data.sites:
        try:
            site = read_one_site(options, name, masks_required=False)
        except DataError as exc:
            problems.append(str(exc))
            continue
        try:
            site = divide_site(options, site)
            check_kinds(options, site)
        except (DataError, OptionError) as exc:
            problems.append(str(exc))
        sites.append(site)
    return sites, problems


def _check(sites: "list[Site]", options: "RunOptions") -> "DataReport":
    from pfedsam.data.check import check_sites
    from pfedsam.experiment.build import build_study

    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=ERR, transient=True) as bars:
        task = bars.add_task("reading", total=sum(len(site.cases) for site in sites))
        return check_sites(
            sites,
            build_study(options),
            tell=lambda done, _, name: bars.update(
                task, completed=done, description=fitted(f"reading {name}", beside=64)
            ),
        )


def _groups(sites: Sequence[T]) -> Iterable[Sequence[T]]:
    """The sites in groups that fit side by side into the width of the terminal."""
    beside = max(1, (OUT.width - _LABELS) // _COLUMN)
    return (sites[start : start + beside] for start in range(0, len(sites), beside))


def _table(sites: "Sequence[SiteReport]") -> Table:
    from pfedsam.report.data_page import site_rows

    rows = [site_rows(site) for site in sites]
    table = Table("", *(site.site for site in sites))
    for label in rows[0]:
        table.add_row(label, *(row[label] for row in rows))
    return table


def _print_series(site: "SiteReport") -> None:
    """The series of the folders that hold several, and how one is chosen."""
    from pfedsam.report.data_page import SERIES_COLUMNS, series_rows

    rows = series_rows(site)
    table = Table(*SERIES_COLUMNS, title=f"{site.site}: folders that hold several series", title_justify="left")
    for row in rows[:_MOST_ROWS]:
        table.add_row(*row)
    OUT.print(table)
    if len(rows) > _MOST_ROWS:
        OUT.print(f"... and {len(rows) - _MOST_ROWS} more series.")
    OUT.print(
        "The size is width x height, and the spacing slices x height x width as in a manifest.csv. "
        "Choose by data.volume.series (a number as listed, the SeriesInstanceUID, or words of the series' description) for all cases, or "
        "for single cases by the column series of the site's manifest.csv."
    )


def _parts_of(sites: "Iterable[Site]", segments: "Mapping[str, int]") -> "dict[str, list[PartRow]]":
    """The names in the DICOM-SEGs and RTSTRUCTs of each site that has such masks."""
    from pfedsam.data.readers.part_table import count_parts

    masks = {site.name: [case.mask for case in site.cases if case.volume and case.mask] for site in sites}
    with ERR.status("reading the names in the masks"):
        found = {name: count_parts(of_site, segments) for name, of_site in masks.items()}
    return {name: rows for name, rows in found.items() if rows}


def _print_parts(site: str, rows: "Sequence[PartRow]", segments: "Mapping[str, int]") -> None:
    """The names in the masks of a site, which are shown here only."""
    from pfedsam.report.format import MISSING

    table = Table("number", "name", "cases", "id", title=f"{site}: names in the masks")
    table.title_justify = "left"
    for row in rows[:_MOST_ROWS]:
        cases = f"{row.cases} ({row.empty} empty)" if row.empty else str(row.cases)
        numbers = ", ".join(map(str, row.numbers)) or MISSING
        named = "left out" if row.id is None else str(row.id)
        table.add_row(numbers, row.name or MISSING, cases, named if segments else numbers)
    OUT.print(table)
    if len(rows) > _MOST_ROWS:
        OUT.print(f"... and {len(rows) - _MOST_ROWS} more names.")
    OUT.print(
        "The ids are those of data.volume.segments, such as {Liver: 1}; upper and lower case do not matter. Without it the numbers are the "
        "ids. The names are shown here only: they are in no page, log or report."
    )


@app.command("split")
def split_command(
    config: Config,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the split files, one JSON file per site.")],
) -> None:
    """Split every site by patient into training, validation and test part, and write the split to files.

    Set data.split_folder to the folder to use these splits. A file that exists already is never overwritten.
    """
    from pfedsam.data.split import write_split
    from pfedsam.experiment.build import build_sites
    from pfedsam.experiment.load import read_options

    out.mkdir(parents=True, exist_ok=True)
    options = read_options(config)
    _refuse_existing(out, options.data.sites, "Do not replace a split with which a study has started.")
    sites = build_sites(options)
    table = Table("site", "train", "val", "test")
    for name, site in sites.items():
        write_split(out / f"{name}.json", site)
        table.add_row(name, *(str(len(site.of(part))) for part in ("train", "val", "test")))
    OUT.print(table)


def _refuse_existing(out: Path, sites: Iterable[str], more: str = "") -> None:
    """Refuse to overwrite the files of sites.

    Raises:
        OptionError: such a file exists.
    """
    from pfedsam.core.errors import OptionError

    paths = [out / f"{name}.json" for name in sites]
    there = [path for path in paths if path.exists()]
    if there:
        raise OptionError(
            f"{str(there[0])!r} exists already ({len(there)} of {len(paths)} files). Nothing was written: give another --out, or "
            f"remove the files. {more}".strip()
        )


@app.command("summary")
def summary_command(
    config: Config,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the summaries, one JSON file per site.")],
    min_cases: Annotated[
        int, typer.Option(min=1, help="Numbers over fewer cases than this are left out; 1: no number is left out.")
    ] = DEFAULT,
) -> None:
    """Summarise the data of each site in histograms that can be shown to others: intensities, sizes, spacing and classes.

    A file that exists already is never overwritten.
    A summary contains no picture and nothing about a single case. `pfedsam data compare` shows the summaries of several sites side by side.
    Example: pfedsam data summary study.yaml --out summaries
    """
    from pfedsam.data.site_summary import summarize_data, write_site_summary
    from pfedsam.experiment.build import build_study, read_sites
    from pfedsam.experiment.load import read_options

    options = read_options(config)
    _refuse_existing(out, options.data.sites)
    study, sites = build_study(options), read_sites(options)
    out.mkdir(parents=True, exist_ok=True)
    for name, site in sites.items():
        with OUT.status(fitted(f"reading {name}", beside=4)):
            write_site_summary(out / f"{name}.json", summarize_data(site, study, min_cases=min_cases))
        OUT.print(f"Written: {out / name}.json", soft_wrap=True, markup=False)


@app.command("compare")
def compare_command(
    summaries: Annotated[
        list[Path], typer.Argument(help="Files that `pfedsam data summary` wrote, one for each site.")
    ],
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with histograms to this file.")] = None,
) -> None:
    """Show the summaries of several sites side by side, and which sites differ in intensities, scale or labels.

    Example: pfedsam data compare summaries/*.json --html compare.html
    """
    from pfedsam.data.site_summary import read_site_summary
    from pfedsam.report.page import refuse_other_file
    from pfedsam.report.summaries_page import check_names, differences, summary_rows, write_summaries_page

    if html is not None:
        refuse_other_file(html)
    found = [read_site_summary(path) for path in summaries]
    check_names(found)
    rows = {one.site: summary_rows(one) for one in found}
    for shown in _groups(list(rows)):
        OUT.print(_side_by_side({name: rows[name] for name in shown}))
    for text in differences(found) or ["No large difference between the sites."]:
        OUT.print(text, markup=False)
    if html is not None:
        OUT.print(f"Page: {write_summaries_page(found, html)}", soft_wrap=True)


def _side_by_side(columns: "Mapping[str, Mapping[str, str]]") -> Table:
    """A table with a column for each site and a row for each label that a site has."""
    table = Table("", *columns)
    for label in dict.fromkeys(chain.from_iterable(columns.values())):
        table.add_row(label, *(column.get(label, "") for column in columns.values()))
    return table


@app.command("import")
def import_command(
    source: Annotated[
        Path, typer.Argument(help="The folder with the unpacked files of a published data set; it is not changed.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder for the result: one folder per site, and study.yaml.")
    ],
    layout: Annotated[
        str | None, typer.Option(help="Name of the layout; not needed if only one layout fits the folder.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files instead of linking to them.")] = False,
) -> None:
    """Turn a published data set into sites, with its patients and classes.

    Layouts: saml and prostate-slices (prostate MRI, six sites), fundus (optic disc and cup, four sites), mms and acdc (cardiac MRI),
    dsb2018 (nuclei), retina (DRIVE, STARE, CHASE_DB1, HRF), nnunet (Dataset###_Name), msd (Task##_Name, also of nnU-Net
    version 1), fets (brain tumours by institution), and folders (sites that have images/ and masks/, or a manifest.csv, already).
    Example: pfedsam data import Downloads/ACDC --out data/acdc, and then pfedsam data check data/acdc/study.yaml
    """
    from pfedsam.data.layouts import find_layout, write_sites

    found = find_layout(layout, source)
    with OUT.status(f"importing {found.name}") as status:
        imported = write_sites(
            found, source, out, copy=copy, progress=lambda name: status.update(fitted(f"importing {name}", beside=4))
        )
    table = Table("site", "cases", "patients")
    for site, cases in imported.cases.items():
        table.add_row(site, str(cases), str(imported.patients[site] or "?"))
    OUT.print(table)
    if not all(imported.patients.values()):
        OUT.print(
            "? = not known: the data set does not name its patients, so that every case counts as one. If patients have several cases, set "
            "data.patient_pattern, or fill the column patient of the manifest.csv of each site."
        )
    for site, names in imported.without_mask.items():
        shown = some_of([repr(name) for name in names], 3)
        warn(f"site {site!r}: {len(names)} image(s) without a mask were left out: {shown}")
    for note in imported.notes:
        warn(note)
    OUT.print(
        f"Written: {imported.study}. Check its classes, and then run: pfedsam data check {imported.study}", markup=False
    )
