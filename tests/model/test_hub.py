"""Downloads against a hub of our own on this machine: pinned, resumed, refused when wrong."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from decmem_env.model import CheckpointError
from decmem_env.model.hub import KNOWN, Source, by_hand, fetch, source_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 100_000  # more than the client's buffer of 10 MB
FILES = {
    "config.json": b'{"dim": 4}',
    "w.safetensors": WEIGHTS,
    "evil.pt": b"boom",
    "README.md": b"hi",
}


class Hub(BaseHTTPRequestHandler):
    claimed = {name: len(data) for name, data in FILES.items()}
    asked: list[tuple[str, str, str | None]] = []
    cut: int | None = None

    def _reply(self, code, body=b"", headers=None):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            cut, Hub.cut = (Hub.cut, None) if len(body) > 1000 else (None, Hub.cut)
            self.wfile.write(body[:cut])  # a cut answer is shorter than it says, as when a connection breaks

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.path.startswith("/api/models/me/there/revision/main"):
            siblings = [{"rfilename": name, "size": size} for name, size in self.claimed.items()]
            body = json.dumps({"id": "me/there", "sha": COMMIT, "siblings": siblings}).encode()
            return self._reply(200, body, {"Content-Type": "application/json"})
        prefix = f"/me/there/resolve/{COMMIT}/"
        name = self.path.removeprefix(prefix)
        if not self.path.startswith(prefix) or name not in FILES:
            return self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        data, first = FILES[name], 0
        if self.headers.get("Range"):
            first = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
        facts = {"ETag": f'"{name}-1"', "X-Repo-Commit": COMMIT}
        if first:
            facts["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        return self._reply(206 if first else 200, data[first:], facts)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_takes_only_safe_files_and_keeps_what_is_there(hub, tmp_path):
    source = source_of("me/there")
    said = []
    got = fetch(source, tmp_path, endpoint=hub, tell=said.append)
    assert got.commit == COMMIT and {p.name for p, _ in got.files} == {"config.json", "w.safetensors"}
    assert (tmp_path / "w.safetensors").read_bytes() == FILES["w.safetensors"]
    assert not (tmp_path / "evil.pt").exists()
    Hub.asked.clear()
    fetch(source, tmp_path, endpoint=hub, tell=said.append)
    assert [path for _, path, _ in Hub.asked if "resolve" in path] == [], "complete files are not fetched again"
    (tmp_path / "w.safetensors").write_bytes(b"short")
    fetch(source, tmp_path, endpoint=hub)
    assert (tmp_path / "w.safetensors").read_bytes() == FILES["w.safetensors"]


def test_a_broken_off_download_continues(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "cut", len(WEIGHTS) // 2)
    source = Source("me/there", ("w.safetensors",), "x")
    fetch(source, tmp_path, endpoint=hub)
    assert (tmp_path / "w.safetensors").read_bytes() == WEIGHTS
    asked = [range for _, _, range in Hub.asked if range]
    assert len(asked) == 1 and 0 < int(asked[0].removeprefix("bytes=").rstrip("-")) <= len(WEIGHTS) // 2


def test_failures_carry_the_command_to_type(hub, tmp_path):
    with pytest.raises(CheckpointError, match="hf download me/absent .*--revision main --local-dir"):
        fetch(Source("me/absent", ("a.pt",), "x"), tmp_path, endpoint=hub)
    with pytest.raises(CheckpointError, match="me/there has no a.pt, it has README.md, config.json, evil.pt"):
        fetch(Source("me/there", ("a.pt",), "x"), tmp_path, endpoint=hub)
    with pytest.raises(CheckpointError, match="Wan-AI/Wan2.1-T2V-1.3B at main could not be fetched.*hf download"):
        fetch(KNOWN["wan-1.3b"], tmp_path, endpoint="http://127.0.0.1:9")


def test_known_names():
    assert source_of("KlingTeam/DecMem") is KNOWN["decmem"]
    words = by_hand(KNOWN["wan-1.3b"], "main", Path("here"))
    assert words.endswith("diffusion_pytorch_model.safetensors Wan2.1_VAE.pth --revision main --local-dir here")
    with pytest.raises(
        CheckpointError, match="'nonsense' is no hub repository: expected wan-1.3b, decmem or owner/name"
    ):
        source_of("nonsense")
