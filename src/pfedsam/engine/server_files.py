"""Files that local runs and coordinators write in the same format: the committed state, and records of the sites' reports."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from pfedsam.core import tensors
from pfedsam.core.errors import RunError, StoreError
from pfedsam.engine.model_selection import Validation
from pfedsam.engine.site_session import RoundReport
from pfedsam.federation.server import ServerState
from pfedsam.report.records import RecordWriter, check_mark, read_records

SERVER = Path("shared") / "shared.safetensors"
"""The file in a run's folder with the server's state: the shared parameters, the tensors of the server step, and the next round."""
EARLIER = SERVER.parent / "earlier"
"""The folder with the server's states after earlier rounds."""
RECORDS = "records.jsonl"
"""The file of the records in the same folder."""
_MEMORY = "memory:"
"""Prefix of the names of the tensors that the method's server step keeps; names of parameters contain no colon."""
NOTHING = {"none": torch.zeros(1)}
"""Placeholder that is stored if a method shares nothing."""


def load_state(folder: Path, study: str, file: Path = SERVER) -> ServerState:
    """The state after the last committed round, or the state in another file of the folder.

    Raises:
        RunError: the state belongs to another study.
        StoreError: the state, or the records of its rounds, are damaged or missing.
    """
    stored, metadata = read_server(folder, file)
    if metadata["study"] != study:
        raise RunError("The shared parameters in this folder belong to another study. Give another folder.")
    _check_records(folder, metadata)
    memory = {name.removeprefix(_MEMORY): t for name, t in stored.items() if name.startswith(_MEMORY)}
    shared = {name: t for name, t in stored.items() if name not in NOTHING and not name.startswith(_MEMORY)}
    return ServerState(int(metadata["round"]), shared, memory)


def read_server(folder: Path, file: Path = SERVER) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, of any shape, and the metadata of the server's state.

    Raises:
        StoreError: the file is damaged or missing.
    """
    try:
        return tensors.load(folder / file, unsealed=("round", "study"))
    except StoreError as error:
        if file != SERVER:
            raise
        raise StoreError(f"{error} {_what_is_lost(folder)}") from error


def earlier_states(folder: Path) -> list[Path]:
    """The files of the earlier states that are kept beside the server's state, the newest last."""
    return sorted((folder / EARLIER).glob("after-*.safetensors"))


def _what_is_lost(folder: Path) -> str:
    """What is lost with the server's state, and what to do."""
    server, earlier = SERVER.as_posix(), earlier_states(folder)
    todo = f"bring {server} back from a copy, or begin again in a new folder."
    if not earlier:
        return f"With it the shared parameters of every round are lost: {todo}"
    newest = earlier[-1].relative_to(folder).as_posix()
    return (
        f"With it the shared parameters of the last round are lost: {todo} {newest} contains those of an earlier round. If it is copied to "
        f"{server}, `pfedsam predict` and `pfedsam onboard` work with them; the training cannot continue from them, because the states of "
        "the sites are of later rounds."
    )


def check_records(folder: Path) -> None:
    """Refuse records that are not those of the committed rounds, in the folder of a finished run or study.

    The folder of an onboarding, which has no records, and a folder without a committed state pass the check.

    Raises:
        StoreError: records are missing or were changed, or the state is damaged.
    """
    if (folder / SERVER).exists():
        _check_records(folder, read_server(folder)[1])


def _check_records(folder: Path, metadata: Mapping[str, str]) -> None:
    """Refuse records that do not begin with those that existed when the state with these metadata was committed."""
    if "records" in metadata:
        check_mark(folder / RECORDS, metadata["records"])


def refuse_lost_state(folder: Path) -> None:
    """Refuse to start from the beginning if the server's state is missing although rounds were committed.

    Raises:
        StoreError: there is a record of a later round than the first. (A killed run may have left records of an unfinished first round.)
    """
    path = folder / RECORDS
    if not (folder / SERVER).exists() and path.exists() and any(row.get("round", 0) > 0 for row in read_records(path)):
        read_server(folder)


def save_state(
    folder: Path,
    study: str,
    state: ServerState,
    records: RecordWriter | None = None,
    *,
    backbone: str | None = None,
    mode: int = 0o777,
) -> None:
    """Commit a round by renaming the file of its state into place.

    Args:
        folder: the folder of the run or study.
        study: the identity of the run or study.
        state: the state after the round.
        records: the records of the run; those written so far belong to the commit, and are checked when the state is loaded.
        backbone: the hash of the backbone with which the run or study began.
        mode: the permissions of the state's folder if it has to be made.
    """
    path = folder / SERVER
    path.parent.mkdir(exist_ok=True, mode=mode)
    memory = {f"{_MEMORY}{name}": t for name, t in state.memory.items()}
    described = {"round": str(state.round), "study": study} | ({"records": records.mark} if records else {})
    described |= {"backbone": backbone} if backbone else {}
    tensors.save(path, {**(state.shared or NOTHING), **memory}, described)


def record_aggregate(
    records: RecordWriter,
    round_: int,
    accepted: Sequence[str],
    rejected: Mapping[str, str],
    messages: Mapping[str, bytes],
    scaled: Mapping[str, float] | None = None,
) -> None:
    """Record which updates were averaged, scaled down or refused (with the reason), and the size of each message in bytes."""
    row: dict[str, object] = {
        "kind": "aggregate",
        "round": round_,
        "accepted": list(accepted),
        "rejected": dict(rejected),
        "up_bytes": {site: len(message) for site, message in sorted(messages.items())},
    }
    if scaled:
        row["scaled"] = {site: round(factor, 6) for site, factor in sorted(scaled.items())}
    records.write(row)


def record_report(records: RecordWriter, round_: int, site: str, report: RoundReport) -> None:
    """Record the losses of each phase, None where a loss is not finite, and the shares of the experts."""
    for phase, losses in report.losses.items():
        parts = {"loss" if name == "total" else name: v if isfinite(v) else None for name, v in losses.items()}
        row = {"kind": "round", "round": round_, "site": site, "phase": phase, "loss": None, **parts}
        records.write(row)
    for block, usage in report.usage.items():
        records.write({"kind": "experts", "round": round_, "site": site, "block": int(block), "usage": usage})


def record_validation(records: RecordWriter, round_: int, site: str, found: Validation) -> None:
    """Record the Dice of each model, and the model that the site uses if this is not the personal model that it trained last."""
    for model, dice in found.dice.items():
        records.write({"kind": "validation", "round": round_, "site": site, "model": model, "dice": dice})
    if found.kept is not None:
        records.write({"kind": "kept", "round": round_, "site": site, "from_round": found.kept})
    if found.uses == "shared":
        records.write({"kind": "plain", "round": round_, "site": site})
