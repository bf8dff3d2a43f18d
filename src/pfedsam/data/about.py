"""Errors about a file, told with the site and the case that it belongs to."""

from collections.abc import Iterator
from contextlib import contextmanager

from pfedsam.core.errors import DataError
from pfedsam.data.manifest import Case


@contextmanager
def about(case: Case) -> Iterator[None]:
    """Adds to an error about a file which case of which site it belongs to.

    Raises:
        DataError: What came from within, with site and case.
    """
    try:
        yield
    except DataError as exc:
        raise DataError(f"site {case.site!r}, case {case.id!r}: {exc}") from exc
