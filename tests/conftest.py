"""For all tests: what the system tests write down."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pfedsam.report.result_file import commit, machine
from pfedsam.report.summary_file import collect_versions

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "system.json"
TOGETHER = {6: 2, 7: 2, 21: 2}
"""Rows of reliability that take several tests, each of which shows a part of it: how many."""


@pytest.fixture
def result(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds to `benchmarks/results/system.json`: figures by name, and the rows of reliability that a test has held.

    A row of which less is shown than it asks for stands under `rows_in_part`, with what is missing, and not under `rows_held`.
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
