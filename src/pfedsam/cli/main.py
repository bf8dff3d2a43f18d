"""The `pfedsam` command: registers all commands, and turns every error into one message and an exit code."""

import errno
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer._click.exceptions import ClickException

from pfedsam import __version__
from pfedsam.cli import bench, coordinator, data, onboard, options, results, run, site, weights
from pfedsam.cli.console import ERR, OUT, print_error, print_in_any_encoding, show_warnings
from pfedsam.cli.paragraphs import join_help
from pfedsam.core.errors import OptionError, PfedsamError, RunError, StoreError

INTERRUPTED = 130
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a full disk and of an exceeded quota."""
_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTDIR})
"""Error numbers for a file in the place of a folder."""
_CPU_ALLOCATION = "DefaultCPUAllocator: can't allocate memory"
"""Part of torch's message, which has no class of its own, for memory of the processor."""
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_FEWER = "fewer workers (runtime.workers; --workers of bench)"
_SMALLER = "model.precision=auto, model.recompute=true or a smaller training.batch_size also need less memory, but require a new folder."
_WITH_RESUME = ("run", "compare", "predict")
"""Commands that continue an interrupted run with `--resume`."""
_BY_THEMSELVES = ("bench", "demo", "coordinator start", "site start")
"""Commands that continue where they stopped when they are given again."""

app = typer.Typer(
    help="Personalised federated fine-tuning of the Segment Anything Model. Research use, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        OUT.print(f"pfedsam {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None: ...


app.command("demo")(run.demo_command)
app.command("run")(run.run_command)
app.command("compare")(run.compare_command)
app.command("options")(options.options_command)
app.command("evaluate")(results.evaluate_command)
app.command("predict")(results.predict_command)
app.command("onboard")(onboard.onboard_command)
app.command("report")(results.report_command)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(site.app, name="site")
join_help(app)


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: always, with the exit code of the error or 0.
        ModuleNotFoundError: the installation is incomplete.
        OSError: a system error that concerns neither a file nor a full disk.
        RuntimeError: an error of torch other than a lack of memory.
    """  # noqa: DOC501 - the interrupt is caught here
    print_in_any_encoding()
    show_warnings()
    try:
        _refuse_empty(sys.argv[1:])
        if app(standalone_mode=False) == INTERRUPTED:  # typer turns Ctrl-C into this exception
            raise KeyboardInterrupt
    except PfedsamError as error:
        print_error(str(error), type(error).__name__)
        raise SystemExit(error.exit_code) from error
    except (KeyboardInterrupt, typer.Abort):  # Abort is a RuntimeError: it is caught before the other ones
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not disturb what is left to do
        again = _again()
        ERR.print(f"Stopped. Nothing is lost: {again}." if again else "Stopped.")
        raise SystemExit(INTERRUPTED) from None
    except (ModuleNotFoundError, OSError, RuntimeError, MemoryError) as error:
        explained = _explain(error)
        if explained is None:
            raise
        print_error(str(explained))
        raise SystemExit(explained.exit_code) from error
    except ClickException as error:  # typer's errors about the usage of the command line
        error.show()
        raise SystemExit(error.exit_code) from error


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty argument, which would be read as the current folder.

    Raises:
        OptionError: there is one.
    """
    if "" in arguments:
        before = " ".join(arguments[: arguments.index("")])
        raise OptionError(
            f"The argument after {before!r} is empty, as with a shell variable that is not set. Give a value, or leave it out."
        )


def _explain(error: Exception) -> PfedsamError | None:
    """Translate an error from outside the package into one of its own errors, with advice; None if no advice is known."""
    if isinstance(error, OSError):
        return _explain_file(error)
    if isinstance(error, ModuleNotFoundError):
        ours = (error.name or "").split(".")[0] == "nvflare"
        return RunError("This command needs NVFlare: `pip install '.[deploy]'` in the checkout.") if ours else None
    return _explain_memory(error)


def _explain_memory(error: Exception) -> RunError | None:
    """Advice for a lack of memory; None for an error of another kind."""
    what, less = "The memory of this machine is not enough", _FEWER
    if type(error).__name__ == "OutOfMemoryError":  # torch's class of the error; torch is not loaded for every command
        what, less = "The GPU's memory is full", f"{_FEWER} or runtime.device=cpu"
    elif not (isinstance(error, MemoryError) or _CPU_ALLOCATION in str(error)):
        return None
    again = _again()
    go_on = f": set that and {again}" if again else ""
    return RunError(f"{what}. All completed work is saved. Less memory is needed with {less}{go_on}. {_SMALLER}")


def _explain_file(error: OSError) -> StoreError | None:
    """Advice for an error about a file; None if the error names no file and does not concern the disk."""
    of_the_disk = error.errno in {*_DISK, errno.EROFS}
    if error.filename is None and not of_the_disk:
        return None
    todo = _ADVICE.get(error.errno or 0, "All completed work is saved: solve this problem, then {again}.")
    where = f" ({error.filename})" if error.filename is not None else ""
    again = _again() or "give the same command again"
    return StoreError(f"{error.strerror or type(error).__name__}{where}. {todo.format(again=again)}")


_ADVICE = {
    **dict.fromkeys(_DISK, "All completed work is saved: free disk space, then {again}."),
    errno.EROFS: "This file system is read-only. All completed work is saved: make it writable, then {again}; or give a path elsewhere.",
    **dict.fromkeys(_IN_THE_WAY, "There is a file in the place of a folder: move it away, or give another path."),
    **dict.fromkeys(
        _DENIED,
        "You do not have the permission to read or write there: change the permissions, or give another path.",
    ),
    errno.ENOENT: "It does not exist: check the path.",
}
"""What to do about a system error, by its number; `again` is how to continue the command."""


def _again() -> str:
    """How to continue the given command; empty for a command that saves no progress."""
    words = " ".join(sys.argv[1:3])
    if words.startswith(_WITH_RESUME):
        return "give the same command with --resume"
    return "give the same command again" if words.startswith(_BY_THEMSELVES) else ""
