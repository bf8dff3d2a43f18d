"""Adds the site and the case to errors about a file, and that the file is a mask."""

from collections.abc import Iterator
from contextlib import contextmanager

from pfedsam.core.errors import DataError
from pfedsam.data.manifest import Case


@contextmanager
def about(case: Case, *, mask: bool = False) -> Iterator[None]:
    """Add site and case to the message of a `DataError` that is raised inside.

    Args:
        case: the case.
        mask: whether the file is the case's mask. A message that begins with the name of the file then gets "its mask" before it, because
            an image and its mask often have the same name.

    Raises:
        DataError: the error from inside, with site and case.
    """
    try:
        yield
    except DataError as exc:
        what = "its mask " if mask and str(exc).startswith("'") else ""
        raise DataError(f"site {case.site!r}, case {case.id!r}: {what}{exc}") from exc
