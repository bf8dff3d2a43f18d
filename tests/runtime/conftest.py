"""A tiny federation: three generated sites, the two-block toy SAM, seconds to run."""

from pathlib import Path

import pytest

from pfedsam.core import rng
from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.model.backbone import compact_config, new_backbone


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_sites(folder / "sites", SyntheticOptions(sites=3, cases=6, side=96), seed=1)
    new_backbone(compact_config("sam-toy"), rng.generator(0, "toy")).save_pretrained(folder / "backbone")
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
            },
            "training": {"rounds": 4, "steps_per_round": 2, "final_steps": 1, "batch_size": 2},
        }
    )
