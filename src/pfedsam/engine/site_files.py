"""The files that a new run or study writes into a site's folder: the split, and the properties of the training images."""

from pathlib import Path
from typing import Final

from pfedsam.data.facts import SiteFacts
from pfedsam.data.split import write_split
from pfedsam.data.trained_on import FILES, TrainedOn

SPLIT: Final = "split.json"
SITE_FILES: Final = FILES | {SPLIT}
"""The files that `write_site` writes."""


def write_site(folder: Path, facts: SiteFacts) -> None:
    """Write a site's split with digests of its files, and the properties of its training images; the split is written last.

    Raises:
        DataError: a file of a case cannot be read.
        StoreError: a file could not be written.
    """
    TrainedOn.of(facts).write(folder)
    write_split(folder / SPLIT, facts.site, digests=True)
