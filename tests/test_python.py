"""The Python surface: docs/python.md runs as it stands, prints nothing, and importing the package loads no torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pfedsam
from pfedsam.core import tensors
from pfedsam.engine.server_files import SERVER
from pfedsam.experiment.options import RunOptions

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
README = Path(__file__).parents[1] / "README.md"


def test_every_public_name_is_there() -> None:
    assert set(pfedsam.__all__) <= set(dir(pfedsam))
    for name in pfedsam.__all__:
        assert getattr(pfedsam, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = pfedsam.train


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, pfedsam; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_page_runs_as_it_stands_and_prints_nothing_but_what_it_says(
    tmp_path: Path, toy_options: RunOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    assert blocks
    content = toy_options.model_dump(mode="json", exclude_unset=True)
    # Options that every method of the page uses, and steps that all of them can make.
    content["training"] = {"rounds": 2, "steps_per_round": 2, "batch_size": 2}
    names = ["north", "south", "west"]
    content["data"]["sites"] = dict(zip(names, content["data"]["sites"].values(), strict=True))
    (tmp_path / "nuclei.yaml").write_text(yaml.safe_dump(content), "utf-8")
    new = sorted((Path(content["data"]["sites"]["north"]) / "images").iterdir())[0]
    (tmp_path / "new.png").write_bytes(new.read_bytes())
    monkeypatch.chdir(tmp_path)
    variables: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), variables)
    assert (tmp_path / "runs" / "comparison" / "comparison.html").exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed
    assert all(line.startswith(("train ", "Dice", "fedavg", "local-only", "north uses")) for line in printed), printed


@pytest.mark.slow
def test_the_lines_of_the_readme_are_a_script_that_trains_in_several_processes(
    tmp_path: Path, toy_options: RunOptions
) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    content = toy_options.model_dump(mode="json", exclude_unset=True)
    content["training"] |= {"rounds": 1, "shared_warmup_rounds": 0}
    content["data"]["sites"] = dict(zip(("north", "south"), content["data"]["sites"].values(), strict=False))
    new = next((Path(content["data"]["sites"]["north"]) / "images").iterdir())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), "utf-8")
    pfedsam.run(pfedsam.load_options(tmp_path / "study.yaml"), tmp_path / "one process")
    content["runtime"]["workers"] = 2
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), "utf-8")
    (tmp_path / "new.png").write_bytes(new.read_bytes())
    (tmp_path / "script.py").write_text(lines, "utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    one, two = (tensors.load(tmp_path / run / SERVER) for run in ("one process", "runs/study"))
    assert tensors.digest(one[0]) == tensors.digest(two[0])
