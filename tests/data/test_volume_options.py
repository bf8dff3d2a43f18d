import pytest
from pydantic import ValidationError

from pfedsam.data.volume_options import WINDOWS, VolumeOptions


@pytest.mark.parametrize(
    ("name", "level", "width"),
    [
        ("abdomen", 40, 400),
        ("bone", 400, 1800),
        ("brain", 40, 80),
        ("liver", 30, 150),
        ("lung", -600, 1500),
        ("mediastinum", 50, 350),
    ],
)
def test_windows_are_level_and_width_as_radiologists_name_them(name, level, width):
    options = VolumeOptions(normalise="window", window=name)
    assert options.limits() == (level - width / 2, level + width / 2)
    assert set(WINDOWS) == {"abdomen", "bone", "brain", "liver", "lung", "mediastinum"}


def test_a_window_may_be_given_by_its_limits():
    assert VolumeOptions(normalise="window", window=[-100, 300]).limits() == (-100, 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "window"}, "window and normalise: window belong together"),
        ({"window": "lung"}, "window and normalise: window belong together"),
        ({"normalise": "window", "window": "pelvis"}, "there is no window 'pelvis'; known: abdomen"),
        ({"normalise": "window", "window": [3, 3]}, r"low \(3.0\) must be below its high"),
        ({"neighbours": 1, "channels": ["_a", "_b"]}, "both fill the three channels"),
        ({"channels": ["_a"]}, "two or three different endings"),
        ({"channels": ["_a", "_a"]}, "two or three different endings"),
        ({"segments": {"liver": 0}}, "1 to 65535"),
        ({"segments": {"liver": 65536}}, "1 to 65535"),
        ({"sum_segments": True}, "each with an id of its own"),
        ({"sum_segments": True, "segments": {"a": 1, "b": 3}}, "each with an id of its own"),
        ({"sum_segments": True, "segments": {"a": 2, "b": 2}}, "each with an id of its own"),
        ({"fractional_threshold": 0}, "greater than 0"),
        ({"spacing": 0}, "greater than 0"),
        ({"slices": 3}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        VolumeOptions(**options)
