"""`pfedsam site`: commands of a hospital, which decide what data leave it and show what data have left it."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pfedsam.cli.approval import show_study
from pfedsam.cli.console import OUT, confirmed, needs_linux, warn
from pfedsam.cli.predicting import (
    DicomSeg,
    Flips,
    Images,
    Largest,
    Model,
    Overrides,
    Probabilities,
    Resume,
    Smallest,
    Wanted,
    predict_all,
    with_flags,
)

if TYPE_CHECKING:
    from pfedsam.federation.manifest import StudyManifest
    from pfedsam.federation.site_policy import SitePolicy

app = typer.Typer(
    help="Take part in a federation as a site (Linux only; see docs/deploy.md). A site is a folder that only its owner can read.",
    no_args_is_help=True,
    callback=needs_linux,
)
Folder = Annotated[Path, typer.Argument(help="The site's folder.")]
Existing = Annotated[Path, typer.Argument(help="The site's folder.", exists=True, file_okay=False)]


@app.command("request")
def request_command(
    folder: Folder, name: Annotated[str, typer.Option(help="Name of the site in the federation.")]
) -> None:
    """Make the key of this site, which never leaves it, and a request that the coordinator signs.

    In the folder of a site that has its key already, only the request is made, to renew the site's certificate.
    """
    from pfedsam.deploy.keys import CERTIFICATE, make_request
    from pfedsam.deploy.site_service import WORKSPACE

    startup = folder / WORKSPACE / "startup"
    renewed = (startup / CERTIFICATE).exists()
    _make_private_folder(folder, may_hold_files=startup.exists())
    target = folder / f"{name}.csr"
    found = make_request(startup, name, target)
    then = (
        ". The certificate is renewed for the same key, so no fingerprint has to be compared."
        if renewed
        else f", and read out the fingerprint to its operator: {found}"
    )
    OUT.print(f"Send {target} to the coordinator{then}", soft_wrap=True, highlight=False)


@app.command("init")
def init_command(
    folder: Folder,
    kit: Annotated[Path, typer.Option(help="The startup kit that the coordinator made for this site.")],
    data: Annotated[Path, typer.Option(help="Folder with images/ and masks/, or a manifest.csv.")],
    backbone: Annotated[
        str | None, typer.Option(help="Path of the backbone on this machine; default: as in the study's configuration.")
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression for the case id whose first group is the patient; default: as in the study's configuration."
        ),
    ] = None,
    not_annotated: Annotated[
        list[str] | None,
        typer.Option(help="Class that this site does not annotate; may be repeated. Other ids are given in site.yaml."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Number of threads of the training process.")] = 1,
    device: Annotated[
        str, typer.Option(help="Device for the computation: auto (a GPU if torch finds one), cpu, cuda or cuda:<n>.")
    ] = "auto",
) -> None:
    """Make the site's folder from its startup kit.

    Only the certificates, the key if there is one, the coordinator's address and the site's name are taken from the kit. All other files,
    among them the policies that control what data leave the site, are written by this command. The other settings are written to site.yaml
    in the site's folder, and can be changed there later.
    """  # noqa: DOC501
    import yaml

    from pfedsam.core import atomic
    from pfedsam.core.errors import OptionError
    from pfedsam.deploy.keys import KEY, root_fingerprint
    from pfedsam.deploy.site_kit import install_kit
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
        "not_annotated": not_annotated or [],
        "threads": threads,
        "device": device,
    }
    options = validate(SiteOptions, said, "site init")
    if not data.is_dir():
        raise OptionError(
            f"--data: there is no folder {str(data)!r}. Give the folder with the images of this site. Nothing was written."
        )
    asked = (folder / WORKSPACE / "startup" / KEY).exists() and not (folder / CONFIG).exists()
    _make_private_folder(folder, may_hold_files=asked)
    settings = install_kit(kit, folder / WORKSPACE, own_key=asked)
    options = options.model_copy(update={"name": settings.site})
    atomic.write_text(folder / CONFIG, yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False))
    root = root_fingerprint(folder / WORKSPACE / "startup")
    OUT.print(
        f"Root certificate {root}: ask the coordinator's operator whether the fingerprint is the same there.",
        soft_wrap=True,
        highlight=False,
    )
    if options.not_annotated:
        OUT.print(f"Not annotated here: {', '.join(options.not_annotated)}.", markup=False)
    OUT.print(f"Site {options.name} is in {folder}. Next: `pfedsam site approve`, `check`, `start`.", soft_wrap=True)


def _make_private_folder(folder: Path, *, may_hold_files: bool) -> None:
    """Make a folder that only its owner can read.

    Raises:
        RunError: the folder contains files, and `may_hold_files` is false.
    """
    from pfedsam.core.errors import RunError

    if folder.exists() and any(folder.iterdir()) and not may_hold_files:
        raise RunError(
            f"the folder {folder.name!r} is not empty; give a new one. The certificate of an existing site is renewed by "
            "`pfedsam site renew`."
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)


def _refuse_other_folder(folder: Path) -> None:
    """Refuse a folder that is not that of a site: it would look like a site that has approved and sent nothing.

    Raises:
        OptionError: the folder has no `site.yaml`, and no file of a ledger.
    """
    from pfedsam.core.errors import OptionError
    from pfedsam.engine.site_options import CONFIG

    if not (folder / CONFIG).exists() and not any(folder.glob("ledger.*")):
        raise OptionError(
            f"{str(folder)!r} is not a site's folder, because it has no {CONFIG}: give the folder that `pfedsam site init` made."
        )


@app.command("renew")
def renew_command(
    folder: Existing,
    kit: Annotated[Path, typer.Option(help="The renewed kit that the coordinator made for this site.")],
) -> None:
    """Replace the certificate of this site by that of a renewed kit; everything else of the site is unchanged.

    The kit is for the request that `pfedsam site request` makes again. No fingerprint has to be compared: keys do not change.
    """
    from pfedsam.deploy.site_kit import renew_kit
    from pfedsam.deploy.site_service import WORKSPACE

    end = renew_kit(kit, folder / WORKSPACE)
    OUT.print(f"The certificate is valid until {end:%Y-%m-%d}. If the site runs, stop it and start it again.")


@app.command("approve")
def approve_command(
    folder: Existing,
    manifest: Annotated[
        Path | None,
        typer.Argument(
            help="The study's manifest.json; without it, the studies that were offered to this site are shown."
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Id of an offered study to approve.")] = None,
    withdraw: Annotated[
        str | None, typer.Option(help="Id of a study to leave; the site's own files of the study are kept.")
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List the names of all tensors and numbers that would leave.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
) -> None:
    """Show what a study would compute and what data would leave this site, and approve that the site takes part."""
    from pfedsam.federation.manifest import read_manifest
    from pfedsam.federation.site_policy import SitePolicy

    _refuse_other_folder(folder)
    policy = SitePolicy(folder)
    if withdraw:
        done = policy.withdraw(withdraw)
        OUT.print("The approval is withdrawn." if done else "This study was not approved at this site.")
    elif manifest is not None:
        _approve(folder, policy, read_manifest(manifest), tensors=tensors, yes=yes)
    elif study is not None:
        _approve(folder, policy, _offered(policy, study), tensors=tensors, yes=yes)
    else:
        offered = list(policy.manifests("pending"))
        for one in offered:
            OUT.print(f"study {one.study}: {one.name}")
        OUT.print(f"{len(offered)} study(s) offered. Approve one by giving its manifest or --study.")


def _offered(policy: "SitePolicy", study: str) -> "StudyManifest":
    """The offered study with this id.

    Raises:
        RunError: no study with this id was offered.
    """
    from pfedsam.core.errors import RunError

    offered = {one.study: one for one in policy.manifests("pending")}
    if study not in offered:
        raise RunError(f"no study {study} was offered to this site; it was offered {', '.join(offered) or 'none'}.")
    return offered[study]


def _approve(folder: Path, policy: "SitePolicy", manifest: "StudyManifest", *, tensors: bool, yes: bool) -> None:
    """Check a study against what this site derives from its configuration, show it, and approve it unless the operator says no."""
    from pfedsam.engine.site_agent import build_study_model, check_manifest, study_options
    from pfedsam.engine.site_options import read_site_options

    options = study_options(manifest, read_site_options(folder))
    check_manifest(manifest, options, build_study_model(manifest, options))
    show_study(manifest, options, tensors=tensors)
    if confirmed("Let this site take part?", yes=yes):
        policy.approve(manifest)
        OUT.print(f"Approved study {manifest.study}.")
        _warn_of_limit(folder)


def _warn_of_limit(folder: Path) -> None:
    """Warn if `site start` is running and refuses messages as long as those of a study that was approved since."""
    from pfedsam.core.lock import runner
    from pfedsam.engine.site_options import AGENT

    if not runner(folder / AGENT):
        return
    from pfedsam.deploy.site_service import limit_is_too_small

    if limit_is_too_small(folder):
        warn(
            "This site is running, and refuses messages as long as those of this study: it reads the limit when it starts. Stop "
            "`pfedsam site start`, and start it again."
        )


@app.command("check")
def check_command(folder: Existing) -> None:
    """Check everything that `start` needs, and report what is wrong."""  # noqa: DOC501
    from pfedsam.core.errors import RunError
    from pfedsam.deploy.preflight import check_site_ready

    table = Table("what", "", "found")
    findings = check_site_ready(folder)
    for finding in findings:
        table.add_row(finding.what, "ok" if finding.ok else "WRONG", finding.text)
    OUT.print(table)
    wrong = [finding.what for finding in findings if not finding.ok]
    if wrong:
        raise RunError(f"The site is not ready: {', '.join(wrong)}. Correct what the table shows, and check again.")


@app.command("start")
def start_command(folder: Existing) -> None:
    """Take part in the approved studies, in the foreground, until SIGTERM or Ctrl-C.

    Prints a line for every message that leaves this site or is withheld, as `pfedsam site ledger` does. The command can be stopped and
    started again at any moment.
    """
    from pfedsam.core.log import configure
    from pfedsam.deploy.site_service import WORKSPACE, coordinator_of, run_site, warning_of_expiry
    from pfedsam.engine.site_options import LOG

    if warning := warning_of_expiry(folder):
        warn(warning)
    configure("INFO", folder / LOG)
    OUT.print(f"{_head(folder)}. Note it down elsewhere: `pfedsam site ledger` shows it again.", soft_wrap=True)
    approved = sorted(path.stem for path in (folder / "approved").glob("*.json"))
    if approved:
        OUT.print(f"Approved: {', '.join(approved)}.", soft_wrap=True)
    else:
        warn(
            f"No study is approved, so this site takes part in none. Run `pfedsam site approve {folder} manifest.json`."
        )
    address, reason = coordinator_of(folder)
    if reason:
        warn(f"The coordinator cannot be reached at {address} ({reason}). The site tries again until it can.")
    else:
        OUT.print(
            f"Connecting to the coordinator at {address}. The log is {folder / LOG}. NVFlare's own logs are log.txt in "
            f"{folder / WORKSPACE} and in the folder of each job there.",
            soft_wrap=True,
        )
    run_site(folder, _LedgerFollower(folder).print_new)


class _LedgerFollower:
    """Prints the lines that are added to a site's ledger, without verifying them."""

    def __init__(self, folder: Path) -> None:
        """Begin after the present end of the ledger."""
        self._folder, self._path = folder, folder / "ledger.jsonl"
        self._done = self._path.stat().st_size if self._path.exists() else 0

    def print_new(self) -> None:
        """Print the whole lines that were written since the last call."""
        size = self._path.stat().st_size if self._path.exists() else 0
        self._done = min(self._done, size)  # a damaged ledger may have been put aside
        if size == self._done:
            return
        with self._path.open("rb") as file:
            file.seek(self._done)
            new, end, _ = file.read().rpartition(b"\n")
        self._done += len(new) + len(end)
        try:
            lines = [(line, _ledger_text(line, None)) for line in map(json.loads, new.splitlines())]
        except (ValueError, LookupError, TypeError, AttributeError):
            warn(f"The ledger was changed while this site runs. `pfedsam site ledger {self._folder}` says more.")
            return
        for line, text in lines:
            OUT.print(text, soft_wrap=True, highlight=False)
            if line["task"] == "test" and line["sent"]:
                OUT.print(
                    f"Study {line['study']} has ended here. Segment with `pfedsam site predict {self._folder} IMAGES --out MASKS --study "
                    f"{line['study']}`.",
                    soft_wrap=True,
                )


@app.command("predict")
def predict_command(
    folder: Folder,
    images: Images,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks.")],
    study: Annotated[
        str | None, typer.Option(help="Id of the study whose model is used; needed if more than one study has ended.")
    ] = None,
    model: Model = Wanted.IN_USE,
    overrides: Overrides = None,
    dicom_seg: DicomSeg = False,
    probabilities: Probabilities = False,
    tta: Flips = False,
    smallest: Smallest = 0,
    largest: Largest = False,
    resume: Resume = False,
) -> None:
    """Segment images with the model that this site has at the end of a study.

    The masks have the same form as those of `pfedsam predict`: one mask with the ids of the classes per image.

    Example: pfedsam site predict north new/*.png --out masks
    """
    from pfedsam.engine.opened import OpenSite, open_run
    from pfedsam.engine.predict_volume import PredictOptions

    def opened() -> OpenSite:
        run = open_run(folder, with_flags(overrides, tta=tta, largest=largest), study=study)
        (site,) = run.site_names
        return run.site(site, model.value)

    predict_options = PredictOptions(probabilities, smallest)
    predict_all(images, out, opened, model, predict_options, dicom_seg=dicom_seg, resume=resume)


@app.command("ledger")
def ledger_command(
    folder: Existing,
    study: Annotated[str | None, typer.Option(help="Show only the messages of the study with this id.")] = None,
    acknowledge: Annotated[
        bool,
        typer.Option(
            "--acknowledge", help="Rename a damaged ledger and begin a new one, so that the site can send again."
        ),
    ] = False,
) -> None:
    """List every message that left this site or was withheld; fails if a line was changed, inserted or deleted.

    The last line of the output is the head of the ledger. Compare it with the head that `pfedsam site start` printed and that you noted.
    """
    from pfedsam.federation.ledger import Ledger
    from pfedsam.federation.site_policy import SitePolicy

    _refuse_other_folder(folder)
    if acknowledge:
        aside = Ledger(folder / "ledger.jsonl").acknowledge()
        OUT.print(f"The damaged ledger was renamed to {aside.name}." if aside else "The ledger is intact.")
    lines, rounds_of = Ledger(folder / "ledger.jsonl").read(), cache(SitePolicy(folder).rounds)
    for line in lines:
        if study in (None, line["study"]):
            OUT.print(_ledger_text(line, rounds_of(line["study"])), soft_wrap=True, highlight=False)
    total = sum(line["bytes"] for line in lines if line["sent"])
    OUT.print(f"{len(lines)} line(s), verified; {total} bytes left this site in total.")
    OUT.print(_head(folder), soft_wrap=True, highlight=False)


def _ledger_text(line: "Mapping[str, Any]", rounds: int | None) -> str:
    """A line of the ledger as text; `rounds` is the number of rounds of its study, None if it is not known."""
    from pfedsam.federation.tasks import in_words

    parts = ", ".join(f"{part} {size}" for part, size in line["by_component"].items())
    what = "; ".join(filter(None, (parts, f"{len(line['scalar_metrics'])} number(s)", line["note"])))
    kind = "left" if line["sent"] else "HELD BACK"
    asked = in_words(line["task"], line["round"], rounds)
    head = f"{line['time'][:19]}  {line['study'][:8]}  {asked:<20}  {kind}"
    return f"{head}  {line['bytes']:>8} bytes  {line['sha256'][:12]}  {what}"


def _head(folder: Path) -> str:
    """The verified head of the ledger, as text."""
    from pfedsam.federation.ledger import Ledger

    head = Ledger(folder / "ledger.jsonl").head()
    return f"Ledger: {head.lines} line(s), head {head.seal[:16]}"
