"""The official weight files: their names, where they can be downloaded, and the digests by which they are recognised."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pfedsam.core.errors import CheckpointError
from pfedsam.core.files import open_regular


@dataclass(frozen=True, kw_only=True)
class KnownFile:
    """One published weight file; `hub` is the model on the hub with the same weights in the format of `transformers`."""

    name: str
    file_name: str
    bytes: int
    sha256: str
    hub: str
    url: str | None
    """Address of the `.pth` file; None if there is no fixed address."""
    about: str


# Sources of the digests, none of which we computed from a download: those of Meta's three files are in
# computational-cell-analytics/micro-sam (micro_sam/util.py at commit 00006fc6a86d4f6888f7ef333cf070987ffabb51) and, with the sizes, in
# several other public projects. A few sources give another size or digest for ViT-L; ours are those that most of them give. The digest of
# MedSAM is in four public projects that got the file from its authors.
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
            hub="facebook/sam-vit-base",
            url=_META + "sam_vit_b_01ec64.pth",
            about="Segment Anything ViT-B, 94 M parameters",
        ),
        KnownFile(
            name="sam-vit-l",
            file_name="sam_vit_l_0b3195.pth",
            bytes=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            hub="facebook/sam-vit-large",
            url=_META + "sam_vit_l_0b3195.pth",
            about="Segment Anything ViT-L, 312 M parameters",
        ),
        KnownFile(
            name="sam-vit-h",
            file_name="sam_vit_h_4b8939.pth",
            bytes=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            hub="facebook/sam-vit-huge",
            url=_META + "sam_vit_h_4b8939.pth",
            about="Segment Anything ViT-H, 641 M parameters",
        ),
        KnownFile(
            name="medsam-vit-b",
            file_name="medsam_vit_b.pth",
            bytes=375_049_145,
            sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
            hub="wanglab/medsam-vit-base",
            url=None,
            about="MedSAM ViT-B; its authors give out the .pth file",
        ),
    )
}
"""All files that `pfedsam weights` lists, by the names used in its commands."""


def identify(path: Path) -> tuple[KnownFile | None, str]:
    """The official file with the same content (None if there is none), whatever the name of `path`, and the SHA-256 of the content.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with open_regular(path) as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {error.strerror or error}. Give the path of a weight file; `pfedsam weights list` "
            "shows the official ones."
        ) from error
    return next((file for file in KNOWN_FILES.values() if file.sha256 == digest), None), digest


def check_official_name(path: Path) -> None:
    """Check that a file with the name of an official file is that file; files with other names are accepted.

    Raises:
        CheckpointError: the file has another content than the official file of its name.
    """
    named = next((file for file in KNOWN_FILES.values() if file.file_name == path.name), None)
    if named is None:
        return
    found, digest = identify(path)
    if found is None:
        raise CheckpointError(
            f"{path.name} is not the official file of that name: it has {path.stat().st_size} bytes and SHA-256 {digest}; "
            f"the official file has {named.bytes} bytes and SHA-256 {named.sha256}. If it is a download, delete it and "
            f"download it again, or use the backbone {named.hub}; if it is a fine-tune of yours, give it a name of its own."
        )
    if found != named:
        raise CheckpointError(
            f"{path.name} holds {found.file_name}: one official file under the name of another. Rename it."
        )
