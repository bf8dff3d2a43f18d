"""Fixtures of all tests: a small federation of generated sites, and the recording of the results of the system tests."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedsam.core import rng
from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
from pfedsam.engine.site_agent import SiteAgent, SiteFolder
from pfedsam.engine.site_options import CONFIG
from pfedsam.engine.transport import Answers
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.messages import reply_to_wire, request_from_wire
from pfedsam.federation.site_policy import Gate, SitePolicy
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.report.result_file import commit, machine
from pfedsam.report.summary_file import collect_versions

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "system.json"
TOGETHER = {6: 2, 7: 2, 21: 2}
"""Rows of docs/reliability.md that several tests show together -> the number of these tests."""


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Start every test with the same state of torch's global generator, so that a test that draws from it gives one result always."""
    torch.manual_seed(0)


@pytest.fixture
def result(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds to `benchmarks/results/system.json`: figures by name, and the rows of docs/reliability.md that a test has shown to hold.

    A row that is shown only in part is under `rows_in_part`, with what is missing, and not under `rows_held`.
    """

    def add(*rows: int, in_part: dict[int, str] | None = None, **figures: float) -> None:
        content: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        parts = content.get("in_part_by_test", {}) | {request.node.name: in_part or {}}
        missing = {str(row): why for found in parts.values() for row, why in found.items()}
        by = content.get("rows_by_test", {}) | {request.node.name: sorted(rows)}
        shown = [row for tests in by.values() for row in tests]
        held = {row for row in shown if shown.count(row) >= TOGETHER.get(row, 1) and str(row) not in missing}
        content |= {"command": "make test-system", "date": datetime.now(UTC).date().isoformat(), "machine": machine()}
        content["commits"] = content.get("commits", {}) | {
            request.node.name: commit()
        }  # of the source that each test ran
        content["versions"] = {**collect_versions(), "nvflare": metadata.version("nvflare")}
        content |= {
            "rows_by_test": by,
            "in_part_by_test": parts,
            "rows_in_part": missing,
            "rows_held": sorted(held),
            **figures,
        }
        RESULTS.write_text(json.dumps(dict(sorted(content.items())), indent=2) + "\n")

    return add


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_sites(folder / "sites", SyntheticOptions(sites=3, cases=6, side=96), seed=1)
    new_network(compact_config("sam-toy"), rng.generator(0, "toy")).save_pretrained(folder / "backbone")
    return folder


@pytest.fixture
def toy_options(toy_folder: Path) -> RunOptions:
    sites = {path.name: str(path) for path in sorted((toy_folder / "sites").iterdir()) if path.is_dir()}
    return RunOptions.model_validate(
        {
            "name": "toy",
            "seed": 3,
            "data": {
                "sites": sites,
                "classes": {name: list(ids) for name, ids in LABELS.items()},
                "patient_pattern": PATIENT_PATTERN,
                "augment": {"views": 2},
            },
            "model": {
                "backbone": str(toy_folder / "backbone"),
                "adapt_last": 1,
                "lora": {"rank": 2},
                "experts": {"count": 2, "width": 4, "top_k": 1},
                "image_skip": {"channels": [4, 8]},
            },
            # So fast and so strict that sites do keep earlier models, or use the shared one, in every test of kills and runtimes;
            # local phases, because with them a run has every kind of phase: those of the warm-up, two decoupled ones with a teacher,
            # and a last one.
            "training": {
                "rounds": 4,
                "steps_per_round": 2,
                "final_steps": 1,
                "batch_size": 2,
                "shared_warmup_rounds": 2,
                "phases": "decoupled",
                "optimizer": {"learning_rate": 4e-2},
            },
            "evaluation": {"validate_every": 1, "max_drop": 0.0},
            "communication": {
                "codec": "fp32",
                "min_cases": 1,
            },  # so that means can be computed by hand, of sites of any size
            "runtime": {"device": "cpu"},  # where runs are equal to the bit
        }
    )


class LocalSites:
    """Sites in this process behind the coordinator's transport, each through its own gate; faults can be put in."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self.agents = {name: SiteAgent(SiteFolder(folder)) for name, folder in folders.items()}
        self.gates = {name: Gate(folder, name) for name, folder in folders.items()}
        self.asked: list[tuple[str, int, tuple[str, ...]]] = []
        self.wires: list[dict[str, bytes]] = []
        self.away: Callable[[str, str, int], bool] = lambda site, task, round_: False
        self.change: Callable[[str, str, int, dict[str, bytes]], dict[str, Any]] = lambda site, task, round_, wire: wire

    def connected(self) -> list[str]:
        task, round_, _ = self.asked[-1] if self.asked else ("join", 0, ())
        round_ += task not in ("join", "summarize")  # the requests with which a round begins
        return [site for site in self.agents if not self.away(site, "join", round_)]

    def needs_new_job(self) -> bool:
        return False

    def ask(self, request: Mapping[str, bytes], task: str, sites: Sequence[str], deadline_s: int) -> Answers:
        parsed = request_from_wire(request)
        self.asked.append((task, parsed.round, tuple(sites)))
        wires, missing = {}, {}
        for site in sites:
            if self.away(site, task, parsed.round):
                missing[site] = f"no reply within {deadline_s} s"
                continue
            out = self.gates[site].release(reply_to_wire(self.agents[site].handle(parsed)))
            self.wires.append(out)
            wires[site] = self.change(site, task, parsed.round, out)
        return Answers(wires, missing, overdue=tuple(missing))


@pytest.fixture
def make_sites(tmp_path: Path) -> Callable[[RunOptions, StudyManifest | None], LocalSites]:
    """Site folders as `pfedsam site init` makes them, with the study approved if one is given."""

    def make(options: RunOptions, manifest: StudyManifest | None) -> LocalSites:
        folders = {}
        for name, data in options.data.sites.items():
            folder = tmp_path / "hospitals" / name
            folder.mkdir(parents=True, mode=0o700)
            (folder / CONFIG).write_text(f"name: {name}\ndata: {data}\nbackbone: {options.model.backbone}\n")
            if manifest is not None:
                SitePolicy(folder).approve(manifest)
            folders[name] = folder
        return LocalSites(folders)

    return make
