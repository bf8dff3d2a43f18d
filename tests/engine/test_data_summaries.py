"""The summaries of the sites' data in a study: each is requested once and written as `pfedsam data summary` does; none is necessary."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pfedsam.cli.data import compare_command
from pfedsam.core import tensors
from pfedsam.core.errors import QuorumError
from pfedsam.core.tensors import digest
from pfedsam.data.site_summary import SiteSummaryFile, read_site_summary, summarize_data
from pfedsam.engine import rounds, run_end
from pfedsam.engine.data_summaries import DataSummaries
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.rounds import StudyRun
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.build import build_study, read_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import read_manifest
from pfedsam.report.records import read_records


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no page and no adapter, which take longer than the rest of a study."""
    monkeypatch.setattr(run_end, "write_page", lambda folder: folder)
    monkeypatch.setattr(rounds, "export_adapter", lambda *args: None)


@pytest.fixture
def options(toy_options: RunOptions) -> RunOptions:
    """A study of two short rounds that asks for summaries."""
    training = toy_options.training.model_copy(update={"rounds": 2, "shared_warmup_rounds": 0})
    communication = toy_options.communication.model_copy(update={"data_summary": True})
    return toy_options.model_copy(update={"training": training, "communication": communication})


def expected(options: RunOptions, min_cases: int = 1) -> dict[str, SiteSummaryFile]:
    study = build_study(options)
    return {name: summarize_data(site, study, min_cases=min_cases) for name, site in read_sites(options).items()}


def written(folder: Path) -> dict[str, SiteSummaryFile]:
    return {path.stem: read_site_summary(path) for path in (folder / "summaries").glob("*.json")}


@pytest.mark.slow
def test_a_run_writes_the_summaries_of_its_sites_and_trains_the_same_parameters(
    tmp_path: Path, options: RunOptions, quick: None
) -> None:
    run(options, tmp_path / "with")
    assert written(tmp_path / "with") == expected(options)
    files = sorted((tmp_path / "with" / "summaries").glob("*.json"))
    compare_command(files, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == (tmp_path / "with" / "summaries" / "compare.html").read_text()
    communication = options.communication.model_copy(update={"data_summary": False})
    run(options.model_copy(update={"communication": communication}), tmp_path / "without")
    assert not (tmp_path / "without" / "summaries").exists()
    assert digest(tensors.load(tmp_path / "with" / SERVER)[0]) == digest(tensors.load(tmp_path / "without" / SERVER)[0])


def test_a_pooled_run_summarises_the_hospitals_and_not_the_pool(
    tmp_path: Path, options: RunOptions, quick: None
) -> None:
    options = options.model_copy(update={"method": "centralized"})
    run(options, tmp_path / "run")
    assert written(tmp_path / "run") == expected(options)


@pytest.mark.slow
def test_sites_elsewhere_are_asked_once_and_who_is_silent_then_or_comes_later_when_it_is_there(
    tmp_path: Path, options: RunOptions, make_sites: Callable, quick: None
) -> None:
    study = create_study(options, tmp_path / "studies", RoundPolicy(quorum=1))
    sites = make_sites(options, read_manifest(study / "manifest.json"))
    first, second, third = options.data.sites
    # The first is there, the second does not send its summary, the third joins before the second round, in which nobody trains.
    sites.away = lambda site, task, round_: (
        (site == second and task == "summarize") or (site == third and round_ == 0) or (task == "train" and round_ == 1)
    )
    with pytest.raises(QuorumError):
        StudyRun(study, sites).run()
    assert [asked[0] for asked in sites.asked[:2]] == ["join", "summarize"]
    asked = [(names, round_) for task, round_, names in sites.asked if task == "summarize"]
    assert asked == [((first, second), 0), ((third,), 0)]
    assert set(written(study)) == {first}
    rows = [row for row in read_records(study / "records.jsonl") if row["kind"] == "absent"]
    assert {"kind": "absent", "round": 0, "task": "summarize", "sites": {second: "no reply within 1800 s"}} in rows
    # After a restart those are asked whose file is not there, and a damaged file is not there.
    sites.away = lambda site, task, round_: False
    (study / "summaries" / f"{first}.json").write_text("{")
    sites.asked.clear()
    assert StudyRun(study, sites).run() == "finished"
    asked = [(names, round_) for task, round_, names in sites.asked if task == "summarize"]
    assert asked == [((first, second, third), 0)]
    assert written(study) == expected(options)
    lines = [line for line in Ledger(sites.folders[first] / "ledger.jsonl").read() if line["task"] == "summarize"]
    assert [line["sent"] for line in lines] == [True, True]
    assert lines[0]["sha256"] == lines[1]["sha256"]
    sites.asked.clear()
    assert StudyRun(study, sites).run() == "finished"
    assert "summarize" not in [task for task, *_ in sites.asked]


def test_a_site_is_due_once_while_its_file_is_missing(tmp_path: Path, options: RunOptions) -> None:
    found = expected(options)
    one, two, three = found
    summaries = DataSummaries(tmp_path)
    summaries.keep({})
    assert not (tmp_path / "summaries").exists()
    summaries.keep({two: found[two]})
    assert summaries.due([one, two]) == [one]
    assert summaries.due([one, two, three]) == [three]
    assert DataSummaries(tmp_path).due([one, two, three]) == [one, three]
    summaries.keep({three: found[three]})
    page = (tmp_path / "summaries" / "compare.html").read_text()
    assert two in page
    assert three in page
