"""NVFlare's components at a site: the gate returns a new message, and only the environment names the site's folder."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nvflare")
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

from pfedsam.core import log
from pfedsam.core.errors import RunError
from pfedsam.deploy.site_service import SITE_FOLDER
from pfedsam.deploy.site_side import SiteExecutor, SiteGate, site_folder
from pfedsam.deploy.wire import failure, from_shareable, to_shareable
from pfedsam.federation.ledger import Ledger
from pfedsam.federation.messages import Reply, Request, reply_from_wire, reply_to_wire, request_to_wire


class Context:
    """What the filter asks of NVFlare's context."""

    def get_identity_name(self) -> str:
        return "north"


def test_the_gate_makes_a_fresh_message_without_what_was_slipped_in(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path))
    message = to_shareable(reply_to_wire(Reply("train", "0123456789abcdef", 0, refused="data")))
    message.set_header("note", "Jane Doe")
    out = SiteGate().process(message, Context())
    assert "Jane" not in repr(dict(out))
    assert reply_from_wire(from_shareable(out)).refused == "data"
    message["note"] = b"Jane Doe"
    assert reply_from_wire(from_shareable(SiteGate().process(message, Context()))).refused == "withheld"
    assert [line["sent"] for line in Ledger(tmp_path / "ledger.jsonl").read()] == [True, False]


def test_the_sites_folder_comes_from_the_environment_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path / "own"))
    assert site_folder() == tmp_path / "own"
    monkeypatch.delenv(SITE_FOLDER)
    with pytest.raises(RunError, match="site start"):
        site_folder()


def test_a_failed_reply_is_the_engines_word_or_unknown() -> None:
    assert failure(make_reply(ReturnCode.TASK_ABORTED)) == "task aborted"
    assert failure(make_reply("Jane Doe")) == "unknown"
    assert failure(Shareable()) is None


def test_a_request_that_cannot_be_read_is_answered_by_a_bare_code(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path))
    reply = SiteExecutor().execute("train", Shareable({"note": "Jane Doe"}), Context(), None)
    assert reply.get_return_code() == ReturnCode.BAD_TASK_DATA
    assert "Jane" not in repr(dict(reply))


@pytest.fixture
def _restore_log() -> Iterator[None]:
    root = logging.getLogger("pfedsam")
    kept = list(root.handlers)
    yield
    for handler in [one for one in root.handlers if one not in kept]:
        root.removeHandler(handler)
        handler.close()


def join(folder: Path) -> Reply:
    """The reply of a site, to which nobody has approved anything, to a request to join."""
    (folder / "site.yaml").write_text(f"name: north\ndata: {folder}\n")
    request = Request("join", "0123456789abcdef", "0" * 64, 0)
    reply = SiteExecutor().execute("join", to_shareable(request_to_wire(request)), Context(), None)
    return reply_from_wire(from_shareable(reply))


@pytest.mark.usefixtures("_restore_log")
def test_the_reason_of_a_refusal_is_in_the_sites_own_log(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path))
    for count in (1, 2):
        assert join(tmp_path).refused == "not-approved"
        text = (tmp_path / "site.log").read_text()
        assert text.count("join refused (not-approved): the requested study is not approved at this site") == count


@pytest.mark.usefixtures("_restore_log")
def test_a_log_that_cannot_be_written_changes_no_reply(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path))
    monkeypatch.setattr(logging, "raiseExceptions", False)
    (tmp_path / "site.log").mkdir()
    assert join(tmp_path).refused == "not-approved"


@pytest.mark.usefixtures("_restore_log")
def test_a_request_without_a_readable_head_is_named_in_the_sites_own_log(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SITE_FOLDER, str(tmp_path))
    log.add_file(tmp_path / "site.log")
    SiteExecutor().execute("train", Shareable({}), Context(), None)
    assert (tmp_path / "site.log").read_text().count("request 'train': ") == 1
