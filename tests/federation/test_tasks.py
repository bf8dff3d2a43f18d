import subprocess
import sys

import pytest

from pfedsam.federation.tasks import Task, in_words


@pytest.mark.parametrize(
    ("task", "round_", "rounds", "text"),
    [
        ("train", 0, 24, "train of round 1"),
        ("validate", 23, 24, "validate of round 24"),
        ("validate", 24, 24, "validate at the end"),
        ("validate", 24, None, "validate of round 25"),
        ("join", 7, 24, "join"),
        ("finalize", 24, 24, "finalize"),
        ("test", 24, 24, "test"),
    ],
)
def test_rounds_are_counted_from_1_and_none_comes_after_the_last(
    task: Task, round_: int, rounds: int, text: str
) -> None:
    assert in_words(task, round_, rounds) == text


def test_the_module_and_the_one_that_starts_a_site_load_no_torch() -> None:
    code = "import sys, pfedsam.federation.tasks, pfedsam.deploy.site_service; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
