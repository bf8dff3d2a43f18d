"""`pfedsam coordinator`: commands of the machine that averages the updates of the sites; it never has access to images."""

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pfedsam.cli.console import OUT, confirmed, needs_linux, warn
from pfedsam.cli.submitted import FLAGS, changes, warn_unknown

if TYPE_CHECKING:
    from pfedsam.engine.study_folder import StudyFolder

app = typer.Typer(
    help="Coordinate a federation of sites on other machines (Linux only; see docs/deploy.md).",
    no_args_is_help=True,
    callback=needs_linux,
)
Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
Existing = Annotated[Path, typer.Argument(help="The coordinator's folder.", exists=True, file_okay=False)]
PID = "coordinator.pid"
"""Name of the file with the coordinator's process id. If its lock (`core.lock.running_as`) is free, no coordinator runs."""
_STOP_S = 15.0


@app.command("init")
def init_command(
    folder: Folder,
    address: Annotated[str, typer.Option(help="Host name or IPv4 address under which the sites reach this machine.")],
    sites: Annotated[
        str,
        typer.Option(
            help="Names of the sites whose keys are made here, separated by commas; other sites make their own key and send a request."
        ),
    ] = "",
    port: Annotated[
        int,
        typer.Option(
            help="Port for the connections of the sites; the next port is used for the local control of this machine."
        ),
    ] = 8102,
    project: Annotated[str, typer.Option(help="Name of the project.")] = "pfedsam",
) -> None:
    """Make the federation's root certificate and the coordinator's keys.

    With --sites, also make the keys and a startup kit of each of these sites that has none yet.
    """
    from pfedsam.deploy.keys import root_fingerprint
    from pfedsam.deploy.provision import provision

    names = [name.strip() for name in sites.split(",") if name.strip()]
    made = provision(folder, project, address, port, names)
    for name in made:
        OUT.print(f"Kit for {name}: {folder / 'kits' / f'{name}.zip'}", soft_wrap=True)
    if made:
        OUT.print(
            "Give each kit only to its site, over a channel that you trust: whoever has the kit can act as that site."
        )
    elif names:
        OUT.print("No kit was made: each of these sites has one already, and a site's kit is made only once.")
    if names:
        root = root_fingerprint(folder / "server" / "startup")
        OUT.print(f"Read out to each site, for its `site init`: root {root}", soft_wrap=True, highlight=False)
    else:
        OUT.print(
            f"The coordinator is in {folder}. Each site sends the file that `pfedsam site request` makes; `pfedsam coordinator sign` "
            "answers it with a kit.",
            soft_wrap=True,
        )


@app.command("sign")
def sign_command(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="The file that `pfedsam site request` made at the site.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Sign without asking, because the fingerprint has been compared already.")
    ] = False,
) -> None:
    """Make the startup kit of a site that has its own key; such a kit contains no secret.

    If the site has a certificate for the same key, it is renewed, and no fingerprint has to be compared.
    """  # noqa: DOC501
    from pfedsam.core.errors import RunError
    from pfedsam.deploy.certificates import has_certificate
    from pfedsam.deploy.keys import fingerprint, read_request, root_fingerprint
    from pfedsam.deploy.provision import sign_request
    from pfedsam.engine.study_folder import read_revoked

    name, content = read_request(request)
    if name in read_revoked(folder):
        raise RunError(
            f"site {name!r} is revoked: readmit it with `pfedsam coordinator revoke --undo`, or let it make a request with another name."
        )
    OUT.print(f"{name}, key {fingerprint(content)}", soft_wrap=True, highlight=False)
    renewed = has_certificate(folder, name)  # for the same key, else `sign_request` refuses it
    if renewed or confirmed("Did the site read out the same (by telephone, or in person)?", yes=yes):
        OUT.print(f"Kit for {name}: {sign_request(folder, name, content)}", soft_wrap=True)
        if renewed:
            OUT.print(
                "The key is that of the earlier certificate. The site installs the kit with `pfedsam site renew`."
            )
            return
        root = root_fingerprint(folder / "server" / "startup")
        OUT.print(f"Read out to the site, for its `site init`: root {root}", soft_wrap=True, highlight=False)


@app.command("renew")
def renew_command(folder: Folder) -> None:
    """Renew the federation's root certificate (for ten years) and the coordinator's own certificate (for 360 days); keys do not change.

    Sites can connect as before. A site gets the renewed root certificate when its own certificate is renewed.
    """
    from pfedsam.deploy.certificates import renew_coordinator

    _refuse_running(folder)
    renew_coordinator(folder)
    _show_dates(folder)


def _refuse_running(folder: Path) -> None:
    """Refuse to change the folder of a coordinator that is running.

    Raises:
        RunError: it is running.
    """
    from pfedsam.core.errors import RunError
    from pfedsam.core.lock import runner

    if runner(folder / PID):
        raise RunError("the coordinator is running; stop it first with `pfedsam coordinator stop`.")


def _show_dates(folder: Path) -> None:
    """Show until when the certificates are valid, and warn of those that end soon."""
    from pfedsam.deploy.certificates import expiries

    table = Table("certificate", "valid until")
    for one in expiries(folder):
        table.add_row(one.name, f"{one.until:%Y-%m-%d}")
    if table.row_count:
        OUT.print(table)
    _warn_of_dates(folder)


def _warn_of_dates(folder: Path) -> None:
    """Warn of certificates that have expired or will soon."""
    from pfedsam.deploy.certificates import OWN, expiries

    ending = {one.name: f"{one.name} ({one.until:%Y-%m-%d})" for one in expiries(folder) if one.soon}
    if own := [text for name, text in ending.items() if name in OWN]:
        warn(
            f"These certificates have expired or will soon: {', '.join(own)}. After that, no site can connect. Stop the coordinator, run "
            "`pfedsam coordinator renew`, and start it again."
        )
    if sites := [text for name, text in ending.items() if name not in OWN]:
        warn(
            f"The certificates of these sites have expired or will soon: {', '.join(sites)}. Each site runs `pfedsam site request` again "
            "in its folder, and `pfedsam coordinator sign` answers with a renewed kit for `pfedsam site renew`."
        )


@app.command("submit")
def submit_command(
    folder: Folder,
    config: Annotated[
        Path, typer.Argument(help="The configuration of the run (YAML); the folders of the sites in it are not used.")
    ],
    quorum: Annotated[
        int | None, typer.Option(help="Number of accepted updates that a round needs at least; 2 by default.")
    ] = None,
    deadline: Annotated[
        int | None,
        typer.Option(
            help="Time limit of a client round at the sites, in seconds; 1800 by default. Several times that for the phases after the last "
            "aggregation if they have the steps of several rounds."
        ),
    ] = None,
    join: Annotated[
        int | None,
        typer.Option(
            help="Seconds to wait until all sites are connected and have approved the study, 300 by default; then the study starts with "
            "those that did, or stops if they are fewer than the quorum. Once a study has started, no wait for sites to "
            "connect is longer than --deadline."
        ),
    ] = None,
    score: Annotated[
        int | None,
        typer.Option(help="Time limit of the test at the end at the sites, in seconds; 1800 by default."),
    ] = None,
    max_share: Annotated[
        float | None,
        typer.Option(
            help="Largest weight of one site in the average, whatever number of cases it declares; 0.5 by default."
        ),
    ] = None,
    median_factor: Annotated[
        float | None,
        typer.Option(
            help="Scale an update down if its norm is more than this many times the median norm of the round, 3 by default; 0: never."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a key of the configuration, such as training.rounds=20; may be repeated."),
    ] = None,
) -> None:
    """Submit a study to the coordinator, or submit a study again, for example one that has stopped.

    Prints the path of the manifest, which the operators of the sites have to approve. A study that is submitted again continues from its
    last committed round. It keeps every rule that is not given; a change of the rules or of the sites is printed.
    """
    from pfedsam.core.lock import runner
    from pfedsam.deploy.provision import certified_sites
    from pfedsam.engine.round_policy import RoundPolicy
    from pfedsam.engine.study_folder import STUDIES_FOLDER
    from pfedsam.engine.submission import submit_study
    from pfedsam.experiment.load import load_options, validate

    values = (quorum, deadline, join, score, max_share, median_factor)
    rules: dict[str, float | None] = {
        rule: value for rule, value in zip(FLAGS, values, strict=True) if value is not None
    }
    if "median_factor" in rules:
        rules["median_factor"] = median_factor or None
    validate(RoundPolicy, rules, "The command")
    options = load_options(config, overrides or [])
    certified, running = certified_sites(folder), bool(runner(folder / PID))
    submission = submit_study(options, folder / STUDIES_FOLDER, rules, running=running)
    warn_unknown(submission.sites, certified)
    study = submission.folder
    OUT.print(f"Study {study.name}. Send this file to the sites: {study / 'manifest.json'}", soft_wrap=True)
    for line in changes(submission, folder):
        OUT.print(line, soft_wrap=True, highlight=False)
    if running and submission.changed:
        OUT.print("The coordinator is running: it applies this after the current round of the study.")


@app.command("start")
def start_command(
    folder: Folder,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when all submitted studies are done.")] = False,
) -> None:
    """Run the submitted studies with the sites, in the foreground, until SIGTERM or Ctrl-C."""  # noqa: DOC501
    from pfedsam.core.errors import RunError
    from pfedsam.core.lock import running_as
    from pfedsam.core.log import configure
    from pfedsam.deploy.supervisor import Supervisor

    if not (folder / "server").is_dir():
        raise RunError("this is not a coordinator's folder; make one with `pfedsam coordinator init`.")
    refusal = "a coordinator is already running in this folder; stop it with `pfedsam coordinator stop`."
    with running_as(folder / PID, refusal):
        _warn_of_dates(folder)
        configure("INFO", folder / "coordinator.log")
        supervisor = Supervisor(folder)
        supervisor.run(until_idle=until_idle)
    if supervisor.stop.is_set:
        os._exit(0)  # Everything is written. A normal exit would spend a second or more of CPU time on unloading torch.


@app.command("status")
def status_command(folder: Folder) -> None:
    """Show the progress of every study, the sites that are connected, and until when the certificates are valid."""  # noqa: DOC501
    from pfedsam.core.errors import RunError
    from pfedsam.core.lock import runner
    from pfedsam.engine.study_folder import STUDIES_FOLDER, read_connected

    if not (folder / "server").is_dir() and not (folder / STUDIES_FOLDER).is_dir():
        raise RunError(
            f"{folder.name!r} is not a coordinator's folder: give the folder that `pfedsam coordinator init` made."
        )
    running = runner(folder / PID)
    names = read_connected(folder) if running else []
    OUT.print(f"coordinator: {'running' if running else 'stopped'}; connected: {', '.join(names) or 'none'}")
    table = Table("study", "state", "round", "sites", "reason")
    for path in sorted((folder / STUDIES_FOLDER).glob("*/manifest.json")):
        table.add_row(path.parent.name, *_status_cells(path.parent))
    OUT.print(table)
    _show_dates(folder)


def _status_cells(folder: Path) -> tuple[str, str, str, str]:
    """State, rounds, sites and reason of the study in a folder; for a damaged folder the reason is the error message."""
    from pfedsam.core.errors import StoreError
    from pfedsam.engine.study_folder import StudyFolder

    try:
        study = StudyFolder(folder)
        status, cases = study.read_status(), study.read_registered()
    except StoreError as error:
        return "unknown", "", "", str(error)
    least = _least_cases(folder / "manifest.json")
    sites = ", ".join(f"{site} ({_weight(cases.get(site), least)})" for site in status["sites"])
    return status["state"], f"{status['round']} of {status['rounds']}", sites, status["reason"]


def _least_cases(manifest: Path) -> int:
    """The `min_cases` of a study; 1 if its manifest cannot be read."""
    from pfedsam.core.errors import RunError
    from pfedsam.federation.manifest import read_manifest

    try:
        return read_manifest(manifest).min_cases
    except RunError:
        return 1


def _weight(cases: int | None, least: int) -> str:
    """The number of training cases with which a site counts; `least` is what a smaller site counts with."""
    if cases is None:
        return "number of cases not known"
    return f"{cases} or fewer cases, counted as {cases}" if 1 < cases <= least else f"{cases} cases"


@app.command("rollback")
def rollback_command(
    folder: Folder,
    study: Annotated[str, typer.Argument(help="The study's id, as `status` shows it.")],
    to: Annotated[
        int | None,
        typer.Option(
            help="Number of rounds after which the state was stored; default: the newest one before the present state."
        ),
    ] = None,
    skip_to: Annotated[
        int | None,
        typer.Option(
            help="Round to continue with if this folder was restored from a copy and the sites have trained later rounds. The "
            "shared parameters stay as they are, unless --to is given."
        ),
    ] = None,
) -> None:
    """Reset the shared parameters of a study to one of its last three good states, after a round with a harmful update.

    The number of the round does not go back: the study continues with its next round, and no round is trained twice. Revoke the site that
    sent the update before you start the coordinator again. Another rollback goes one more state back. Once all rounds of the study are
    done, a rollback is refused; the earlier states are then in the folder shared/earlier of the study. With
    --skip-to, rounds that only the sites have are skipped instead.
    """  # noqa: DOC501
    from pfedsam.core.errors import RunError
    from pfedsam.federation.manifest import read_manifest

    _refuse_running(folder)
    found = _study_in(folder, study)
    kept = found.earlier_states()
    if to is None and skip_to is None and not kept:
        raise RunError(
            f"no earlier state is stored; stored are {found.describe_states()}. Choose one of them with --to, or submit a new study."
            if found.stored_states()
            else "no earlier state is stored: the study has not finished a round."
        )
    manifest = read_manifest(found.path / "manifest.json")
    back = kept[-1] if to is None and skip_to is None else to
    state = found.roll_back(manifest, back, None if skip_to is None else skip_to - 1)
    status = found.read_status()
    found.write_status(
        "submitted",
        round_=state.round,
        rounds=manifest.rounds,
        sites=status["sites"],
        reason=f"skipped to round {skip_to}" if back is None else f"rolled back to round {back}",
    )
    changed = "stay as they are" if back is None else f"are now those after {back} round(s)"
    OUT.print(f"The shared parameters {changed}; the study continues with round {state.round + 1}.")


@app.command("stop")
def stop_command(
    folder: Existing,
    study: Annotated[
        str | None,
        typer.Option(help="Id of a study, as `status` shows it: stop only this study, also one that has not begun."),
    ] = None,
) -> None:
    """Stop the coordinator or, with --study, a single study; committed rounds are kept.

    After a stop of the coordinator, `start` continues from the last committed round. A single study that was stopped continues when it is
    submitted again.
    """  # noqa: DOC501
    from pfedsam.core.errors import RunError
    from pfedsam.core.lock import lock_of, runner
    from pfedsam.deploy.processes import has_open

    pid = runner(folder / PID)
    if study is not None:
        _stop_study(folder, study, running=bool(pid))
        return
    if not pid:
        OUT.print("No coordinator is running in this folder.")
        return
    if not has_open(pid, lock_of(folder / PID)):  # the process of this id here is another one
        raise RunError(
            f"the coordinator runs on another machine, in a container or as another user, as process {pid} there: stop it there. Nothing "
            "was stopped here."
        )
    os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + _STOP_S
    while time.monotonic() < limit and runner(folder / PID):
        time.sleep(0.2)
    if runner(folder / PID):
        raise RunError(f"the coordinator (process {pid}) did not stop within {_STOP_S:.0f} s.")
    OUT.print("Stopped.")


def _stop_study(folder: Path, study: str, *, running: bool) -> None:
    """Stop one study, or let the running coordinator stop it."""
    found = _study_in(folder, study)
    if not found.request_stop(running=running):
        OUT.print(f"Study {study} is {found.read_status()['state']} already; nothing was changed.")
    elif running:
        OUT.print(f"The running coordinator stops study {study} within seconds; `pfedsam coordinator status` shows it.")
    else:
        OUT.print(f"Study {study} is stopped.")


def _study_in(folder: Path, study: str) -> "StudyFolder":
    """The folder of a study.

    Raises:
        RunError: the coordinator has no such study.
    """
    from pfedsam.core.errors import RunError
    from pfedsam.engine.study_folder import STUDIES_FOLDER, StudyFolder

    # Among the names and not by the path: an id such as `..` must not lead elsewhere.
    if study not in {path.name for path in (folder / STUDIES_FOLDER).glob("*") if path.is_dir()}:
        raise RunError(f"there is no study {study!r} in this folder; `pfedsam coordinator status` lists them.")
    return StudyFolder(folder / STUDIES_FOLDER / study)


@app.command("revoke")
def revoke_command(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let the site take part again.")] = False,
) -> None:
    """Exclude a site, for example because its kit was lost or stolen; a running coordinator applies this within one round."""  # noqa: DOC501
    from pfedsam.core.errors import OptionError, StoreError
    from pfedsam.deploy.provision import certified_sites
    from pfedsam.engine.study_folder import read_revoked, write_revoked

    known = certified_sites(folder)
    if site not in known:
        raise OptionError(
            f"The federation has no site {site!r}; nothing was changed. It has {', '.join(sorted(known)) or 'no sites yet'}."
        )
    try:
        revoked = read_revoked(folder)
    except StoreError as error:
        if undo:
            raise
        OUT.print(f"{error} A new list was made, with only {site}.", soft_wrap=True, highlight=False)
        revoked = set()
    write_revoked(folder, revoked - {site} if undo else revoked | {site})
    OUT.print(f"Revoked: {', '.join(sorted(read_revoked(folder))) or 'none'}.")
