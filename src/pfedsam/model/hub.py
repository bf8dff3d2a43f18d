"""Models on the hub are taken from the cache of `huggingface_hub`, or downloaded into it.

The library resumes interrupted downloads. It reads these environment variables: `HF_HUB_OFFLINE` (no downloads), `HF_HOME` (folder of the
cache), `HF_ENDPOINT` (a mirror) and `HF_TOKEN` (for models that are not public).
"""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from pfedsam.core.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ("config.json", "model.safetensors")


def is_hub_name(text: str) -> bool:
    """Whether a text has the form of a model's name on the hub, such as facebook/sam-vit-base, and is not the name of a weight file."""
    return _NAME.fullmatch(text) is not None and not text.lower().endswith((".pth", ".pt", ".bin", ".safetensors"))


def find_on_hub(name: str, *, may_download: bool) -> Path:
    """The folder of a model in the hub's cache; if the model is not in the cache, it is downloaded first, where this is allowed.

    Raises:
        CheckpointError: the name is not a hub name, or the model is not in the cache and was not downloaded.
    """
    if not is_hub_name(name):
        raise CheckpointError(f"{name!r} is not the name of a model on the hub, such as facebook/sam-vit-base.")
    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(_FILES), local_files_only=not may_download)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(_why_not(name, may_download, error)) from error
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"The model {name} has no {' and no '.join(missing)} on the hub, or they are not in the cache. Allowed is a SAM "
            "or SAM-HQ that `save_pretrained` wrote, with all tensors in one file."
        )
    return folder


def _why_not(name: str, may_download: bool, error: Exception) -> str:
    """The reason why a model is not available, and what to do."""
    copy = "copy the folder with its config.json and model.safetensors here and give its path as the backbone"
    if not may_download:
        return (
            f"The backbone {name} is not on this machine, and a study does not make it download anything. Fetch it yourself, "
            f"if you agree: `pfedsam weights fetch {name}`; or copy its folder here and set it as `backbone` in site.yaml."
        )
    if constants.is_offline_mode():
        return (
            f"{name} is not in the hub's cache on this machine, and nothing is downloaded because HF_HUB_OFFLINE or "
            f"TRANSFORMERS_OFFLINE is set. Unset it and run the same command again, or {copy}."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"The hub has no model {name}, or does not show it to everybody. Check the name; where the model is not public, "
            "accept its terms on its page and set HF_TOKEN."
        )
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"{name} could not be downloaded from the hub ({said}). Check the name and the connection, and run the same command "
        f"again: it continues where it stopped. On a machine without network, {copy}."
    )
