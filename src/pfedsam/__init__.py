"""pFedSAM: personalised federated fine-tuning of the Segment Anything Model.

Several hospitals fine-tune one SAM together without sharing images: a small set of *shared* parameters is averaged, a
*local* mixture of experts never leaves its site. The layers, from the top down, are `cli`, `bench`, `deploy`, `engine`, `experiment`,
`report`, `federation`, `training` and `evaluation`, `data` and `model`, `core`; imports only point down.
"""

import os

# By default, OpenMP threads poll in a loop while they wait and so occupy cores that the processes of other sites need: with two such
# threads on busy cores, training was measured to be 5 to 40 times slower. OpenMP reads this setting once, when torch is loaded; it is
# therefore set before any import of torch. A value that the user has set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__all__ = ["__version__"]
