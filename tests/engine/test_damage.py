"""Damage to a file from which a run or a study is resumed is reported, or does not change the result.

Every file of an interrupted run, of a study at its coordinator and of the same study at a site is cut, zeroed, removed, or has one bit
flipped; then the run or study is continued. It may end with one of our errors, name the site and a reason in its records, name the file
in the log, or end with the bits of an undisturbed one. It must not end with other bits and without a message.

`site.yaml` is not among the files: it is the operator's to edit, and has no digest.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pfedsam.core.errors import PfedsamError
from pfedsam.core.tensors import digest
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.rounds import StudyRun
from pfedsam.engine.run import run
from pfedsam.engine.server_files import read_server
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.site_store import SiteStore
from pfedsam.report.records import read_records

KINDS: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: (
        data[: len(data) * 3 // 4] + bytes([data[len(data) * 3 // 4] ^ 4]) + data[len(data) * 3 // 4 + 1 :]
    ),
    "zeroed": lambda data: bytes(len(data)),
    "missing": lambda data: None,
}
_DERIVED = ("report.html", "overlays", "adapter", "scores.json", "summary.json")
"""Files from which nothing is resumed."""


class Row(NamedTuple):
    """The outcome of one damage."""

    file: str
    kind: str
    outcome: str
    """`told`, `same` or `SILENT`."""
    text: str


class StoppedError(Exception):
    """Ends a run as a kill would."""


class Heard(logging.Handler):
    """Collects the warnings of our own loggers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "is damaged" in record.getMessage():  # other warnings are the study's own
            self.texts.append(record.getMessage())


def damaged_files(folder: Path) -> list[Path]:
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not any(word in path.as_posix() for word in (*_DERIVED, ".lock"))]


def rows_of(base: Path, work: Path, files: list[Path], go_on: Callable[[Path], Any]) -> Iterator[Row]:
    """Apply every damage to every file of `base`, each in a copy of it, which is then continued by `go_on`."""
    expected = _outcome(base, work, None, "", go_on)
    assert expected[0] == "ended", expected
    for file in files:
        for kind in KINDS:
            state, found = _outcome(base, work, file, kind, go_on)
            if state == "told":
                yield Row(file.as_posix(), kind, "told", str(found))
            else:
                same = found == expected[1]
                yield Row(file.as_posix(), kind, "same" if same else "SILENT", "")


def _outcome(base: Path, work: Path, file: Path | None, kind: str, go_on: Callable[[Path], Any]) -> tuple[str, Any]:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    if file is not None:
        changed = KINDS[kind]((work / file).read_bytes())
        (work / file).unlink() if changed is None else (work / file).write_bytes(changed)
    heard, logger = Heard(), logging.getLogger("pfedsam")
    logger.addHandler(heard)
    try:
        found = go_on(work)
    except PfedsamError as error:
        return "told", f"{type(error).__name__}: {error}"
    finally:
        logger.removeHandler(heard)
    return ("told", "; ".join(heard.texts)) if heard.texts else ("ended", found)


def _state(folder: Path) -> str:
    state = SiteStore(folder / "state").load()
    return digest({**state.local, **{f"o.{n}": t for n, t in state.optimizer.items()}}) if state else "none"


def local_rows(options: RunOptions, root: Path) -> list[Row]:
    """An interrupted run on one machine."""
    half = root / "half"

    def stop(event: Any) -> None:
        if event.stage == "train" and event.done >= 2 * len(options.data.sites) + 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(options, half, progress=stop)

    def go_on(folder: Path) -> Any:
        summary = run(options, folder, resume=True)
        kept = [row for row in read_records(folder / "records.jsonl") if row["kind"] != "timing"]
        shared = digest(read_server(folder)[0])
        return shared, [_state(folder / "sites" / site) for site in options.data.sites], summary.mean, kept

    others = list(options.data.sites)[1:]
    files = [file for file in damaged_files(half) if not any(site in file.parts for site in others)]
    return list(rows_of(half, root / "work", files, go_on))


def study_rows(options: RunOptions, make_sites: Callable[..., Any], root: Path) -> list[Row]:
    """A study over several machines after its second round: the folder of the coordinator, and that of one site."""
    policy = RoundPolicy(quorum=1, deadline_s=5, join_s=5, score_s=5)
    study = create_study(options, root / "both" / "studies", policy)
    sites = make_sites(options, read_manifest(study / "manifest.json"))
    sites.needs_new_job = lambda: sum(task == "train" for task, _, _ in sites.asked) >= 2
    assert StudyRun(study, sites).run() == "again"
    first = next(iter(sites.folders))
    shutil.copytree(sites.folders[first].parent, root / "both" / "hospitals")
    kind = type(sites)

    def go_on(folder: Path) -> Any:
        here = kind({name: folder / "hospitals" / name for name in sites.folders})
        there = folder / "studies" / study.name
        before = [row for row in read_records(there / "records.jsonl") if row["kind"] == "absent"]
        StudyRun(there, here).run()
        kept = [row for row in read_records(there / "records.jsonl") if row["kind"] not in ("timing", "absent")]
        absent = [row for row in read_records(there / "records.jsonl") if row["kind"] == "absent"]
        if absent != before:
            raise PfedsamError(f"absent: {absent[-1]['sites']}")
        shared = digest(read_server(there)[0])
        return shared, [_state(one / "studies" / study.name) for one in here.folders.values()], kept

    others = list(sites.folders)[1:]
    left_out = {*others, "site.yaml"}
    files = [file for file in damaged_files(root / "both") if not left_out & set(file.parts)]
    return list(rows_of(root / "both", root / "work", files, go_on))


def small(options: RunOptions) -> RunOptions:
    sites = dict(list(options.data.sites.items())[:2])
    training = options.training.model_copy(update={"rounds": 3})
    data = options.data.model_copy(update={"sites": sites})
    return options.model_copy(update={"data": data, "training": training})


def silent(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.outcome == "SILENT"]


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfedsam.engine.run_end.write_page", lambda *_: None)


@pytest.mark.system
def test_no_damage_to_an_interrupted_run_is_silent(
    tmp_path: Path, toy_options: RunOptions, record_property: Callable[..., None]
) -> None:
    rows = local_rows(small(toy_options), tmp_path)
    assert {row.kind for row in rows} == set(KINDS)
    assert len({row.file for row in rows}) >= 10
    record_property("silent_damage", len(silent(rows)))
    record_property("damages", len(rows))
    assert silent(rows) == []
    parameters = [row for row in rows if row.file == "shared/shared.safetensors"]
    assert all(row.outcome == "told" and "shared.safetensors" in row.text for row in parameters)


@pytest.mark.system
def test_no_damage_to_a_study_is_silent(
    tmp_path: Path, toy_options: RunOptions, make_sites: Callable[..., Any], record_property: Callable[..., None]
) -> None:
    rows = study_rows(small(toy_options), make_sites, tmp_path)
    assert len({row.file for row in rows}) >= 14
    record_property("silent_damage", len(silent(rows)))
    record_property("damages", len(rows))
    assert silent(rows) == []
