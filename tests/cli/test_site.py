"""The commands of a site's operator: what a study would send, what was sent, and whether the ledger was changed."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from pfedsam.cli.approval import _earlier_end
from pfedsam.cli.console import OUT
from pfedsam.core.lock import running_as
from pfedsam.data.images import read_mask
from pfedsam.data.trained_on import IntensityRange, TrainedOn
from pfedsam.deploy.site_rules import write_site_rules
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.site_options import AGENT, CONFIG, read_site_options
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.site_policy import SitePolicy

Call = Callable[..., int]

STUDY = "0123456789abcdef"


@pytest.fixture
def offered(tmp_path: Path, toy_options: RunOptions) -> dict[str, Any]:
    """A study's manifest as the coordinator writes it; `north` is a site's folder."""
    study = create_study(toy_options, tmp_path / "studies", RoundPolicy())
    name, data = next(iter(toy_options.data.sites.items()))
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / CONFIG).write_text(f"name: {name}\ndata: {data}\nbackbone: {toy_options.model.backbone}\n")
    content: dict[str, Any] = json.loads((study / "manifest.json").read_text())
    content.pop("sha256")  # the digest of the file, which the tests change
    return content


def test_an_operator_reads_before_approving_and_can_leave(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, offered: dict[str, Any]
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(offered))
    assert call("site", "approve", tmp_path / "north", tmp_path / "manifest.json", "--yes") == 0
    shown = capsys.readouterr().out
    parts = StudyManifest.model_validate(offered).component_bytes()
    for what in (
        f"{sum(parts.values())} bytes",
        "pfedsam, 4",
        "2 steps of 2 images",
        "0.04",
        "patient pattern",
        "largest change",
        "none leaves",
    ):
        assert what in shown
    assert SitePolicy(tmp_path / "north").approved(offered["study"]) is not None
    assert call("site", "approve", tmp_path / "north", "--withdraw", offered["study"]) == 0
    assert SitePolicy(tmp_path / "north").approved(offered["study"]) is None


def test_an_operator_can_read_the_name_of_every_number_that_would_leave(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    offered: dict[str, Any],
) -> None:
    monkeypatch.setattr(OUT, "width", 10_000)
    (tmp_path / "manifest.json").write_text(json.dumps(offered))
    names = offered["scalar_metrics"]["test"]
    assert len(names) > 6
    assert call("site", "approve", tmp_path / "north", tmp_path / "manifest.json", "--yes") == 0
    assert f"{', '.join(names[:6])} and {len(names) - 6} more (all: --tensors)" in capsys.readouterr().out
    assert call("site", "approve", tmp_path / "north", tmp_path / "manifest.json", "--yes", "--tensors") == 0
    shown = capsys.readouterr().out
    for listed in offered["scalar_metrics"].values():
        assert ", ".join(listed) in shown
    assert "--tensors" not in shown


def test_an_operator_reads_that_a_summary_of_the_data_would_leave(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, toy_options: RunOptions, offered: dict[str, Any]
) -> None:
    communication = toy_options.communication.model_copy(update={"data_summary": True})
    options = toy_options.model_copy(update={"communication": communication})
    manifest = create_study(options, tmp_path / "studies", RoundPolicy()) / "manifest.json"
    assert call("site", "approve", tmp_path / "north", manifest, "--yes") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for what in ("leaves once, before the first round", "histograms of intensities", "numbers, summarize"):
        assert what in shown
    assert "none leaves" not in shown


def test_a_running_site_that_has_to_be_started_again_for_a_study_is_told_so(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, offered: dict[str, Any]
) -> None:
    pytest.importorskip("nvflare")
    (tmp_path / "manifest.json").write_text(json.dumps(offered))
    words = ("site", "approve", tmp_path / "north", tmp_path / "manifest.json", "--yes")
    assert call(*words) == 0
    assert "start it again" not in capsys.readouterr().err
    for limit, told in ((2**20, True), (2**30, False)):
        write_site_rules(tmp_path / "north" / "nvflare", limit)
        with running_as(tmp_path / "north" / AGENT, "running"):
            assert call(*words) == 0
        assert ("start it again" in " ".join(capsys.readouterr().err.split())) is told


def lie(offered: dict[str, Any], what: str) -> dict[str, Any]:
    told = copy.deepcopy(offered)
    changes: dict[str, Callable[[], object]] = {
        "method": lambda: told.update(method="local-only"),
        "rounds": lambda: told.update(rounds=1),
        "max_change": lambda: told.update(max_change=1e30),
        "name": lambda: told.update(name="harmless"),
        "study": lambda: told.update(study="f" * 16),
        "components": lambda: told.update(components={"lora_a": sorted(told["tensors"])}),
        "scalar_metrics": lambda: told["scalar_metrics"].update(train=["secret.1"]),
        "min_cases": lambda: told.update(min_cases=7),
        "configuration": lambda: told["configuration"]["training"].update(rounds=60),
    }
    changes[what]()
    return told


@pytest.mark.parametrize(
    ("what", "named"),
    [(w, w) for w in ("method", "rounds", "max_change", "name", "study", "components", "scalar_metrics", "min_cases")]
    + [("configuration", "rounds")],
)
def test_a_manifest_whose_words_do_not_follow_from_its_configuration_is_refused_by_name(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, offered: dict[str, Any], what: str, named: str
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(lie(offered, what)))
    assert call("site", "approve", tmp_path / "north", tmp_path / "manifest.json", "--yes") == 8
    said = " ".join(capsys.readouterr().err.split())
    assert named in said.split("different: ")[1]
    assert SitePolicy(tmp_path / "north").manifests() == []


def test_a_backbone_that_is_not_here_is_not_downloaded(
    call: Call,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    offered: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def download(name: str, *, local_files_only: bool, **more: object) -> str:
        asked.append(local_files_only)
        raise OSError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config = tmp_path / "north" / CONFIG
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "backbone" not in line))
    offered["configuration"]["model"]["backbone"] = "someone/sam"
    (tmp_path / "manifest.json").write_text(json.dumps(offered))
    assert call("site", "approve", tmp_path / "north", tmp_path / "manifest.json", "--yes") == 4
    assert asked == [True]
    assert "pfedsam weights fetch someone/sam" in " ".join(capsys.readouterr().err.split())


def test_what_steers_a_terminal_is_shown_and_not_obeyed(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, offered: dict[str, Any]
) -> None:
    offered["name"] = "\x1b]0;PWNED\x07\x1b[2J[link=http://evil.example]click[/link] [/red] :skull:"
    policy = SitePolicy(tmp_path / "north")
    policy._write("pending", StudyManifest.model_validate(offered))
    assert call("site", "approve", tmp_path / "north") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "\x1b" not in shown
    assert "[link=http://evil.example]click[/link] [/red] :skull:" in shown


def test_what_was_not_offered_cannot_be_approved(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / CONFIG).write_text("name: north\ndata: data\n")
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


@pytest.mark.parametrize("words", [("ledger",), ("approve",), ("approve", "--withdraw", STUDY)])
def test_the_folder_of_something_else_is_not_shown_as_a_site_that_sent_nothing(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "images").mkdir()
    assert call("site", words[0], tmp_path, *words[1:]) == 2
    shown = capsys.readouterr()
    assert "is not a site's folder, because it has no site.yaml" in " ".join(shown.err.split())
    assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_request_is_not_made_in_a_folder_with_other_files(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Others would lose their access to the images in it."""
    pytest.importorskip("nvflare")
    (tmp_path / "images").mkdir()
    tmp_path.chmod(0o755)
    assert call("site", "request", tmp_path, "--name", "north") == 8
    assert "is not empty; give a new one" in " ".join(capsys.readouterr().err.split())
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_folder_that_is_no_site_is_exit_code_2(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("nvflare")
    assert call("site", "check", tmp_path) == 2
    assert "site init" in capsys.readouterr().err


def test_both_sides_of_a_kit_with_a_key_read_the_same_fingerprint(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("nvflare")
    coord, kit = tmp_path / "coord", tmp_path / "coord" / "kits" / "north.zip"
    asked = ("coordinator", "init", coord, "--address", "localhost", "--port", 58132, "--sites", "north")
    assert call(*asked) == 0
    root = capsys.readouterr().out.strip()[-79:]
    assert call("site", "init", tmp_path / "north", "--kit", kit, "--data", tmp_path) == 0
    assert f"Root certificate {root}:" in capsys.readouterr().out
    assert len(root.split()) == 16
    assert call(*asked) == 0  # for whoever has not noted it down
    assert capsys.readouterr().out.strip()[-79:] == root


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
    for nothing in (tmp_path / "nodata", kit):
        assert call("site", "init", north, "--kit", kit, "--data", nothing) == 2
        assert f"there is no folder '{nothing}'" in capsys.readouterr().err.replace("\n", "")
    assert not (north / "site.yaml").exists()
    (tmp_path / "sam.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert call("site", "init", north, "--kit", kit, "--data", tmp_path, "--backbone", "sam.pth") == 0
    assert f"Root certificate {root}:" in capsys.readouterr().out
    assert read_site_options(north).device == "auto"
    assert read_site_options(north).backbone == str(
        tmp_path / "sam.pth"
    )  # the training process has another working directory
    assert (north / "nvflare" / "startup" / "client.key").read_bytes() == key
    assert call("site", "init", north, "--kit", kit, "--data", tmp_path) == 8  # once
    assert "pfedsam site renew" in " ".join(capsys.readouterr().err.split())
    assert (
        call("site", "request", north, "--name", "north") == 0
    )  # a year later; without a question, because the key is known
    shown = capsys.readouterr().out
    assert "no fingerprint has to be compared" in shown
    assert read_out not in shown
    assert call("coordinator", "sign", coord, north / "north.csr") == 0
    shown = capsys.readouterr().out
    assert "The key is that of the earlier certificate" in shown
    assert root not in shown
    before = (north / "nvflare" / "startup" / "client.crt").read_bytes()
    assert call("site", "renew", north, "--kit", kit) == 0
    assert "is valid until" in capsys.readouterr().out
    assert (north / "nvflare" / "startup" / "client.crt").read_bytes() != before
    assert (north / "nvflare" / "startup" / "client.key").read_bytes() == key
    assert call("site", "request", tmp_path / "second", "--name", "north") == 0
    assert call("coordinator", "sign", coord, tmp_path / "second" / "north.csr", "--yes") == 8
    assert "site 'north' has a certificate already" in " ".join(capsys.readouterr().err.split())
    assert call("coordinator", "revoke", coord, "north") == 0
    assert call("coordinator", "sign", coord, north / "north.csr") == 8
    assert "site 'north' is revoked" in " ".join(capsys.readouterr().err.split())


def test_a_site_writes_masks_with_the_model_of_the_study_that_it_names(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = []

    def open_model(folder: Path, overrides: Sequence[str], *, study: str | None) -> SimpleNamespace:
        opened.append((folder, study, list(overrides)))
        options = RunOptions.model_validate({"data": {"sites": {"north": "north"}, "classes": {"organ": [128]}}})

        def site(name: str, wanted: str) -> SimpleNamespace:
            uses = "personal" if wanted == "in-use" else wanted
            return SimpleNamespace(
                options=options,
                name=name,
                uses=uses,
                trained_on=TrainedOn(IntensityRange(1, 1)),
                predict=lambda image: np.array([[0, 1]], np.uint8),
            )

        return SimpleNamespace(options=options, site_names=["north"], site=site)

    monkeypatch.setattr("pfedsam.engine.opened.open_run", open_model)
    asked = ("site", "predict", tmp_path / "north", "a.png", "--out", tmp_path / "masks")
    assert call(*asked, "--study", STUDY) == 0
    assert opened == [(tmp_path / "north", STUDY, [])]
    assert "Model: the personal one of site north (in use there)" in capsys.readouterr().out
    assert read_mask(tmp_path / "masks" / "a.png").tolist() == [[0, 128]]
    assert call(*asked) == 2  # the mask is there
    assert len(opened) == 1
    large = "data.image.max_megapixels=150"
    assert call(*asked[:-1], tmp_path / "other", "--model", "shared", "--set", large) == 0
    assert opened[-1] == (tmp_path / "north", None, [large])
    assert "Model: the shared one of site north\n" in capsys.readouterr().out


def test_start_says_what_is_missing_and_prints_what_leaves(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No study is approved and no coordinator listens; messages of a study leave while the command runs."""
    site, ledger = tmp_path / "north", Ledger(tmp_path / "north" / "ledger.jsonl")
    site.mkdir()

    def leave(task: str, round_: int) -> None:
        sizes: dict[str, Any] = {"total_bytes": 9, "by_component": {}, "names": (), "scalar_metrics": ()}
        ledger.append(study=STUDY, task=task, round=round_, sent=True, sha256="0" * 64, **sizes)

    def run_site(_: Path, each_time: Callable[[], object]) -> None:
        each_time()
        leave("train", 1)
        each_time()
        each_time()
        leave("test", 2)
        each_time()
        ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"round":0', b'"round":4444') + b"\n")
        each_time()
        each_time()

    leave("train", 0)
    monkeypatch.setattr("pfedsam.deploy.site_service.run_site", run_site)
    monkeypatch.setattr("pfedsam.deploy.site_service.warning_of_expiry", lambda _: None)
    monkeypatch.setattr("pfedsam.deploy.site_service.coordinator_of", lambda _: ("fed.org:1", "refused"))
    assert call("site", "start", site) == 0
    shown = capsys.readouterr()
    assert "No study is approved" in shown.err
    assert "cannot be reached at fed.org:1 (refused)" in " ".join(shown.err.split())
    assert [("train of round 1" in shown.out), shown.out.count("train of round 2")] == [False, 1]
    assert f"Study {STUDY} has ended here" in shown.out
    assert shown.err.count("The ledger was changed while this site runs") == 1
    assert f"IMAGES --out MASKS --study {STUDY}`" in shown.out


@pytest.mark.parametrize(
    ("rounds", "patience", "said"),
    [(3, 30, "no: that needs more than 60 rounds"), (400, 30, "yes: 30 rounds after"), (40, None, "no")],
)
def test_an_operator_reads_whether_a_study_may_end_earlier(rounds: int, patience: int | None, said: str) -> None:
    assert _earlier_end(rounds, patience).startswith(said)


@pytest.mark.parametrize("command", ["approve", "ledger", "check", "start"])
def test_a_folder_that_does_not_exist_is_refused_and_not_made(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert call("site", command, tmp_path / "nowhere") == 2
    assert "does not exist" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
