"""What a site says about its own labels: each mistake is one message that names the key."""

import numpy as np
import pytest
from pydantic import ValidationError

from pfedsam.core.errors import DataError, OptionError
from pfedsam.data.site_labels import SiteLabelOptions, site_label_map

CLASSES = {"disc": [1], "cup": [2]}


def test_a_site_numbers_classes_otherwise_and_the_order_stays_the_studys() -> None:
    own = SiteLabelOptions(labels={"cup": [1], "disc": [4], "background": [0, 7]})
    labels = site_label_map(CLASSES, own, key="data.sites.north")
    assert labels.names == ("disc", "cup")
    assert labels.to_classes(np.array([[0, 7, 4, 1]])).tolist() == [[0, 0, 1, 2]]


def test_what_a_site_does_not_say_is_as_the_study_says() -> None:
    assert dict(site_label_map(CLASSES, SiteLabelOptions(labels={"cup": [5]})).ids) == {
        "disc": (1,),
        "cup": (5,),
        "background": (0,),
    }


def test_the_id_of_a_class_that_the_site_does_not_annotate_is_refused_with_both_ways_out() -> None:
    labels = site_label_map(CLASSES, SiteLabelOptions(not_annotated=["cup"]), key="data.sites.north")
    assert labels.annotated == (True, False)
    with pytest.raises(DataError, match=r"unknown label 2.*not annotated \(cup\), take that .*add the id to ignore"):
        labels.to_classes(np.array([[0, 1, 2]]))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"labels": {"rim": [3]}}, r"data\.sites\.north\.labels names 'rim', which is not a class of the study"),
        ({"not_annotated": ["rim"]}, r"data\.sites\.north: not_annotated names 'rim'"),
        (
            {"labels": {"cup": [3]}, "not_annotated": ["cup"]},
            r"data\.sites\.north: class 'cup' has the ids \[3\] under labels and is listed under not_annotated",
        ),
        (
            {"not_annotated": ["cup", "disc"]},
            r"data\.sites\.north: not_annotated names every class of the study \(disc, cup\).* or leave the site out",
        ),
        ({"labels": {"cup": [1]}}, r"data\.sites\.north: data\.sites\.north\.labels .* belongs to one class only"),
    ],
)
def test_each_mistake_names_its_key(own: dict, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        site_label_map(CLASSES, SiteLabelOptions.model_validate(own), key="data.sites.north")


def test_regions_share_ids_only_with_overlap() -> None:
    regions = {"whole": [1, 2, 4], "core": [1, 4]}
    with pytest.raises(OptionError, match="overlap: true allows regions"):
        site_label_map(regions)
    labels = site_label_map(regions, overlap=True)
    assert labels.to_classes(np.array([[0, 1, 2, 4]])).tolist() == [[0, 3, 1, 3]]
    with pytest.raises(DataError, match="unknown label 3"):
        labels.to_classes(np.array([[3]]))


@pytest.mark.parametrize("spacing", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0] * 4])
def test_a_spacing_is_two_or_three_lengths(spacing: list[float]) -> None:
    with pytest.raises(ValidationError, match="give two lengths in mm"):
        SiteLabelOptions(spacing=spacing)


def test_a_spacing_is_finite() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        SiteLabelOptions(spacing=[1.0, float("nan")])
