"""The cache of the frozen blocks' output: the same bits with and without it."""

import errno
import os
from pathlib import Path

import pytest
import torch

from pfedsam.core import rng
from pfedsam.model import prefix
from pfedsam.model.prefix import PrefixCache, PrefixOptions

SHAPE = (2, 2, 3)


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.sin(pixels.sum() + torch.arange(12.0)).view(1, *SHAPE)


def image(number: int) -> torch.Tensor:
    return torch.rand(3, 4, 4, generator=rng.generator(number))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_hit_gives_the_same_bits_and_survives_reopening(tmp_path: Path, dtype: str) -> None:
    options = PrefixOptions.model_validate({"dtype": dtype})
    none = PrefixCache(
        tmp_path / "none", "m", SHAPE, PrefixOptions.model_validate({"dtype": dtype, "max_gigabytes": 0})
    )
    nowhere = PrefixCache(None, "m", SHAPE, options)
    compute = Counting()
    cache = PrefixCache(tmp_path, "m", SHAPE, options)
    first = [cache.tokens(image(i), compute) for i in range(3)]
    again = PrefixCache(tmp_path, "m", SHAPE, options)
    assert compute.calls == 3
    for i in range(3):
        assert torch.equal(again.tokens(image(i), compute), first[i])
        assert torch.equal(none.tokens(image(i), Counting()), first[i])
        assert torch.equal(nowhere.tokens(image(i), Counting()), first[i])
    assert compute.calls == 3
    assert not (tmp_path / "none").exists()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()} == {0o600}


def test_a_cut_file_loses_only_what_was_cut(tmp_path: Path) -> None:
    cache, compute = PrefixCache(tmp_path, "m", SHAPE, PrefixOptions()), Counting()
    first = [cache.tokens(image(i), compute) for i in range(2)]
    data = next(tmp_path.glob("*.tokens"))
    data.write_bytes(data.read_bytes()[:-5])
    reopened, again = PrefixCache(tmp_path, "m", SHAPE, PrefixOptions()), Counting()
    assert torch.equal(reopened.tokens(image(0), again), first[0])
    assert torch.equal(reopened.tokens(image(1), again), first[1])
    assert again.calls == 1


@pytest.mark.parametrize("removed", ["files", "tokens", "folder", "cut"])
@pytest.mark.parametrize("first", [0, 9])
def test_a_cache_that_is_cleared_while_it_is_open_is_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, removed: str, first: int
) -> None:
    folder, compute = tmp_path / "cache", Counting()
    cache = PrefixCache(folder, "m", SHAPE, PrefixOptions())
    before = [cache.tokens(image(i), compute) for i in range(3)]
    if removed == "cut":
        os.truncate(next(folder.glob("*.tokens")), 5)
    for path in folder.glob("*.tokens" if removed == "tokens" else "*") if removed != "cut" else ():
        path.unlink()
    if removed == "folder":
        folder.rmdir()
    known_or_new = cache.tokens(image(first), compute)
    assert torch.equal(known_or_new, Counting()(image(first)[None])[0])
    assert all(torch.equal(cache.tokens(image(i), compute), before[i]) for i in range(3))
    calls = compute.calls
    assert all(torch.equal(cache.tokens(image(i), compute), before[i]) for i in range(3))
    assert compute.calls == calls + (3 if removed == "folder" else 0)  # without a folder nothing can be stored
    assert "computed" in caplog.text or first == 9
    reopened = PrefixCache(folder, "m", SHAPE, PrefixOptions())
    assert all(torch.equal(reopened.tokens(image(i), compute), before[i]) for i in range(3))


def test_another_model_has_its_own_tokens(tmp_path: Path) -> None:
    compute = Counting()
    for key in ("m", "other"):
        PrefixCache(tmp_path, key, SHAPE, PrefixOptions()).tokens(image(0), compute)
    assert compute.calls == 2


def test_a_full_disk_ends_the_keeping_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, compute = PrefixCache(tmp_path, "m", SHAPE, PrefixOptions()), Counting()
    first = [cache.tokens(image(i), compute) for i in range(2)]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prefix, "_open", full)
    for _ in range(2):
        assert torch.equal(cache.tokens(image(2), compute), Counting()(image(2)[None])[0])
    assert compute.calls == 4
    assert caplog.text.count("No space left on device") == 1
    monkeypatch.undo()
    again = PrefixCache(tmp_path, "m", SHAPE, PrefixOptions())
    assert [torch.equal(again.tokens(image(i), compute), first[i]) for i in range(2)] == [True, True]
    assert compute.calls == 4


def test_two_caches_on_one_folder_find_each_others_tokens_and_never_another_images(tmp_path: Path) -> None:
    """As two processes that score the sites of a pooled method: each opened the folder before the other wrote."""
    one, other = (PrefixCache(tmp_path, "m", SHAPE, PrefixOptions()) for _ in range(2))
    compute = Counting()
    for number, cache in enumerate((one, other, other, one, other, one)):
        cache.tokens(image(number // 2), compute)
    for cache in (one, other, PrefixCache(tmp_path, "m", SHAPE, PrefixOptions())):
        for number in range(3):
            assert torch.equal(cache.tokens(image(number), compute), Counting()(image(number)[None])[0])
    assert next(tmp_path.glob("*.keys")).stat().st_size == 3 * 64
