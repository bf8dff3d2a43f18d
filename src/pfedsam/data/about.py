"""Adds the site and the case to errors about a file."""

from collections.abc import Iterator
from contextlib import contextmanager

from pfedsam.core.errors import DataError
from pfedsam.data.manifest import Case


@contextmanager
def about(case: Case) -> Iterator[None]:
    """Add site and case to the message of a `DataError` that is raised inside.

    Raises:
        DataError: the error from inside, with site and case.
    """
    try:
        yield
    except DataError as exc:
        raise DataError(f"site {case.site!r}, case {case.id!r}: {exc}") from exc
