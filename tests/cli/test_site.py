"""What an operator sees: what a study would take out, what left, and whether the account of it was touched."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pfedsam.data.images import read_mask
from pfedsam.engine.site_options import read_site_options
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.codec import CommunicationOptions
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import StudyManifest, shared_tensors, write_manifest
from pfedsam.federation.site_policy import SitePolicy

Call = Callable[..., int]

STUDY = "0123456789abcdef"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    content = StudyManifest(
        study=STUDY,
        name="nuclei",
        method="pfedsam",
        rounds=5,
        configuration={"model": {"backbone": "/home/someone/sam-tiny"}},
        backbone="b" * 64,
        tensors=shared_tensors({"lora.a": torch.zeros(4, 3)}),
        components={"lora_a": ("lora.a",)},
        max_change=1.0,
        communication=CommunicationOptions(codec="fp32"),
        scalar_metrics={"join": ("cases",)},
    )
    write_manifest(tmp_path / "manifest.json", content)
    return tmp_path / "manifest.json"


def test_an_operator_reads_before_approving_and_can_leave(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, manifest: Path
) -> None:
    assert call("site", "approve", tmp_path / "north", manifest, "--yes") == 0
    shown = capsys.readouterr().out
    assert "48 bytes: lora_a 48" in shown
    assert "pfedsam, 5" in shown
    assert "someone" not in shown
    assert SitePolicy(tmp_path / "north").approved(STUDY) is not None
    assert call("site", "approve", tmp_path / "north", "--withdraw", STUDY) == 0
    assert SitePolicy(tmp_path / "north").approved(STUDY) is None


def test_what_was_not_offered_cannot_be_approved(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("site", "approve", tmp_path, "--study", "f" * 16) == 8
    assert "was offered to this site" in " ".join(capsys.readouterr().err.split())


def test_the_ledger_is_printed_and_a_change_in_it_is_an_error(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fields = {
        "study": STUDY,
        "task": "train",
        "round": 1,
        "sha256": "ab" * 32,
        "names": ["lora.a"],
        "scalar_metrics": ["x"],
    }
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(**fields, sent=True, total_bytes=500, by_component={"lora_a": 48})
    ledger.append(**fields, sent=False, total_bytes=900, by_component={}, note="a number that is not listed")
    assert call("site", "ledger", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "lora_a 48" in shown
    assert "  train of round 2  " in shown
    assert "HELD BACK" in shown
    assert "2 line(s), verified; 500 bytes left" in shown
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"bytes":500', b'"bytes":499'))
    assert call("site", "ledger", tmp_path) == 7
    assert "line 1 of the ledger" in capsys.readouterr().err


def test_a_folder_that_is_no_site_is_exit_code_2(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("nvflare")
    assert call("site", "check", tmp_path) == 2
    assert "site init" in capsys.readouterr().err


def test_a_site_asks_for_its_certificate_and_keeps_its_key(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvflare")
    coord, north, kit = tmp_path / "coord", tmp_path / "north", tmp_path / "coord" / "kits" / "north.zip"
    assert call("coordinator", "init", coord, "--address", "localhost", "--port", 58132) == 0
    assert "site request" in capsys.readouterr().out
    assert call("site", "request", north, "--name", "north") == 0
    read_out = capsys.readouterr().out.strip()[-79:]
    assert len(read_out.split()) == 16
    assert call("coordinator", "sign", coord, north / "north.csr", "--yes") == 0
    shown = capsys.readouterr().out
    assert read_out in shown
    root = shown.strip()[-79:]
    key = (north / "nvflare" / "startup" / "client.key").read_bytes()
    elsewhere = tmp_path / "elsewhere"
    assert call("site", "init", elsewhere, "--kit", kit, "--data", tmp_path) == 8  # not where the key is
    assert "site request" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())
    assert call("site", "init", north, "--kit", kit, "--data", tmp_path, "--device", "gpu", "--threads", 0) == 2
    said = capsys.readouterr().err
    assert "threads: " in said
    assert "device: " in said
    assert not (north / "site.yaml").exists()
    (tmp_path / "sam.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert call("site", "init", north, "--kit", kit, "--data", tmp_path, "--backbone", "sam.pth") == 0
    assert f"Root {root}:" in capsys.readouterr().out
    assert read_site_options(north).device == "auto"
    assert read_site_options(north).backbone == str(
        tmp_path / "sam.pth"
    )  # the training process has another working directory
    assert (north / "nvflare" / "startup" / "client.key").read_bytes() == key
    assert call("site", "init", north, "--kit", kit, "--data", tmp_path) == 8  # once
    assert call("coordinator", "sign", coord, north / "north.csr", "--yes") == 8
    assert "there is a certificate for 'north' already" in " ".join(capsys.readouterr().err.split())


def test_a_site_writes_masks_with_the_model_of_the_study_that_it_names(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_model(folder: Path, *, study: str | None) -> SimpleNamespace:
        opened.append((folder, study))
        options = RunOptions.model_validate({"data": {"sites": {"north": "north"}, "classes": {"organ": [128]}}})
        site = SimpleNamespace(predict=lambda image: np.array([[0, 1]], np.uint8))
        return SimpleNamespace(options=options, site_names=["north"], site=lambda name: site)

    monkeypatch.setattr("pfedsam.engine.opened.open_run", open_model)
    asked = ("site", "predict", tmp_path / "north", "a.png", "--out", tmp_path / "masks")
    assert call(*asked, "--study", STUDY) == 0
    assert opened == [(tmp_path / "north", STUDY)]
    assert read_mask(tmp_path / "masks" / "a.png").tolist() == [[0, 128]]
    assert call(*asked) == 2  # the mask is there
    assert len(opened) == 1
