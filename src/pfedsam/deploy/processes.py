"""Start and end NVFlare's processes so that none outlives the command that started it."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import psutil

from pfedsam.core.errors import RunError
from pfedsam.core.log import MAX_BYTES

_PR_SET_PDEATHSIG: Final = 1
_RESTARTS: Final = 5
_WINDOW_S: Final = 300.0
_POLL_S: Final = 0.25
GRACE_S: Final = 3.0
"""Seconds that a process has to end by itself before it is killed."""
_FREE_S: Final = 5.0
"""Seconds in which a port has to become free, because the processes of a killed coordinator end a little later."""


class StopFlag:
    """Set by SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self.is_set = False

    def install(self) -> None:
        """Let SIGTERM and SIGINT set the flag; a second signal changes nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def close(self) -> None:
        """Ignore both signals during the remaining clean-up; Python would otherwise restore its default handlers before it exits."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True


class Engine:
    """One NVFlare parent process with all processes that it starts; restarted when it dies, up to a limit."""

    def __init__(
        self, module: str, workspace: Path, config: str, settings: Sequence[str], env: Mapping[str, str]
    ) -> None:
        """Prepare the command without starting it.

        Args:
            module: the NVFlare module to run with this Python.
            workspace: the folder that contains `startup/` and `local/`.
            config: the name of the configuration file in `startup/`.
            settings: the arguments of NVFlare's `--set`.
            env: variables to add to this process's environment.
        """
        self._command = [sys.executable, "-u", "-m", module, "-m", str(workspace), "-s", config, "--set", *settings]
        self._log = workspace / "engine.log"
        self._unlimited = (self._log, workspace / "audit.log")
        """The logs whose size NVFlare does not limit itself."""
        # The working directory is not on the path on which Python finds modules: NVFlare writes the files of jobs into it.
        self._workspace, self._env = workspace, {**os.environ, **env, "PYTHONSAFEPATH": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: list[float] = []

    def start(self) -> None:
        """Start the process; its output goes to `engine.log` in the workspace."""
        self._starts.append(time.monotonic())
        descriptor = os.open(self._log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._workspace,
                start_new_session=True,
                preexec_fn=partial(_die_with, os.getpid()),
            )

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def keep_alive(self) -> bool:
        """Restart the process if it died and limit the size of its logs; return False when it died too often."""
        for log in self._unlimited:
            cut_log(log)
        if self.alive:
            return True
        recent = [start for start in self._starts if time.monotonic() - start < _WINDOW_S]
        if len(recent) >= _RESTARTS:
            return False
        self.end()
        self.start()
        return True

    def serve(self, each_time: Callable[[], object] = lambda: None) -> bool:
        """Run the process until SIGTERM or SIGINT and then end all its children; return False when it died too often.

        Args:
            each_time: called about every second while the process is running.
        """
        stop = StopFlag()
        stop.install()
        self.start()
        try:
            while not stop.is_set:
                if not self.keep_alive():
                    return False
                each_time()
                time.sleep(_POLL_S)
            return True
        finally:
            self.end()
            stop.close()

    def end(self) -> None:
        """End the process and all its descendants: first with SIGTERM, after `GRACE_S` seconds with SIGKILL."""
        if self._process is None:
            return
        everyone = _family(self._process.pid)  # listed by parent: the processes of jobs are in other sessions
        for process in everyone:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE_S)
        for process in everyone:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE_S)


def _family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.Error:
        return []


def has_open(pid: int, path: Path) -> bool:
    """Whether the process of this id on this machine has a file open; False if there is no such process, or it is that of another user."""
    with contextlib.suppress(psutil.Error):
        return str(path.resolve()) in {one.path for one in psutil.Process(pid).open_files()}
    return False


def _die_with(parent: int) -> None:
    """In the child (Linux): request SIGKILL for the time when the parent ends, and exit at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def refuse_used_port(port: int) -> None:
    """Refuse a port on which another program listens.

    NVFlare's server does not notice it: the system lets both listen, and gives each connection to one of them.

    Raises:
        RunError: another program listens on it, or this user may not use it.
    """
    limit = time.monotonic() + _FREE_S
    while True:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else connections that have just ended count too
            try:
                one.bind(("", port))
                return
            except OSError as error:
                if time.monotonic() < limit:
                    time.sleep(_POLL_S)
                    continue
                raise RunError(
                    f"the port {port} of this machine cannot be used ({error.strerror}): another program listens on it, for example "
                    "another coordinator, or this user may not use it. Stop that program. A coordinator keeps its --port and the next one: "
                    "for two coordinators on one machine, make one of them with other ports."
                ) from error


def cut_log(path: Path, limit: int = MAX_BYTES) -> None:
    """Copy a log to `<name>.1` and empty it once it is larger than `limit` bytes; another process may be appending to it."""
    with contextlib.suppress(OSError):  # a problem with a log must not end the process
        if path.stat().st_size > limit:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            path.with_name(f"{path.name}.1").chmod(0o600)
            os.truncate(path, 0)
