"""Headings and notes of the report pages that depend on the run."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pfedsam.core.small_numbers import OFF
from pfedsam.report.summary_file import SiteEntry, Summary, Values

PHASES: Final = {
    "global": "the shared parameters are trained",
    "local": "the local parameters are trained",
    "joint": "shared and local parameters are trained together in the personal model",
    "coupled": "both models are trained, the shared and the personal one, on the same images",
    "halves": "both models are trained, the shared and the personal one each on one half of the images",
}
"""Description of what a phase trains, by the name of the phase in the records."""
_PHASE_HEADINGS: Final = {
    "global": "Training of the shared parameters",
    "local": "Training of the local parameters",
    "joint": "Training of shared and local parameters together",
    "coupled": "Training of both models on the same images",
    "halves": "Training of both models, each on one half of the batch",
}
_DIFFERENCE_HEADINGS: Final = {"ml": "Volume difference", "mm2": "Area difference"}


def phase_heading(phase: str) -> str:
    """The heading of the loss curve of a phase."""
    return _PHASE_HEADINGS.get(phase, f"Phase {phase!r}")


def part_sizes(runs: Sequence[Summary], site: str, *, with_validation: bool = True) -> str:
    """The training and validation cases of a site, as `trained on 20, validated on 4`; empty if they are not known.

    Several texts if the runs differ. Without `with_validation`, the validation cases are left out: an onboarding does not use them.
    """
    entries = [run.sites[site] for run in runs if site in run.sites]
    least = max((run.min_cases for run in runs), default=OFF)
    known = (one for one in entries if one.train_cases is not None)
    return " / ".join(dict.fromkeys(_part_sizes(one, least, with_validation=with_validation) for one in known))


def _part_sizes(site: SiteEntry, least: int, *, with_validation: bool) -> str:
    """The sizes of a site's parts in one run; a size equal to `least`, the smallest number that is published, means this many or fewer."""
    at_most = "at most " if site.train_cases == least > OFF else ""
    validated = "" if site.val_cases is None or not with_validation else f", validated on {site.val_cases}"
    return f"trained on {at_most}{site.train_cases}{validated}"


def difference_heading(found: Iterable[Values]) -> str:
    """The heading of the column of volume differences, which are areas for pictures.

    Where no spacing is known they are numbers of pixels or voxels, from which it cannot be seen which of the two they are. A run has either
    pictures or volumes, so that the unit of one site is enough to decide.
    """
    units = {str(values.volume_unit) for values in found if values.volume_difference is not None}
    known = [heading for unit, heading in _DIFFERENCE_HEADINGS.items() if unit in units]
    return known[0] if len(known) == 1 else "Area or volume difference"


def surface_dice_note(config: Any) -> str:  # noqa: ANN401 - the content of a YAML file
    """What the surface Dice (NSD) is, with its tolerance from the content of a run's configuration, if it is there."""
    evaluation = config.get("evaluation") if isinstance(config, dict) else None
    tolerance = evaluation.get("surface_tolerance") if isinstance(evaluation, dict) else None
    within = "a tolerance (evaluation.surface_tolerance)"
    if isinstance(tolerance, int | float):
        within = f"{tolerance:g} mm ({tolerance:g} pixels where the spacing is not known)"
    return f"Surface Dice (NSD) is the share of both outlines that lies within {within} of the other one."
