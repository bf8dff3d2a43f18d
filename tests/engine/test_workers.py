"""The worker processes that train sites in parallel."""

import pkgutil
import signal
from functools import partial

import pytest

from pfedsam.engine.workers import Workers, busy_processes


def test_a_process_never_sees_ctrl_c_and_the_parent_still_does() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # The work of the process is `signal.pthread_sigmask`, which says what is blocked there; it is so from the start of the process, because
    # the process did not ask for it.
    workers = Workers(partial(pkgutil.resolve_name, "signal:pthread_sigmask"), [], 2)
    try:
        ((_, blocked),) = workers.each([signal.SIG_BLOCK], ())  # type: ignore[list-item]
    finally:
        workers.close()
    assert signal.SIGINT in blocked
    assert signal.SIGTERM not in blocked  # by which `close` ends it
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_in_one_process_each_site_is_worked_for_when_its_turn_comes() -> None:
    done: list[str] = []
    workers = Workers(lambda: lambda site, word: done.append(site + word) or len(done), ["a", "b"], 1)
    each = workers.each(["a", "b"], "!")
    assert next(each) == ("a", 1)
    assert done == ["a!"]
    assert list(each) == [("b", 2)]


def test_an_error_of_a_site_is_raised_as_it_is() -> None:
    def fail(site: str) -> None:
        raise ValueError(f"site {site}")

    with pytest.raises(ValueError, match="site b"):
        list(Workers(lambda: fail, ["b"], 1).each(["b"]))


@pytest.mark.parametrize(
    ("sites", "cores", "expected"),
    [(1, 8, 1), (3, 8, 3), (8, 8, 8), (4, 2, 2), (3, 2, 3), (5, 2, 3), (9, 4, 5), (6, 1, 1)],
)
def test_no_core_waits_while_another_has_two_sites(sites: int, cores: int, expected: int) -> None:
    assert busy_processes(sites, cores) == expected
