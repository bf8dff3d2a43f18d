"""Every fault is reported with its site and remedy, and nothing is reported about clean sites."""

import faulty_sites as faulty
import pytest

from pfedsam.data.images import ImageOptions
from pfedsam.data.synthetic import LABELS, SyntheticOptions, write_sites


@pytest.mark.parametrize("name", faulty.FAULTS)
def test_each_fault_is_told_with_its_site_and_remedy(name, tmp_path):
    fault = faulty.FAULTS[name]
    assert faulty.is_told(fault, tmp_path)


@pytest.mark.parametrize("name", faulty.FAULTS)
def test_nothing_else_is_said_of_a_fault(name, tmp_path):
    """No other site is blamed, and the site of the fault for nothing else than what follows from it."""
    fault = faulty.FAULTS[name]
    faulty.clean_study(tmp_path)
    fault.make(tmp_path)
    report = faulty.read_and_check(tmp_path, fault.pattern)
    lines = [*report.problems, *report.warnings]
    others = [line for line in lines if fault.says not in line]
    assert others == []
    if name != "pattern matches partly":  # made at every site
        assert [line for line in lines if not line.startswith(f"site {fault.site!r}")] == []


def test_three_clean_sites_give_no_warning(tmp_path):
    faulty.clean_study(tmp_path)
    report = faulty.read_and_check(tmp_path)
    assert (report.problems, report.warnings) == ((), ())


@pytest.mark.parametrize(("shift", "cases"), [("scanners", 24), ("contrasts", 12)])
def test_the_generated_sites_give_no_warning(tmp_path, shift, cases):
    sites = write_sites(tmp_path, SyntheticOptions(sites=4, cases=cases, shift=shift), seed=0)
    study = faulty.Study(faulty.LabelMap(LABELS), ImageOptions())
    report = faulty.check_sites([faulty._split(site) for site in sites], study)
    assert (report.problems, report.warnings) == ((), ())
