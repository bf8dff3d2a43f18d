"""The `pfedsam` command: mounts the groups, and turns errors into one message and an exit code."""

import errno

import typer
from typer._click.exceptions import ClickException

from pfedsam.cli import bench, coordinator, data, onboard, pretrain, results, run, site, weights
from pfedsam.cli.console import ERR
from pfedsam.core.errors import PfedsamError, RunError, StoreError

INTERRUPTED = 130
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""A full disk, an empty quota, a disk that cannot be written to."""
_NO_MEMORY = (
    "The GPU's memory is full. What was finished is whole. Less is needed with model.precision=auto, model.recompute=true or a smaller "
    "training.batch_size, in a new folder; or go on with --resume and --set runtime.device=cpu, or fewer runtime.workers."
)

app = typer.Typer(
    help="Personalised federated fine-tuning of the Segment Anything Model. Research use, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("demo")(run.demo_command)
app.command("run")(run.run_command)
app.command("compare")(run.compare_command)
app.command("evaluate")(results.evaluate_command)
app.command("predict")(results.predict_command)
app.command("onboard")(onboard.onboard_command)
app.command("report")(results.report_command)
app.command("pretrain")(pretrain.pretrain_command)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(site.app, name="site")


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: with the exit code of what went wrong.
        ModuleNotFoundError: the installation is broken.
        OSError: that the disk is not to blame for.
        RuntimeError: other than of a GPU without memory.
    """
    try:
        app(standalone_mode=False)
    except PfedsamError as error:
        ERR.print(f"[red]{type(error).__name__}[/red]: ", end="")
        ERR.print(str(error), markup=False, highlight=False)
        raise SystemExit(error.exit_code) from error
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "nvflare":
            raise
        ERR.print("This command needs NVFlare: pip install 'pfedsam[deploy]'.", markup=False)
        raise SystemExit(RunError.exit_code) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        text = (
            f"{error.strerror}{where}. What was finished is whole: make room, then give the same command with --resume."
        )
        ERR.print(text, markup=False, highlight=False)
        raise SystemExit(StoreError.exit_code) from error
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not loaded for every command
            raise
        ERR.print(_NO_MEMORY, markup=False, highlight=False)
        raise SystemExit(RunError.exit_code) from error
    except (KeyboardInterrupt, typer.Abort):
        ERR.print("Stopped. Nothing is lost: give the same command with --resume.")
        raise SystemExit(INTERRUPTED) from None
    except ClickException as error:  # the command line's own usage errors
        error.show()
        raise SystemExit(error.exit_code) from error
