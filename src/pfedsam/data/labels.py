"""What the numbers in a site's masks mean.

Files number their classes as they like (255 for the object, or even 0 for it and 255 for the background). A
`LabelMap` says which ids stand for which class; an id that it does not name is an error and never becomes background
silently.
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

    def __post_init__(self) -> None:
        """Normalises and checks.

        Raises:
            OptionError: There is no class, too many, one without ids, or an id that stands twice.
        """
        ids = {name: tuple(values) for name, values in self.ids.items()}
        taken = [value for values in ids.values() for value in values]
        if BACKGROUND not in ids:
            ids[BACKGROUND] = () if 0 in taken else (0,)
        if not 1 < len(ids) <= 256 or not all(values for name, values in ids.items() if name != BACKGROUND):
            raise OptionError(
                f"labels {dict(self.ids)}: name 1 to 255 classes, each with its ids, such as {{'lesion': [1]}}"
            )
        if len(set(taken)) != len(taken) or any(value < 0 for value in taken):
            raise OptionError(f"labels {dict(self.ids)}: an id is 0 or more and belongs to one class only")
        object.__setattr__(self, "ids", MappingProxyType(ids))

    def __reduce__(self) -> tuple[type["LabelMap"], tuple[dict[str, Sequence[int]]]]:
        """Makes label maps picklable for worker processes: a mapping proxy is not."""
        return LabelMap, (dict(self.ids),)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes 1..C, in order, without the background."""
        return tuple(name for name in self.ids if name != BACKGROUND)

    def unknown(self, found: Iterable[int]) -> tuple[int, ...]:
        """Those of the ids found that no class has, ascending."""
        allowed = {value for values in self.ids.values() for value in values}
        return tuple(sorted(set(found) - allowed))

    def complaint(self, unknown: Sequence[int]) -> str:
        """What a message says about unknown ids: which, what is allowed and what to do."""
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        allowed = ", ".join(f"{name} {list(values)}" for name, values in self.ids.items() if values)
        return (
            f"its mask has the unknown label {', '.join(map(str, unknown[:_SHOWN]))}{more}; "
            f"the label map allows {allowed}. Add {unknown[0]} to a class of the label map, or correct the mask"
        )

    def to_classes(self, mask: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The class 0..C of each pixel [H, W] of a mask of ids [H, W].

        Raises:
            DataError: The mask has an id that the map does not name.
        """
        unknown = self.unknown(np.unique(mask).tolist())
        if unknown:
            raise DataError(self.complaint(unknown))
        classes = np.zeros(mask.shape, dtype=np.uint8)
        for number, name in enumerate(self.names, start=1):
            classes[np.isin(mask, self.ids[name])] = number
        return classes

    def first_ids(self) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The first id of each class 0..C, of 8 bits where that is enough: `to_classes` reads `first_ids()[classes]` back.

        A background without an id gets the lowest that no class has, which `to_classes` refuses rather than takes for a class.

        Raises:
            OptionError: An id is too large for a mask of 16 bits.
        """
        taken = {value for values in self.ids.values() for value in values}
        background = next(iter(self.ids[BACKGROUND]), next(value for value in count() if value not in taken))
        first = [background, *(self.ids[name][0] for name in self.names)]
        if max(first) > _HIGHEST:
            raise OptionError(
                f"labels {dict(self.ids)}: {max(first)} is above {_HIGHEST}, the highest id that a mask can be written "
                "with; put a lower id of the same class first"
            )
        return np.array(first, np.uint8) if max(first) <= 255 else np.array(first, np.uint16)
