"""The trimmed mean against scipy's, its robustness, and the federations that are too small for it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from pfedsam.core.errors import OptionError
from pfedsam.core.tensors import digest
from pfedsam.engine.run import run
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.aggregation import Annotations
from pfedsam.federation.bounds import NO_LIMITS
from pfedsam.federation.methods import METHODS, trimmed_mean
from pfedsam.federation.server import ServerState, aggregate
from pfedsam.federation.update import Update, UpdateSpec


def step(share: float) -> trimmed_mean.TrimmedMeanStep:
    return trimmed_mean.TrimmedMeanStep(trimmed_mean.TrimmedMeanOptions(trimmed_share=share))


def updates(values: np.ndarray) -> list[Update]:
    return [Update(f"s{i:02}", 0, {"w": torch.from_numpy(row)}, i + 1) for i, row in enumerate(values)]


@pytest.mark.parametrize(("sites", "share"), [(4, 0.25), (5, 0.4), (10, 0.1), (10, 0.3), (7, 0.49), (100, 0.29)])
def test_it_is_scipys_trimmed_mean_whatever_the_weights(sites: int, share: float) -> None:
    values = np.random.default_rng(0).normal(size=(sites, 3, 2))
    after = step(share).apply(ServerState(0, {"w": torch.zeros(3, 2, dtype=torch.float64)}), updates(values))
    # scipy rounds down as well; 0.29 of 100 sites are 28 for it, as floating point has it, and 29 here.
    expected = trim_mean(values, share + 1e-9, axis=0)
    assert after.round == 1
    assert after.shared["w"].numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bad", [1e6, -1e6])
def test_one_bad_site_moves_no_value_beyond_those_of_the_others(bad: float) -> None:
    values = np.random.default_rng(1).normal(size=(5, 20))
    values[2] = bad
    honest = np.delete(values, 2, axis=0)
    found = step(0.25).apply(ServerState(0, {"w": torch.zeros(20)}), updates(values)).shared["w"].numpy()
    assert (found >= honest.min(axis=0).astype(np.float32)).all()
    assert (found <= honest.max(axis=0).astype(np.float32)).all()


PARTIAL = Annotations({"w": ("cup",)}, {"s04": {"cup"}})


def test_a_bad_site_is_trimmed_away_from_a_class_that_some_sites_do_not_annotate() -> None:
    values = np.array([[1000.0], [0.1], [0.2], [0.3], [7.0]])  # the last site does not annotate the class
    state = ServerState(0, {"w": torch.zeros(1, dtype=torch.float64)})
    sent = updates(values)
    registered = {update.site: update.cases for update in sent}
    after, _ = aggregate(state, sent, UpdateSpec.of(state.shared), registered, step(0.25), NO_LIMITS, PARTIAL)
    assert after.shared["w"].tolist() == [
        pytest.approx(0.25)
    ]  # of 0.1, 0.2, 0.3 and 1000 the first and the last are discarded


def test_a_class_that_too_few_sites_of_a_round_annotate_keeps_its_value() -> None:
    state = ServerState(0, {"w": torch.zeros(1, dtype=torch.float64)})
    sent = updates(np.ones((5, 1)))
    registered = {update.site: update.cases for update in sent}
    few = Annotations({"w": ("cup",)}, {"s03": {"cup"}, "s04": {"cup"}})
    after, _ = aggregate(state, sent, UpdateSpec.of(state.shared), registered, step(0.25), NO_LIMITS, few)
    assert (after.round, after.shared["w"].tolist()) == (
        1,
        [0.0],
    )  # three sites, and a quarter of four is one at each end
    enough = Annotations({"w": ("cup",)}, {"s04": {"cup"}})
    after, _ = aggregate(state, sent, UpdateSpec.of(state.shared), registered, step(0.25), NO_LIMITS, enough)
    assert after.shared["w"].tolist() == [1.0]
    nobody = Annotations({"w": ("cup",)}, {site: {"cup"} for site in registered})
    after, _ = aggregate(state, sent, UpdateSpec.of(state.shared), registered, step(0.25), NO_LIMITS, nobody)
    assert after.shared["w"].tolist() == [0.0]  # as it was broadcast


def test_the_order_of_the_updates_changes_no_bit() -> None:
    sent = updates(np.random.default_rng(2).normal(size=(4, 8)))
    state = ServerState(0, {"w": torch.zeros(8)})
    digests = {digest(step(0.25).apply(state, order).shared) for order in itertools.permutations(sent)}
    assert len(digests) == 1


@pytest.mark.parametrize(("share", "least"), [(0.25, 4), (0.1, 10), (0.3, 4), (0.34, 3), (0.49, 3), (0.2, 5)])
def test_how_many_sites_it_needs(share: float, least: int) -> None:
    assert step(share).least_updates == least


def test_sites_train_and_share_as_in_fedavg(make) -> None:
    assert make("trimmed-mean").shared == make("fedavg").shared
    assert METHODS["trimmed-mean"].phases is METHODS["fedavg"].phases


def test_too_few_sites_are_refused_before_anything_is_written(toy_options: RunOptions, tmp_path: Path) -> None:
    options = toy_options.model_copy(update={"method": "trimmed-mean"})
    with pytest.raises(
        OptionError, match=r"needs updates of at least 4 sites .*method_options.trimmed-mean.*; there are 3"
    ):
        run(options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_sites_that_annotate_a_class_are_refused_before_anything_is_written(
    toy_options: RunOptions, tmp_path: Path
) -> None:
    content = toy_options.model_dump() | {"method": "trimmed-mean"}
    content["method_options"] = {"trimmed-mean": {"trimmed_share": 0.4}}
    (name, *_), (site, *_) = content["data"]["classes"], content["data"]["sites"]
    content["data"]["sites"][site] = {"folder": content["data"]["sites"][site], "not_annotated": [name]}
    with pytest.raises(OptionError, match=f"needs updates of at least 3 sites .*; 2 of them annotate '{name}'"):
        run(RunOptions.model_validate(content), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_enough_sites_train(toy_options: RunOptions, tmp_path: Path) -> None:
    content = toy_options.model_dump() | {"method": "trimmed-mean"}
    content["method_options"] = {"trimmed-mean": {"trimmed_share": 0.4}}
    content["training"] = {"rounds": 1, "steps_per_round": 2, "batch_size": 2}
    summary = run(RunOptions.model_validate(content), tmp_path / "run")
    assert summary.mean.shared is not None
    assert len(summary.sites) == 3
