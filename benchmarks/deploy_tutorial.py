"""Carries out the tutorial docs/deploy.md: a coordinator and two hospitals as processes on this machine, with the commands that users type.

    .venv/bin/python benchmarks/deploy_tutorial.py [--out FOLDER] [--backbone sam-tiny]

Prints every command with its output, and ends at the first command that fails.
"""

import argparse
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from pfedsam.core import rng
from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
from pfedsam.model.backbones.compact import compact_config, new_network

COMMAND = [sys.executable, "-c", "from pfedsam.cli.main import main; main()"]
SITES = ("north", "south")
WAIT_S = 900


def main() -> None:
    """Prepare the data of two hospitals, and run the commands of the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a new folder; a temporary one otherwise")
    parser.add_argument("--backbone", default="toy", help="toy (seconds) or any backbone of a run")
    args = parser.parse_args()
    root = args.out or Path(tempfile.mkdtemp(prefix="pfedsam-"))
    root.mkdir(parents=True, exist_ok=True)
    prepare(root, args.backbone)
    follow(root)


def prepare(root: Path, backbone: str) -> None:
    """Write synthetic data for each hospital, and the study's configuration."""
    made = write_sites(root / "data", SyntheticOptions(sites=2, cases=6, side=96), seed=1)
    for site, name in zip(made, SITES, strict=True):
        (root / "data" / site.name).rename(root / "data" / name)
    model: dict[str, object] = {"backbone": backbone}
    if backbone == "toy":
        new_network(compact_config("sam-toy"), rng.generator(0, "toy")).save_pretrained(root / "backbone")
        model = {"backbone": "backbone", "adapt_last": 1, "lora": {"rank": 2}}
        model["experts"] = {"count": 2, "width": 4, "top_k": 1}
    study = {
        "name": "tutorial",
        "data": {
            "sites": {name: name for name in SITES},
            "classes": {name: list(ids) for name, ids in LABELS.items()},
            "patient_pattern": PATIENT_PATTERN,
        },
        "model": model,
        "training": {"rounds": 3, "steps_per_round": 4, "batch_size": 2},
    }
    (root / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def follow(root: Path) -> None:
    """Run the commands of the document, in its order.

    Raises:
        SystemExit: a command failed.
    """
    port = _free_port()
    pfedsam(root, f"coordinator init coord --address localhost --port {port}")
    for name in SITES:
        pfedsam(root, f"site request {name} --name {name}")
        pfedsam(root, f"coordinator sign coord {name}/{name}.csr --yes")
    pfedsam(root, "coordinator submit coord study.yaml --quorum 2 --deadline 300 --join 1800")
    (study,) = (root / "coord" / "studies").iterdir()
    processes = {"coordinator": start(root, "coordinator start coord --until-idle")}
    try:
        for name in SITES:
            own = " --backbone backbone" if (root / "backbone").exists() else ""
            pfedsam(root, f"site init {name} --kit coord/kits/{name}.zip --data data/{name}{own}")
            pfedsam(root, f"site approve {name} {study.relative_to(root)}/manifest.json --yes")
        _wait_for_port(port)
        for name in SITES:
            pfedsam(root, f"site check {name}")
            processes[name] = start(root, f"site start {name}")
        code = processes["coordinator"].wait(timeout=WAIT_S)
        if code:
            raise SystemExit(f"the coordinator ended with code {code}")
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=20)
    pfedsam(root, "coordinator renew coord")
    pfedsam(root, f"site request {SITES[0]} --name {SITES[0]}")
    pfedsam(root, f"coordinator sign coord {SITES[0]}/{SITES[0]}.csr")
    pfedsam(root, f"site renew {SITES[0]} --kit coord/kits/{SITES[0]}.zip")
    pfedsam(root, "coordinator status coord")
    for name in SITES:
        pfedsam(root, f"site ledger {name}")
    image = sorted((root / "data" / SITES[0] / "images").iterdir())[0]
    pfedsam(root, f"site predict {SITES[0]} {image.relative_to(root)} --out masks")
    for file in ("report.html", "summary.json", "records.jsonl", "shared/shared.safetensors"):
        if not (study / file).is_file():
            raise SystemExit(f"the study has no {file}")
    print("The tutorial ran to its end.")


def pfedsam(root: Path, command: str) -> None:
    """Run a command in the foreground, and print it with its output.

    Raises:
        SystemExit: it failed.
    """
    print(f"$ pfedsam {command}", flush=True)
    done = subprocess.run([*COMMAND, *shlex.split(command)], cwd=root, text=True, capture_output=True, timeout=WAIT_S)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"failed with code {done.returncode}: {done.stderr}")


def start(root: Path, command: str) -> "subprocess.Popen[bytes]":
    """Run a command in the background, as in a terminal of its own."""
    print(f"$ pfedsam {command} &", flush=True)
    return subprocess.Popen([*COMMAND, *shlex.split(command)], cwd=root, stderr=subprocess.DEVNULL)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for_port(port: int) -> None:
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise SystemExit("the coordinator does not listen")


if __name__ == "__main__":
    main()
