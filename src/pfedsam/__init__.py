"""pFedSAM: personalised federated fine-tuning of the Segment Anything Model.

Several hospitals fine-tune one SAM together without sharing images: a small set of *shared* parameters is averaged, a
*local* mixture of experts never leaves its site. The layers, from the top down, are `cli`, `bench`, `deploy`, `engine`, `experiment`,
`report`, `federation`, `training` and `evaluation`, `data` and `model`, `core`; imports only point down.

The names in `__all__` are the public surface; docs/python.md shows them at work.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# By default, OpenMP threads poll in a loop while they wait and so occupy cores that the processes of other sites need: with two such
# threads on busy cores, training was measured to be 5 to 40 times slower. OpenMP reads this setting once, when torch is loaded; it is
# therefore set before any import of torch. A value that the user has set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from pfedsam.core.errors import PfedsamError
    from pfedsam.engine.compare import compare
    from pfedsam.engine.opened import open_run
    from pfedsam.engine.run import run
    from pfedsam.experiment.load import load_options
    from pfedsam.federation.methods import METHODS

__version__ = "0.1.0"

__all__ = ["METHODS", "PfedsamError", "__version__", "compare", "load_options", "open_run", "run"]

_HOMES = {
    "METHODS": "pfedsam.federation.methods",
    "PfedsamError": "pfedsam.core.errors",
    "compare": "pfedsam.engine.compare",
    "load_options": "pfedsam.experiment.load",
    "open_run": "pfedsam.engine.opened",
    "run": "pfedsam.engine.run",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of whatever is asked for
    """Import what is asked for when it is first used, so that `import pfedsam` loads neither torch nor transformers.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
