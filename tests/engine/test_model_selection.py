"""Row 26 of docs/reliability.md: if a shared model is worse at a site by more than 5 points of Dice, the site uses its last good one."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pfedsam.core import tensors
from pfedsam.engine.model_selection import SiteModels, Validation, allowed_drop
from pfedsam.engine.opened import open_run
from pfedsam.engine.run import run
from pfedsam.engine.site_session import SiteScorer
from pfedsam.evaluation.scores import CaseScores, ClassScores
from pfedsam.experiment.build import build_model
from pfedsam.experiment.options import EvaluationOptions, RunOptions
from pfedsam.federation.site_store import SiteState, SiteStore
from pfedsam.report.records import read_records


class Site:
    """A site whose parameters are the number of their round: what was received after round r is r, what was trained in it 10 r."""

    def __init__(
        self, folder: Path, max_drop: float | None = 0.05, choose: bool = True, fine_tuned: bool = False
    ) -> None:
        self.models = SiteModels(folder, {"expert": torch.tensor(-1.0)}, max_drop, choose, fine_tuned)
        self.state = SiteStore(folder / "state")

    def round(self, round_: int, dice: float | None) -> int | None:
        self.train(round_)
        return self.judge(round_, dice).kept

    def judge(self, round_: int, personal: float | None, shared: float | None = None) -> Validation:
        better = personal is not None and shared is not None and shared > personal
        scores = {"personal": personal, "shared": shared}
        return self.models.judge(round_, scores, received(round_), shared_is_better=better)

    def train(self, round_: int) -> None:
        self.state.rewind(round_)
        self.commit(round_ + 1, 10.0 * round_)

    def commit(self, round_: int, local: float, phase: str = "round", **more: object) -> None:
        state = SiteState("study", "north", round_, phase, {"expert": torch.tensor(local)}, {}, **more)  # type: ignore[arg-type]
        self.state.commit(state)

    def uses(self, round_: int) -> tuple[float, float]:
        used = self.models.in_use(received(round_))
        return used.shared["lora"].item(), used.local["expert"].item()


def received(round_: int) -> dict[str, torch.Tensor]:
    return {"lora": torch.tensor(float(round_))}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_five_points_is_the_default_and_there_is_one_home_for_it() -> None:
    assert EvaluationOptions().max_drop == 0.05


def test_more_than_five_points_below_the_best_keeps_the_model_selection_one_and_names_its_round(site: Site) -> None:
    assert [site.round(r, dice) for r, dice in enumerate([0.60, 0.70, 0.66])] == [None, None, None]
    assert site.uses(2) == (2, 20)  # four points are not more than five
    assert site.round(3, 0.649) == 2  # 5.1 points below the best, which was round 1's
    assert site.uses(3) == (2, 20)
    assert site.round(4, 0.0) == 2
    assert site.uses(4) == (2, 20)
    assert site.round(5, 0.651) is None  # good again
    assert site.uses(5) == (5, 50)


def test_it_trains_on_what_it_receives_all_the_same(site: Site) -> None:
    site.round(0, 0.7)
    site.round(1, 0.1)
    trained = site.models.trained(received(1))
    assert (trained.shared["lora"].item(), trained.local["expert"].item()) == (1, 10)
    site.train(2)  # trained anew and not judged yet: nothing says that it is worse
    assert site.uses(2) == (2, 20)


def test_the_last_phases_start_from_it_and_what_they_end_with_is_used(site: Site) -> None:
    site.round(0, 0.7)
    assert site.models.kept(1) is None
    site.round(1, 0.1)
    kept = site.models.kept(2)
    assert kept is not None
    assert (kept.shared["lora"].item(), kept.local["expert"].item(), kept.shared_round) == (0, 0, 0)
    site.commit(3, 5.0, shared=kept.shared, shared_round=kept.shared_round)  # as `SiteSession.finalize` commits
    assert site.uses(1) == (0, 5)
    assert site.judge(2, 0.72).kept is None
    assert site.uses(1) == (0, 5)
    assert site.judge(2, 0.2).kept == 0  # asked again, and now the last phases were the harm
    assert site.uses(1) == (0, 0)


def test_a_fine_tuned_copy_is_used_by_the_personal_model_alone(tmp_path: Path) -> None:
    site = Site(tmp_path, 0.05, fine_tuned=True)
    site.train(0)
    site.commit(2, 5.0, phase="final", shared={"lora": torch.tensor([7.0])}, shared_round=0)
    tuned = site.models.trained(received(0))
    assert (tuned.shared["lora"].item(), tuned.of_shared_model["lora"].item()) == (7, 0)
    assert site.judge(1, 0.6, shared=0.5).uses == "personal"
    assert site.uses(0) == (7, 5)
    assert site.judge(1, 0.6, shared=0.7).uses == "shared"
    assert site.models.in_use(received(0)).of_shared_model["lora"].item() == 0


def test_a_round_that_is_repeated_is_judged_anew(site: Site) -> None:
    site.round(0, 0.5)
    site.round(1, 0.9)
    assert site.round(1, 0.6) is None  # 0.9 was of a round that the coordinator lost
    assert site.round(2, 0.56) is None
    assert site.round(3, 0.54) == 2


def test_no_drop_at_all_is_early_stopping(tmp_path: Path) -> None:
    site = Site(tmp_path, 0.0)
    assert [site.round(r, dice) for r, dice in enumerate([0.60, 0.70, 0.69, 0.70, 0.65])] == [None, None, 1, None, 3]
    assert site.uses(4) == (3.0, 30.0)


@pytest.mark.parametrize("max_drop", [None, 0.05])
def test_switched_off_or_without_a_score_nothing_is_kept(tmp_path: Path, max_drop: float | None) -> None:
    site = Site(tmp_path, max_drop)
    site.round(0, 0.7 if max_drop is None else None)
    assert site.round(1, 0.1) is None
    assert site.uses(1) == (1, 10)
    assert (tmp_path / "good").exists() == (max_drop is not None)


def test_a_site_uses_the_better_of_its_two_models_until_it_trains_again(site: Site) -> None:
    site.train(0)
    assert site.judge(0, 0.60, shared=0.61).uses == "shared"
    used = site.models.in_use(received(0))
    assert (used.model("personal"), used.local["expert"].item()) == ("shared", 0)
    site.train(1)
    assert site.models.in_use(received(1)).model("personal") == "personal"  # trained anew, not compared yet
    assert site.judge(1, 0.61, shared=0.61).uses == "personal"  # as good: the personal one
    assert site.models.in_use(received(1)).model("personal") == "personal"


def test_the_better_model_is_the_one_that_may_not_fall(site: Site) -> None:
    site.train(0)
    assert site.judge(0, 0.2, shared=0.7) == Validation({"personal": 0.2, "shared": 0.7}, None, uses="shared")
    site.train(1)
    found = site.judge(1, 0.64, shared=0.3)
    assert (found.kept, found.uses) == (0, "shared")
    used = site.models.in_use(received(1))
    assert (used.shared["lora"].item(), used.model("personal")) == (0, "shared")


def test_it_can_be_told_to_use_its_personal_one_always(tmp_path: Path) -> None:
    site = Site(tmp_path, choose=False)
    site.train(0)
    assert site.judge(0, 0.1, shared=0.9).uses == "personal"
    assert site.models.in_use(received(0)).model("personal") == "personal"


@pytest.mark.parametrize(
    ("method", "drop"), [("pfedsam", 0.0), ("fedavg", 0.0), ("local-only", 0.0), ("centralized", None)]
)
def test_every_site_may_keep_its_model_but_for_the_one_of_all(
    toy_options: RunOptions, method: str, drop: float | None
) -> None:
    options = toy_options.model_copy(update={"method": method})
    assert allowed_drop(options, build_model(options)) == drop


def test_a_run_says_so_and_its_folder_predicts_with_the_kept_model(
    tmp_path: Path, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One site's Dice falls to nothing after the second of two rounds."""
    victim = next(iter(toy_options.data.sites))
    seen: dict[str, int] = {}

    scored = SiteScorer._score

    def score(self: SiteScorer, *args: Any, **more: Any) -> Any:
        found, overlays = scored(self, *args, **more)
        seen[self.name] = seen.get(self.name, 0) + 1
        dice = 0.1 if self.name == victim and seen[self.name] > 2 else 0.8  # two models are scored each time
        alike = {name: ClassScores(dice=dice, iou=dice) for name in found[0].classes}
        return [replace(one, classes=alike) for one in found], overlays

    monkeypatch.setattr(SiteScorer, "_score", score)
    training = toy_options.training.model_copy(update={"rounds": 2, "shared_warmup_rounds": 0, "final_steps": 0})
    options = toy_options.model_copy(update={"training": training})
    run(options, tmp_path / "run")
    rows = [row for row in read_records(tmp_path / "run" / "records.jsonl") if row["kind"] == "kept"]
    assert rows[0] == {"kind": "kept", "round": 1, "site": victim, "from_round": 0}
    assert {row["site"] for row in rows} == {victim}
    assert "uses an earlier model, of round 1" in (tmp_path / "run" / "report.html").read_text()
    opened = open_run(tmp_path / "run")
    for name in options.data.sites:
        used = opened.site(name).parameters.shared
        assert (tensors.digest(used) == tensors.digest(opened.shared)) == (name != victim)


def test_a_site_whose_shared_model_is_clearly_better_is_tested_with_it(
    tmp_path: Path, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first site the shared model has 0.9 for every patient, and the personal one 0.5; at the others both have 0.5."""
    better = next(iter(toy_options.data.sites))
    scored = SiteScorer._score

    def score(self: SiteScorer, cases: Any, model: str, *args: Any, **more: Any) -> Any:
        found, overlays = scored(self, cases, model, *args, **more)
        dice = 0.9 if self.name == better and model == "shared" else 0.5
        alike = {name: ClassScores(dice=dice, iou=dice) for name in found[0].classes}
        return [replace(one, classes=alike) for one in found], overlays

    monkeypatch.setattr(SiteScorer, "_score", score)
    split = toy_options.data.split.model_copy(update={"train": 0.4, "val": 0.4, "test": 0.2})
    content = toy_options.model_copy(update={"data": toy_options.data.model_copy(update={"split": split})})
    training = content.training.model_copy(update={"rounds": 1, "shared_warmup_rounds": 0, "final_steps": 0})
    summary = run(content.model_copy(update={"training": training}), tmp_path / "run")
    assert {name: site.uses for name, site in summary.sites.items()} == {
        name: "shared" if name == better else "personal" for name in summary.sites
    }
    rows = [row for row in read_records(tmp_path / "run" / "records.jsonl") if row["kind"] == "plain"]
    assert {row["site"] for row in rows} == {better}
    assert open_run(tmp_path / "run").site(better).parameters.uses == "shared"


@pytest.mark.parametrize(("personal", "uses"), [((0.5, 0.1), "personal"), ((0.5, 0.5), "shared")])
def test_a_difference_at_one_of_two_patients_does_not_decide(
    toy_options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, personal: tuple[float, float], uses: str
) -> None:
    """The shared model has 0.6 for both patients: 0.1 and 0.5 better, which is 1.5 standard errors, or 0.1 better for each."""
    built = build_model(toy_options)
    scorer = SiteScorer(toy_options, "north", built)

    def score(cases: Any, model: str, *args: Any, **more: Any) -> Any:
        dice = personal if model == "personal" else (0.6, 0.6)
        names = list(toy_options.data.classes)
        return [
            CaseScores(f"c{n}", f"p{n}", {one: ClassScores(dice=value, iou=value) for one in names}, {}, "px", "px")
            for n, value in enumerate(dice)
        ], []

    monkeypatch.setattr(scorer, "_score", score)
    monkeypatch.setattr(
        "pfedsam.engine.site_session.summarize_site",
        lambda scores: SimpleNamespace(
            mean=SimpleNamespace(dice=sum(one.dice for one in scores) / len(scores)), cases=None
        ),
    )
    site = Site(tmp_path)
    site.train(0)
    models: dict[str, Any] = {"personal": "personal", "shared": "shared"}
    assert scorer.validate((SimpleNamespace(),), models, site.models, 0, received(0)).uses == uses  # type: ignore[arg-type]
