"""The summary of a site's data as numbers by name: an honest summary is read back equal, and everything else is refused."""

import json
from collections.abc import Callable

import pytest

from pfedsam.core.errors import UpdateError
from pfedsam.data.site_summary import (
    BINS,
    DEPTH_EDGES,
    HISTOGRAMS,
    SIZE_EDGES,
    SPACING_EDGES,
    ClassFrequency,
    Histogram,
    SiteSummaryFile,
)
from pfedsam.federation.data_summary import from_site_summary, summary_names, to_site_summary

CLASSES = ("organ", "a.cases", "rim")
NAMES = summary_names(CLASSES)
Numbers = dict[str, float | None]


def table(edges: tuple[float, ...], counts: dict[int, int], *, rest: int | None = 0) -> Histogram:
    return Histogram(edges=edges, counts=tuple(counts.get(n, rest) for n in range(len(edges) + 1)))


PICTURES = SiteSummaryFile(
    site="north",
    min_cases=1,
    kind="pictures",
    cases=40,
    patients=35,
    intensities=(0.25, 0.75, *[0.0] * (BINS - 2)),
    sizes=table(SIZE_EDGES, {3: 28, 4: 12}),
    depths=None,
    spacing=table(SPACING_EDGES, {2: 25}),
    slice_distance=None,
    without_spacing=15,
    classes={
        "organ": ClassFrequency(annotated=True, cases=22, share=0.125),
        "a.cases": ClassFrequency(annotated=True, cases=0, share=None),
        "rim": ClassFrequency(annotated=False, cases=None, share=None),
    },
)
VOLUMES = SiteSummaryFile(
    site="north",
    min_cases=10,
    kind="volumes",
    cases=40,
    patients=40,
    intensities=(0.5, 0.5, *[0.0] * (BINS - 2)),
    sizes=table(SIZE_EDGES, {3: 40}, rest=None),
    depths=table(DEPTH_EDGES, {1: 30}, rest=None),
    spacing=table(SPACING_EDGES, {2: 12, 3: 13}, rest=None),
    slice_distance=table(SPACING_EDGES, {}, rest=None),
    without_spacing=15,
    classes={
        "organ": ClassFrequency(annotated=True, cases=None, share=0.5),
        "a.cases": ClassFrequency(annotated=True, cases=40, share=0.01),
        "rim": ClassFrequency(annotated=True, cases=30, share=1.0),
    },
)
NOTHING = SiteSummaryFile(
    site="north",
    min_cases=10,
    kind="volumes",
    cases=None,
    patients=None,
    intensities=None,
    **{name: table(edges, {}, rest=None) for name, edges in HISTOGRAMS.items()},
    without_spacing=None,
    classes={name: ClassFrequency(annotated=True, cases=None, share=None) for name in CLASSES},
)


def over_the_wire(summary: SiteSummaryFile) -> Numbers:
    numbers: Numbers = json.loads(json.dumps(from_site_summary(summary), allow_nan=False))
    return numbers


def read(numbers: Numbers, min_cases: int = 1) -> SiteSummaryFile:
    return to_site_summary(numbers, NAMES, site="north", min_cases=min_cases)


@pytest.mark.parametrize("summary", [PICTURES, VOLUMES, NOTHING], ids=["pictures", "volumes", "nothing"])
def test_a_summary_comes_back_equal(summary: SiteSummaryFile) -> None:
    numbers = over_the_wire(summary)
    assert set(numbers) == set(NAMES)
    assert read(numbers, summary.min_cases) == summary


def test_the_numbers_are_those_of_the_file_under_their_names() -> None:
    told = {name: value for name, value in over_the_wire(PICTURES).items() if value}
    assert told == {
        "data.cases": 40,
        "data.patients": 35,
        "data.without_spacing": 15,
        "data.intensities.0": 0.25,
        "data.intensities.1": 0.75,
        "data.sizes.3": 28,
        "data.sizes.4": 12,
        "data.spacing.2": 25,
        "data.class.organ.annotated": 1,
        "data.class.organ.cases": 22,
        "data.class.organ.share": 0.125,
        "data.class.a.cases.annotated": 1,
    }
    assert len(NAMES) == 4 + BINS + 13 + 9 + 15 + 15 + 3 * len(CLASSES)


def put(**values: float | None) -> Callable[[Numbers], None]:
    return lambda numbers: numbers.update({f"data.{name.replace('__', '.')}": value for name, value in values.items()})


HOSTILE: dict[str, tuple[Callable[[Numbers], object], str]] = {
    "a name is missing": (lambda numbers: numbers.pop("data.sizes.3"), "exactly the agreed numbers"),
    "a name too many": (put(Jane=1.0), "exactly the agreed numbers"),
    "nothing at all": (lambda numbers: numbers.clear(), "exactly the agreed numbers"),
    "cases below 0": (put(cases=-40), "cases"),
    "half a case": (put(sizes__3=27.5, sizes__4=12.5), "sizes"),
    "1e300 cases": (put(cases=1e300), "cases"),
    "cases of 300 digits": (put(cases=10**299), "cases"),
    "kind 2": (put(volumes=2), "another value than 0 or 1"),
    "no kind": (put(volumes=None), "another value than 0 or 1"),
    "annotated 0.5": (put(class__organ__annotated=0.5), "another value than 0 or 1"),
    "pictures with slices": (put(depths__2=40), "depths"),
    "volumes without slices": (put(volumes=1), "depths"),
    "an intensity is missing": (put(intensities__0=None), "intensities"),
    "intensities above 1": (put(intensities__0=1.5), "intensities"),
    "intensities that add up to 0.5": (put(intensities__1=0.25), "intensities do not add up"),
    "no intensities": (put(**{f"intensities__{n}": None for n in range(BINS)}), "intensities are withheld"),
    "more sizes than cases": (put(sizes__0=1), "sizes do not add up"),
    "fewer sizes than cases": (put(sizes__3=27), "sizes do not add up"),
    "more spacing than cases that have one": (put(spacing__4=1), "spacing do not add up"),
    "more cases without spacing than cases": (put(without_spacing=41), "without_spacing do not add up"),
    "more patients than cases": (put(patients=41), "more patients than cases"),
    "more cases of a class than cases": (put(class__organ__cases=41), "do not add up"),
    "a share above 1": (put(class__organ__share=1.01), "share"),
    "a share below 0": (put(class__organ__share=-0.1), "share"),
    "cases without a share": (put(class__organ__share=None), "cases without a share"),
    "a class that is not annotated has cases": (put(class__rim__cases=10, class__rim__share=0.5), "not annotated"),
    "a class that is not annotated has a share": (put(class__rim__share=0.5), "not annotated"),
    "withheld although nothing has to be": (put(patients=None), "patients is withheld"),
    "all withheld although nothing has to be": (
        lambda numbers: numbers.update({name: None for name in numbers if not name.endswith(("volumes", "annotated"))}),
        "withheld although min_cases is 1",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_site_can_have_is_refused_and_not_repeated(what: str) -> None:
    change, message = HOSTILE[what]
    numbers = over_the_wire(PICTURES)
    change(numbers)
    with pytest.raises(UpdateError, match=message) as caught:
        read(numbers)
    assert not [text for text in ("Jane", "27.5", "1e+300", "1e300", "0" * 20) if text in str(caught.value)]


FEW: dict[str, tuple[Callable[[Numbers], object], str]] = {
    "nine cases": (put(cases=9, patients=None), "cases has a count below min_cases"),
    "nine patients": (put(patients=9), "patients has a count below min_cases"),
    "a bin of nine": (put(spacing__3=9), "spacing has a count below min_cases"),
    "an empty bin": (put(spacing__0=0), "spacing has a count below min_cases"),
    "a rest of nine": (put(depths__1=31), "computed from the counts of depths"),
    "nine cases without spacing": (put(without_spacing=9), "without_spacing has a count below min_cases"),
    "all but nine without spacing": (put(without_spacing=31), "computed from the counts of without_spacing"),
    "a class in nine cases": (put(class__rim__cases=9), "class 'rim' has a count below min_cases"),
    "a class in all but nine cases": (put(class__rim__cases=31), "computed from the counts of class 'rim'"),
    "the number of cases alone withheld": (put(cases=None, patients=None), "the number of cases is withheld"),
}


@pytest.mark.parametrize("what", FEW)
def test_what_stands_for_few_cases_is_refused(what: str) -> None:
    change, message = FEW[what]
    numbers = over_the_wire(VOLUMES)
    change(numbers)
    with pytest.raises(UpdateError, match=message):
        read(numbers, 10)


def test_intensities_and_shares_of_a_withheld_number_of_cases_are_refused() -> None:
    for more in (
        put(intensities__0=1.0, **{f"intensities__{n}": 0 for n in range(1, BINS)}),
        put(class__rim__share=0.5),
    ):
        numbers = over_the_wire(NOTHING)
        more(numbers)
        with pytest.raises(UpdateError, match="the number of cases is withheld"):
            read(numbers, 10)
