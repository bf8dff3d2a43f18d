"""The local transport: every site replies as the agent of a hospital does, and a request of another study is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from pfedsam.core import tensors
from pfedsam.engine.local import LocalStudy, LocalTransport, OneStudy, worker_count
from pfedsam.engine.progress import Event
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.build import build_model, build_sites
from pfedsam.experiment.options import RunOptions, RuntimeOptions
from pfedsam.federation.manifest import StudyManifest, read_manifest
from pfedsam.federation.messages import Request, reply_from_wire, request_to_wire
from pfedsam.federation.site_policy import RefusedError


@pytest.fixture
def manifest(toy_options: RunOptions, tmp_path: Path) -> StudyManifest:
    return read_manifest(create_study(toy_options, tmp_path / "studies", RoundPolicy()) / "manifest.json")


def test_all_sites_are_asked_and_their_progress_is_told(
    toy_options: RunOptions, tmp_path: Path, manifest: StudyManifest
) -> None:
    told: list[Event] = []
    study = LocalStudy(toy_options, manifest, build_sites(toy_options), tmp_path / "run")
    shared = tensors.to_bytes(tensors.load(tmp_path / "studies" / manifest.study / SERVER)[0])
    transport = LocalTransport(study, build_model(toy_options), told.append)
    try:
        names = transport.connected()
        assert names == list(toy_options.data.sites)
        request = Request("join", manifest.study, manifest.digest, 0, shared=shared)
        joined = transport.ask(request_to_wire(request), "join", names, 1)
        trained = transport.ask(request_to_wire(replace(request, task="train")), "train", names[:2], 1)
    finally:
        transport.close()
    cases = {name: reply_from_wire(wire).scalar_metrics["cases"] for name, wire in joined.wires.items()}
    assert cases == {name: len(site.of("train")) for name, site in build_sites(toy_options).items()}
    assert (list(trained.wires), trained.missing) == (names[:2], {})
    assert [(e.stage, e.done, e.total) for e in told] == [
        ("train", 1, 8),
        ("train", 2, 8),
    ]  # 4 rounds of the 2 sites asked
    assert {e.images for e in told} == {(4, 16)}  # after the first of 4 rounds of 2 steps of 2 images
    assert not transport.needs_new_job()


def test_a_request_of_another_study_is_refused(manifest: StudyManifest) -> None:
    request = Request("train", manifest.study, "0" * 64, 0, shared=b"")
    policy = OneStudy(manifest)
    with pytest.raises(RefusedError, match="another study"):
        policy.admit(request)
    assert policy.admit(replace(request, digest=manifest.digest)) is manifest
    assert policy.reply_before(request) is None


def test_the_number_of_processes_follows_the_cores_and_the_sites(
    toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    sites = len(toy_options.data.sites)
    assert sites < 4  # the cores

    def count(**runtime: object) -> int:
        return worker_count(toy_options.model_copy(update={"runtime": RuntimeOptions.model_validate(runtime)}))

    assert [count(workers=n) for n in (1, 2, 200)] == [1, 2, sites]
    assert count(workers="auto", device="cpu") == sites
    assert count(workers="auto", device="cpu", threads=4) == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert count(workers="auto") == 1  # all processes would share the GPU
