"""The official weight files that are known by name: where they are, and how to tell that one has arrived whole.

A download goes to `<file>.part` beside its place, goes on from there when it was interrupted, and gets its name only
when size and SHA-256 agree; so a file under an official name is that file.
"""

import contextlib
import hashlib
import http
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pfedsam.core.atomic import sync_folder
from pfedsam.core.errors import CheckpointError, OptionError
from pfedsam.core.files import open_regular

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes that there will be."""

_BLOCK_BYTES = 2**20
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class KnownFile:
    """One published weight file; `url` is None where its authors give it out by hand only."""

    name: str
    file_name: str
    bytes: int
    sha256: str
    url: str | None
    about: str


# Where the digests come from: Meta's three stand in computational-cell-analytics/micro-sam (micro_sam/util.py at commit
# 00006fc6a86d4f6888f7ef333cf070987ffabb51) and, with the sizes, in several other public projects; a few sources differ in
# ViT-L's size or digest, and these are the values that the most agree on. MedSAM's stand in four public projects that
# took the file from its authors. None was computed by us from a download: a user's `pfedsam weights fetch` does that.
# (The six characters in Meta's file names are not the start of the SHA-256.)
_META = "https://dl.fbaipublicfiles.com/segment_anything/"
KNOWN_FILES: Mapping[str, KnownFile] = {
    file.name: file
    for file in (
        KnownFile(
            name="sam-vit-b",
            file_name="sam_vit_b_01ec64.pth",
            bytes=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            url=_META + "sam_vit_b_01ec64.pth",
            about="Segment Anything ViT-B, 94 M parameters",
        ),
        KnownFile(
            name="sam-vit-l",
            file_name="sam_vit_l_0b3195.pth",
            bytes=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            url=_META + "sam_vit_l_0b3195.pth",
            about="Segment Anything ViT-L, 312 M parameters",
        ),
        KnownFile(
            name="sam-vit-h",
            file_name="sam_vit_h_4b8939.pth",
            bytes=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            url=_META + "sam_vit_h_4b8939.pth",
            about="Segment Anything ViT-H, 641 M parameters",
        ),
        KnownFile(
            name="medsam-vit-b",
            file_name="medsam_vit_b.pth",
            bytes=375_049_145,
            sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
            url=None,
            about="MedSAM ViT-B; get it from its authors, or use the hub name wanglab/medsam-vit-base",
        ),
    )
}
"""Every file that `pfedsam weights` knows, by the name that it is asked for."""


def fetch(name: str, folder: Path, *, base_url: str | None = None, progress: Progress | None = None) -> Path:
    """The path of an official file in `folder`, downloaded unless it is there already.

    Args:
        name: one of `KNOWN_FILES`.
        folder: made when it does not exist.
        base_url: another place that holds the files under their official names; None is the official one.
        progress: told after every block.

    Raises:
        OptionError: the name is not known.
        CheckpointError: the file cannot be had, the connection was lost (asking again goes on from there), or what
            arrived is not the official file (it was deleted).
    """
    file = known_file(name)
    url = base_url.rstrip("/") + "/" + file.file_name if base_url else file.url
    if url is None:
        raise CheckpointError(f"{name} has no address to fetch it from. {file.about}.")
    target = folder / file.file_name
    if target.exists():
        check_official_name(target)
        return target
    part = folder / f"{file.file_name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(url, part, file, progress)
        _accept(part, target, file)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: the address is none
        if isinstance(error, urllib.error.HTTPError) and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)  # the server's file ends before our part does: that part is of something else
        there = part.stat().st_size if part.exists() else 0
        raise CheckpointError(
            f"{file.file_name} was not fetched: {_reason(error)}. {there} of {file.bytes} bytes are kept; run the same "
            "command again to go on. Without a network, copy the file here by other means and run `pfedsam weights "
            "verify` on it."
        ) from error
    return target


def known_file(name: str) -> KnownFile:
    """The entry of `KNOWN_FILES`.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in KNOWN_FILES:
        raise OptionError(f"There are no known weights called {name!r}; known: {', '.join(KNOWN_FILES)}.")
    return KNOWN_FILES[name]


def verify(path: Path) -> KnownFile:
    """Which official file this is, told by its content, whatever it is called.

    Raises:
        CheckpointError: it cannot be read, or it is none of them.
    """
    size, digest = _size_and_digest(path)
    for file in KNOWN_FILES.values():
        if (size, digest) == (file.bytes, file.sha256):
            return file
    named = _named_as(path)
    expected = f"; {named.file_name} has {named.bytes} bytes and SHA-256 {named.sha256}" if named else ""
    raise CheckpointError(
        f"{path.name} is none of the official files: it has {size} bytes and SHA-256 {digest}{expected}. "
        "If it is a download, delete it and run `pfedsam weights fetch`; if it is a fine-tune of yours, give it a name "
        "of its own and it can be loaded."
    )


def check_official_name(path: Path) -> None:
    """Make sure that a file under an official name is that file; a file under any other name passes.

    Raises:
        CheckpointError: its content is not what its name says.
    """
    named = _named_as(path)
    if named is not None and verify(path) != named:
        raise CheckpointError(
            f"{path.name} holds {verify(path).file_name}: one official file under the name of another. Rename it."
        )


def _named_as(path: Path) -> KnownFile | None:
    return next((file for file in KNOWN_FILES.values() if file.file_name == path.name), None)


def _size_and_digest(path: Path) -> tuple[int, str]:
    try:
        with open_regular(path) as opened:
            return path.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error.strerror or error}. Give the path of a weight file; `pfedsam weights list` "
            "shows the official ones."
        ) from error


def _download(url: str, part: Path, file: KnownFile, progress: Progress | None) -> None:
    """Bring `part` to the size of the file, from where it ends.

    Raises:
        CheckpointError: the server offers less than the file has; `part` is as it was. Or it sends more; `part` is gone.
        ConnectionError: the connection failed or ended early; `part` holds what arrived.
    """
    if part.exists() and part.stat().st_size > file.bytes:
        part.unlink()
    start = part.stat().st_size if part.exists() else 0
    if start == file.bytes:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        resumed = start > 0 and _first_byte(response.headers.get("Content-Range")) == start
        there = start if resumed else 0
        offered = response.headers.get("Content-Length") or ""
        if offered.isdecimal() and there + int(offered) < file.bytes:
            raise CheckpointError(
                f"{file.file_name}: the server offers {there + int(offered)} bytes, and the file has {file.bytes}. It may "
                "have answered with something else (a proxy's page?): check the connection, or the address of the mirror."
            )
        with part.open("ab" if resumed else "wb") as output:
            done = _copy(response, output, there, file, progress)
    if done > file.bytes:
        part.unlink()
        raise CheckpointError(
            f"{file.file_name}: the server sent more than the {file.bytes} bytes that the file has; what arrived was "
            "deleted. It may have answered with something else (a proxy's page?): check the connection."
        )
    if done < file.bytes:
        raise ConnectionError("the connection ended early")


def _copy(
    response: http.client.HTTPResponse, output: BinaryIO, done: int, file: KnownFile, progress: Progress | None
) -> int:
    """The bytes that are there after copying the response; stops as soon as there are too many."""
    while done <= file.bytes and (block := response.read(_BLOCK_BYTES)):
        output.write(block)
        done += len(block)
        if progress is not None:
            progress(min(done, file.bytes), file.bytes)
    output.flush()
    os.fsync(output.fileno())
    return done


def _first_byte(content_range: str | None) -> int | None:
    """Where a partial response starts; None when the server sends the whole file."""
    match = re.match(r"bytes (\d+)-", content_range or "")
    return int(match[1]) if match else None


def _accept(part: Path, target: Path, file: KnownFile) -> None:
    """Give a complete download its name, or delete it.

    Raises:
        CheckpointError: it is not the official file.
    """
    size, digest = _size_and_digest(part)
    if (size, digest) != (file.bytes, file.sha256):
        with contextlib.suppress(OSError):
            part.unlink()
        raise CheckpointError(
            f"{file.file_name} arrived with {size} bytes and SHA-256 {digest}, the official file has {file.bytes} and "
            f"{file.sha256}. It was deleted and is not used. Run the same command to fetch it anew; if it happens "
            "again, something between you and the server changes the file."
        )
    os.replace(part, target)
    sync_folder(target.parent)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} ({error.reason})"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    return str(error) or type(error).__name__
