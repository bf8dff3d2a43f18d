"""Options for the files of one site: its ids of the classes, the classes that it does not annotate, and its spacing."""

from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator

from pfedsam.core.errors import OptionError
from pfedsam.core.options import Options
from pfedsam.data.labels import BACKGROUND, LabelMap


class SiteLabelOptions(Options):
    """Properties of the files of one site that differ from the study's."""

    labels: dict[str, list[int]] = Field(
        default={},
        description="Class name to its ids in the mask files of this site, where they are not those of data.classes.",
    )
    not_annotated: list[str] = Field(
        default=[],
        description="Classes that this site does not annotate: in its masks they are background. The site neither trains them nor is "
        "scored for them.",
    )
    spacing: list[float] | None = Field(
        default=None,
        description="Size of a pixel in mm along (H, W), of a voxel along (D, H, W), for cases of this site that have none of their own.",
    )

    @field_validator("spacing")
    @classmethod
    def _two_or_three_lengths(cls, spacing: list[float] | None) -> list[float] | None:
        if spacing is not None and (len(spacing) not in (2, 3) or not all(0 < length < 1000 for length in spacing)):
            raise ValueError(
                "give two lengths in mm for pictures or three for volumes, each above 0, such as [0.5, 0.5]"
            )
        return spacing


NOTHING_OF_ITS_OWN = SiteLabelOptions()


def site_label_map(
    classes: Mapping[str, Sequence[int]],
    own: SiteLabelOptions = NOTHING_OF_ITS_OWN,
    *,
    ignore: Sequence[int] = (),
    overlap: bool = False,
    key: str = "data.classes",
) -> LabelMap:
    """The label map of a site: the study's classes in the study's order, with the ids that they have at the site.

    Args:
        classes: the classes of the study, with the ids for sites that have none of their own.
        own: the options of the site.
        ignore: ids of pixels that are left out of every loss and score.
        overlap: whether classes may share pixels.
        key: the key of the site in the configuration, such as `data.sites.north`, for messages.

    Raises:
        OptionError: the site has a class that the study does not have, or annotates no class, or the ids contradict each other.
    """
    own_key = f"{key}.labels" if own.labels else "data.classes"
    _refuse_contradictions(classes, own, key=key, own_key=own_key)
    ids = {name: [] if name in own.not_annotated else own.labels.get(name, given) for name, given in classes.items()}
    if BACKGROUND in own.labels:
        ids[BACKGROUND] = own.labels[BACKGROUND]
    try:
        return LabelMap(ids, frozenset(own.not_annotated), tuple(ignore), overlap, own_key)
    except OptionError as error:
        raise OptionError(f"{key}: {error}" if own != NOTHING_OF_ITS_OWN else str(error)) from error


def _refuse_contradictions(
    classes: Mapping[str, Sequence[int]], own: SiteLabelOptions, *, key: str, own_key: str
) -> None:
    """Refuse classes of a site that the study does not have, classes that have ids and are not annotated, and a site without classes.

    Raises:
        OptionError: there is such a class, or the site annotates no class.
    """
    unknown = sorted(set(own.labels) - set(classes) - {BACKGROUND})
    if unknown:
        raise OptionError(
            f"{own_key} names {unknown[0]!r}, which is not a class of the study; the classes are {', '.join(classes)}"
        )
    both = sorted(set(own.not_annotated) & set(own.labels))
    if both:
        raise OptionError(
            f"{key}: class {both[0]!r} has the ids {own.labels[both[0]]} under labels and is listed under not_annotated; keep one of "
            "the two"
        )
    names = [name for name in classes if name != BACKGROUND]
    if names and set(names) <= set(own.not_annotated):
        raise OptionError(
            f"{key}: not_annotated names every class of the study ({', '.join(names)}), so that the site has nothing to train or to be "
            "scored for; take the classes that its masks contain out of not_annotated, or leave the site out of the study"
        )
