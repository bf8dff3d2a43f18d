"""A real federation on this machine: coordinator and sites as their own processes, made by the commands that users type."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pfedsam.cli import coordinator as coordinator_commands
from pfedsam.cli import site as site_commands
from pfedsam.core import rng
from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.site_policy import SitePolicy
from pfedsam.model.backbones.compact import compact_config, new_network

pytest.importorskip("nvflare")
PATIENCE = min(4.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
"""A machine that others use too is given more time to get somewhere; no figure is measured by it."""
CANARY = "p0007-Jane-Doe-1961"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}


def wait_for(what: Callable[[], Any], seconds: float, why: str) -> Any:
    limit = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < limit:
        found = what()
        if found:
            return found
        time.sleep(0.25)
    raise AssertionError(f"not within {seconds} s: {why}")


def free_ports() -> int:
    """A port that is free together with the next one."""
    for _ in range(50):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two free ports")


class Federation:
    """Folders and processes; everything that it starts is ended with it."""

    def __init__(self, root: Path, count: int, *, rounds: int = 3, training: dict[str, Any] | None = None) -> None:
        self.root, self.coordinator, self.patience = root, root / "coordinator", PATIENCE
        self.port = free_ports()
        names = self._write_data(count)
        self.config = root / "study.yaml"
        content = {
            "name": "system",
            "seed": 3,
            "data": {
                "sites": {name: str(root / "data" / name) for name in names},
                "classes": {name: list(ids) for name, ids in LABELS.items()},
                "patient_pattern": PATIENT_PATTERN,
                "augment": {"views": 2},
            },
            "model": {
                "backbone": str(root / "backbone"),
                "adapt_last": 1,
                "lora": {"rank": 2},
                "experts": {"count": 2, "width": 4, "top_k": 1},
            },
            "training": {
                "rounds": rounds,
                "steps_per_round": 2,
                "final_steps": 1,
                "phases": "decoupled",  # with a last phase, so that every task is asked for
                "batch_size": 2,
                **(training or {}),
            },
            "evaluation": {"validate_every": 1},
            "communication": {
                "min_cases": 1
            },  # the sites are small, and a local run of the study is to have the same bits
        }
        self.config.write_text(yaml.safe_dump(content))
        self.names = names
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        coordinator_commands.init_command(
            self.coordinator, sites=",".join(names), address="localhost", port=self.port, project="pfedsam"
        )

    def _write_data(self, count: int) -> list[str]:
        write_sites(self.root / "data", SyntheticOptions(sites=count, cases=6, side=96), seed=1)
        new_network(compact_config("sam-toy"), rng.generator(0, "toy")).save_pretrained(self.root / "backbone")
        names = sorted(path.name for path in (self.root / "data").iterdir() if path.is_dir())
        for part in ("images", "masks"):  # a patient's name, as a careless file name holds it
            victim = sorted((self.root / "data" / names[0] / part).iterdir())[0]
            victim.rename(victim.with_name(f"{CANARY}{victim.suffix}"))
        return names

    def submit(
        self, *, join: int = 240, quorum: int = 2, deadline: int = 1800, overrides: list[str] | None = None
    ) -> Path:
        coordinator_commands.submit_command(
            self.coordinator,
            self.config,
            quorum=quorum,
            deadline=deadline,
            join=int(join * PATIENCE),
            overrides=overrides,
        )
        return self.study

    @property
    def study(self) -> Path:
        (study,) = (self.coordinator / "studies").iterdir()
        return study

    def site(self, name: str) -> Path:
        return self.root / "hospitals" / name

    def init_sites(self, data_folders: dict[str, Path] | None = None) -> None:
        for name in self.names:
            kit = self.coordinator / "kits" / f"{name}.zip"
            data = (data_folders or {}).get(name, self.root / "data" / name)
            site_commands.init_command(
                self.site(name),
                kit=kit,
                data=data,
                backbone=str(self.root / "backbone"),
                patient_pattern=None,
                threads=1,
                device="cpu",
            )
            SitePolicy(self.site(name)).approve(read_manifest(self.study / "manifest.json"))

    def start(self, name: str, *options: str, path: Path | None = None) -> subprocess.Popen[bytes]:
        """Start the coordinator (by that word) or a site; `path` comes first where Python looks for modules."""
        args = (
            ["coordinator", "start", self.coordinator] if name == "coordinator" else ["site", "start", self.site(name)]
        )
        command = [sys.executable, "-c", "from pfedsam.cli.main import main; main()", *map(str, args), *options]
        with (self.root / f"{name}.out").open("ab") as out:
            env = ENV if path is None else {**ENV, "PYTHONPATH": f"{path}{os.pathsep}{ENV.get('PYTHONPATH', '')}"}
            self.processes[name] = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        return self.processes[name]

    def start_all(self, *options: str) -> None:
        self.start("coordinator", *options)
        for name in self.names:
            self.start(name)

    def kill(self, name: str) -> None:
        """SIGKILL to a party's every process at once, as a power cut would end it."""
        for process in family(self.processes[name].pid):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.processes[name].wait()

    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.study / "status.json").read_text()))

    def wait_for(self, what: Callable[[], Any], seconds: float, why: str) -> Any:
        return wait_for(what, seconds, why)

    def wait_round(self, round_: int, seconds: float = 240) -> None:
        wait_for(lambda: self.status()["round"] >= round_, seconds, f"round {round_}: {self.status()}")

    def wait_end(self, seconds: float = 400) -> dict[str, Any]:
        return dict(
            wait_for(
                lambda: (s := self.status())["state"] in ("finished", "stopped") and s,
                seconds,
                f"the end: {self.status()}",
            )
        )

    def records(self, kind: str) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.study / "records.jsonl").read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for name, process in self.processes.items():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill(name)


def family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    made: list[Federation] = []

    def make(count: int, **options: Any) -> Federation:
        made.append(Federation(tmp_path / f"federation{len(made)}", count, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
