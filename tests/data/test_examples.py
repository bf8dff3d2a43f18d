"""Slices of volumes as examples: loaded when they are asked for, in memory that does not grow with the site."""

from pathlib import Path

import numpy as np
import pytest
import torch
from volume_files import write_nifti, write_series

from pfedsam.data.examples import VolumeExamples
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import view_of
from pfedsam.data.manifest import read_site
from pfedsam.data.transforms import AugmentOptions
from pfedsam.data.volume_options import VolumeOptions

VALUES = np.random.default_rng(0).integers(0, 900, (6, 8, 5)).astype(np.int16)
MASK = np.zeros((6, 8, 5), np.uint8)
MASK[2:4, 3:6, 1:3] = 1
AFFINE = np.diag([1.0, 2, 5, 1])
LABELS = LabelMap({"organ": [1]})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with a NIfTI file and a DICOM series of the same voxels, each with a NIfTI mask."""
    write_nifti(tmp_path / "images/a.nii.gz", VALUES, AFFINE)
    write_nifti(tmp_path / "masks/a.nii.gz", MASK, AFFINE)
    write_series(tmp_path / "images/b", VALUES, AFFINE)
    write_nifti(tmp_path / "masks/b.nii", MASK, AFFINE)
    return tmp_path


def _examples(folder: Path, labels: LabelMap | None = LABELS, **options) -> VolumeExamples:
    cases = read_site("north", folder).cases
    return VolumeExamples(cases, labels=labels, image=ImageOptions(), side=16, options=VolumeOptions(**options))


def test_slices_are_examples_that_do_not_depend_on_what_was_loaded_before(site):
    examples = _examples(site)
    assert len(examples) == 10
    assert [(one.case.id, one.slice, one.depth) for one in examples[3:7]] == [
        ("a", 3, 5),
        ("a", 4, 5),
        ("b", 0, 5),
        ("b", 1, 5),
    ]
    assert examples.foreground == [(), (1,), (1,), (), ()] * 2
    for number in range(5):
        assert torch.equal(examples[number].pixels, examples[number + 5].pixels)  # NIfTI and DICOM of the same voxels
        assert torch.equal(examples[number].labels, examples[number + 5].labels)
    again = _examples(site)
    assert torch.equal(again[7].pixels, examples[7].pixels)
    assert examples[1].labels.sum() > 0
    views = [view_of(examples[number], 1, seed=0, options=AugmentOptions())[0] for number in (1, 2)]
    assert not torch.equal(*views)


def test_memory_does_not_grow_with_the_site(site, monkeypatch):
    examples = _examples(site)
    examples._most = 3
    for number in range(10):
        examples[number]
    assert len(examples._kept) == 3
    for number in range(5):
        write_nifti(site / f"images/c{number}.nii.gz", VALUES, AFFINE)
        write_nifti(site / f"masks/c{number}.nii.gz", MASK, AFFINE)
    larger = _examples(site)
    for number in range(len(larger)):
        larger[number]
    assert len(larger._open) == 2


def test_no_mask_is_looked_at_where_no_labels_are_wanted(site):
    for path in (site / "masks").iterdir():
        path.write_bytes(b"broken")
    examples = _examples(site, labels=None)
    assert examples[0].labels is None
    assert examples.foreground == []
