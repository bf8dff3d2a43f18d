"""The overview of the evidence: its cells by hand, and the documents that repeat its table."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import overview  # noqa: E402 - a script of the repository, which is no part of the package


def test_a_row_has_bold_differences_where_the_interval_excludes_0() -> None:
    found = overview.row(
        {
            "figures": {"dice_mean.pfedsam": 71.25, "dice_worst_site.pfedsam": 60.04},
            "comparisons": {
                "local-only": {"difference": 2.04, "interval": [0.5, 3.5]},
                "fedavg": {"difference": -0.96, "interval": [-2.0, 0.1]},
                "fedmsa": {"difference": -3.0, "interval": [-4.0, -2.0]},
                "unet-local": {"difference": 9.0, "interval": [8.0, 10.0]},
                "unet-local-4e-3": {"difference": 1.0, "interval": [-1.0, 2.0]},
            },
        }
    )
    assert found == ["71.2 (60.0)", "**+2.0**", "-1.0", "", "**-3.0**", "", "+1.0"]


@pytest.mark.parametrize("document", ["README.md", "docs/evidence.md", "benchmarks/results/overview.md"])
def test_the_documents_have_the_table_of_the_result_files(document: str) -> None:
    assert overview.table(overview.RESULTS) in (ROOT / document).read_text("utf-8")
