"""With the shipped SAM, every method predicts masks that are not empty after the first rounds, also if its parameters are averaged."""

from pathlib import Path

import pytest

from pfedsam.data.synthetic import PATIENT_PATTERN, SyntheticOptions, write_sites
from pfedsam.engine.run import run
from pfedsam.experiment.options import RunOptions


@pytest.mark.slow
@pytest.mark.parametrize("method", ["local-only", "fedavg", "pfedsam", "centralized"])
def test_two_short_rounds_find_the_organ(tmp_path: Path, method: str) -> None:
    sites = write_sites(tmp_path / "sites", SyntheticOptions(sites=3, cases=8, side=96), seed=1)
    sites = (sites[0], sites[2])  # the second is inverted: what averaging makes of that is a question of many rounds
    options = RunOptions.model_validate(
        {
            "method": method,
            "data": {
                "sites": {site.name: str(tmp_path / "sites" / site.name) for site in sites},
                "classes": {"organ": [1, 2]},
                "patient_pattern": PATIENT_PATTERN,
            },
            "training": {"rounds": 2, "steps_per_round": 8, "final_steps": 4, "batch_size": 4},
            "evaluation": {"validate_every": 0},
        }
    )
    summary = run(options, tmp_path / "run")
    for name, site in summary.sites.items():
        assert site.in_use is not None, name
        assert site.in_use.dice is not None, name
        assert site.in_use.dice > 0.3, (method, name, site.in_use.dice)
