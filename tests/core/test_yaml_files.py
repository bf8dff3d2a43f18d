"""YAML of others: within bounds of size and depth, and one message for whatever it is."""

import math
import os
from pathlib import Path

import pytest
import yaml

from pfedsam.core.errors import OptionError
from pfedsam.core.yaml_files import MAX_BYTES, parse_yaml, read_mapping

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
ODD = {
    "an alias bomb": (BOMB, "aliases"),
    "an alias of itself": ("a: &a [*a]", "aliases"),
    "lists in lists": ("a: " + "[" * 5000 + "]" * 5000, "levels deep"),
    "tables in tables": ("".join(" " * i + "a:\n" for i in range(100)), "levels deep"),
    "a number of 5000 digits": ("a: " + "9" * 5000, "not YAML"),
    "the 30th of February": ("a: 2026-02-30", "not YAML"),
    "a list as a key": ("? [1, 2]\n: 3", "not YAML"),
    "a tag of Python": ("a: !!python/object/apply:os.system [true]", "not YAML"),
    "a key twice": ("a: 1\na: 2", "occurs twice"),
    "a list": ("- 1", "keys and values"),
    "nothing": ("", "keys and values"),
    "not closed": ("a: [1", "not YAML"),
    "control characters": ("a: \x07", "not YAML"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_file_is_one_message_that_names_it(tmp_path: Path, what: str) -> None:
    text, message = ODD[what]
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(OptionError, match=message) as refused:
        read_mapping(tmp_path / "study.yaml")
    assert str(refused.value).startswith("study.yaml")
    assert len(str(refused.value)) < 1000


def test_files_that_are_none_or_too_long(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text("a: 1 #" + "x" * MAX_BYTES)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, message in (("long", "bytes"), ("latin", "UTF-8"), ("pipe", "not a file"), ("missing", "cannot be read")):
        with pytest.raises(OptionError, match=message):
            read_mapping(tmp_path / f"{name}.yaml")


def test_aliases_that_are_few_are_fine() -> None:
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}


def test_a_merge_key_adds_what_is_not_given() -> None:
    assert parse_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}") == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}
    with pytest.raises(OptionError, match="'c' occurs twice"):
        parse_yaml("a: &x {b: 1}\nd: {<<: *x, c: 3, c: 4}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("0x10", 16),
        ("1.5", 1.5),
        ("-2.", -2.0),
        (".5", 0.5),
        ("1.0e-05", 1e-5),
        ("-.inf", -math.inf),
        ("true", True),
    ],
)
def test_a_value_with_one_meaning_in_every_version_of_yaml_has_it(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        "010",
        "-010",
        "08",
        "007",
        "0b11",
        "0o17",
        "1_000",
        "1:30",
        "-1:30",
        "190:20:30.15",
        "1_0.5",
        "0x_f",
        "1e-3",
        "1e3",
        "off",
    ],
)
def test_a_value_with_several_meanings_is_text_in_keys_and_values(text: str) -> None:
    assert parse_yaml(text) == text
    assert parse_yaml(f"{text}: [{text}]") == {text: [text]}


def test_what_is_written_is_read_back_as_it_was() -> None:
    values = ["010", "1:30", "1e-3", "1e3", "0o17", "08", "1_000", "off", 10, 8, 90, 1e-3, 1e20, -0.5, 123456.789, True]
    again = parse_yaml(yaml.safe_dump(values))
    assert [(one, type(one)) for one in again] == [(one, type(one)) for one in values]


@pytest.mark.parametrize("text", ["!!int 010", "!!int 1:30", "!!float 1:30.0", "!!bool on", "!!int 0b11"])
def test_a_tag_gives_no_value_another_meaning(text: str) -> None:
    with pytest.raises(OptionError, match=r"has no value with the tag .*; leave the tag out"):
        parse_yaml(text)
