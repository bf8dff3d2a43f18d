"""The coordinator's memory does not grow with the number of sites: 4 and 32 simulated sites with payloads of a LoRA for SAM ViT-B."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

PROGRAM = """
import sys
from pathlib import Path
import torch
from pfedsam.core import tensors
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, read_manifest, shared_tensors, write_manifest
from pfedsam.federation.messages import Reply, reply_to_wire, request_from_wire
from pfedsam.federation.server import ServerState
from pfedsam.federation.update import Update, encode
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.rounds import StudyRun
from pfedsam.engine.study_folder import StudyFolder, create_study
from pfedsam.engine.transport import Answers

root, count = Path(sys.argv[1]), int(sys.argv[2])
options = RunOptions.model_validate(__import__("json").loads(sys.argv[3]))
study = create_study(options, root, RoundPolicy())
# 147 k parameters, 590 kB: LoRA of rank 4 on q and v of SAM ViT-B (peers' table).
shared = {f"block{i}.lora_{x}": torch.zeros(2, 768 * 4) for i in range(12) for x in ("a", "b")}
manifest = read_manifest(study / "manifest.json").model_copy(update={
    "tensors": shared_tensors(shared), "components": {"lora": tuple(sorted(shared))}, "class_tensors": {}})
write_manifest(study / "manifest.json", manifest)
StudyFolder(study).save_state(ServerState(0, shared), manifest)

class Sites:
    def connected(self): return [f"site_{i:02d}" for i in range(count)]
    def needs_new_job(self): return False
    def ask(self, request, task, sites, deadline_s):
        asked = request_from_wire(request)
        return Answers({site: reply_to_wire(self.reply(site, asked)) for site in sites})
    def reply(self, site, asked):
        numbers, update = {}, b""
        if asked.task == "join": numbers = {"cases": 5}
        if asked.task == "train": update = encode(Update(site, asked.round, {n: t + 0.01 for n, t in shared.items()}, 5))
        return Reply(asked.task, asked.study, asked.round, numbers, update)

try:
    StudyRun(study, Sites()).run()
except Exception as error:
    assert "test scores" in str(error), error
assert StudyFolder(study).load_state(manifest).round == options.training.rounds
# Not ru_maxrss, which starts with the size of the process that started this one.
peak, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(int(peak.split()[1]) / 1024)
"""


def peak_mb(folder: Path, count: int, options: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(count), options], text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def options_of(count: int) -> str:
    """The options of a study of so many sites, as JSON."""
    return json.dumps(
        {
            "data": {"sites": {f"site_{i:02d}": "." for i in range(count)}, "classes": {"organ": [1]}},
            "training": {"rounds": 5},
            "evaluation": {"validate_every": 0},
            "communication": {"codec": "fp32"},  # the longest updates
        }
    )


def test_32_sites_take_no_more_than_a_tenth_more_than_4(tmp_path: Path, result) -> None:
    four, many = (peak_mb(tmp_path / str(count), count, options_of(count)) for count in (4, 32))
    growth = many / four - 1
    assert growth <= 0.10, (four, many)
    result(server_memory_growth_32=round(growth, 4), server_memory_mb_4=round(four, 1))
