"""A study as a job of NVFlare: only configurations, sent only to the server and the sites of the study."""

import json
import os
import time
import uuid
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from pfedsam.deploy.jobs import remove_old_jobs, write_job


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


def test_only_the_folders_of_the_last_five_jobs_stay_at_a_site(tmp_path: Path) -> None:
    jobs = [tmp_path / str(uuid.uuid4()) for _ in range(8)]
    others = [tmp_path / "startup", tmp_path / "local"]
    for at, folder in enumerate([*others, *jobs]):
        folder.mkdir()
        (folder / "log.txt").touch()
        os.utime(folder, (at, at))
    (tmp_path / f"{uuid.uuid4()}.txt").touch()
    file = tmp_path / str(uuid.uuid4())  # not a folder
    file.touch()
    for _ in range(2):
        remove_old_jobs(tmp_path)
        assert {path for path in tmp_path.iterdir() if path.is_dir()} == {*others, *jobs[3:]}
        assert file.exists()


def test_the_folder_of_a_new_job_stays_after_the_clock_was_set_back(tmp_path: Path) -> None:
    for _ in range(5):
        (folder := tmp_path / str(uuid.uuid4())).mkdir()
        os.utime(folder, (time.time() + 86400,) * 2)
    (new := tmp_path / str(uuid.uuid4())).mkdir()
    remove_old_jobs(tmp_path)
    assert new.exists()
    assert len(list(tmp_path.iterdir())) == 5
