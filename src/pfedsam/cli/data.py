"""`pfedsam data check` and `data split`: look at the sites before anything is trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pfedsam.cli.console import ERR, OUT

if TYPE_CHECKING:
    from pfedsam.experiment.options import RunOptions

app = typer.Typer(help="Check and split the sites' data.", no_args_is_help=True)
Config = Annotated[Path, typer.Argument(help="YAML file with data.sites and data.classes.")]


@app.command("check")
def check_command(config: Config) -> None:
    """Read every image and mask of every site, try the split, and name everything that is wrong."""  # noqa: DOC501 - shown as help
    from pfedsam.core.errors import DataError
    from pfedsam.data.check import check_site
    from pfedsam.data.manifest import read_site
    from pfedsam.experiment.build import build_labels
    from pfedsam.experiment.load import load_options

    options = load_options(config)
    labels, pattern = build_labels(options), options.data.patient_pattern
    table = Table("site", "cases", "patients", "problems")
    problems: list[str] = []
    warnings: list[str] = []
    for name, folder in options.data.sites.items():
        try:
            site = read_site(name, folder, patient_pattern=pattern, masks_required=False)
        except DataError as exc:
            table.add_row(name, "-", "-", "1")
            problems.append(str(exc))
            continue
        report = check_site(site, labels, options.data.image, patient_pattern=pattern)
        found = report.problems or _split_problems(options, name)
        table.add_row(name, str(report.cases), str(report.patients), str(len(found)))
        problems += found
        warnings += report.warnings
    OUT.print(table)
    for warning in warnings:
        ERR.print(f"Warning: {warning}", markup=False, highlight=False)
    if problems:
        raise DataError("\n".join(problems))


def _split_problems(options: "RunOptions", name: str) -> tuple[str, ...]:
    """What a split of this site, whose files are sound, would be refused for."""
    from pfedsam.core.errors import DataError
    from pfedsam.experiment.build import build_sites

    data = options.data.model_copy(update={"sites": {name: options.data.sites[name]}})
    try:
        build_sites(options.model_copy(update={"data": data}))
    except DataError as exc:
        return (str(exc),)
    return ()


@app.command("split")
def split_command(
    config: Config, out: Annotated[Path, typer.Option("--out", "-o", help="Folder for one JSON file per site.")]
) -> None:
    """Split every site by patient into train, val and test, and write the split to files that data.split_folder can name."""
    from pfedsam.data.split import write_split
    from pfedsam.experiment.build import build_sites
    from pfedsam.experiment.load import load_options

    table = Table("site", "train", "val", "test")
    out.mkdir(parents=True, exist_ok=True)
    for name, site in build_sites(load_options(config)).items():
        write_split(out / f"{name}.json", site)
        table.add_row(name, *(str(len(site.of(part))) for part in ("train", "val", "test")))
    OUT.print(table)


@app.command("import")
def import_command(
    source: Annotated[
        Path, typer.Argument(help="The folder that a published data set was unpacked to; it is only read.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for one folder per site and study.yaml.")],
    layout: Annotated[str | None, typer.Option(help="Name of the layout; found by itself where only one fits.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files instead of linking to them.")] = False,
) -> None:
    """Turn a published data set into sites, with its patients and classes.

    Layouts: saml and prostate-slices (prostate MRI, six sites), fundus (optic disc and cup, four sites), mms and acdc (cardiac MRI),
    dsb2018 (nuclei), retina (DRIVE, STARE, CHASE_DB1, HRF), nnunet (Dataset###_Name), msd (Task##_Name), fets (brain tumours by
    institution), and folders (sites that have images/ and masks/ already).
    Example: pfedsam data import Downloads/ACDC --out data/acdc, and then pfedsam data check data/acdc/study.yaml
    """
    from pfedsam.data.layouts import find_layout, write_sites

    found = find_layout(layout, source)
    with OUT.status(f"importing {found.name}") as status:
        imported = write_sites(
            found, source, out, copy=copy, progress=lambda name: status.update(f"importing {name}"[:70])
        )
    table = Table("site", "cases", "patients")
    for site, cases in imported.cases.items():
        table.add_row(site, str(cases), str(imported.patients[site] or "?"))
    OUT.print(table)
    OUT.print(
        f"Written: {imported.study}. Look at its classes, then: pfedsam data check {imported.study}", markup=False
    )
