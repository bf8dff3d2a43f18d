"""The worker processes that train sites in parallel."""

import pickle
import pkgutil
import signal
import subprocess
import sys
import xmlrpc.client
from collections.abc import Sequence
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from pfedsam.core.errors import RunError
from pfedsam.engine.workers import Workers, busy_processes
from pfedsam.federation.site_policy import RefusedError


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


def test_a_process_that_was_killed_is_an_error_that_says_what_needs_less_memory() -> None:
    workers = Workers(partial(pkgutil.resolve_name, "os:_exit"), [], 2)
    try:
        with pytest.raises(RunError, match="probably because memory ran out") as caught:
            list(workers.each([9]))  # type: ignore[list-item]
    finally:
        workers.close()
    for less in ("runtime.workers", "training.batch_size", "model.precision", "--resume"):
        assert less in str(caught.value)


def test_a_second_ctrl_c_while_the_processes_end_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(partial(pkgutil.resolve_name, "time:sleep"), [60, 61], 2)  # type: ignore[list-item]
    for seconds in (60, 61):
        workers._submit(seconds)  # type: ignore[arg-type]
    processes = [process for pool in workers._pools for process in pool._processes.values()]

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SpawnProcess, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workers.close()
    monkeypatch.undo()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [-signal.SIGTERM, -signal.SIGTERM]


@pytest.mark.parametrize(
    ("make", "site", "kind", "says"),
    [
        ("no_such_module:function", "north", ModuleNotFoundError, "No module named 'no_such_module'"),
        # This error cannot be read again in another process, because its class needs more arguments than it keeps.
        ("xmlrpc.client:loads", xmlrpc.client.dumps(xmlrpc.client.Fault(3, "broken")), RunError, "^Fault: .*broken"),
    ],
)
def test_an_error_of_a_process_is_raised_and_not_taken_for_a_lack_of_memory(
    make: str, site: str, kind: type[Exception], says: str
) -> None:
    workers = Workers(partial(pkgutil.resolve_name, make), [], 2)
    try:
        with pytest.raises(kind, match=says):
            list(workers.each([site]))
    finally:
        workers.close()


def test_a_refusal_of_a_site_can_be_sent_by_a_process() -> None:
    sent = pickle.loads(pickle.dumps(RefusedError("wrong-round", "this site is already several rounds ahead.")))
    assert (type(sent), sent.word, str(sent)) == (
        RefusedError,
        "wrong-round",
        "this site is already several rounds ahead.",
    )


SCRIPT = """
import pkgutil
from functools import partial
from pfedsam.engine.workers import Workers

origin = globals().get("__file__"), __spec__
print("executed", flush=True)
workers = Workers(partial(pkgutil.resolve_name, "operator:neg"), [1, 2], 2)
print(list(workers.each([1])), list(workers.each([2, 1])), flush=True)  # the second call starts the second process
workers.close()
assert (globals().get("__file__"), __spec__) == origin
"""


@pytest.mark.parametrize("how", [["script.py"], ["-m", "script"], ["-"], ["-c", SCRIPT]])
def test_a_script_without_a_guard_is_executed_once(tmp_path: Path, how: Sequence[str]) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *how], cwd=tmp_path, input=SCRIPT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "executed\n[(1, -1)] [(2, -2), (1, -1)]\n", "")
