"""The names of the results of `predict`, and the table `series.csv`, by which a DICOM series keeps its name in a folder of masks.

The table gives the first file of each series, and a digest of what identifies it. Without it a name such as `p1_series2` would depend on
the series that lie beside the second one.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Final

from pfedsam.core.errors import OptionError
from pfedsam.core.text import from_cell
from pfedsam.engine.predict_sources import Source
from pfedsam.engine.size_tables import read_rows, replace_rows

SERIES: Final = "series.csv"
_COLUMNS: Final = ("image", "file", "series")


def read_series(folder: Path) -> dict[str, str]:
    """The digest of the series of each name in the table of a folder of masks; empty if there is no table.

    Raises:
        DataError: the file contains another table.
    """
    return {from_cell(row[0]): row[2] for row in read_rows(folder / SERIES, _COLUMNS) if len(row) == len(_COLUMNS)}


def write_series(folder: Path, name: str, source: Source) -> None:
    """Write the line of a DICOM series into the table; nothing for other images.

    Raises:
        DataError: the file contains another table.
    """
    if source.digest:
        file = str(source.first).encode("utf-8", "backslashreplace").decode()
        replace_rows(folder / SERIES, _COLUMNS, name, [(name, file, source.digest)])


def name_results(sources: Sequence[Source], table: Mapping[str, str]) -> list[str]:
    """The name of the results of each image.

    It is the short name of the image, or the long one if images in other places have the same short name. Of several series in one place
    each gets a number. A series that the table lists keeps its name.

    Args:
        sources: the images.
        table: the digest of the series of each name that is in use, as in `read_series`.

    Raises:
        OptionError: the table lists other series under the name of an image, and none of the image's own.
    """
    shared = _shared_names(sources)
    members: dict[Path, list[Source]] = defaultdict(list)
    for source in sources:
        members[source.path].append(source)
    named = {path: _name_place(found, shared, table) for path, found in members.items()}
    return [named[source.path][source.digest] for source in sources]


def _shared_names(sources: Sequence[Source]) -> set[str]:
    """The short names that images in different places have; if DICOM images are among them, those of all DICOM images.

    In exports by patient, study and series, every name therefore contains the patient.
    """
    places: dict[str, set[Path]] = defaultdict(set)
    for source in sources:
        places[source.short].add(source.path)
    shared = {name for name, paths in places.items() if len(paths) > 1}
    dicom = {source.short for source in sources if source.dicom}
    return shared | dicom if shared & dicom else shared


def _name_place(found: Sequence[Source], shared: set[str], table: Mapping[str, str]) -> dict[str | None, str]:
    """The names of the results of all series in one place, by digest; the key None stands for an image without a series.

    Raises:
        OptionError: the table lists only other series under the name of this place.
    """
    digests = {source.digest for source in found}
    first = found[0]
    earlier = _names_of(first.short, table)
    is_free = first.short not in shared and not earlier
    base = first.short if is_free or digests & earlier.keys() else first.long
    earlier = _names_of(base, table)
    if earlier and digests != {None} and not digests & earlier.keys():
        raise OptionError(
            f"{SERIES} in the folder of the masks lists other series under the name {base!r} than {str(first.path)!r} holds, so this is "
            "another image of the same name. Nothing was written; give another --out, or rename the image."
        )
    names: dict[str | None, str] = {}
    for source in found:
        if source.digest not in names:
            used = {*table, *names.values()}
            new = _free_name(base, source.number, used) if source.numbered else base
            names[source.digest] = earlier.get(source.digest or "", new)
    return names


def _free_name(base: str, number: int, used: Collection[str]) -> str:
    """A name with the number of a series, or, if that is in use, with the first free number."""
    names = (f"{base}_series{one}" for one in chain([number], count(1)))
    return next(name for name in names if name not in used)


def _names_of(base: str, table: Mapping[str, str]) -> dict[str, str]:
    """The names in the table that are a name itself or have a number added to it, by the digests of their series."""
    form = re.compile(rf"{re.escape(base)}(_series\d+)?")
    return {digest: name for name, digest in table.items() if form.fullmatch(name)}
