import pytest

from pfedsam.report.format import MISSING, format_bytes, format_count, format_gain, format_seconds, format_value


def test_missing_is_a_dash():
    assert {format_value(None), format_gain(None), format_seconds(None)} == {MISSING}


def test_a_gain_has_a_sign():
    assert format_gain(0.0314) == "+0.031"
    assert format_gain(-0.0314) == "\N{MINUS SIGN}0.031"


def test_value():
    assert format_value(0.81249) == "0.812"
    assert format_value(7.126, 2) == "7.13"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (412_345, "412 kB"), (999_499, "999 kB"), (999_600, "1.00 MB"), (16.2e6, "16.20 MB")],
)
def test_bytes(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(12.4, "12 s"), (89, "89 s"), (90, "1.5 min"), (7200, "2.0 h")])
def test_seconds(value, text):
    assert format_seconds(value) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 rounds"), (1, "1 round"), (2, "2 rounds")])
def test_a_count_agrees_with_its_noun(number, text):
    assert format_count(number, "round") == text
