"""The replies of the sites to one request: each is checked and read by itself, so that the reply of one site cannot end a study."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from pfedsam.core.errors import PfedsamError, UpdateError
from pfedsam.core.log import get_logger
from pfedsam.engine.scalar_metrics import check_values
from pfedsam.federation.manifest import StudyManifest
from pfedsam.federation.messages import Reply, Request
from pfedsam.federation.tasks import Task
from pfedsam.federation.update import label

_LOG = get_logger(__name__)
S = TypeVar("S")
T = TypeVar("T")


def of_each(
    task: Task, sent: Mapping[str, S], read: Callable[[S], T], *, failed: str
) -> tuple[dict[str, T], dict[str, str]]:
    """Apply `read` to the message of each site, and return the results and, for each site with an error, the reason.

    Args:
        task: the task of the messages.
        sent: site -> message.
        read: the function; if it raises a `PfedsamError`, the message of this error is the reason.
        failed: the reason if it raises any other exception.
    """
    found, reasons = {}, {}
    for site, one in sent.items():
        try:
            found[site] = read(one)
        except PfedsamError as error:
            reasons[site] = str(error)
        except Exception as error:  # noqa: BLE001 - a message of one site must not end the study
            _LOG.error("the reply of site %s to %s raised %s", label(site), task, type(error).__name__)
            reasons[site] = failed
    return found, reasons


def check_reply(reply: Reply, request: Request, manifest: StudyManifest) -> None:
    """Refuse a reply that does not belong to this request, or that contains numbers that the manifest does not list.

    Raises:
        UpdateError: the reply is refused; the error message repeats none of its content.
    """
    if (reply.task, reply.study, reply.round) != (request.task, request.study, request.round):
        raise UpdateError("its reply answers another request: stale, or sent twice.")
    if set(reply.scalar_metrics) - set(manifest.scalar_metrics.get(request.task, ())):
        raise UpdateError("its reply holds numbers that the manifest does not list.")
    if reply.update and request.task != "train":
        raise UpdateError("its reply holds an update that was not asked for.")
    if request.task != "summarize":  # its numbers are checked together where they are read
        check_values(reply.scalar_metrics, manifest.min_cases)
