"""Batches of frozen features depend on the seed, the site, the round and the phase alone."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedsam.data.examples import Example
from pfedsam.data.loader import view_of
from pfedsam.experiment.build import build_model, build_site_data, build_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.model.personal import PersonalSam
from pfedsam.training import site_data
from pfedsam.training.site_data import Batch, SiteData


@pytest.fixture
def model_and_data(toy_options: RunOptions, tmp_path: Path) -> tuple[PersonalSam, SiteData]:
    built, (name, site) = build_model(toy_options), next(iter(build_sites(toy_options).items()))
    return built.model, build_site_data(toy_options, name, site.of("train"), built, tmp_path)


def draw(model: PersonalSam, data: SiteData, round_: int = 0, phase: str = "coupled") -> list[Batch]:
    return list(data.draw(model, round_=round_, phase=phase, batch_size=2, steps=3))


def test_shapes_and_values_of_a_batch(model_and_data: tuple[PersonalSam, SiteData]) -> None:
    model, data = model_and_data
    batches = draw(model, data)
    assert len(batches) == 3
    for batch in batches:
        assert batch.tokens.shape == (2, *model.prefix_shape)
        assert (batch.labels.shape, batch.labels.dtype) == ((2, 64, 64), torch.uint8)
        assert all(0 <= i < len(data.examples) and 0 <= view < data.augment.views for i, view in batch.keys)


def test_the_same_draw_again_and_another_one_for_another_round_phase_site_or_seed(
    model_and_data: tuple[PersonalSam, SiteData],
) -> None:
    model, data = model_and_data
    keys = [batch.keys for batch in draw(model, data)]
    again = draw(model, data)
    assert [batch.keys for batch in again] == keys
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(again, draw(model, data), strict=True))
    others = [
        draw(model, data, round_=1),
        draw(model, data, phase="local"),
        draw(model, replace(data, name="elsewhere")),
        draw(model, replace(data, seed=99)),
    ]
    assert all([batch.keys for batch in other] != keys for other in others)


def test_a_view_that_was_drawn_lately_is_not_made_again(
    model_and_data: tuple[PersonalSam, SiteData], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = model_and_data
    made: list[tuple[int, int, int]] = []

    def noting(example: Example, view: int, *, renewal: int, **others: Any) -> tuple[Tensor, Tensor]:
        made.append((id(example), view, renewal))
        return view_of(example, view, renewal=renewal, **others)

    monkeypatch.setattr(site_data, "view_of", noting)
    first = [draw(model, data, round_) for round_ in range(8)]
    assert len(made) == len(set(made)) == len({key for drawn in first for batch in drawn for key in batch.keys})
    monkeypatch.setattr(site_data, "_KEPT_BYTES", 0)
    kept, fresh = len(made), [draw(model, replace(data), round_) for round_ in range(8)]
    assert len(made) == kept + 8 * 3 * 2
    for a, b in zip(chain.from_iterable(first), chain.from_iterable(fresh), strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.labels, b.labels)


def test_new_views_are_made_when_the_views_of_a_study_are_renewed(
    model_and_data: tuple[PersonalSam, SiteData],
) -> None:
    model, data = model_and_data
    renewing = replace(data, augment=data.augment.model_copy(update={"renew_every": 1, "contrast": 0.5}))
    found = {
        key: batch.tokens[i]
        for round_ in range(8)
        for batch in draw(model, renewing, round_)
        for i, key in enumerate((round_, *pair) for pair in batch.keys)
    }
    same = [
        torch.equal(tokens, other)
        for (round_, *pair), tokens in found.items()
        for (later, *twin), other in found.items()
        if pair == twin and round_ < later and pair[1] > 0
    ]
    assert same
    assert not any(same)
