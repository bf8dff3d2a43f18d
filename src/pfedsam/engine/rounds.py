"""The round loop of every study, on one machine and between hospitals: rounds with quorum and deadline, committed one by one.

The loop is independent of networks and processes: a `Transport` carries requests to the sites and returns their replies. In a round,
first every site commits its own state, then the server aggregates, then records are written, and finally the server's state is renamed
into place, which commits the round. A loop that was killed continues from the last committed round: sites return to this round and later
records are removed, so that a round is always repeated from the same state.

Messages from sites are not trusted: they are parsed and checked, and a refusal does not repeat any of their content.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pfedsam.core.errors import QuorumError, RunError, StoreError, UpdateError
from pfedsam.core.log import get_logger
from pfedsam.data.site_summary import SiteSummaryFile
from pfedsam.engine.data_summaries import DataSummaries
from pfedsam.engine.export import export_adapter
from pfedsam.engine.joining import awaited, reasons_in_words, wait_in_words
from pfedsam.engine.quorum import too_few_updates
from pfedsam.engine.replies import check_reply, of_each
from pfedsam.engine.round_policy import RoundPolicy
from pfedsam.engine.run_end import SUMMARY, by_model, write_end
from pfedsam.engine.scalar_metrics import to_missing, to_report, to_summaries, to_validation
from pfedsam.engine.server_files import RECORDS, SERVER, record_aggregate, record_report, record_validation
from pfedsam.engine.silence import Silences
from pfedsam.engine.site_session import RoundReport
from pfedsam.engine.study_folder import StudyFolder
from pfedsam.engine.transport import Transport
from pfedsam.evaluation.summary import SiteSummary
from pfedsam.experiment.build import BuiltModel, build_method, build_model
from pfedsam.experiment.load import read_config
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.aggregation import Annotations, TooFewUpdatesError, check_registration, open_messages
from pfedsam.federation.bounds import NO_LIMITS, Limits
from pfedsam.federation.data_summary import to_site_summary
from pfedsam.federation.manifest import WITHOUT_PARAMETERS, StudyManifest, read_manifest
from pfedsam.federation.messages import REFUSALS, Reply, Request, reply_from_wire, request_to_wire
from pfedsam.federation.server import ServerState, aggregate
from pfedsam.federation.tasks import Task, in_words
from pfedsam.federation.update import label
from pfedsam.report.records import RecordWriter, read_records, validations_in
from pfedsam.report.summary_file import SINCE_RESUMED, Communication, PartSizes, SiteEntry, Summary, read_summary
from pfedsam.training.schedule import end_of_training

_LOG = get_logger(__name__)
S = TypeVar("S")
T = TypeVar("T")
Outcome = Literal["finished", "again", "waits"]
"""`again`: the job has to be started again so that a site that has connected meanwhile can take part; the study then continues.

`waits`: the study has no round yet and waits for sites that may still join; the job has to be started again after a while.
"""


@dataclass(frozen=True)
class Study:
    """The state from which a study continues."""

    options: RunOptions
    manifest: StudyManifest
    policy: RoundPolicy
    state: ServerState
    """The state after the last committed round."""
    built: BuiltModel | None = None
    """The model, if it is in memory already."""
    sizes: Mapping[str, PartSizes] | None = None
    """The number of training and validation cases of each site, if it is known before the sites report it."""


def read_study(folder: Path) -> Study:
    """The study in a coordinator's folder.

    Raises:
        RunError: the folder contains no study.
    """
    stored, manifest = StudyFolder(folder), read_manifest(folder / "manifest.json")
    options = read_config(folder / "config.yaml")
    return Study(options, manifest, stored.read_policy(RoundPolicy), stored.load_state(manifest))


class StudyRun:
    """Runs a study from its last committed round to its report."""

    def __init__(
        self, folder: Path, transport: Transport, study: Study | None = None, *, may_wait: bool = False
    ) -> None:
        """Prepare to continue a study.

        Args:
            folder: the folder of the study or of a local run.
            transport: the connection to the sites.
            study: the study; None for the study in a coordinator's folder.
            may_wait: whether a study without a round ends with the outcome `waits` if sites that have not joined may still join.

        Raises:
            RunError: the folder contains no study.
        """
        self._local = study is not None
        study = study or read_study(folder)
        self.folder, self.transport = StudyFolder(folder), transport
        self.options, self.manifest, self.policy = study.options, study.manifest, study.policy
        self.state, self._built, self._sizes = study.state, study.built, study.sizes
        self.roster = build_method(self.options).roster
        self.registered: dict[str, int] = self.folder.read_registered()
        self.present: list[str] = []
        self._may_wait = may_wait
        self.waits_for = ""
        """After the outcome `waits`: a text that names what the study waits for."""
        self._unheard: frozenset[str] = frozenset()
        """The sites that did not reply when they were asked to join last."""
        self._missing: dict[str, frozenset[str]] = {}
        """The classes that each site does not annotate."""
        self._silences = Silences()
        self._reasons: dict[str, str] = {}
        """The last reason for which each site did not reply to a request, or for which its reply was refused."""
        self._summaries = DataSummaries(self.folder.path)
        self._started, self._resumed = time.monotonic(), self.state.round > 0
        # In a local run all updates are computed by this program, so they need no bounds.
        limits = Limits(self.manifest.max_change, self.policy.median_factor, self.policy.max_share)
        self.limits = NO_LIMITS if self._local else limits
        self._validations: dict[int, dict[str, float]] = {}
        """Dice of each site's better model, by round."""

    def run(self) -> Outcome:
        """Run rounds until the study is finished, until the sites should be set up again, or not at all if it waits for sites.

        Raises:
            QuorumError: there are too few sites; the study remains at its last committed round.
        """
        with RecordWriter(self.folder.path / RECORDS) as records:
            records.truncate_after(self.state.round - 1)
            asked = self._connected()
            self._join(records, asked)
            if not self._can_begin():
                return "waits"
            self._check_classes()
            self._summarize(records)
            self._validations = validations_in(read_records(self.folder.path / RECORDS))
            before = self._earlier_summary() if self.state.round >= self.ends else None
            while self.state.round < self.ends:
                self._join(records, [s for s in self._connected() if s not in self.present and s not in asked])
                asked = []
                self._summarize(records)
                self._round(records)
                # Only after a round, so that every job makes progress, whatever a site does before the first one.
                if self.state.round < self.ends and self.transport.needs_new_job():
                    return "again"
            trained = self._seconds()
            self._finalize(records)
            summaries = self._test(records)
            total = self._seconds()
            seconds = {SINCE_RESUMED: total} if self._resumed else {"train": trained, "total": total}
            if before:  # the study had ended, so that its time is known, and this was only a further test of its models
                seconds = before.seconds
            records.write({"kind": "timing", **seconds})
        self._report(summaries, seconds, before.sites if before else {})
        return "finished"

    @property
    def ends(self) -> int:
        """The number of rounds after which the study ends, as far as its validations determine it."""
        return end_of_training(self.options.training, self._validations)

    def _connected(self) -> list[str]:
        """The connected sites of the study; other members of the federation are not registered and get no messages."""
        return [site for site in self.transport.connected() if self._local or site in self.options.data.sites]

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 1)

    def _sites_for(self, task: Task) -> list[str]:
        """The sites that get requests for a task: those that joined and, with a pooled site, the sites that only evaluate its model."""
        others = [site for site in self.transport.connected() if self.roster.pool and site not in self.present]
        return self._ordered({site for site in (*self.present, *others) if self.roster.asks(site, task)})

    def _join(self, records: RecordWriter, sites: Sequence[str]) -> None:
        sites = [site for site in sites if self.roster.asks(site, "join")]
        resting = self._silences.left_out("join", self.state.round, sites=sites)
        self._absent(records, "join", self.state.round, resting)
        sites = [site for site in sites if site not in resting]
        if not sites:
            return
        replies = self._ask(records, "join", self.state.round, sites, self.policy.return_s)
        refused = {}
        for site, reply in replies.items():
            cases = reply.scalar_metrics.get("cases")
            before = self.registered.get(site, cases)
            try:
                check_registration({site: cases})  # type: ignore[dict-item]
                if cases != before:
                    raise RunError(f"it registered with {before} cases before and says {cases} now.")
            except RunError as error:
                refused[site] = str(error)
                continue
            self.registered[site] = int(cases or 0)
            self._missing[site] = to_missing(reply.scalar_metrics, self.options.data.label_map().names)
            self.present = self._ordered({*self.present, site})
        self._absent(records, "join", self.state.round, refused)
        self.folder.write_registered(self.registered)
        if self.present:
            _LOG.info("training cases by site: %s", ", ".join(f"{s} {self.registered[s]}" for s in self.present))
        self._tell("running")

    def _can_begin(self) -> bool:
        """Whether the study continues with the sites that joined; False if it waits for others before its first round.

        A study that does not begin forgets who joined, because in the next job all sites are asked again.

        Raises:
            QuorumError: too few sites joined, and the study does not wait for others.
        """
        joined, quorum, sites = len(self.present), self.policy.quorum, list(self.options.data.sites)
        others = [site for site in sites if site not in self.present]
        reasons = {site: self._reasons.get(site, "it is not connected") for site in others}
        unheard = self._unheard | (set(others) - self._reasons.keys())
        waits = self._may_wait and self.state.round == 0
        wanted = awaited(reasons, unheard=unheard, joined=joined, quorum=quorum) if waits else []
        if joined >= quorum and not wanted:
            return True
        if self.state.round == 0:
            self.registered, self.present = {}, []
            self.folder.write_registered({})
        if wanted:
            self.waits_for = wait_in_words(wanted, reasons)
            self._tell("submitted")
            return False
        raise QuorumError(
            f"{joined} of {len(sites)} sites joined ({reasons_in_words(reasons)}); the quorum is {quorum}. Nothing was changed; submit "
            "the study again when more sites are ready."
        )

    def _summarize(self, records: RecordWriter) -> None:
        """Request the summaries of the sites' data that are missing, if the study lists this task.

        Each site gets one request in a job; a site that does not send its summary is recorded, and takes part in the rounds all the same.
        These requests always have round 0, as `federation.request_history` demands.
        """
        names = self.manifest.scalar_metrics.get("summarize")
        sites = self._summaries.due(self._sites_for("summarize")) if names else []
        if not names or not sites:
            return
        replies = self._ask(records, "summarize", 0, sites, self.policy.deadline_s)
        least = self.manifest.min_cases

        def read(sent: tuple[str, Reply]) -> SiteSummaryFile:
            site, reply = sent
            return to_site_summary(reply.scalar_metrics, names, site=site, min_cases=least)

        self._summaries.keep(self._read(records, "summarize", 0, {one: (one, r) for one, r in replies.items()}, read))

    def _check_classes(self) -> None:
        """Refuse to begin a study in which too few sites annotate some class.

        Raises:
            QuorumError: a class is annotated at none of the sites that joined, or at fewer than the method's server step needs.
        """
        if self.state.round > 0:
            return
        least = build_method(self.options).server.least_updates
        for name in self.options.data.label_map().names:
            there = [site for site in self.present if name not in self._missing[site]]
            if len(there) < min(least, len(self.present)):
                raise QuorumError(
                    f"class {name!r} is annotated at {len(there) or 'none'} of the sites that joined ({', '.join(self.present)}), and the "
                    f"method {self.options.method} needs {least} to learn it. Submit the study again when enough sites that annotate it "
                    "are there, or a study without the class."
                )

    def _round(self, records: RecordWriter) -> None:
        current, started, there = self.state, time.monotonic(), self._sites_for("train")
        least = max(self.policy.quorum, build_method(self.options).server.least_updates)
        resting = self._silences.left_out("train", current.round, sites=there, least=least)
        self._absent(records, "train", current.round, resting)
        asked = [site for site in there if site not in resting]
        replies = self._ask(records, "train", current.round, asked, self.policy.deadline_s)
        records.write({"kind": "timing", "round": current.round, "train_s": round(time.monotonic() - started, 2)})
        reports = self._read(records, "train", current.round, replies, self._report_of)
        replies = {site: replies[site] for site in reports}
        for site, report in reports.items():
            record_report(records, current.round, site, report)
        state = self._aggregate(records, replies)
        every = self.options.evaluation.validate_every
        self.state = state
        if every and ((current.round + 1) % every == 0 or current.round + 1 == self.ends):
            self._validate(records, current.round, silent=set(there) - set(replies))
        self.folder.save_state(self.state, self.manifest, records)
        self._tell("running")

    def _aggregate(self, records: RecordWriter, replies: Mapping[str, Reply]) -> ServerState:
        current, spec = self.state, self.manifest.spec
        if not spec.tensors:
            self._check_quorum(list(replies), {})
            return replace(current, round=current.round + 1)
        messages = {site: reply.update for site, reply in replies.items()}
        updates, rejected = open_messages(messages, spec, current.shared, self.limits)
        registered = {site: self.registered[site] for site in self.present}
        annotations = Annotations(self.manifest.class_tensors, self._missing)
        step = build_method(self.options).server
        try:
            state, result = aggregate(current, updates, spec, registered, step, self.limits, annotations)
        except TooFewUpdatesError as error:
            state, result = current, error.result
        rejected |= result.rejected
        record_aggregate(records, current.round, result.accepted, rejected, messages, result.scaled)
        if rejected:
            _LOG.warning("round %d: update refused: %s", current.round + 1, " ".join(rejected.values()))
        self._check_quorum(result.accepted, rejected, least=step.least_updates)
        return state

    def _check_quorum(self, accepted: Collection[str], rejected: Mapping[str, str], *, least: int = 1) -> None:
        """Refuse a round with too few accepted updates, and name every site that has none.

        Raises:
            QuorumError: there are fewer than the quorum, or than the method needs.
        """
        if len(accepted) >= max(self.policy.quorum, least):
            return
        needed = f"the quorum is {self.policy.quorum}"
        if least > self.policy.quorum:
            needed = f"the method {self.options.method} needs at least {least}"
        others = [s for s in self._study_sites() if self.roster.asks(s, "train") and s not in {*accepted, *rejected}]
        reasons = {site: self._reasons.get(site, "it is not connected") for site in others}
        study, round_ = self.manifest.study, self.state.round
        raise QuorumError(too_few_updates(study, round_, len(accepted), needed, rejected, reasons))

    def _validate(self, records: RecordWriter, round_: int, *, silent: Collection[str]) -> None:
        """Request a validation from the sites, except those that did not reply earlier in this round and so made it wait for a deadline.

        The last validations are requested from all other sites, because they choose the model that a site uses at the end.
        """
        sites = [site for site in self._sites_for("validate") if site not in silent]
        resting = self._silences.left_out("validate", round_, sites=sites) if round_ + 1 < self.ends else {}
        self._absent(records, "validate", round_, resting)
        sites = [site for site in sites if site not in resting]
        replies = self._ask(records, "validate", round_, sites, self.policy.deadline_s)
        names = self.manifest.scalar_metrics["validate"]
        found = self._read(
            records, "validate", round_, replies, lambda reply: to_validation(reply.scalar_metrics, names, round_)
        )
        for site, validation in found.items():
            record_validation(records, round_, site, validation)
            if defined := [dice for dice in validation.dice.values() if dice is not None]:
                self._validations.setdefault(round_, {})[site] = max(defined)

    def _finalize(self, records: RecordWriter) -> None:
        training = self.options.training
        steps = sum(phase.steps for phase in build_method(self.options).final(training))
        if not steps:
            return
        rounds, asked = self.ends, self._sites_for("finalize")
        in_rounds = -(-steps // training.steps_per_round)
        replies = self._ask(records, "finalize", rounds, asked, in_rounds * self.policy.deadline_s)
        for site, report in self._read(records, "finalize", rounds, replies, self._report_of).items():
            record_report(records, rounds, site, report)
        if self.options.evaluation.validate_every:
            # The validation after final fine-tuning chooses the model that a site uses at the end.
            self._validate(records, rounds, silent=set(asked) - set(replies))

    def _test(self, records: RecordWriter) -> dict[str, dict[str, SiteSummary]]:
        replies = self._ask(records, "test", self.ends, self._sites_for("test"), self.policy.score_s)
        classes = tuple(self.options.data.label_map().names)

        def read(reply: Reply) -> dict[str, SiteSummary]:
            if set(reply.scalar_metrics) != set(self.manifest.scalar_metrics["test"]):
                raise UpdateError("its scores were not complete")
            return to_summaries(reply.scalar_metrics, classes)

        return self._read(records, "test", self.ends, replies, read)

    def _report_of(self, reply: Reply) -> RoundReport:
        return to_report(reply.scalar_metrics, self.manifest.scalar_metrics[reply.task])

    def _read(
        self, records: RecordWriter, task: Task, round_: int, replies: Mapping[str, S], read: Callable[[S], T]
    ) -> dict[str, T]:
        """The result of `read` for each reply; a site for whose reply it raises any exception is recorded and left out."""
        found, reasons = of_each(task, replies, read, failed="its reply could not be evaluated")
        self._absent(records, task, round_, reasons)
        return found

    def _earlier_summary(self) -> Summary | None:
        """The results of a study that has ended already; None if there is no summary of its last round."""
        try:
            before = read_summary(self.folder.path / SUMMARY)
        except StoreError:  # it is missing or damaged, and is written again
            return None
        return before if before.rounds == self.ends else None

    def _report(
        self,
        summaries: Mapping[str, Mapping[str, SiteSummary]],
        seconds: Mapping[str, float],
        earlier: Mapping[str, SiteEntry],
    ) -> None:
        """Write the results of the sites that were tested now; a site that was not keeps those of an earlier test of the same models.

        Raises:
            QuorumError: no site was tested now.
        """
        if not summaries:
            raise QuorumError("no site sent its test scores in time; submit the study again to score once more.")
        built = self._built or build_model(self.options)
        export_adapter((self.folder.path / SERVER).parent, self.options, built, self.state.shared)
        sizes = self._sizes or {site: PartSizes(train=cases) for site, cases in self.registered.items()}
        kept = {site: entry for site, entry in earlier.items() if site not in summaries}
        if kept:
            _LOG.warning("test: %s sent no scores; those of the earlier test are kept", ", ".join(kept))
        write_end(
            self.folder.path,
            self.options,
            by_model(summaries),
            sizes,
            self._communication(),
            seconds,
            rounds=self.ends,
            earlier=kept,
        )
        self._tell("finished")

    def _communication(self) -> Communication:
        """Bytes of the last round's accepted messages (of an update's values if there was none), in total and by component."""
        records = [r for r in read_records(self.folder.path / RECORDS) if r["kind"] == "aggregate"]
        sent = [max((r["up_bytes"].get(site, 0) for site in r["accepted"]), default=0) for r in records]
        by_component = self.manifest.component_bytes()
        return Communication(
            up_bytes_per_site_round=(sent[-1] if sent else 0) or sum(by_component.values()),
            down_bytes_per_site_round=len(self.state.to_bytes()),
            by_component=by_component,
        )

    def _ask(
        self, records: RecordWriter, task: Task, round_: int, sites: Sequence[str], deadline_s: int
    ) -> dict[str, Reply]:
        """The valid replies by site, in the study's order; every other site is recorded with a reason."""
        request = self._request(task, round_)
        answers = self.transport.ask(request_to_wire(request), task, sites, deadline_s)
        if task == "join":
            self._unheard = frozenset(answers.missing)
        self._silences.note(task, round_, silent=answers.overdue, replied=answers.wires, late=answers.late)
        reasons = {**answers.missing, **{s: f"{n} reply(s) came after their deadline" for s, n in answers.late.items()}}

        def checked(wire: Mapping[str, object]) -> Reply:
            reply = reply_from_wire(wire)
            check_reply(reply, request, self.manifest)
            return reply

        wires = {site: answers.wires[site] for site in self._ordered(answers.wires.keys() & set(sites))}
        replies, unsound = of_each(task, wires, checked, failed="its reply could not be read")
        refused = {site: REFUSALS[reply.refused] for site, reply in replies.items() if reply.refused}
        self._absent(records, task, round_, {**reasons, **unsound, **refused})
        return {site: reply for site, reply in replies.items() if site not in refused}

    def _request(self, task: Task, round_: int) -> Request:
        """The request of a task, with the study's manifest or the shared parameters where the task needs them."""
        return Request(
            task,
            self.manifest.study,
            self.manifest.digest,
            round_,
            manifest=self.manifest.model_dump_json().encode() if task == "join" else b"",
            shared=b"" if task in WITHOUT_PARAMETERS else self.state.to_bytes(),
            ends=self.ends if self.ends < self.manifest.rounds else None,
        )

    def _absent(self, records: RecordWriter, task: Task, round_: int, reasons: Mapping[str, str]) -> None:
        if reasons:
            self._reasons |= reasons
            named = {label(site): reasons[site] for site in sorted(reasons)}
            records.write({"kind": "absent", "round": round_, "task": task, "sites": named})
            asked = in_words(task, round_, self.ends)
            _LOG.warning("%s: %s", asked, "; ".join(f"{s}: {r}" for s, r in named.items()))

    def _ordered(self, sites: Sequence[str] | set[str] | Mapping[str, object]) -> list[str]:
        """The sites in the order of the configuration, followed by all others in the order of their names."""
        named = self._study_sites()
        return sorted(sites, key=lambda site: (named.index(site) if site in named else len(named), site))

    def _study_sites(self) -> list[str]:
        """The sites of the study, in the order of the configuration."""
        return list(self.roster.sites(list(self.options.data.sites)))

    def _tell(self, state: str) -> None:
        self.folder.write_status(state, round_=self.state.round, rounds=self.ends, sites=self.present)
