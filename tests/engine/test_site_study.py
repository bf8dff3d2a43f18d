"""A study that is open at a site replies to each task, and refuses a round before its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pfedsam.core.tensors import NamedTensors
from pfedsam.data.manifest import Site
from pfedsam.data.split import write_split
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.site_study import SiteStudy
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.build import build_model, build_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.messages import Request
from pfedsam.federation.site_policy import RefusedError

Ask = Callable[..., Request]


def _begin(folder: Path, site: Site) -> None:
    """Write what a site has in its folder when a study is open."""
    folder.mkdir()
    write_split(folder / "split.json", site, digests=True)


@pytest.fixture
def study(toy_options: RunOptions, tmp_path: Path) -> SiteStudy:
    manifest = read_manifest(create_study(toy_options, tmp_path / "studies", RoundPolicy()) / "manifest.json")
    site, built = next(iter(build_sites(toy_options).values())), build_model(toy_options)
    _begin(tmp_path / "site", site)
    return SiteStudy(
        manifest, toy_options, built, site, tmp_path / "site", tmp_path / "cache", lambda: built.start("local")
    )


def request(study: SiteStudy, task: str, round_: int = 0) -> Request:
    return Request(task, study.manifest.study, study.manifest.digest, round_, shared=b"")  # type: ignore[arg-type]


def test_a_site_tells_its_training_cases_and_trains_the_shared_parameters(study: SiteStudy) -> None:
    shared: NamedTensors = study.built.start("shared")
    joined = study.answer(request(study, "join"), shared)
    assert joined.scalar_metrics["cases"] == len(study.site.of("train"))
    reply = study.answer(request(study, "train"), shared)
    assert (reply.task, reply.round) == ("train", 0)
    assert reply.update
    validated = study.answer(request(study, "validate"), shared)
    assert set(validated.scalar_metrics) <= set(study.manifest.scalar_metrics["validate"])


def test_a_round_that_was_left_behind_is_refused(study: SiteStudy) -> None:
    shared = study.built.start("shared")
    for round_ in (0, 1):
        study.answer(request(study, "train", round_), shared)
    study.answer(request(study, "train", 1), shared)  # the last round may be asked for again
    with pytest.raises(RefusedError, match="round 1, but this site is already several rounds ahead"):
        study.answer(request(study, "train", 0), shared)


def test_the_shared_model_is_scored_with_the_last_validations_only_if_so_configured(
    toy_options: RunOptions, tmp_path: Path
) -> None:
    """Four rounds: the validations after the fourth and after final fine-tuning are the last ones; `ends` can make it fewer rounds."""
    evaluation = toy_options.evaluation.model_copy(update={"validate_shared": False})
    options = toy_options.model_copy(update={"evaluation": evaluation})
    manifest = read_manifest(create_study(options, tmp_path / "studies", RoundPolicy()) / "manifest.json")
    site, built = next(iter(build_sites(options).values())), build_model(options)
    _begin(tmp_path / "site", site)
    study = SiteStudy(
        manifest, options, built, site, tmp_path / "site", tmp_path / "cache", lambda: built.start("local")
    )
    shared = built.start("shared")
    study.answer(request(study, "train"), shared)

    def scored(round_: int, ends: int | None = None) -> set[str]:
        asked = replace(request(study, "validate", round_), ends=ends)
        return {name for name in study.answer(asked, shared).scalar_metrics if name.startswith("dice.")}

    both = {"dice.personal", "dice.shared"}
    assert [scored(round_) for round_ in range(5)] == [{"dice.personal"}] * 3 + [both] * 2
    assert scored(1, ends=2) == both
