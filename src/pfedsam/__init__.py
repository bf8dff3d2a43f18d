"""pFedSAM: personalised federated fine-tuning of the Segment Anything Model.

Several hospitals fine-tune one SAM together without sharing images: a small set of *shared* parameters is averaged, a
*local* mixture of experts never leaves its site. The layers, from the top down, are `cli`, `bench`, `deploy`, `engine`, `experiment`,
`report`, `federation`, `training` and `evaluation`, `data` and `model`, `core`; imports only point down.
"""

import os

# A thread pool that spins while it waits takes the core from the processes of the other sites: two spinning threads on
# busy cores were measured 5 to 40 times slower. OpenMP reads this once, when torch is loaded, hence before any import
# of torch; a value that the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__all__ = ["__version__"]
