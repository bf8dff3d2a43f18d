"""Data that can be read and are probably wrong: each check looks for one kind of fault in the facts of the sites.

A finding names the site, its cases and what to do. Most findings are warnings, because the data may be meant that way. An image in two
parts of the split is an error, because a score on it would measure memorisation instead of generalisation; so are cases that no model can
be trained on together.
"""

from collections.abc import Sequence
from typing import Final

from pfedsam.data.facts import SiteFacts
from pfedsam.data.suspicions import classes, duplicates, images, names, parts
from pfedsam.data.suspicions.finding import Finding, Study, StudyCheck, at_each_site

__all__ = ["Finding", "Study", "find_suspicions"]

_CHECKS: Final[tuple[StudyCheck, ...]] = (
    at_each_site(images.small_range),
    at_each_site(images.small_range_of_volumes),
    at_each_site(images.outside_window),
    at_each_site(names.pattern_partly),
    at_each_site(names.tile_names),
    at_each_site(images.single_value),
    duplicates.equal_images,
    duplicates.equal_masks,
    at_each_site(duplicates.one_patient),
    duplicates.one_patient_at_sites,
    images.other_sequences,
    images.other_planes,
    images.single_volumes,
    at_each_site(images.exif_masks),
    at_each_site(classes.renumbered_palette),
    classes.colours_of_other_classes,
    at_each_site(classes.absent_class),
    at_each_site(classes.absent_from_training),
    classes.foreground_share,
    at_each_site(classes.partly_inverted),
    at_each_site(classes.sparse_class),
    at_each_site(parts.misspelt_names),
    at_each_site(parts.mask_notes),
    at_each_site(images.partly_given_spacing),
    at_each_site(images.lost_spacing),
    at_each_site(images.contradicted_position),
    at_each_site(images.mixed_spacing_units),
    names.parts_as_sites,
    at_each_site(names.unlisted),
    at_each_site(names.shared_masks),
    at_each_site(names.empty_patients),
    at_each_site(names.no_validation),
    at_each_site(names.unicode_twins),
    at_each_site(names.letter_case_twins),
    at_each_site(names.unicode_masks),
)


def find_suspicions(sites: Sequence[SiteFacts], study: Study) -> list[Finding]:
    """Everything suspicious about the sites, errors first, then site by site in the order given."""
    order = {facts.name: number for number, facts in enumerate(sites)}
    found = [finding for check in _CHECKS for finding in check(sites, study)]
    return sorted(found, key=lambda one: (not one.error, order[one.site]))
