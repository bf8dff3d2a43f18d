"""The tables of the sizes of predicted structures: `volumes.csv` for whole volumes and `areas.csv` for their slices.

A table holds the rows of all images of an output folder. Rows of an image that is predicted again are replaced.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Final

from pfedsam.core import atomic
from pfedsam.core.errors import DataError
from pfedsam.core.lock import in_turn
from pfedsam.core.text import as_cell
from pfedsam.data.labels import LabelMap
from pfedsam.engine.predict_volume import PredictedVolume
from pfedsam.evaluation.regions import measure

SIZES: Final = "volumes.csv"
AREAS: Final = "areas.csv"
_SIZE_COLUMNS: Final = ("image", "structure", "voxels", "volume_ml")
_AREA_COLUMNS: Final = ("image", "structure", "slice", "pixels", "area_mm2")


def refuse_other_tables(folders: Iterable[Path]) -> None:
    """Refuse output folders whose tables of sizes cannot be continued, before a volume is segmented.

    Raises:
        DataError: a file with the name of a table contains another table.
    """
    for folder in folders:
        read_rows(folder / SIZES, _SIZE_COLUMNS)
        read_rows(folder / AREAS, _AREA_COLUMNS)


@contextmanager
def tables_restored(folder: Path, *others: str) -> Iterator[None]:
    """Give the tables of sizes, and others, their earlier content again if what is done inside fails: no line is without a mask.

    Processes that write into the same folder take turns, so that none loses the lines of another.

    Raises:
        OSError: the lock file of the tables cannot be created.
        StoreError: a table cannot be written.
    """
    tables = [folder / name for name in (SIZES, AREAS, *others)]
    with in_turn(folder / f".{SIZES}.lock"):
        before = {path: path.read_bytes() for path in tables if path.exists()}
        try:
            yield
        except BaseException:  # after an interrupt, too
            for path in tables:
                if path in before:
                    atomic.write_bytes(path, before[path], mode=atomic.usual_mode())
                else:
                    path.unlink(missing_ok=True)
            raise


def write_sizes(folder: Path, name: str, found: PredictedVolume, labels: LabelMap) -> None:
    """Write the sizes of the classes into both tables; slices have the numbers that they have in the written mask.

    Raises:
        DataError: one of the files contains another table.
    """
    volume, depth = found.volume, len(found.classes)
    sizes = measure(found.classes, labels.names, volume.known_spacing_mm, overlap=labels.overlap)
    replace_rows(
        folder / SIZES, _SIZE_COLUMNS, name, [(name, one.name, one.voxels, _number(one.millilitres)) for one in sizes]
    )
    areas: list[tuple[str, str, int, int, str]] = []
    for one in sizes:
        rows = [
            (name, one.name, volume.slicing.index(k, depth), pixels, _number(area)) for k, pixels, area in one.areas
        ]
        areas += sorted(rows, key=itemgetter(2))
    replace_rows(folder / AREAS, _AREA_COLUMNS, name, areas)


def replace_rows(path: Path, columns: Sequence[str], name: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Write the rows of one image into a table; earlier rows of the same image are replaced.

    Texts that a spreadsheet would take for a formula are written with a quote before them.

    Raises:
        DataError: the file contains another table.
    """
    kept = [row for row in read_rows(path, columns) if row and row[0] != as_cell(name)]
    new = [[as_cell(one) if isinstance(one, str) else one for one in row] for row in rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *kept, *new])
    atomic.write_text(path, text.getvalue(), mode=atomic.usual_mode())


def read_rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows of a table below its header, with the cells as they are written; empty if there is no such file.

    Raises:
        DataError: the file contains another table.
    """
    if not path.exists():
        return []
    try:
        header, *rows = list(csv.reader(io.StringIO(path.read_text("utf-8")))) or [[]]
    except (UnicodeDecodeError, csv.Error):  # for example saved by a spreadsheet in another encoding
        header, rows = [], []
    if header != list(columns):
        raise DataError(
            f"{path.name!r} in the output folder is another table, or was changed by another program; move it away, or give another --out"
        )
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
