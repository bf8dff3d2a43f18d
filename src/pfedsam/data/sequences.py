"""The number of sequences in a case of a site's training data, stored with its model, so that a case with another number is refused.

A model always has three input channels, which are filled from however many sequences there are. A model that was trained on T1 and T2 would
therefore segment a case of T1 alone without an error, and wrongly.
"""

from pathlib import Path
from typing import Final

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.data.manifest import Case, Site
from pfedsam.data.of_training import common, read_of_training

SEQUENCES: Final = "sequences.json"


def number_of_sequences(case: Case) -> int:
    """The number of volumes that make up the image of a case."""
    return 1 + len(case.sequences)


def trained_sequences(site: Site) -> int | None:
    """The number of sequences of a site's training volumes; None if there are none, or if they differ, which the check of data refuses."""
    return common(number_of_sequences(case) for case in site.of("train") if case.volume)


def write_sequences(folder: Path, site: Site) -> None:
    """Write the number of sequences of a site's training volumes into its folder; no file is written for pictures.

    Raises:
        StoreError: the file could not be written.
    """
    number = trained_sequences(site)
    if number is not None:
        atomic.write_json(folder / SEQUENCES, {"schema": 1, "sequences": number})


def read_sequences(folder: Path) -> int | None:
    """The number of sequences in a site's folder; None if there is no such file, as for pictures and in runs of earlier versions.

    Raises:
        StoreError: the file is damaged.
    """
    return read_of_training(
        folder / SEQUENCES,
        lambda content: int(content["sequences"]),
        lost="does not notice a case with another number of sequences than those of the training",
    )


def refuse_other_number(number: int, trained: int | None) -> None:
    """Refuse a case with another number of sequences than the training cases.

    Args:
        number: the number of sequences of the case.
        trained: the number of sequences of the training cases; None if it is not known, and nothing is refused.

    Raises:
        DataError: the numbers differ.
    """
    if trained is None or number == trained:
        return
    if trained == 1:
        raise DataError(
            f"the model was trained on one sequence for each case, and this is one of {number}; leave data.volume.channels empty"
        )
    example = [f"_t{k}" for k in range(1, trained + 1)]
    raise DataError(
        f"the model was trained on {trained} sequences for each case, and this is one of {number}; name the endings of the {trained} files "
        f'of a case in the order of the training, such as --set "data.volume.channels={example}", and give the first file'
    )
