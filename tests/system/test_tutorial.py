"""The tutorial of docs/deploy.md, carried out by a script with the commands that are typed there."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]


def test_the_tutorial_runs_to_its_end(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "deploy_tutorial.py"), "--out", str(tmp_path / "tutorial")]
    done = subprocess.run(command, text=True, capture_output=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.endswith("The tutorial ran to its end.\n")
    text = (ROOT / "docs" / "deploy.md").read_text()
    steps = ("coordinator init", "site request", "coordinator sign", "coordinator submit", "coordinator start")
    for words in (*steps, "site init", "site approve"):
        assert f"pfedsam {words}" in text
        assert f"$ pfedsam {words}" in done.stdout
