"""A run's folder that someone has changed is refused by one message, and nothing else is predicted in its place."""

import shutil
from pathlib import Path

import pytest

from pfedsam.core.errors import RunError
from pfedsam.core.lock import exclusive
from pfedsam.engine.run import run
from pfedsam.engine.run_folder import open_run
from pfedsam.experiment.options import RunOptions


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path, toy_options: RunOptions) -> Path:
    """A finished run of one round, of which each test may change its own copy."""
    if not finished.exists():
        training = toy_options.training.model_copy(update={"rounds": 1, "final_steps": 0})
        run(toy_options.model_copy(update={"training": training}), finished)
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def _image(options: RunOptions) -> tuple[str, Path]:
    site, data = next(iter(options.data.sites.items()))
    return site, min((data / "images").iterdir())


def test_a_site_whose_parameters_were_taken_away_has_no_model(folder: Path, toy_options: RunOptions) -> None:
    site, image = _image(toy_options)
    assert open_run(folder).predict(site, image).shape == (96, 96)
    shutil.rmtree(folder / "sites" / site)
    with pytest.raises(RunError, match=rf"'copy' holds no parameters of the site '{site}'.*from a copy of the run"):
        open_run(folder).predict(site, image)


def test_a_run_that_another_process_works_on_is_not_scored_anew(folder: Path) -> None:
    opened, before = open_run(folder), (folder / "summary.json").read_bytes()
    with exclusive(folder), pytest.raises(RunError, match="Another process works in 'copy'"):
        opened.evaluate()
    assert (folder / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("method: pfedsam", "method: fedmsa", "shared"),
        ("rank: 2", "rank: 3", "shared"),
        ("width: 4", "width: 8", "local"),
    ],
)
def test_a_configuration_changed_after_training_is_refused(
    folder: Path, toy_options: RunOptions, before: str, after: str, kind: str
) -> None:
    config = (folder / "config.yaml").read_text("utf-8")
    assert before in config
    (folder / "config.yaml").write_text(config.replace(before, after), "utf-8")
    with pytest.raises(
        RunError, match=rf"The {kind} parameters in 'copy' .*Put back the config.yaml that the run wrote"
    ):
        open_run(folder).predict(*_image(toy_options))
