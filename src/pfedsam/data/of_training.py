"""Small files in a site's folder about the data that its model was trained on; `predict` compares other images with them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pfedsam.core.errors import StoreError
from pfedsam.core.files import read_regular

T = TypeVar("T")


def read_of_training(path: Path, convert: Callable[[Any], T], *, lost: str) -> T | None:
    """The content of a file about a site's training data; None if there is no such file.

    Args:
        path: the file, which contains JSON.
        convert: the function from the content of the file to the result.
        lost: what `predict` does not do without the file, for the message, such as `does not compare images`.

    Raises:
        StoreError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return convert(json.loads(read_regular(path)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{path.name} of the site is damaged. Bring it back from a copy; without it `predict` works, but {lost}."
        ) from error


def common(values: Iterable[T]) -> T | None:
    """The value that all of these are equal to; None if there are several values, or none."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
