"""The agent of a site: every failure is reported as one code, and the model is loaded once."""

import copy
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from pfedsam.core import tensors
from pfedsam.core.errors import OptionError, PfedsamError, RunError, StoreError
from pfedsam.engine import site_agent, site_study
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.site_agent import SiteAgent, SiteFolder, study_options
from pfedsam.engine.site_options import CONFIG, read_site_options
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import WITHOUT_PARAMETERS, parse_manifest, read_manifest
from pfedsam.federation.messages import Reply, Request, reply_to_wire
from pfedsam.federation.site_policy import SitePolicy
from pfedsam.federation.site_store import SiteStore
from pfedsam.federation.tasks import Task
from pfedsam.federation.update import decode


@pytest.fixture
def study(tmp_path: Path, toy_options: RunOptions) -> Path:
    return create_study(toy_options, tmp_path / "studies", RoundPolicy())


@pytest.fixture
def agent(tmp_path: Path, toy_options: RunOptions, study: Path) -> SiteAgent:
    name, data = next(iter(toy_options.data.sites.items()))
    folder = tmp_path / "site"
    folder.mkdir()
    shutil.copytree(data, tmp_path / "data")
    (folder / CONFIG).write_text(f"name: {name}\ndata: {tmp_path / 'data'}\nbackbone: {toy_options.model.backbone}\n")
    SitePolicy(folder).approve(read_manifest(study / "manifest.json"))
    return SiteAgent(SiteFolder(folder))


@pytest.fixture
def ask(study: Path) -> Callable[..., Request]:
    manifest = read_manifest(study / "manifest.json")
    shared = tensors.to_bytes(tensors.load(study / SERVER)[0])

    def make(task: str, round_: int = 0, **changes: object) -> Request:
        return replace(Request(task, manifest.study, manifest.digest, round_, shared=shared), **changes)  # type: ignore[arg-type]

    return make


def test_the_model_is_loaded_once(agent: SiteAgent, ask, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    build = site_agent.build_model
    monkeypatch.setattr(site_agent, "build_model", lambda *given, **more: loaded.append(1) or build(*given, **more))
    assert agent.handle(ask("join")).scalar_metrics["cases"] > 0
    assert agent.handle(ask("train")).refused is None
    assert agent.handle(ask("train", 1)).refused is None
    assert loaded == [1]


def test_a_request_for_a_round_long_gone_does_not_touch_the_experts(agent: SiteAgent, ask) -> None:
    for round_ in range(3):
        assert agent.handle(ask("train", round_)).refused is None
    store = SiteStore(next((agent.host.folder / "studies").iterdir()) / "state")
    before = store.load()
    assert before is not None
    assert agent.handle(ask("train", 0)).refused == "wrong-round"
    after = store.load()
    assert after is not None
    assert (after.round, tensors.digest(after.local)) == (3, tensors.digest(before.local))
    assert agent.handle(ask("train", 2)).refused is None  # the one round that a coordinator's restart can cost


def test_data_that_breaks_is_one_word_and_named_in_the_sites_own_log(agent: SiteAgent, ask, caplog) -> None:
    victim = sorted((agent.host.options.data / "images").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:50])
    reply = agent.handle(ask("join"))
    assert (reply.refused, reply.scalar_metrics, reply.update) == ("data", {}, b"")
    assert victim.stem in caplog.text


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (StoreError("disk full"), "storage"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError(), "memory"),
        (RuntimeError("Jane Doe"), "failed"),
        (OSError("Jane Doe"), "failed"),
        (OSError(errno.ENOSPC, "No space left on device", "Jane Doe"), "storage"),
        (OSError(errno.EROFS, "Read-only file system", "Jane Doe"), "storage"),
    ],
)
def test_whatever_goes_wrong_is_one_word(agent: SiteAgent, ask, monkeypatch: pytest.MonkeyPatch, error, word) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(SiteAgent, "_study", fail)
    reply = agent.handle(ask("train"))
    assert reply.refused == word
    assert "Jane" not in repr(reply)


def test_another_backbone_is_refused_before_anything_is_trained(
    agent: SiteAgent, ask, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = read_manifest(study / "manifest.json").model_copy(update={"backbone": "0" * 64})
    agent.host.policy.approve(other)
    monkeypatch.setattr(site_study.SiteSession, "train", lambda *args: pytest.fail("trained"))
    assert agent.handle(ask("train", digest=other.digest)).refused == "other-backbone"


def test_a_broadcast_out_of_bounds_is_refused_before_anything_is_trained(
    agent: SiteAgent, ask, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {name: value * 100 for name, value in tensors.load(study / SERVER)[0].items()}
    monkeypatch.setattr(site_study.SiteSession, "train", lambda *args: pytest.fail("trained"))
    assert agent.handle(ask("train", shared=tensors.to_bytes(large))).refused == "bad-broadcast"
    assert agent.handle(ask("train", shared=b"")).refused == "bad-broadcast"


WRONG: tuple[Any, ...] = (None, True, -1, 1e400, 10**30, "x", "9" * 5000, [], [[1]], {}, {"x": {"y": []}})


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON document; of long lists and tables of the shared tensors, only those of the first two entries."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)[: 2 if at and at[0] in ("tensors", "components", "class_tensors") else None]
    else:
        keys = list(range(len(value)))[:2] if isinstance(value, list) else []
    for key in keys:
        yield (*at, key)
        yield from places(value[key], (*at, key))  # type: ignore[index]


def bent(document: Any, at: tuple[Any, ...], *value: object) -> Any:
    """The document with another value at a place, or without what is there."""
    found = document = copy.deepcopy(document)
    for key in at[:-1]:
        found = found[key]
    if value:
        found[at[-1]] = value[0]
    else:
        del found[at[-1]]
    return document


def test_a_site_that_annotates_no_class_of_the_study_is_told_so_in_words_of_its_own_file(
    study: Path, agent: SiteAgent
) -> None:
    manifest, site = read_manifest(study / "manifest.json"), agent.host.options  # type: ignore[attr-defined]
    classes = [name for name in manifest.configuration["data"]["classes"] if name != "background"]
    nothing = site.model_copy(update={"not_annotated": classes})
    said = rf"^site '{site.name}', site\.yaml: not_annotated names every class of the study .* or leave the site out"
    with pytest.raises(OptionError, match=said):
        study_options(manifest, nothing)


@pytest.mark.slow
def test_a_manifest_with_a_wrong_value_anywhere_is_refused_or_read(study: Path, agent: SiteAgent) -> None:
    """What `site approve` and the agent do before they build a model; a manifest of unknown origin ended in a traceback before."""
    document = json.loads((study / "manifest.json").read_text())
    document.pop("sha256")
    site = agent.host.options  # type: ignore[attr-defined]
    count = 0
    for at in list(places(document)):
        for value in ((), *((one,) for one in WRONG)):
            data = json.dumps(bent(document, at, *value)).encode()
            try:
                manifest = parse_manifest(data)
                assert manifest.digest
                assert manifest.component_bytes() is not None
                study_options(manifest, site)
            except PfedsamError as error:
                assert str(error)  # noqa: PT017
            count += 1
    assert count > 1000


@pytest.mark.parametrize(
    "text", ["", "7", "null", "[]", "{}", "[" * 100_000, '{"a":' * 5000, "9" * 5000, "\udcff", "NaN"]
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="not a study's manifest"):
        parse_manifest(text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("section", ["data", "model"])
@pytest.mark.parametrize("value", [(), ([1],), ("x",), (None,)])
def test_a_manifest_whose_configuration_lacks_a_table_is_refused_by_name(
    study: Path, section: str, value: tuple[object, ...]
) -> None:
    document = json.loads((study / "manifest.json").read_text())
    document.pop("sha256")
    with pytest.raises(RunError, match=f"has no table '{section}'"):
        parse_manifest(json.dumps(bent(document, ("configuration", section), *value)).encode())


def test_a_site_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="site init"):
        read_site_options(tmp_path)
    (tmp_path / CONFIG).write_text("name: north\ndata: x\ncolour: red\n")
    with pytest.raises(OptionError, match="colour"):
        read_site_options(tmp_path)


def test_between_hospitals_no_number_of_fewer_than_ten_cases_leaves_a_site(
    tmp_path: Path, toy_options: RunOptions, agent: SiteAgent
) -> None:
    communication = toy_options.communication.model_copy(update={"min_cases": None, "data_summary": True})
    options = toy_options.model_copy(update={"communication": communication})
    study = create_study(options, tmp_path / "others", RoundPolicy())
    manifest = read_manifest(study / "manifest.json")
    assert manifest.min_cases == 10
    agent.host.policy.approve(manifest)
    shared = tensors.to_bytes(tensors.load(study / SERVER)[0])
    told, state = {}, 0
    for task in get_args(Task):  # the site has 6 cases
        state = manifest.rounds if task in ("finalize", "test") else 0
        brought = b"" if task in WITHOUT_PARAMETERS else shared
        reply = agent.handle(Request(task, manifest.study, manifest.digest, state, shared=brought))
        assert reply.refused is None, task
        assert set(reply.scalar_metrics) <= set(manifest.scalar_metrics[task])
        told |= {name: value for name, value in reply.scalar_metrics.items() if value is not None}
        if task == "train":
            assert decode(reply.update, manifest.spec).cases == 10
    assert told.pop("cases") == 10
    assert {name.split(".")[-1] for name in told if not name.startswith("annotates.")} <= {
        *("unit", "volume_unit", "kept_round", "uses_shared", "volumes", "annotated")
    }
    assert told["data.volumes"] == 0


def test_a_summary_that_the_study_does_not_list_is_refused_before_a_file_is_read(
    agent: SiteAgent, ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_study, "summarize_data", lambda *args, **more: pytest.fail("read"))
    monkeypatch.setattr(SiteAgent, "_study", lambda *args: pytest.fail("opened"))
    assert agent.handle(ask("summarize", shared=b"")) == Reply("summarize", ask("join").study, 0, refused="not-listed")


def test_a_summary_that_is_asked_for_again_is_the_same_whatever_the_files_hold_now(
    tmp_path: Path, toy_options: RunOptions, agent: SiteAgent
) -> None:
    communication = toy_options.communication.model_copy(update={"data_summary": True})
    options = toy_options.model_copy(update={"communication": communication})
    manifest = read_manifest(create_study(options, tmp_path / "others", RoundPolicy()) / "manifest.json")
    request = Request("summarize", manifest.study, manifest.digest, 0)
    assert agent.handle(request).refused == "not-approved"
    agent.host.policy.approve(manifest)
    first = agent.handle(request)
    assert first.scalar_metrics["data.cases"] == 6
    victim = sorted((agent.host.options.data / "images").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:50])
    assert reply_to_wire(agent.handle(request)) == reply_to_wire(first)
    assert agent.handle(replace(request, round=1)).refused == "wrong-round"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", "{organ: [2], lesion: [1]}"),
        ("not_annotated", "[lesion]"),
        ("spacing", "[0.5, 0.5]"),
        ("patient_pattern", "'^(p..)'"),
    ],
)
def test_a_site_keeps_the_meaning_of_its_files_throughout_a_study(
    agent: SiteAgent, ask, caplog: pytest.LogCaptureFixture, key: str, value: str
) -> None:
    """A restarted site reads its settings anew; an edit of the labels once exchanged two classes for the rest of a study."""
    folder = agent.host.folder  # type: ignore[attr-defined]
    assert agent.handle(ask("train")).refused is None
    before = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(f"{before}{key}: {value}\n")
    assert SiteAgent(SiteFolder(folder)).handle(ask("train", 1)).refused == "data"
    assert f"{key} in site.yaml changed" in caplog.text
    (folder / CONFIG).write_text(f"{before}threads: 1\n")  # a setting that changes no meaning
    assert SiteAgent(SiteFolder(folder)).handle(ask("train", 1)).refused is None


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_that_are_changed_while_a_study_is_open_are_not_scored(
    agent: SiteAgent, ask, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The process of a hospital runs for weeks; with masks that were corrected meanwhile, the scores would be of other data."""
    assert agent.handle(ask("join")).refused is None
    (split,) = agent.host.folder.glob("studies/*/split.json")  # type: ignore[attr-defined]
    parts = json.loads(split.read_text())
    for part, refused in [("train", ["test"]), ("val", ["validate", "test"]), ("test", ["test"])]:
        case = parts[part][0]
        (path,) = (agent.host.options.data / kind).glob(f"{case}.*")  # type: ignore[attr-defined]
        before = path.read_bytes()
        with Image.open(path) as picture:
            changed = Image.fromarray(np.fliplr(np.asarray(picture)))
        changed.save(path)
        for task in refused:
            assert agent.handle(ask(task, 4)).refused == "data", (task, part)
            assert f"case '{case}': image or mask was changed" in caplog.text
        path.write_bytes(before)
    for task in ("validate", "test"):
        assert agent.handle(ask(task, 4)).refused is None


def test_an_end_that_the_patience_cannot_give_is_refused_and_costs_the_study_nothing(
    tmp_path: Path, toy_options: RunOptions, agent: SiteAgent, ask
) -> None:
    """Of four rounds with a patience of one, a study can end after three: a first score, one round without a gain, and one more."""
    changes = {
        "training": toy_options.training.model_copy(update={"patience": 1}),
        "communication": toy_options.communication.model_copy(update={"data_summary": True}),
    }
    study = create_study(toy_options.model_copy(update=changes), tmp_path / "others", RoundPolicy())
    manifest = read_manifest(study / "manifest.json")
    agent.host.policy.approve(manifest)
    of_study = {"study": manifest.study, "digest": manifest.digest}
    assert agent.handle(ask("summarize", **of_study, shared=b"", ends=2)).refused is None
    for ends in range(3):
        assert agent.handle(ask("test", ends, **of_study, ends=ends)).refused == "wrong-round"
        assert agent.handle(ask("train", ends, **of_study)).refused is None
    assert agent.handle(ask("test", 3, **of_study, ends=3)).refused is None
