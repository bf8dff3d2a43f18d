from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from pfedsam.core import rng
from pfedsam.core.errors import DataError
from pfedsam.data import loader
from pfedsam.data.examples import classes_in
from pfedsam.data.images import ImageOptions
from pfedsam.data.labels import LabelMap
from pfedsam.data.loader import batches, load_examples, load_ids, load_truth, view_of
from pfedsam.data.manifest import read_site
from pfedsam.data.transforms import AugmentOptions, Frame

LABELS = LabelMap({"nucleus": [1]})


def _load(cases, labels=LABELS, **changes):
    examples = load_examples(
        cases, **{"labels": {case.site: labels for case in cases}, "image": ImageOptions(), "side": 12, **changes}
    )
    return list(examples)


def test_examples(site_folder):
    site = read_site("north", site_folder("a", "b"))
    first, second = _load(site.cases)
    assert first.case is site.cases[0]
    assert first.frame == Frame((4, 6), (8, 12), 12)
    assert torch.allclose(first.pixels[:, :8], torch.tensor(5 / 255))
    assert torch.allclose(second.pixels[:, :8], torch.tensor(15 / 255))
    assert not first.pixels[:, 8:].any()
    assert first.labels[:8:2, ::2].tolist() == np.eye(4, 6, dtype=int).tolist()
    np.testing.assert_array_equal(load_truth(site.cases[0], LABELS), np.eye(4, 6))


def test_pictures_are_read_when_they_are_asked_for_and_few_are_kept(site_folder, monkeypatch):
    site = read_site("north", site_folder(*"abcde"))
    monkeypatch.setattr(loader, "_KEPT_MEGABYTES", 2)
    side = 228  # three of them in 2 MiB, at 13 bytes a pixel
    examples = load_examples(site.cases, labels={"north": LABELS}, image=ImageOptions(), side=side)
    site.cases[4].image.write_bytes(b"")
    first = examples[0]
    assert [one.case.id for one in examples[:4]] == ["a", "b", "c", "d"]
    assert len(examples) == 5
    assert len(examples._kept) == 3
    assert examples[3] is examples[3]
    assert torch.equal(examples[0].pixels, first.pixels)
    with pytest.raises(DataError, match="site 'north', case 'e'"):
        examples[4]
    with pytest.raises(IndexError):
        examples[5]


def test_case_without_mask(site_folder):
    case = replace(read_site("north", site_folder("a")).cases[0], mask=None)
    (example,) = _load([case])
    assert example.labels is None
    with pytest.raises(DataError, match="site 'north', case 'a': the image has no mask; add a mask"):
        load_ids(case)
    with pytest.raises(DataError, match="site 'north', case 'a': the image has no mask; only"):
        view_of(example, 0, seed=0, options=AugmentOptions())


def test_without_labels_no_mask_is_read(site_folder):
    case = read_site("north", site_folder("a")).cases[0]
    case.mask.write_bytes(b"")
    (example,) = load_examples([case], labels=None, image=ImageOptions(), side=12)
    assert example.labels is None
    with pytest.raises(DataError, match="site 'north', case 'a'"):
        _load([case])


def test_contrast_reaches_the_image(site_folder):
    folder = site_folder("a")
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(folder / "images/a.png")
    (example,) = _load(read_site("north", folder).cases, image=ImageOptions(contrast="percentile", low=0, high=100))
    assert example.pixels.max() > 0.9


def test_outlines_beside_an_image_without_a_mask_are_told_to_be_exported(site_folder):
    folder = site_folder("a")
    (folder / "masks" / "a.png").rename(folder / "masks" / "a.json")  # as LabelMe saves outlines
    with pytest.raises(
        DataError, match=r"'a': the image has no mask; .*outlines and boxes in JSON or XML are not read"
    ):
        read_site("north", folder)


@pytest.mark.parametrize("kind", ["NIfTI", "folder"])
def test_a_volume_or_a_folder_is_no_mask_of_a_picture(site_folder, kind):
    folder = site_folder("a")
    (folder / "masks" / "a.png").unlink()
    if kind == "NIfTI":  # as ITK-SNAP saves the mask of a picture
        nib.save(nib.Nifti1Image(np.eye(6, 4, dtype=np.uint8)[..., None], np.eye(4)), folder / "masks" / "a.nii.gz")
    else:
        (folder / "masks" / "a").mkdir()
        Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(folder / "masks" / "a" / "1.png")
    (case,) = read_site("north", folder).cases
    with pytest.raises(
        DataError, match=r"its mask 'a.*' is a volume or a folder, and its image a picture; save the mask as"
    ):
        load_ids(case)


def test_mask_of_another_size(site_folder):
    folder = site_folder("a", "b")
    case = read_site("north", folder).cases[1]
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(case.mask)
    with pytest.raises(DataError, match="site 'north', case 'b': the image has 6 x 4 pixels, its mask 6 x 5; export"):
        _load([case])


def test_mask_that_was_drawn_before_the_image_was_turned(site_folder):
    folder = site_folder("a")
    case = read_site("north", folder).cases[0]
    exif = Image.Exif()
    exif[274] = 8
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(case.image, exif=exif)
    with pytest.raises(DataError, match=r"image has 4 x 6 pixels, its mask 6 x 4 \(does the image have an EXIF orient"):
        _load([case])
    Image.fromarray(np.ones((6, 4), np.uint8)).save(case.mask)
    assert _load([case])[0].frame.native == (6, 4)


def test_unknown_label_and_truncated_files_name_the_case(site_folder):
    folder = site_folder("a")
    (case,) = read_site("north", folder).cases
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(case.mask)
    with pytest.raises(
        DataError, match=r"site 'north', case 'a': its mask has the unknown label 255; .* nucleus \[1\]"
    ):
        _load([case])
    assert _load([case], labels=LabelMap({"nucleus": [255]}))[0].labels[:8].all()
    for path in (case.mask, case.image):
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(DataError, match=r"site 'north', case 'a': (its mask )?'a\.png' is damaged") as caught:
            _load([case])
        assert str(folder) not in str(caught.value)


def test_size_limit_reaches_both_files(site_folder):
    (case,) = read_site("north", site_folder("a")).cases
    with pytest.raises(DataError, match=r"case 'a': 'a\.png' has 6 x 4 pixels, more than 2e-05 megapixels"):
        _load([case], image=ImageOptions(max_megapixels=2e-5))


def test_a_view_depends_on_its_name_alone(site_folder):
    site = read_site("north", site_folder("a", "b"))
    options = AugmentOptions(noise=0.1)

    def view(case, number, **changes):
        example = _load([case])[0]
        return view_of(example, number, **{"seed": 0, "options": options, **changes})[0]

    one = view(site.cases[0], 1)
    view(site.cases[1], 3)  # what is drawn in between changes nothing
    assert torch.equal(view(site.cases[0], 1), one)
    assert torch.equal(view(site.cases[0], 0), _load(site.cases)[0].pixels)
    others = [
        view(site.cases[0], 2),
        view(site.cases[0], 1, seed=1),
        view(site.cases[0], 1, renewal=1),
        view(replace(site.cases[0], site="south"), 1),
        view(replace(site.cases[0], id="z"), 1),
    ]
    assert not any(torch.equal(one, other) for other in others)


def test_slices_of_volumes_are_not_mirrored_as_pictures_are(site_folder):
    (picture,) = _load(read_site("north", site_folder("a")).cases)
    options = AugmentOptions(angle=0, zoom=0)

    def moved(example):
        return [not torch.equal(view_of(example, 1, seed=s, options=options)[1], picture.labels) for s in range(20)]

    assert any(moved(picture))
    assert not any(moved(replace(picture, slice=0)))


def test_every_example_comes_once_before_any_comes_again():
    drawn = list(batches(5, 3, batch_size=2, steps=10, generator=rng.generator(0)))
    assert [len(batch) for batch in drawn] == [2] * 10
    indices = [index for batch in drawn for index, _ in batch]
    for start in range(0, 20, 5):
        assert sorted(indices[start : start + 5]) == [0, 1, 2, 3, 4]
    assert {view for batch in drawn for _, view in batch} == {0, 1, 2}


def test_batches_larger_than_a_site():
    (batch,) = batches(3, 1, batch_size=7, steps=1, generator=rng.generator(0))
    assert sorted(Counter(index for index, _ in batch).values()) == [2, 2, 3]


def test_batches_follow_the_generator():
    first, again, other = (
        list(batches(9, 4, batch_size=4, steps=5, generator=rng.generator(seed))) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_no_batches_from_nothing():
    with pytest.raises(DataError, match="no training cases"):
        next(batches(0, 1, batch_size=1, steps=1, generator=rng.generator(0)))


@pytest.mark.parametrize(("batch_size", "share"), [(4, 0.25), (4, 0.5), (8, 0.25), (8, 0.5), (2, 0.5)])
def test_each_half_of_a_batch_has_its_share_of_examples_with_a_class(batch_size: int, share: float) -> None:
    """Of 400 examples 10 contain a class; a step of two models gives one half of the batch to each."""
    held = [(1,) if number < 10 else () for number in range(400)]
    first, second, middle, steps = 0, 0, batch_size // 2, 200
    for batch in batches(
        400, 1, batch_size=batch_size, steps=steps, generator=rng.generator(0), foreground=held, share=share
    ):
        assert len(batch) == batch_size
        first += sum(number < 10 for number, _ in batch[:middle])
        second += sum(number < 10 for number, _ in batch[middle:])
    chance = 4 * 10 / 400  # further examples with a class among those that are drawn from all
    for found in (first, second):
        assert share - 0.005 <= found / (middle * steps) <= share + chance


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_each_half_of_a_batch_gets_each_class_equally_often(classes: int) -> None:
    """With one draw for each half in a step, `classes` steps bring each class once to each half."""
    held = [(number % classes,) if number < 40 else () for number in range(1_000)]
    for seed in range(10):
        drawn = list(
            batches(
                1_000, 1, batch_size=4, steps=2 * classes, generator=rng.generator(seed), foreground=held, share=0.5
            )
        )
        for place in (0, 2):  # the first of each half
            counts = Counter(held[batch[place][0]] for batch in drawn)
            assert counts == {(number,): 2 for number in range(classes)}
        assert all(held[batch[0][0]] != held[batch[2][0]] for batch in drawn)


@pytest.mark.parametrize(("batch_size", "steps", "share"), [(1, 1, 0.5), (3, 1, 0.5), (1, 4, 0.3), (2, 1, 0.25)])
def test_the_share_holds_in_the_mean_over_short_phases_and_for_each_half(
    batch_size: int, steps: int, share: float
) -> None:
    """Of 1,000 examples one contains a class, so that drawing from all of them adds almost nothing."""
    held = [(1,), *[()] * 999]
    halves = (batch_size - batch_size // 2, batch_size // 2)
    found = [0, 0]
    for seed in range(1_000):
        for batch in batches(
            1_000, 1, batch_size=batch_size, steps=steps, generator=rng.generator(seed), foreground=held, share=share
        ):
            found[0] += sum(index == 0 for index, _ in batch[: halves[0]])
            found[1] += sum(index == 0 for index, _ in batch[halves[0] :])
    draws = 1_000 * steps
    assert sum(found) / (batch_size * draws) == pytest.approx(share, abs=0.04)
    if batch_size == 2:  # halves of the same size have the same share, also with a single draw in a phase
        assert [one / draws for one in found] == pytest.approx([share, share], abs=0.04)


def test_a_rare_class_is_drawn_as_often_as_a_common_one() -> None:
    held = [(2,) if index == 0 else (1,) if index < 50 else () for index in range(5_000)]
    drawn = [
        index
        for seed in range(40)  # short phases: none may begin with the same class
        for batch in batches(5_000, 1, batch_size=2, steps=1, generator=rng.generator(seed), foreground=held, share=0.5)
        for index, _ in batch
        if held[index]
    ]
    assert 39 <= len(drawn) <= 43  # one in a batch, and few among those that are drawn from all
    assert 10 <= drawn.count(0) <= 30  # about half, where drawing from all with a class would give 1 in 50
    longer = list(batches(100, 1, batch_size=4, steps=50, generator=rng.generator(0), foreground=held, share=1.0))
    assert sum(index == 0 for batch in longer for index, _ in batch) == 100
    assert {index for batch in longer for index, _ in batch} == set(range(50))  # each once before any again


@pytest.mark.parametrize(
    ("labels", "overlap", "classes"),
    [
        ([0, 1, 3, 255], False, (1, 3)),
        ([0, 255], False, ()),
        ([0, 5, 2], True, (1, 2, 3)),
        ([128, 4], True, (3,)),
        ([129, 0], True, ()),
        ([128, 129], True, ()),  # all pixels are ignored
    ],
)
def test_the_classes_of_labels_are_those_of_pixels_that_count(labels, overlap: bool, classes) -> None:
    assert classes_in(np.array([labels], np.uint8), overlap=overlap) == classes
