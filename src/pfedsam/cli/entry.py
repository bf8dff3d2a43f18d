"""The entry of the `pfedsam` command: it imports the commands, which takes half a second in which Ctrl-C is handled as well."""

import sys


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: Ctrl-C was pressed during the imports, or the command ended with an error; with the exit code.
    """
    try:
        from pfedsam.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        raise SystemExit(130) from None
    run()
