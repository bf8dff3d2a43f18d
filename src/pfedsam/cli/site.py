"""`pfedsam site`: a hospital's own commands. What leaves it is decided, and can be looked up, here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pfedsam.cli.console import OUT, needs_linux
from pfedsam.cli.predicting import (
    DicomSeg,
    Flips,
    Images,
    Largest,
    Probabilities,
    Resume,
    Smallest,
    predict_all,
)

if TYPE_CHECKING:
    from pfedsam.experiment.options import RunOptions
    from pfedsam.federation.manifest import StudyManifest

app = typer.Typer(
    help="Take part in a federation: one folder per site, which only you can read (Linux).",
    no_args_is_help=True,
    callback=needs_linux,
)
Folder = Annotated[Path, typer.Argument(help="The site's folder.")]


@app.command("request")
def request_command(
    folder: Folder, name: Annotated[str, typer.Option(help="The site's name, as the coordinator will call it.")]
) -> None:
    """Make this site's key, which stays here, and the request that the coordinator signs."""
    from pfedsam.deploy.keys import make_request
    from pfedsam.deploy.site_service import WORKSPACE

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    target = folder / f"{name}.csr"
    found = make_request(folder / WORKSPACE / "startup", name, target)
    OUT.print(f"Send {target} to the coordinator, and read out to them: {found}", soft_wrap=True, highlight=False)


@app.command("init")
def init_command(
    folder: Folder,
    kit: Annotated[Path, typer.Option(help="The startup kit that the coordinator made for this site.")],
    data: Annotated[Path, typer.Option(help="Folder with images/ and masks/, or a manifest.csv.")],
    backbone: Annotated[
        str | None, typer.Option(help="Where the backbone lies here; empty: as the study says.")
    ] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="The patient in a case id; empty: as the study says.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of the training process.")] = 1,
    device: Annotated[
        str, typer.Option(help="Where it computes: auto (a GPU where torch finds one), cpu, cuda or cuda:<n>.")
    ] = "auto",
) -> None:
    """Make the site's folder from its startup kit; the site's own policies are written here, not taken from the kit."""  # noqa: DOC501
    import yaml

    from pfedsam.core import atomic
    from pfedsam.core.errors import RunError
    from pfedsam.deploy.keys import KEY, root_fingerprint
    from pfedsam.deploy.provision import install_kit
    from pfedsam.deploy.site_service import WORKSPACE
    from pfedsam.engine.site_options import CONFIG, SiteOptions
    from pfedsam.experiment.load import validate
    from pfedsam.model.backbones.checkpoint import backbone_file

    said = {
        "name": "unnamed",  # until the kit is opened
        "data": data.resolve(),
        # The training process has another working directory.
        "backbone": str(file.resolve()) if backbone and (file := backbone_file(backbone)) else backbone,
        "patient_pattern": patient_pattern,
        "threads": threads,
        "device": device,
    }
    options = validate(SiteOptions, said, "site init")
    asked = (folder / WORKSPACE / "startup" / KEY).exists() and not (folder / CONFIG).exists()
    if folder.exists() and any(folder.iterdir()) and not asked:
        raise RunError(f"the folder {folder.name!r} is not empty; give a new one.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    content = install_kit(kit, folder / WORKSPACE, own_key=asked)
    options = options.model_copy(update={"name": content["client"]["fqsn"]})
    atomic.write_text(folder / CONFIG, yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False))
    root = root_fingerprint(folder / WORKSPACE / "startup")
    OUT.print(f"Root {root}: ask the coordinator whether it is theirs.", soft_wrap=True, highlight=False)
    OUT.print(f"Site {options.name} is in {folder}. Next: `pfedsam site approve`, `check`, `start`.", soft_wrap=True)


@app.command("approve")
def approve_command(
    folder: Folder,
    manifest: Annotated[
        Path | None, typer.Argument(help="The study's manifest.json; without it, what a coordinator offered is shown.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Approve the offered study with this id.")] = None,
    withdraw: Annotated[str | None, typer.Option(help="Leave the study with this id; your state stays here.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Read what a study would do and what would leave, and let this site take part in it."""  # noqa: DOC501
    from pfedsam.core.errors import RunError
    from pfedsam.engine.site_agent import build_study_model, check_manifest, study_options
    from pfedsam.engine.site_options import read_site_options
    from pfedsam.federation.manifest import read_manifest
    from pfedsam.federation.site_policy import SitePolicy

    policy = SitePolicy(folder)
    if withdraw:
        OUT.print("Left." if policy.withdraw(withdraw) else "That study was not approved here.")
        return
    offered = {one.study: one for one in policy.manifests("pending")}
    if manifest is None and study is None:
        for one in offered.values():
            OUT.print(f"study {one.study}: {one.name}")
        OUT.print(f"{len(offered)} offered study(s). Approve one by its manifest or by --study.")
        return
    if manifest is None and study not in offered:
        raise RunError(f"no study {study} was offered to this site; it was offered {', '.join(offered) or 'none'}.")
    chosen = read_manifest(manifest) if manifest else offered[str(study)]
    site = read_site_options(folder)
    options = study_options(chosen, site)
    check_manifest(chosen, options, build_study_model(chosen, options))
    _show(chosen, options)
    if yes or typer.confirm("Let this site take part?"):
        policy.approve(chosen)
        OUT.print(f"Approved study {chosen.study}.")


@app.command("check")
def check_command(folder: Folder) -> None:
    """Look at everything that a start needs, and name what is wrong."""  # noqa: DOC501
    from pfedsam.core.errors import RunError
    from pfedsam.deploy.preflight import check_site_ready

    table = Table("what", "", "found")
    findings = check_site_ready(folder)
    for finding in findings:
        table.add_row(finding.what, "ok" if finding.ok else "WRONG", finding.text)
    OUT.print(table)
    wrong = [finding.what for finding in findings if not finding.ok]
    if wrong:
        raise RunError(f"not ready: {', '.join(wrong)}. Mend what the table says and check again.")


@app.command("start")
def start_command(folder: Folder) -> None:
    """Work for the coordinator in the foreground, until SIGTERM or Ctrl-C; safe to stop and start at any moment."""
    from pfedsam.core.log import configure
    from pfedsam.deploy.site_service import run_site

    configure("INFO", folder / "site.log")
    OUT.print(f"{_head(folder)}. Note it down elsewhere: `pfedsam site ledger` shows it again.", soft_wrap=True)
    run_site(folder)


@app.command("predict")
def predict_command(
    folder: Folder,
    images: Images,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks.")],
    study: Annotated[str | None, typer.Option(help="Whose model; needed where more than one study has ended.")] = None,
    dicom_seg: DicomSeg = False,
    probabilities: Probabilities = False,
    tta: Flips = False,
    smallest: Smallest = 0,
    largest: Largest = False,
    resume: Resume = False,
) -> None:
    """Segment images with the model that this site ended a study with: one mask of ids per image, as `pfedsam predict`.

    Example: pfedsam site predict north new/*.png --out masks
    """
    from pfedsam.engine.opened import OpenSite, open_run
    from pfedsam.engine.predict_volume import VolumeWishes

    def opened() -> OpenSite:
        run = open_run(folder, study=study)
        (site,) = run.site_names
        return run.site(site)

    wishes = VolumeWishes(probabilities, tta, smallest, largest)
    predict_all(images, out, opened, wishes, dicom_seg=dicom_seg, resume=resume)


@app.command("ledger")
def ledger_command(
    folder: Folder,
    study: Annotated[str | None, typer.Option(help="Only this study's messages.")] = None,
    acknowledge: Annotated[
        bool,
        typer.Option(
            "--acknowledge", help="Put a broken ledger aside and begin a new one, so that the site may send again."
        ),
    ] = False,
) -> None:
    """Every message that left this site or was held back; fails when a line was changed, put in, taken out or cut off.

    The last line is the ledger's head. Compare it with what `pfedsam site start` printed and you noted elsewhere.
    """
    from pfedsam.federation.ledger import Ledger
    from pfedsam.federation.messages import in_words
    from pfedsam.federation.site_policy import SitePolicy

    if acknowledge:
        aside = Ledger(folder / "ledger.jsonl").acknowledge()
        OUT.print(f"The broken ledger is put aside as {aside.name}." if aside else "The ledger is whole.")
    lines, policy = Ledger(folder / "ledger.jsonl").read(), SitePolicy(folder)
    rounds = {name: policy.rounds(name) for name in {line["study"] for line in lines}}
    for line in lines:
        if study in (None, line["study"]):
            parts = ", ".join(f"{part} {size}" for part, size in line["by_component"].items())
            what = "; ".join(text for text in (parts, f"{len(line['scalar_metrics'])} number(s)", line["note"]) if text)
            kind = "left" if line["sent"] else "HELD BACK"
            asked = in_words(line["task"], line["round"], rounds[line["study"]])
            head = f"{line['time'][:19]}  {line['study'][:8]}  {asked:<20}  {kind}"
            OUT.print(
                f"{head}  {line['bytes']:>8} bytes  {line['sha256'][:12]}  {what}", soft_wrap=True, highlight=False
            )
    total = sum(line["bytes"] for line in lines if line["sent"])
    OUT.print(f"{len(lines)} line(s), verified; {total} bytes left this site in all.")
    OUT.print(_head(folder), soft_wrap=True, highlight=False)


def _head(folder: Path) -> str:
    """Where the ledger stands, verified."""
    from pfedsam.federation.ledger import Ledger

    head = Ledger(folder / "ledger.jsonl").head()
    return f"Ledger: {head.lines} line(s), head {head.seal[:16]}"


def _show(manifest: "StudyManifest", options: "RunOptions") -> None:
    """What an operator has to know before they agree; all of it was derived from the configuration here."""
    table = Table(f"study {manifest.study}", manifest.name)
    training, parts = options.training, manifest.component_bytes()
    table.add_row("method, rounds", f"{options.method}, {training.rounds}")
    table.add_row("in a round", f"{training.steps_per_round} steps of {training.batch_size} images each")
    table.add_row("learning rate", f"{training.optimizer.learning_rate:g}")
    table.add_row("backbone", manifest.configuration["model"]["backbone"])
    table.add_row("its SHA-256", manifest.backbone)
    table.add_row("patient pattern", options.data.patient_pattern or "none: every case is a patient")
    table.add_row(
        "leaves in a round", f"{sum(parts.values())} bytes: " + ", ".join(f"{p} {n}" for p, n in parts.items())
    )
    for part, names in manifest.components.items():
        table.add_row(f"tensors, {part}", f"{len(names)}: {_some(names)}")
    table.add_row("largest change", f"{manifest.max_change:.4g} in a round (L2 norm)")
    for task, names in manifest.scalar_metrics.items():
        table.add_row(f"numbers, {task}", _some(names))
    OUT.print(table)


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
