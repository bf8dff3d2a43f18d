"""The contract of the runtimes: NVFlare's simulator, each site in a process of its own, gives the embedded runtime's bits."""

from pathlib import Path

import pytest
import yaml

from pfedsam.core import rng, tensors
from pfedsam.core.tensors import digest
from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
from pfedsam.engine.rounds import RoundPolicy
from pfedsam.engine.run import run
from pfedsam.engine.server_files import SERVER
from pfedsam.engine.study_folder import create_study
from pfedsam.experiment.load import load_options
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.manifest import read_manifest
from pfedsam.federation.site_policy import SitePolicy
from pfedsam.federation.site_store import SiteStore
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.report.records import deterministic_view, read_records
from pfedsam.report.summary_file import read_summary

pytest.importorskip("nvflare")
from pfedsam.deploy.jobs import simulate

pytestmark = pytest.mark.system


def test_the_simulator_gives_the_embedded_runtimes_bits(tmp_path: Path) -> None:
    sites = [site.name for site in write_sites(tmp_path / "data", SyntheticOptions(sites=2, cases=6, side=96), seed=1)]
    new_network(compact_config("sam-toy"), rng.generator(0, "toy")).save_pretrained(tmp_path / "backbone")
    content = {
        "seed": 3,
        "data": {
            "sites": {name: str(tmp_path / "data" / name) for name in sites},
            "classes": {name: list(ids) for name, ids in LABELS.items()},
            "patient_pattern": PATIENT_PATTERN,
        },
        "model": {"backbone": str(tmp_path / "backbone"), "adapt_last": 1, "lora": {"rank": 2}},
        "training": {"rounds": 2, "steps_per_round": 2, "final_steps": 1, "phases": "decoupled", "batch_size": 2},
        "evaluation": {"validate_every": 1},
        "communication": {"min_cases": 1},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    options = load_options(tmp_path / "study.yaml")
    study = create_study(options, tmp_path / "studies", RoundPolicy())
    for name in sites:
        folder = tmp_path / "hospitals" / name
        folder.mkdir(parents=True)
        (folder / "site.yaml").write_text(
            f"name: {name}\ndata: {tmp_path / 'data' / name}\nbackbone: {tmp_path / 'backbone'}\n"
        )
        SitePolicy(folder).approve(read_manifest(study / "manifest.json"))
    simulate(study, tmp_path / "hospitals", sites, tmp_path / "work")
    run(options, tmp_path / "here")
    assert digest(tensors.load(study / SERVER)[0]) == digest(tensors.load(tmp_path / "here" / SERVER)[0])
    one, other = read_summary(study / "summary.json"), read_summary(tmp_path / "here" / "summary.json")
    assert (one.sites, one.mean) == (other.sites, other.mean)
    records = [deterministic_view(read_records(folder / "records.jsonl")) for folder in (study, tmp_path / "here")]
    assert records[0] == records[1]
    for name in sites:
        there = SiteStore(tmp_path / "hospitals" / name / "studies" / study.name / "state").load()
        here = SiteStore(tmp_path / "here" / "sites" / name / "state").load()
        assert there is not None
        assert here is not None
        assert (digest(there.local), digest(there.optimizer)) == (digest(here.local), digest(here.optimizer))
        assert (
            len(Ledger(tmp_path / "hospitals" / name / "ledger.jsonl").read()) == 1 + 2 * 2 + 3
        )  # join; train and validate; finalize, validate, test
