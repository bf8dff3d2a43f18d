"""`pfedsam options` shows a key with its default and its effect."""

from collections.abc import Callable

import pytest

from pfedsam.cli.console import OUT

Call = Callable[..., int]


def test_the_keys_of_a_part_are_shown_with_default_and_description(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OUT, "width", 400)
    assert call("options", "batch_size") == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [line.split()[:2] for line in lines if ".batch_size" in line]
    assert keys == [["training.batch_size", "4"], ["evaluation.batch_size", "4"]]
    assert "Number of images in a step." in lines[1]


def test_a_part_that_no_key_has_is_exit_code_2(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("options", "batchsize") == 2
    assert "No key has 'batchsize' in its path" in capsys.readouterr().err
