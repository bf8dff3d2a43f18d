"""Runs, configurations and manifests of version 0.1 are refused with one message that says what to do.

`fixtures/version-0.1` holds a configuration and a manifest as version 0.1 wrote them (the manifest with one of its tensors).
"""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfedsam.cli.main import app
from pfedsam.core.errors import OptionError, RunError
from pfedsam.engine.opened import open_run
from pfedsam.engine.run import run
from pfedsam.experiment.load import read_options
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import read_manifest

STORED = Path(__file__).parent / "fixtures" / "version-0.1"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    shutil.copytree(STORED, folder)
    (folder / "shared").mkdir()
    (folder / "shared" / "shared.safetensors").write_bytes(b"")  # is not read: the configuration is refused first
    return folder


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_is_not_continued_in_the_folder_of_an_old_one(
    old_run: Path, toy_options: RunOptions, resume: bool
) -> None:
    with pytest.raises(OptionError, match=r"'old' holds a run of version 0\.1.*start a new run in a new folder"):
        run(toy_options, old_run, resume=resume)


def test_an_old_run_is_not_opened_and_its_renamed_options_are_listed(old_run: Path) -> None:
    with pytest.raises(OptionError, match=r"'old' holds a run of version 0\.1") as refused:
        open_run(old_run)
    for old, new in {
        "training.opening": "training.shared_warmup_rounds",
        "training.fedprox_mu": "method_options.fedprox.mu",
        "training.ditto_lambda": "method_options.ditto.proximal_weight",
        "training.distillation.trust": "training.distillation.confidence_weighting",
        "model.detail": "model.image_skip",
    }.items():
        assert f"{old} ({new} now)" in str(refused.value)


@pytest.mark.parametrize(
    "command", [["predict", "{run}", "{image}", "--site", "north", "--out", "{out}"], ["evaluate", "{run}"]]
)
def test_the_commands_say_the_same(old_run: Path, command: list[str]) -> None:
    image = old_run.parent / "new.png"
    image.write_bytes(b"")
    result = CliRunner().invoke(
        app, [word.format(run=old_run, image=image, out=old_run.parent / "masks") for word in command]
    )
    assert isinstance(result.exception, OptionError)
    assert "start a new run in a new folder" in str(result.exception)


def test_an_old_configuration_is_not_submitted(old_run: Path) -> None:
    # What `pfedsam run` and `pfedsam coordinator submit` read first.
    with pytest.raises(
        OptionError, match=r"training\.opening: this option is now called training\.shared_warmup_rounds"
    ):
        read_options(old_run / "config.yaml")


def test_an_old_manifest_is_not_read(old_run: Path) -> None:
    with pytest.raises(RunError, match=r"another version of pFedSAM.*submit the study again"):
        read_manifest(old_run / "manifest.json")


def test_the_folder_of_a_comparison_names_the_runs_in_it(old_run: Path) -> None:
    for name in ("fedavg", "pfedsam"):
        shutil.copytree(old_run, old_run.parent / "comparison" / name)
    with pytest.raises(
        RunError, match=r"several runs: fedavg, pfedsam\. Give one of them, such as .*comparison/fedavg"
    ):
        open_run(old_run.parent / "comparison")
