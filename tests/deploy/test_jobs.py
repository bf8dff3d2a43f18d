"""A study as NVFlare's job: configurations alone, sent to the server and the study's sites and to nobody else."""

import json
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from pfedsam.deploy.jobs import write_job


def test_a_job_holds_no_code(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", "0" * 16, ["north"])
    assert sorted(path.suffix for path in job.rglob("*") if path.is_file()) == [".json"] * 3


def test_a_job_is_sent_to_the_sites_of_the_study_and_names_the_study(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "left.json").write_text("{}")
    job = write_job(tmp_path / "job", "0" * 16, ["north", "south"])
    assert not (job / "left.json").exists()
    meta = json.loads((job / "meta.json").read_text())
    assert meta["deploy_map"] == {"app": ["server", "north", "south"]}
    (workflow,) = json.loads((job / "app/config/config_fed_server.json").read_text())["workflows"]
    assert workflow["args"] == {"study": "0" * 16, "may_wait": False}
    (executor,) = json.loads((job / "app/config/config_fed_client.json").read_text())["executors"]
    assert executor["executor"]["args"] == {}  # a job names no folder of a site
