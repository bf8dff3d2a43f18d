"""What the numbers in a site's masks mean.

Files number their classes as they like (255 for the object, or even 0 for it and 255 for the background). A `LabelMap` says which ids
stand for which class; an id that it does not name is an error and never becomes background silently. Each site has a map of its own: it
may number the classes otherwise, and may not annotate all of them.

In memory a label is the number 0..C of its class. Where classes overlap it is a set of bits instead, bit c - 1 for class c.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError, OptionError

BACKGROUND: Final = "background"
IGNORED: Final = 255
"""The label of a pixel that no loss and no score counts."""
IGNORED_BIT: Final = 128
"""The same where classes overlap."""
MAX_OVERLAPPING: Final = 7
"""Classes that have a bit each, beside `IGNORED_BIT`."""
_SHOWN = 8  # ids that a message lists
_HIGHEST = 65535  # id that a grey PNG holds


@dataclass(frozen=True)
class LabelMap:
    """Class name -> ids in the mask files; the classes are 1..C in the order given.

    The name `background` is kept for class 0 and stands for id 0 unless it is given, or 0 belongs to another class.

    >>> LabelMap({"organ": [128], "lesion": [255]}).to_classes(np.array([[0, 128, 255]]))
    array([[0, 1, 2]], dtype=uint8)
    """

    ids: Mapping[str, Sequence[int]]
    not_annotated: frozenset[str] = frozenset()
    """Classes that the site does not annotate; they have no ids."""
    ignore: tuple[int, ...] = ()
    """Ids of pixels that no loss and no score counts."""
    overlap: bool = False
    """Classes do not exclude each other: an id may stand in several (regions, as the whole tumour and its core)."""
    key: str = "data.classes"
    """Where the ids are written in the configuration, for messages."""

    def __post_init__(self) -> None:
        """Normalises and checks.

        Raises:
            OptionError: There is no class, too many, one without ids, or an id that stands twice.
        """
        ids = {name: tuple(values) for name, values in self.ids.items()}
        taken = [value for values in ids.values() for value in values]
        if BACKGROUND not in ids:
            ids[BACKGROUND] = () if 0 in [*taken, *self.ignore] else (0,)
        names = [name for name in ids if name != BACKGROUND]
        unknown = sorted(self.not_annotated - set(names))
        if unknown:
            raise OptionError(
                f"not_annotated names {unknown[0]!r}, which is no class; the classes are {', '.join(names)}"
            )
        both = [name for name in names if name in self.not_annotated and ids[name]]
        if both:
            raise OptionError(
                f"class {both[0]!r} has the ids {list(ids[both[0]])} and stands under not_annotated; keep one of the two"
            )
        if not 1 <= len(names) < IGNORED or not all(ids[name] for name in names if name not in self.not_annotated):
            raise OptionError(
                f"{self.key} {dict(self.ids)}: name 1 to 254 classes, each with its ids in square brackets, such as {{'lesion': [1]}}"
            )
        if self.overlap and len(names) > MAX_OVERLAPPING:
            raise OptionError(f"data.overlap allows at most {MAX_OVERLAPPING} classes, and there are {len(names)}")
        self._check_twice(ids, [*taken, *self.ignore])
        object.__setattr__(self, "ids", MappingProxyType(ids))

    def _check_twice(self, ids: Mapping[str, Sequence[int]], taken: Sequence[int]) -> None:
        twice = [value for value in taken if taken.count(value) > 1]
        if self.overlap:
            fixed = [*ids[BACKGROUND], *self.ignore]  # a region may share ids with another, never with these
            twice = [value for value in fixed if taken.count(value) > 1] + [
                value for values in ids.values() for value in values if values.count(value) > 1
            ]
        if twice or any(value < 0 for value in taken):
            raise OptionError(
                f"{self.key} {dict(self.ids)}: an id is 0 or more and belongs to one class only"
                + ("" if self.overlap else "; data.overlap: true allows regions that share ids")
            )

    def __reduce__(
        self,
    ) -> tuple[type["LabelMap"], tuple[dict[str, Sequence[int]], frozenset[str], tuple[int, ...], bool, str]]:
        """Makes label maps picklable for worker processes: a mapping proxy is not."""
        return LabelMap, (dict(self.ids), self.not_annotated, self.ignore, self.overlap, self.key)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes 1..C, in order, without the background."""
        return tuple(name for name in self.ids if name != BACKGROUND)

    @property
    def annotated(self) -> tuple[bool, ...]:
        """For each class 1..C whether the site annotates it."""
        return tuple(name not in self.not_annotated for name in self.names)

    def unknown(self, found: Iterable[int]) -> tuple[int, ...]:
        """Those of the ids found that no class has, ascending."""
        allowed = {value for values in self.ids.values() for value in values} | set(self.ignore)
        return tuple(sorted(set(found) - allowed))

    def complaint(self, unknown: Sequence[int]) -> str:
        """What a message says about unknown ids: which, what is allowed and what to do."""
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        allowed = ", ".join(f"{name} {list(values)}" for name, values in self.ids.items() if values)
        said = (
            f"its mask has the unknown label {', '.join(map(str, unknown[:_SHOWN]))}{more}; "
            f"{self.key} allows {allowed}. Add {unknown[0]} to a class of {self.key}, or correct the mask"
        )
        if self.not_annotated:
            said += (
                f"; if it is one of the classes that this site declares not annotated ({', '.join(sorted(self.not_annotated))}), take that "
                "class out of not_annotated to count it, or add the id to ignore"
            )
        return said

    def to_classes(self, mask: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The label of each pixel of a mask of ids, of its shape: the class 0..C, or the bits of its classes where they overlap.

        Raises:
            DataError: The mask has an id that the map does not name.
        """
        unknown = self.unknown(np.unique(mask).tolist())
        if unknown:
            raise DataError(self.complaint(unknown))
        classes = np.zeros(mask.shape, dtype=np.uint8)
        for number, name in enumerate(self.names, start=1):
            inside = np.isin(mask, self.ids[name])
            if self.overlap:
                classes[inside] |= np.uint8(1 << (number - 1))
            else:
                classes[inside] = number
        if self.ignore:
            classes[np.isin(mask, self.ignore)] = IGNORED_BIT if self.overlap else IGNORED
        return classes

    def to_ids(self, labels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.uint8] | npt.NDArray[np.uint16]]:
        """The masks of ids, of the labels' shape, by the folder that each is written to: one mask in the folder itself (named "").

        Where classes overlap there is a mask for each class, in a folder of the class's name, with the class's first id other than 0, and 0
        elsewhere.

        Raises:
            OptionError: an id is too large for a mask of 16 bits, or the name of a class is none that a folder can have.
        """
        if not self.overlap:
            return {"": self.first_ids()[labels]}
        wrong = [name for name in self.names if not _is_folder_name(name)]
        if wrong:
            raise OptionError(
                f"{self.key} has the class {wrong[0]!r}; where classes overlap each has a folder of masks, so that its name may "
                "hold none of / \\ : and may not be . or .."
            )
        masks: dict[str, npt.NDArray[np.uint8] | npt.NDArray[np.uint16]] = {}
        for number, name in enumerate(self.names, start=1):
            value = next((value for value in self.ids[name] if value), number)  # 0 is what is not of the class
            written = LabelMap({name: [value]}, key=self.key).first_ids()
            masks[name] = written[class_pixels(labels, number, overlap=True).astype(np.uint8)]
        return masks

    def first_ids(self) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The first id of each class 0..C, shape [C + 1], of 8 bits if that is enough: `to_classes` reads `first_ids()[classes]` back.

        A background without an id gets the lowest that no class has, which `to_classes` refuses rather than takes for a class. So does
        a class that the site does not annotate: its personal model may predict it all the same.

        Raises:
            OptionError: An id is too large for a mask of 16 bits.
        """
        taken = {value for values in self.ids.values() for value in values}
        background = next(iter(self.ids[BACKGROUND]), next(value for value in count() if value not in taken))
        free = (value for value in count(1) if value not in taken and value != background)
        first = [background, *(self.ids[name][0] if self.ids[name] else next(free) for name in self.names)]
        if max(first) > _HIGHEST:
            raise OptionError(
                f"{self.key} {dict(self.ids)}: {max(first)} is above {_HIGHEST}, the highest id that a mask can be written "
                "with; put a lower id of the same class first"
            )
        return np.array(first, np.uint8) if max(first) <= 255 else np.array(first, np.uint16)


def _is_folder_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def class_pixels(labels: npt.NDArray[np.integer], number: int, *, overlap: bool) -> npt.NDArray[np.bool_]:
    """Where the class `number` (1..C) is, of the labels' shape."""
    found: npt.NDArray[np.bool_] = labels & (1 << (number - 1)) != 0 if overlap else labels == number
    return found


def ignored_pixels(labels: npt.NDArray[np.integer], *, overlap: bool) -> npt.NDArray[np.bool_]:
    """Where a pixel counts in no loss and no score, of the labels' shape."""
    found: npt.NDArray[np.bool_] = labels & IGNORED_BIT != 0 if overlap else labels == IGNORED
    return found
