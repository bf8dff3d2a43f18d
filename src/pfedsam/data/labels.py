"""The meaning of the ids in a site's masks.

Every data set numbers its classes differently: 255 for the object, or even 0 for it and 255 for the background. A `LabelMap` gives the ids
of each class. An id that it does not contain is an error and never becomes background silently. Each site has its own map, because sites
may number the classes differently and may not annotate all of them.

In memory a label is the number 0..C of its class. Where classes overlap it is a set of bits instead, with bit c - 1 for class c.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, filterfalse
from typing import Final

import numpy as np
import numpy.typing as npt

from pfedsam.core.errors import DataError, OptionError
from pfedsam.core.text import as_cell, short_repr, some_of

BACKGROUND: Final = "background"
IGNORED: Final = 255
"""The label of a pixel that is left out of every loss and score."""
IGNORED_BIT: Final = 128
"""The same where classes overlap."""
MAX_OVERLAPPING: Final = 7
"""Largest number of overlapping classes: each has a bit of its own beside `IGNORED_BIT`."""
_IGNORE: Final = "data.ignore"
_SHOWN = 8  # number of ids that a message lists
_HIGHEST = 65535  # largest value of a 16-bit mask
_LARGEST_READ = 2**63 - 1  # largest value that is read from a mask file
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WIDEST = 200  # characters of all ids in a message


@dataclass(frozen=True)
class LabelMap:
    """The ids of each class in the mask files; the classes are numbered 1..C in the order given.

    The name `background` is reserved for class 0. Unless its ids are given, it has id 0, if no other class has that id.

    >>> LabelMap({"organ": [128], "lesion": [255]}).to_classes(np.array([[0, 128, 255]]))
    array([[0, 1, 2]], dtype=uint8)
    """

    ids: Mapping[str, Sequence[int]]
    not_annotated: frozenset[str] = frozenset()
    """Classes that the site does not annotate; they have no ids."""
    ignore: tuple[int, ...] = ()
    """Ids of pixels that are left out of every loss and score."""
    overlap: bool = False
    """Whether classes may share pixels, as the whole tumour and its core do; an id may then belong to several classes."""
    key: str = "data.classes"
    """The key in the configuration that contains the ids, for messages."""

    def __post_init__(self) -> None:
        """Check the ids and add those of the background.

        Raises:
            OptionError: there is no class, too many, one without ids, an id that belongs to two classes, or a name or an id that `to_ids`
                refuses.
        """
        ids = {name: tuple(values) for name, values in self.ids.items()}
        if BACKGROUND not in ids:
            ids[BACKGROUND] = () if 0 in chain(self.ignore, *ids.values()) else (0,)
        self._check_not_annotated(ids)
        self._check_classes(ids)
        self._check_ids(ids)
        object.__setattr__(self, "ids", ids)
        self._check_writable()

    def _check_not_annotated(self, ids: Mapping[str, Sequence[int]]) -> None:
        """Refuse names under `not_annotated` that are no class, or a class with ids.

        Raises:
            OptionError: there is such a name.
        """
        classes = [name for name in ids if name != BACKGROUND]
        unknown = sorted(self.not_annotated.difference(classes))
        if unknown:
            raise OptionError(
                f"not_annotated names {unknown[0]!r}, which is not a class; the classes are {', '.join(classes)}"
            )
        both = [name for name in classes if name in self.not_annotated and ids[name]]
        if both:
            raise OptionError(
                f"class {both[0]!r} has the ids {list(ids[both[0]])} and is listed under not_annotated; keep one of the two"
            )

    def _check_classes(self, ids: Mapping[str, Sequence[int]]) -> None:
        """Refuse an empty list of classes, too many classes, annotated classes without ids, and names that are not allowed.

        Raises:
            OptionError: the classes are not allowed.
        """
        if "" in ids:
            raise OptionError(f"{self.key} {self._shown}: a class has an empty name; give it one")
        for name in ids:
            if as_cell(name) != name or _CONTROL.search(name):
                raise OptionError(
                    f"{self.key} has the class {short_repr(name)}; the name of a class begins with none of = + - @, which a spreadsheet "
                    "takes for a formula in the tables of sizes, and has no control characters. Give it another name"
                )
        classes = ids.keys() - {BACKGROUND}
        if not 1 <= len(classes) < IGNORED or not all(ids[name] for name in classes - self.not_annotated):
            raise OptionError(
                f"{self.key} {self._shown}: name 1 to 254 classes, each with its ids in square brackets, such as {{'lesion': [1]}}"
            )
        if self.overlap and len(classes) > MAX_OVERLAPPING:
            raise OptionError(f"data.overlap allows at most {MAX_OVERLAPPING} classes, and there are {len(classes)}")

    def _check_ids(self, ids: Mapping[str, Sequence[int]]) -> None:
        """Refuse ids below 0 and ids that are given twice.

        Overlapping classes may share ids with each other, but not with the background or `ignore`.

        Raises:
            OptionError: there is such an id, or no id of the background counts.
        """
        holders: dict[int, list[str]] = defaultdict(list)
        for name, values in [*ids.items(), (_IGNORE, self.ignore)]:
            for value in values:
                holders[value].append(name)
        if 0 in self.ignore and not ids[BACKGROUND]:
            raise OptionError(
                "data.ignore names 0, which is the id of the background, so that no pixel outside of the classes would count and every "
                f"prediction would seem right; take 0 out of data.ignore, or give the background an id of its own in {self.key}, such as "
                "{'background': [255]}"
            )
        for value, names in holders.items():
            if not 0 <= value <= _LARGEST_READ:
                raise OptionError(
                    f"{self.key} {self._shown}: {names[0]} has the id {value}; an id is 0 or more and at most {_LARGEST_READ}"
                )
            between_classes = len(set(names)) == len(names) and not {BACKGROUND, _IGNORE} & set(names)
            if len(names) > 1 and not (self.overlap and between_classes):
                raise OptionError(
                    f"{self.key} {self._shown}: the id {value} is given for {' and '.join(names)}, but an id belongs to one class only"
                    + ("; data.overlap: true allows regions that share ids" if between_classes else "")
                )

    def _check_writable(self) -> None:
        """Refuse names and ids with which predictions could not be written: not only after the training, but at once.

        Raises:
            OptionError: there is such a name or id.
        """
        self.first_ids()
        self.to_ids(np.zeros((1, 1), dtype=np.uint8))

    @property
    def _shown(self) -> str:
        """The ids as in the configuration, for messages."""
        return short_repr(self.ids, _WIDEST)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes 1..C, in order, without the background."""
        return tuple(name for name in self.ids if name != BACKGROUND)

    @property
    def annotated(self) -> tuple[bool, ...]:
        """For each class 1..C whether the site annotates it."""
        return tuple(name not in self.not_annotated for name in self.names)

    @property
    def annotated_names(self) -> tuple[str, ...]:
        """Names of the classes that the site annotates, in order."""
        return tuple(name for name in self.names if name not in self.not_annotated)

    def unknown(self, found: Iterable[int]) -> tuple[int, ...]:
        """The ids among `found` that belong to no class, ascending."""
        return tuple(sorted(set(found).difference(self.ignore, *self.ids.values())))

    def complaint(self, unknown: Sequence[int]) -> str:
        """The part of a message that lists unknown ids, the ids allowed, and what to do."""
        allowed = ", ".join(f"{name} {list(values)}" for name, values in self.ids.items() if values)
        remedy = (
            "So many look like soft edges (of a mask that was resized by interpolation, or was once a JPEG) or like numbers of instances: "
            "save it with one id for each class"
            if len(unknown) > _SHOWN
            else f"Add {unknown[0]} to a class of {self.key}, or correct the mask"
        )
        text = f"its mask has the unknown label {some_of(unknown, _SHOWN)}; {self.key} allows {allowed}. {remedy}"
        if self.not_annotated:
            text += (
                f"; if it is one of the classes that this site declares not annotated ({', '.join(sorted(self.not_annotated))}), take that "
                "class out of not_annotated to count it, or add the id to ignore"
            )
        return text

    def to_classes(self, mask: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The label of each pixel of a mask of ids, with the shape of the mask: the class 0..C, or the bits of overlapping classes.

        Raises:
            DataError: the mask contains an id that the map does not.
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
        """Masks of ids, with the shape of the labels, by the folder for each of them.

        Classes that exclude each other are written as one mask, for the folder `""` itself. Overlapping classes are written as one mask
        per class, for a folder with the name of the class; such a mask contains the first id of the class that is not 0, and 0 elsewhere.

        Raises:
            OptionError: an id is too large for a mask of 16 bits, or the name of a class cannot be the name of a folder.
        """
        if not self.overlap:
            return {"": self.first_ids()[labels]}
        wrong = [name for name in self.names if not _is_folder_name(name)]
        if wrong:
            raise OptionError(
                f"{self.key} has the class {wrong[0]!r}; where classes overlap each has a folder of masks, so that its name may "
                "hold none of / \\ : and may not be . or .."
            )
        return {name: self._class_mask(labels, number) for number, name in enumerate(self.names, start=1)}

    def _class_mask(self, labels: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The mask of one of several overlapping classes, with the shape of the labels: an id of the class, and 0 elsewhere."""
        name = self.names[number - 1]
        value = next(filter(None, self.ids[name]), number)
        written = LabelMap({name: [value]}, key=self.key).first_ids()
        return written[class_pixels(labels, number, overlap=True).astype(np.uint8)]

    def first_ids(self) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The first id of each class 0..C, shape [C + 1], of 8 bits if that is enough: `to_classes` reads `first_ids()[classes]` back.

        A background without an id gets the lowest id that no class has, which `to_classes` refuses instead of taking it for a class.
        Classes that the site does not annotate get such ids too, because its personal model may predict them nevertheless.

        Raises:
            OptionError: an id is too large for a mask of 16 bits.
        """
        first = list(self._first_ids())
        if max(first) > _HIGHEST:
            raise OptionError(
                f"{self.key} {self._shown}: {max(first)} is above {_HIGHEST}, the highest id that a mask can be written "
                "with; put a lower id of the same class first"
            )
        return np.array(first, np.uint8) if max(first) <= 255 else np.array(first, np.uint16)

    def _first_ids(self) -> Iterator[int]:
        """The first id of each class 0..C, or one that no class has for those without ids."""
        taken = set(chain(*self.ids.values()))
        free = filterfalse(taken.__contains__, count())
        yield self.ids[BACKGROUND][0] if self.ids[BACKGROUND] else next(free)
        taken.add(0)  # from here on 0 is not free either: no class is written as 0
        for name in self.names:
            yield self.ids[name][0] if self.ids[name] else next(free)


def _is_folder_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def class_pixels(labels: npt.NDArray[np.integer], number: int, *, overlap: bool) -> npt.NDArray[np.bool_]:
    """The pixels of the class `number` (1..C), with the shape of the labels."""
    found: npt.NDArray[np.bool_] = labels & (1 << (number - 1)) != 0 if overlap else labels == number
    return found


def ignored_pixels(labels: npt.NDArray[np.integer], *, overlap: bool) -> npt.NDArray[np.bool_]:
    """The pixels that are left out of every loss and score, with the shape of the labels."""
    found: npt.NDArray[np.bool_] = labels & IGNORED_BIT != 0 if overlap else labels == IGNORED
    return found
