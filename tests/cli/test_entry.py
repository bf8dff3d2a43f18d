"""Ctrl-C while the commands are imported."""

import sys

import pytest

from pfedsam.cli.entry import main


class Interrupted:
    """An import hook that acts as if Ctrl-C was pressed while a module is imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pfedsam.cli.main":
            raise KeyboardInterrupt


def test_ctrl_c_during_the_imports_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "pfedsam.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_the_entry_runs_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pfedsam", "--version"])
    main()
    assert capsys.readouterr().out.startswith("pfedsam ")
