"""Fetching resumes, verifies, and never leaves something unverified under an official name; all on loopback."""

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pfedsam.core.errors import CheckpointError, OptionError
from pfedsam.model import weights
from pfedsam.model.weights import KNOWN_FILES, KnownFile, check_official_name, fetch, verify

CONTENT = bytes(range(256)) * 12_000  # 3 MB: three blocks
OTHER = bytes(reversed(CONTENT))


class Server(ThreadingHTTPServer):
    """Serves `content` under any name; knows what was asked, and can misbehave."""

    content = CONTENT
    ranges = True
    drop_after: int | None = None
    status: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/mirror/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        if self.server.status:
            self.send_error(self.server.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.ranges else 0
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            whole = len(self.server.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.drop_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> KnownFile:
    files = {
        name: KnownFile(
            name=name,
            file_name=f"{name}.pth",
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            url=None,
            about="for tests",
        )
        for name, content in {"small": CONTENT, "other": OTHER}.items()
    }
    monkeypatch.setattr(weights, "KNOWN_FILES", files)
    return files["small"]


def test_fetch_gives_the_file(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch("small", tmp_path / "new", base_url=server.url, progress=lambda *state: seen.append(state))
    assert path == tmp_path / "new" / "small.pth"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.asked == [("/mirror/small.pth", None)]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_a_file_that_is_there_is_verified_and_not_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "small.pth").write_bytes(CONTENT)
    fetch("small", tmp_path, base_url=server.url)
    assert server.asked == []
    (tmp_path / "small.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match="none of the official files"):
        fetch("small", tmp_path, base_url=server.url)
    assert (tmp_path / "small.pth").read_bytes() == CONTENT[:-1]


def test_a_lost_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.drop_after = 1_300_000
    with pytest.raises(CheckpointError, match=r"1300000 of 3072000 bytes are kept; run the same command again"):
        fetch("small", tmp_path, base_url=server.url)
    assert not (tmp_path / "small.pth").exists()
    server.drop_after = None
    assert fetch("small", tmp_path, base_url=server.url).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=1300000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "small.pth.part").write_bytes(CONTENT[:1000])
    assert fetch("small", tmp_path, base_url=server.url).read_bytes() == CONTENT


def test_wrong_bytes_are_deleted(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(CheckpointError, match="was deleted and is not used"):
        fetch("small", tmp_path, base_url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_something_else_is_deleted_and_the_next_fetch_starts_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "small.pth.part").write_bytes(OTHER[:1000])
    with pytest.raises(CheckpointError, match="was deleted"):
        fetch("small", tmp_path, base_url=server.url)
    assert fetch("small", tmp_path, base_url=server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT, OTHER])
def test_a_whole_part_is_only_verified(server: Server, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "small.pth.part").write_bytes(content)
    if content == CONTENT:
        fetch("small", tmp_path, base_url=server.url)
    else:
        with pytest.raises(CheckpointError, match="was deleted"):
            fetch("small", tmp_path, base_url=server.url)
    assert server.asked == []
    assert (tmp_path / "small.pth").exists() == (content == CONTENT)


def test_a_part_that_is_too_long_is_not_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "small.pth.part").write_bytes(CONTENT + b"x")
    assert fetch("small", tmp_path, base_url=server.url).read_bytes() == CONTENT
    assert server.asked == [("/mirror/small.pth", None)]


def test_a_server_that_sends_too_much_is_stopped(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT * 5
    with pytest.raises(CheckpointError, match="sent more than the 3072000 bytes"):
        fetch("small", tmp_path, base_url=server.url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [b"", CONTENT[:500]])
def test_a_page_instead_of_the_file_is_not_kept_as_its_start(server: Server, tmp_path: Path, there: bytes) -> None:
    server.content = b"<html>Please log in</html>" * 100
    if there:
        (tmp_path / "small.pth.part").write_bytes(there)
    with pytest.raises(CheckpointError, match=r"small\.pth: the server offers 2600 bytes, and the file has 3072000"):
        fetch("small", tmp_path, base_url=server.url)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([there] if there else [])
    server.content = CONTENT
    assert fetch("small", tmp_path, base_url=server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 416, 503])
def test_a_server_that_refuses(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(CheckpointError, match=f"answered {status}"):
        fetch("small", tmp_path, base_url=server.url)


def test_a_part_beyond_the_servers_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "small.pth.part").write_bytes(CONTENT[:1000])
    server.status = 416
    with pytest.raises(CheckpointError, match="0 of 3072000 bytes are kept"):
        fetch("small", tmp_path, base_url=server.url)
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and nobody listens
        with pytest.raises(CheckpointError, match="no connection"):
            fetch("small", tmp_path, base_url=f"http://127.0.0.1:{unused.getsockname()[1]}/")


@pytest.mark.parametrize("address", ["mirror", "http://[", "http://host:port", "http://a b"])
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(CheckpointError, match=r"small\.pth was not fetched"):
        fetch("small", tmp_path, base_url=address)


def test_a_folder_as_a_mirror(tmp_path: Path) -> None:
    (tmp_path / "small.pth").write_bytes(CONTENT)
    assert fetch("small", tmp_path / "new", base_url=tmp_path.as_uri()).read_bytes() == CONTENT


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"small\.pth was not fetched"):
        fetch("small", tmp_path / "file", base_url=server.url)


def test_unknown_names_and_files_without_an_address(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="known: small, other"):
        fetch("huge", tmp_path)
    with pytest.raises(CheckpointError, match="no address"):
        fetch("small", tmp_path)


def test_verify_tells_by_content(tmp_path: Path, known: KnownFile) -> None:
    renamed = tmp_path / "mine.pth"
    renamed.write_bytes(CONTENT)
    assert verify(renamed) == known
    renamed.write_bytes(CONTENT + b"x")
    with pytest.raises(CheckpointError, match=r"mine\.pth is none of the official files: it has 3072001 bytes"):
        verify(renamed)
    with pytest.raises(CheckpointError, match=r"none\.pth cannot be read.*Give the path of a weight file"):
        verify(tmp_path / "none.pth")


def test_verify_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match=r"pipe\.pth cannot be read: it is a folder, a pipe or a device"):
        verify(tmp_path / "pipe.pth")


def test_official_names_are_kept_for_official_files(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"a fine-tune of mine")
    check_official_name(tmp_path / "mine.pth")
    (tmp_path / "other.pth").write_bytes(CONTENT)
    with pytest.raises(CheckpointError, match=r"other\.pth holds small\.pth"):
        check_official_name(tmp_path / "other.pth")


def test_every_file_is_pinned_and_every_address_ends_in_its_name() -> None:
    files = [file for file in KNOWN_FILES.values() if file.url]
    assert [file.file_name for file in files] == [
        "sam_vit_b_01ec64.pth",
        "sam_vit_l_0b3195.pth",
        "sam_vit_h_4b8939.pth",
    ]
    assert all(file.url and file.url.endswith("/" + file.file_name) for file in files)
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in KNOWN_FILES.values())
