"""Batches of frozen features depend on the seed, the site, the round and the phase alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfedsam.experiment.build import build_model, build_site_data, build_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.model.personal import PersonalSam
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
