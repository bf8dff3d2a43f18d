"""Studies in which faults are tried: the replies of toy sites, recorded once, and every kind of reply that a hostile site may send.

To repeat a recorded study, nothing has to be trained: `record` runs a study with honest sites, and `Replayed` returns the same replies,
with those of one site changed. The coordinator that reads them is the real one.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pfedsam.core import rng, tensors
from pfedsam.data.synthetic import LABELS, PATIENT_PATTERN, SyntheticOptions, write_sites
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.rounds import StudyRun
from pfedsam.engine.site_agent import SiteAgent, SiteFolder
from pfedsam.engine.site_options import CONFIG
from pfedsam.engine.study_folder import create_study
from pfedsam.engine.transport import Answers
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest, read_manifest
from pfedsam.federation.messages import reply_from_wire, reply_to_wire, request_from_wire
from pfedsam.federation.site_policy import Gate, SitePolicy
from pfedsam.federation.update import Update, decode, encode
from pfedsam.model.backbones.compact import compact_config, new_network

Wire = dict[Any, Any]
Change = Callable[[str, int, Wire], Wire]
"""The change that a hostile site makes to its honest reply: a function from task, round and wire to another wire."""
SITES = 4
HOSTILE = 3
"""The index of the hostile one of the four sites."""


def toy_study(folder: Path, *, codec: str = "fp32", rounds: int = 1, sites: int = SITES) -> Path:
    """Make a study over synthetic sites with a small SAM, and return its folder; the sites, which approved it, are in `hospitals`."""
    names = [
        site.name for site in write_sites(folder / "data", SyntheticOptions(sites=sites, cases=6, side=96), seed=1)
    ]
    new_network(compact_config("sam-toy"), rng.generator(0, "toy")).save_pretrained(folder / "backbone")
    options = RunOptions.model_validate(
        {
            "name": "faults",
            "seed": 3,
            "data": {
                "sites": {name: str(folder / "data" / name) for name in names},
                "classes": {name: list(ids) for name, ids in LABELS.items()},
                "patient_pattern": PATIENT_PATTERN,
            },
            "model": {
                "backbone": str(folder / "backbone"),
                "adapt_last": 1,
                "lora": {"rank": 2},
                "experts": {"count": 2, "width": 4, "top_k": 1},
            },
            "training": {
                "rounds": rounds,
                "steps_per_round": 4,
                "final_steps": 1,
                "batch_size": 2,
                "phases": "decoupled",
            },
            "evaluation": {"validate_every": 1},
            "communication": {"codec": codec, "min_cases": 1, "data_summary": True},
        }
    )
    study = create_study(options, folder / "studies", RoundPolicy(quorum=2))
    manifest = read_manifest(study / "manifest.json")
    for name in names:
        site = folder / "hospitals" / name
        site.mkdir(parents=True, mode=0o700)
        (site / CONFIG).write_text(
            f"name: {name}\ndata: {folder / 'data' / name}\nbackbone: {folder / 'backbone'}\ndevice: cpu\n"
        )
        SitePolicy(site).approve(manifest)
    return study


@dataclass
class Recording:
    """The replies of honest sites in one study."""

    study: Path
    unstarted: Path
    """A copy of the study's folder from before its first round."""
    manifest: StudyManifest
    options: RunOptions
    wires: dict[tuple[str, int, str], dict[str, bytes]]
    """The replies by task, round and site."""
    start: dict[str, torch.Tensor]
    """The shared parameters before the first round."""

    @property
    def names(self) -> list[str]:
        """The names of the sites, in the order of the study."""
        return list(self.options.data.sites)


class _Recorder:
    """A transport to sites in this process that stores their replies."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._agents = {name: SiteAgent(SiteFolder(folder)) for name, folder in folders.items()}
        self._gates = {name: Gate(folder, name) for name, folder in folders.items()}
        self.wires: dict[tuple[str, int, str], dict[str, bytes]] = {}

    def connected(self) -> Sequence[str]:
        return list(self._agents)

    def needs_new_job(self) -> bool:
        return False

    def ask(self, request: Mapping[str, bytes], task: str, sites: Sequence[str], deadline_s: int) -> Answers:
        asked = request_from_wire(request)
        for site in sites:
            reply = self._gates[site].release(reply_to_wire(self._agents[site].handle(asked)))
            self.wires[task, asked.round, site] = reply
        return Answers({site: self.wires[task, asked.round, site] for site in sites})


def record(folder: Path, *, codec: str = "fp32") -> Recording:
    """Run a new study of one round in `folder` with honest sites, and return their replies."""
    study = toy_study(folder, codec=codec)
    unstarted = folder / "unstarted" / study.name
    shutil.copytree(study, unstarted)
    run = StudyRun(study, _Recorder({}))
    start = dict(run.state.shared)
    recorder = _Recorder({name: folder / "hospitals" / name for name in run.options.data.sites})
    StudyRun(study, recorder).run()
    return Recording(study, unstarted, run.manifest, run.options, recorder.wires, start)


@dataclass
class Replayed:
    """A transport that returns the recorded replies, with those of one site changed."""

    recording: Recording
    change: Change
    hostile: str = field(init=False)

    def __post_init__(self) -> None:
        self.hostile = self.recording.names[HOSTILE]

    def connected(self) -> Sequence[str]:
        """All sites of the study."""
        return self.recording.names

    def needs_new_job(self) -> bool:
        """False."""
        return False

    def ask(self, request: Mapping[str, bytes], task: str, sites: Sequence[str], deadline_s: int) -> Answers:
        """The recorded replies, with that of the hostile site changed."""
        round_ = request_from_wire(request).round
        wires: dict[str, Wire] = {site: dict(self.recording.wires[task, round_, site]) for site in sites}
        if self.hostile in wires:
            wires[self.hostile] = self.change(task, round_, wires[self.hostile])
        return Answers(wires)


def replay(recording: Recording, folder: Path, change: Change) -> Path:
    """Run the recorded study again in `folder` with changed replies of the hostile site, and return the study's folder.

    Raises:
        PfedsamError: the study ended with an error.
    """
    study = folder / recording.study.name
    shutil.copytree(recording.unstarted, study)
    StudyRun(study, Replayed(recording, change)).run()
    return study


def honest(task: str, round_: int, wire: Wire) -> Wire:
    """The unchanged reply."""
    return wire


def _on(task: str, change: Callable[[Wire], Wire]) -> Change:
    return lambda asked, round_, wire: change(wire) if asked == task else wire


def _raw_numbers(text: str) -> Callable[[Wire], Wire]:
    """A change that replaces the numbers of a reply by a text of JSON."""

    def change(wire: Wire) -> Wire:
        head = {**json.loads(wire["head"]), "scalar_metrics": "@"}
        return {**wire, "head": json.dumps(head).replace('"@"', text).encode()}

    return change


def _numbers(ending: str, value: object) -> Callable[[Wire], Wire]:
    """A change that sets every number whose name has this ending to a value."""

    def change(wire: Wire) -> Wire:
        head = json.loads(wire["head"])
        named = {name: value if name.endswith(ending) else old for name, old in head["scalar_metrics"].items()}
        return {**wire, "head": json.dumps({**head, "scalar_metrics": named}).encode()}

    return change


def _more_numbers(numbers: Mapping[str, object]) -> Callable[[Wire], Wire]:
    def change(wire: Wire) -> Wire:
        head = json.loads(wire["head"])
        return {**wire, "head": json.dumps({**head, "scalar_metrics": {**head["scalar_metrics"], **numbers}}).encode()}

    return change


def _head(**fields: object) -> Callable[[Wire], Wire]:
    return lambda wire: {**wire, "head": json.dumps({**json.loads(wire["head"]), **fields}).encode()}


def _part(**parts: object) -> Callable[[Wire], Wire]:
    return lambda wire: {**wire, **parts}


def _update(change: Callable[[bytes], bytes]) -> Callable[[Wire], Wire]:
    return lambda wire: {**wire, "update": change(bytes(wire["update"]))}


_LONG = "1" + "0" * 400
_JOIN = {
    "cases of 401 digits": _raw_numbers(f'{{"cases": {_LONG}}}'),
    "cases of 5000 digits": _raw_numbers('{"cases": %s}' % ("9" * 5000)),
    "a million cases": _raw_numbers('{"cases": 1000000}'),
    "no cases": _raw_numbers('{"cases": 0}'),
    "cases below 0": _raw_numbers('{"cases": -3}'),
    "1e12 cases": _raw_numbers('{"cases": 1000000000000}'),
    "cases null": _raw_numbers('{"cases": null}'),
    "cases true": _raw_numbers('{"cases": true}'),
    "cases NaN": _raw_numbers('{"cases": NaN}'),
    "cases infinite": _raw_numbers('{"cases": Infinity}'),
    "cases a text": _raw_numbers('{"cases": "Jane Doe"}'),
    "cases a list": _raw_numbers('{"cases": [1]}'),
    "cases 1.5": _raw_numbers('{"cases": 1.5}'),
    "cases 12.0": _raw_numbers('{"cases": 12.0}'),
    "cases absent": _raw_numbers("{}"),
    "numbers a list": _raw_numbers("[]"),
    "numbers null": _raw_numbers("null"),
    "numbers nested": _raw_numbers('{"cases": {"cases": 1}}'),
    "an update to join": _part(update=b"x" * 100),
}
_SUMMARIZE = {
    "cases of 401 digits": _raw_numbers(f'{{"data.cases": {_LONG}}}'),
    "cases 1e308": _numbers("data.cases", 1e308),
    "cases below 0": _numbers("data.cases", -6),
    "cases 1.5": _numbers("data.cases", 1.5),
    "cases NaN": _raw_numbers('{"data.cases": NaN}'),
    "cases a text": _numbers("data.cases", "Jane Doe"),
    "fewer cases than sizes": _numbers("data.cases", 5),
    "kind 7": _numbers("data.volumes", 7),
    "shares above 1": _numbers(".share", 1.5),
    "intensities that add up to 32": _numbers("", 1),
    "all null": _numbers("", None),
    "all of 401 digits": lambda wire: _all(wire, _LONG),
    "one number missing": lambda wire: _without_one(wire),
    "no numbers": _raw_numbers("{}"),
    "a number with a person's name": _more_numbers({"data.class.Jane Doe.share": 1.0}),
    "an update to summarize": _part(update=b"x" * 100),
    "head of the next round": _head(round=1),
}
_TRAIN = {
    "loss of 401 digits": _raw_numbers(f'{{"loss.global.total": {_LONG}}}'),
    "loss 1e308": _numbers(".total", 1e308),
    "loss of 301 digits": _raw_numbers('{"loss.global.total": 1%s}' % ("0" * 300)),
    "loss below -1e308": _numbers(".total", -1e308),
    "shares of experts above 1": _numbers("usage.1.0", 7),
    "a hundred thousand numbers": _more_numbers({f"loss.{i}": 1.0 for i in range(100_001)}),
    "a number with a person's name": _more_numbers({"Jane Doe": 1.0}),
    "head of deep JSON": _part(head=b"[" * 200_000),
    "head of deep objects": _part(head=b'{"a":' * 100_000),
    "head of 64 MB": _part(head=b'{"a":"' + b"x" * (64 << 20) + b'"}'),
    "head with a list as task": _head(task=[]),
    "head with an object as task": _head(task={"a": 1}),
    "head of another task": _head(task="test"),
    "head with a list as refusal": _head(refused=[1]),
    "head with an unknown refusal": _head(refused="Jane Doe"),
    "head with an object as study": _head(study={}),
    "head of another study": _head(study="f" * 16),
    "head with a round of 401 digits": _head(round=10**400),
    "head with a negative round": _head(round=-1),
    "head with a round as float": _head(round=0.0),
    "head with a boolean round": _head(round=False),
    "head of the next round": _head(round=1),
    "head without fields": _part(head=b"{}"),
    "head of a text": _part(head=b'"text"'),
    "head not UTF-8": _part(head=b"\xff\xfe\x00{"),
    "head with lone surrogates": _part(head=b'{"task": "\\ud800"}'),
    "head empty": _part(head=b""),
    "head a text for bytes": _part(head="{}"),
    "a part too many": _part(x=b"1"),
    "a text for an update": _part(update="text"),
    "None for an update": _part(update=None),
    "a list of updates": _part(update=[b"a"]),
    "no parts": lambda wire: {},
    "a part named None": lambda wire: {None: b"1"},
    "parts named by numbers": lambda wire: {1: b"1", 2: b"2"},
    "refused, with an update": _head(refused="failed"),
    "an empty update": _update(lambda data: b""),
    "an update cut in half": _update(lambda data: data[: len(data) // 2]),
    "an update of zeros": _update(lambda data: bytes(len(data))),
    "an update with one byte more": _update(lambda data: data + b"0"),
    "an update that claims a header of 2^63": _update(lambda data: (2**63).to_bytes(8, "little") + data[8:]),
    "an update with a hostile header": _update(lambda data: b"\x02\x00\x00\x00\x00\x00\x00\x00[]"),
}
_VALIDATE = {
    "Dice of 401 digits": _raw_numbers(f'{{"dice.personal": {_LONG}}}'),
    "kept round 1e308": _more_numbers({"kept_round": 1e308}),
    "kept round of 301 digits": _raw_numbers('{"dice.personal": 0.5, "kept_round": 1%s}' % ("0" * 300)),
    "kept round below 0": _more_numbers({"kept_round": -7}),
    "kept round 0.5": _more_numbers({"kept_round": 0.5}),
    "uses shared 9": _more_numbers({"uses_shared": 9}),
    "validation Dice of 1e308": _numbers("dice.personal", 1e308),
    "validation Dice below 0": _numbers("dice.personal", -1e308),
}
_TEST = {
    "unit 7": _numbers(".unit", 7),
    "unit -9": _numbers(".unit", -9),
    "unit 0.5": _numbers(".unit", 0.5),
    "unit null": _numbers(".unit", None),
    "test cases -5": _numbers(".cases", -5),
    "test cases 1e308": _numbers(".cases", 1e308),
    "test cases null": _numbers(".cases", None),
    "Dice 1e308": _numbers("dice", 1e308),
    "HD95 1e308": _numbers("hd95", 1e308),
    "ASSD below 0": _numbers("assd", -1),
    "Dice 5": _numbers(".dice", 5.0),
    "Dice -3": _numbers(".dice", -3.0),
    "undefined 1e308": _numbers("undefined_dice", 1e308),
    "undefined 1.5": _numbers("undefined_dice", 1.5),
    "undefined -1": _numbers("undefined_dice", -1),
    "undefined above the cases": _numbers("undefined_dice", 900_000),
    "all null": _numbers("", None),
    "all of 401 digits": lambda wire: _all(wire, _LONG),
    "one number missing": lambda wire: _without_one(wire),
    "no numbers": _raw_numbers("{}"),
}


def _all(wire: Wire, text: str) -> Wire:
    named = ", ".join(f"{json.dumps(name)}: {text}" for name in json.loads(wire["head"])["scalar_metrics"])
    return _raw_numbers(f"{{{named}}}")(wire)


def _without_one(wire: Wire) -> Wire:
    head = json.loads(wire["head"])
    first, *_ = head["scalar_metrics"]
    return _head(scalar_metrics={name: v for name, v in head["scalar_metrics"].items() if name != first})(wire)


_OF_TASK = {"join": _JOIN, "summarize": _SUMMARIZE, "train": _TRAIN, "validate": _VALIDATE, "test": _TEST}
CRAFTED: dict[str, tuple[str, Change]] = {
    f"{task}: {what}": (task, _on(task, change)) for task, cases in _OF_TASK.items() for what, change in cases.items()
}
"""Task and change of every crafted reply, by its description."""


def crafted_update(
    recording: Recording, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], cases: int | None
) -> Change:
    """The replies of a hostile site that sends another update and another number of cases.

    Args:
        recording: the recording of the study.
        change: function from the trained changes of the shared tensors, by name, to the changes that are sent.
        cases: the number of cases that the site declares when it joins and in its update; None for its true number.
    """
    spec = recording.manifest.spec

    def on_wire(task: str, round_: int, wire: Wire) -> Wire:
        if task == "join" and cases is not None:
            return _raw_numbers(json.dumps({"cases": cases}))(wire)
        if task != "train":
            return wire
        reply = reply_from_wire(wire)
        update = decode(reply.update, spec, recording.start)
        moved = change({name: value - recording.start[name] for name, value in update.tensors.items()})
        sent = Update(update.site, round_, {n: recording.start[n] + moved[n] for n in moved}, cases or update.cases)
        return reply_to_wire(replace(reply, update=encode(sent, spec.codec, recording.start)))

    return on_wire


def shared_after(study: Path) -> dict[str, torch.Tensor]:
    """The shared parameters in a study's folder."""
    return tensors.load(study / "shared" / "shared.safetensors")[0]
