import hashlib

import numpy as np
import pytest
from PIL import Image

from pfedsam.core.errors import DataError
from pfedsam.data.check import check_sites
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import load_image, load_truth
from pfedsam.data.suspicions import Study
from pfedsam.data.synthetic import LABELS, SyntheticOptions, write_sites

LABEL_MAP = LabelMap(LABELS)


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("sites"), SyntheticOptions(cases=12, side=64), seed=0)


def _digest(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_deterministic_to_the_byte_and_different_by_seed(tmp_path):
    options = SyntheticOptions(sites=2, cases=2, side=32)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_sites(tmp_path / name, options, seed)
    assert _digest(tmp_path / "one") == _digest(tmp_path / "again") != _digest(tmp_path / "other")


def test_a_site_does_not_depend_on_how_many_there_are(tmp_path):
    write_sites(tmp_path / "few", SyntheticOptions(sites=1, cases=2, side=32), 0)
    write_sites(tmp_path / "many", SyntheticOptions(sites=2, cases=3, side=32), 0)
    for path in (tmp_path / "few").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "many" / path.relative_to(tmp_path / "few")).read_bytes()


def test_sound_sites_with_both_classes(sites):
    for site in sites:
        (report,) = check_sites([site], Study(LABEL_MAP, ImageOptions())).sites
        assert report.problems == ()
        assert (report.cases, report.patients) == (12, 12)
        assert report.masks.classes["organ"] == 12
        assert 9 <= report.masks.classes["lesion"] <= 12


def test_sites_differ_in_resolution_and_colour(sites):
    sizes = [Image.open(site.cases[0].image).size for site in sites]
    assert sizes == [(64, 64), (85, 64), (75, 75), (75, 85)]
    assert [Image.open(site.cases[0].image).mode for site in sites] == ["L", "L", "RGB", "RGB"]


def test_the_lesion_lies_in_the_organ_and_neither_fills_the_picture(sites):
    for case in (case for site in sites for case in site.cases):
        truth = load_truth(case, LABEL_MAP)
        assert 0.03 < (truth > 0).mean() < 0.5
        assert (truth == 2).sum() < (truth == 1).sum()


def _contrasts(site):
    """Mean over the cases of (organ - its surroundings, lesion - organ) in brightness."""
    pairs = []
    for case in site.cases:
        image, truth = load_image(case, ImageOptions()).mean(-1), load_truth(case, LABEL_MAP)
        rows, columns = np.nonzero(truth)
        box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        around = image[box][truth[box] == 0].mean()
        organ = image[truth == 1].mean()
        pairs.append((organ - around, image[truth == 2].mean() - organ if (truth == 2).any() else np.nan))
    return np.nanmean(pairs, axis=0)


def test_sites_contradict_each_other(sites):
    # (organ against ground, lesion against organ): all four combinations, so no rule on brightness fits all sites.
    signs = [tuple(np.sign(_contrasts(site)).astype(int).tolist()) for site in sites]
    assert signs == [(1, -1), (-1, 1), (1, 1), (-1, -1)]


def test_several_cases_of_a_patient_resemble_each_other(tmp_path):
    (site,) = write_sites(tmp_path, SyntheticOptions(sites=1, cases=7, cases_per_patient=3, side=64), 0)
    assert {patient: len(cases) for patient, cases in site.patients().items()} == {"p0001": 3, "p0002": 3, "p0003": 1}
    organ = [load_truth(case, LABEL_MAP) > 0 for case in site.cases]

    def overlap(a, b):
        return (organ[a] & organ[b]).sum() / (organ[a] | organ[b]).sum()

    within = np.mean([overlap(0, 1), overlap(1, 2), overlap(3, 4), overlap(4, 5)])
    between = np.mean([overlap(0, 3), overlap(1, 4), overlap(2, 6), overlap(5, 6)])
    assert within > between


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "site_2").mkdir()
    with pytest.raises(DataError, match="site 'site_2': its folder exists already; remove it"):
        write_sites(tmp_path, SyntheticOptions(sites=2, cases=1, side=32), 0)


def test_scanners_keep_the_contrasts_and_one_inverts_its_images(tmp_path):
    options = SyntheticOptions(sites=4, cases=6, side=64, shift="scanners")
    darker = []
    for site in write_sites(tmp_path, options, seed=0):
        organs, bodies = [], []
        for case in site.cases:
            image = np.asarray(Image.open(case.image), float)
            mask = np.asarray(Image.open(case.mask))
            assert image.ndim == 2  # grey everywhere
            organs.append(np.median(image[mask == 1]))
            rows, columns = (slice(length // 4, -length // 4) for length in mask.shape)  # within the body
            bodies.append(np.median(image[rows, columns][mask[rows, columns] == 0]))
        darker.append(np.mean(organs) < np.mean(bodies))
    assert darker == [False, False, False, True]
