"""The agent of a site: it answers requests one after the other, and its replies contain only what was approved.

The agent is independent of networks: a transport delivers requests and, at a hospital, sends the replies through the site's policy
(`federation.site_policy`). Hospitals and local runs differ in the host, which admits requests and opens studies.
"""

import errno
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor

from pfedsam.core.errors import DataError, OptionError, PfedsamError, StoreError
from pfedsam.core.log import get_logger
from pfedsam.core.tensors import NamedTensors
from pfedsam.data.check import refuse_problems
from pfedsam.data.manifest import Site
from pfedsam.data.split import read_split
from pfedsam.engine.site_files import SPLIT, write_site
from pfedsam.engine.site_options import (
    CONFIG,
    SiteOptions,
    read_site_options,
    refuse_other_settings,
    write_settings,
)
from pfedsam.engine.site_study import SiteStudy
from pfedsam.engine.study_folder import build_manifest, study_id
from pfedsam.experiment.build import BuiltModel, build_method, build_model, build_sites, build_study, read_sites
from pfedsam.experiment.options import RunOptions
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.messages import Reply, Request
from pfedsam.federation.site_policy import RefusedError, SitePolicy
from pfedsam.federation.tasks import in_words
from pfedsam.model.numerics import configure_numerics, describe

_LOG = get_logger(__name__)
_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Error numbers of a full disk, an exceeded quota and a read-only file system."""


class Policy(Protocol):
    """Determines which requests a site answers."""

    def admit(self, request: Request) -> StudyManifest:
        """The manifest of the request's study; raises `RefusedError` if the request is not admitted."""

    def accept_broadcast(self, manifest: StudyManifest, request: Request, initial: NamedTensors) -> dict[str, Tensor]:
        """The shared parameters of a request, in the agreed shapes; raises `RefusedError` if they do not have the agreed form."""

    def reply_before(self, request: Request) -> Reply | None:
        """The earlier reply to the same request; None if there is none."""

    def keep_reply(self, request: Request, reply: Reply) -> None:
        """Store the reply to an accepted request."""

    def rounds(self, study: str) -> int | None:
        """The number of rounds of a study; None if it is not known."""


class Host(Protocol):
    """The environment of an agent: a hospital's folder, or a local run."""

    @property
    def policy(self) -> Policy:
        """Admits requests."""

    def open(self, manifest: StudyManifest) -> SiteStudy:
        """The study of an admitted manifest, with its data split and its model in memory."""


def study_options(manifest: StudyManifest, site: SiteOptions) -> RunOptions:
    """The study's options with the settings of one site.

    Raises:
        OptionError: this version does not support the study's configuration.
    """
    try:
        options = RunOptions.model_validate(_site_configuration(manifest, site))
    except ValidationError as error:
        raise OptionError(
            f"the study's configuration is not one that this version of pFedSAM knows: {error}"
        ) from error
    try:
        options.data.label_map(site.name)
    except OptionError as error:
        said = str(error).replace(f"data.sites.{site.name}.", "").replace(f"data.sites.{site.name}: ", "")
        raise OptionError(f"site {site.name!r}, {CONFIG}: {said}") from error
    return options


def _site_configuration(manifest: StudyManifest, site: SiteOptions) -> dict[str, Any]:
    """The study's configuration with the site's own folder, labels, device, backbone and patient pattern in place of the study's."""
    content: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in manifest.configuration.items()}
    content["data"]["sites"] = {
        site.name: {"folder": str(site.data), **site.own_labels} if site.own_labels else str(site.data)
    }
    content["runtime"] = {"threads": site.threads, "device": site.device}
    if site.backbone:
        content["model"]["backbone"] = site.backbone
    if site.patient_pattern:
        content["data"]["patient_pattern"] = site.patient_pattern
    return content


def build_study_model(manifest: StudyManifest, options: RunOptions) -> BuiltModel:
    """Build the study's model at this site on the configured device, and set the number of threads of this process.

    Raises:
        OptionError: there is no such device here.
        RefusedError: the backbone here is not the study's.
    """
    device = configure_numerics(options.runtime.threads, options.runtime.device)
    _LOG.info("computing on %s", describe(device))
    built = build_model(options, device, may_download=False)
    if built.backbone != manifest.backbone:
        raise RefusedError(
            "other-backbone",
            f"the backbone here has the hash {built.backbone}, the study's {manifest.backbone}; set the right one as `backbone` in "
            "site.yaml.",
        )
    return built


def check_manifest(manifest: StudyManifest, options: RunOptions, built: BuiltModel) -> None:
    """Refuse a manifest unless all its fields equal those that this site derives from the configuration in it.

    Args:
        manifest: the manifest of the study.
        options: the options of the study at this site.
        built: the model of the study at this site.

    Raises:
        RefusedError: some fields differ; the message names them.
    """
    study = study_id(manifest.configuration, built.backbone)
    derived = build_manifest(options, built, study, manifest.configuration)
    listed = {
        # An older coordinator lists fewer metrics; none may be listed that the configuration does not give.
        task: tuple(name for name in names if name in derived.scalar_metrics.get(task, ()))
        for task, names in manifest.scalar_metrics.items()
    }
    derived = derived.model_copy(update={"scalar_metrics": listed})
    different = sorted({path.split(".")[0] for path in manifest.differences(derived)})
    if different:
        raise RefusedError(
            "other-tensors" if "tensors" in different else "other-configuration",
            f"what the manifest says does not follow from its configuration; different: {', '.join(different)}. Do not approve it; "
            "ask the coordinator for the manifest that `pfedsam coordinator submit` wrote.",
        )


class SiteAgent:
    """The agent of one site. A study's model is loaded once, with the first request of the study."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._open: SiteStudy | None = None

    def handle(self, request: Request) -> Reply:
        """The reply to a request. A failure is reported as an error code; the full message stays in the site's own log."""
        word = "failed"
        try:
            return self.answer(request)
        except RefusedError as error:
            word = error.word
            _LOG.error("%s refused (%s): %s", self._asked(request), word, error)
        except PfedsamError as error:
            word = _word(error)
            _LOG.error("%s failed (%s): %s", self._asked(request), word, error)
        except (MemoryError, torch.OutOfMemoryError) as error:
            word = "memory"
            _LOG.error("%s ran out of memory: %s", self._asked(request), error)
        except Exception as error:  # noqa: BLE001 - the coordinator gets only an error code; the site's log has the full error
            word = _word(error)
            _LOG.exception("%s failed (%s): %s", self._asked(request), word, type(error).__name__)
        return Reply(request.task, request.study, request.round, refused=word)

    def answer(self, request: Request) -> Reply:
        """The reply to a request; a failure is raised with its full message.

        Raises:
            RefusedError: the request is not admitted, its task is not part of the study, or its content does not have the agreed form.
            DataError: a case cannot be read; the message names the site and the case.
            StoreError: the site's state cannot be read or written.
        """
        manifest = self.host.policy.admit(request)
        if request.task not in manifest.scalar_metrics:
            raise RefusedError("not-listed", f"the approved manifest does not list the task {request.task}.")
        study = self._study(manifest)
        if request.task == "join":
            return study.answer(request, {})
        shared = self.host.policy.accept_broadcast(manifest, request, study.built.start("shared"))
        reply = self.host.policy.reply_before(request)  # a restarted coordinator repeats its last request
        if reply is None:
            reply = study.answer(request, shared)
            self.host.policy.keep_reply(request, reply)
        return reply

    def _asked(self, request: Request) -> str:
        return in_words(request.task, request.round, self.host.policy.rounds(request.study))

    def _study(self, manifest: StudyManifest) -> SiteStudy:
        if self._open is None or self._open.manifest.digest != manifest.digest:
            self._open = None  # one model in memory at a time
            self._open = self.host.open(manifest)
        return self._open


class SiteFolder:
    """A hospital's folder, with its operator's approvals and the studies in which it takes part."""

    def __init__(self, folder: Path) -> None:
        """Read `site.yaml`.

        Raises:
            OptionError: the file is missing or wrong.
        """
        self.folder, self.policy = folder, SitePolicy(folder)
        self.options = read_site_options(folder)

    def open(self, manifest: StudyManifest) -> SiteStudy:
        """Check the data, load the backbone, and check that the backbone and the shared tensors are those of the study.

        Raises:
            RefusedError: the backbone or the shared tensors are not those of the study.
            DataError: the data have problems, all of which the message names; it is only written to the site's log.
        """
        options = study_options(manifest, self.options)
        if build_method(options).roster.pool:
            raise RefusedError("other-configuration", "a pooled method needs all images in one place.")
        site = self._split(manifest, options)
        built = build_study_model(manifest, options)
        check_manifest(manifest, options, built)
        folder = self.policy.study_folder(manifest.study)
        cache = folder / "cache" / site.name
        return SiteStudy(manifest, options, built, site, folder, cache, lambda: built.start("local"))

    def _split(self, manifest: StudyManifest, options: RunOptions) -> Site:
        folder, name = self.policy.study_folder(manifest.study), self.options.name
        # If a site that has trained lost its split, this is an error, and no new split is made.
        if (folder / SPLIT).exists() or (folder / "state.json").exists():
            refuse_other_settings(folder, self.options)
            return read_split(folder / SPLIT, read_sites(options, masks_required=False)[name])
        site = build_sites(options)[name]
        report = refuse_problems([site], build_study(options))
        for warning in report.warnings:
            _LOG.warning("%s", warning)
        write_settings(folder, self.options)
        write_site(folder, report.facts[0])
        return site


def _word(error: Exception) -> str:
    if isinstance(error, DataError):
        return "data"
    of_the_disk = isinstance(error, OSError) and error.errno in _DISK
    return "storage" if of_the_disk or isinstance(error, StoreError) else "failed"
