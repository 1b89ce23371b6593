"""Blobs on a real S3-compatible server: the contract, and what can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from jobserver_core import JobServer, Settings
from jobserver_core.errors import BlobNotFound, StorageError
from jobserver_core.memory import InlineLauncher
from jobserver_core.ports.blobs import BlobStore
from jobserver_core.testing.blobs import PersistentBlobStoreContract
from jobserver_fsspec import FsspecBlobStore
from s3_server import ROOT_KEY, ROOT_SECRET, MakeStore, S3Proxy, S3Server
from serving import FUNCTIONS, WAIT, a_request, a_server, upload

pytestmark = pytest.mark.real

MIB = 2**20
POLICY = Path(__file__).parents[3] / "docs" / "howto" / "store-blobs-on-s3.md"


def _now() -> datetime:
    return datetime.now(timezone.utc)


class TestS3BlobStore(PersistentBlobStoreContract):
    rounding = timedelta(seconds=1.1)  # listings have whole seconds
    sweeps = False
    most_memory = 32 * MIB
    """The driver makes several copies of a part before it has sent it, of 5 MiB each."""

    @pytest.fixture
    def blobs(self, s3: S3Server, bucket: str, make_store: MakeStore) -> FsspecBlobStore:
        self.s3, self.bucket, self.make = s3, bucket, make_store
        self.directory = s3.root / bucket / "blobs"
        return make_store(s3.url)

    def reopen(self, blobs: BlobStore) -> BlobStore:
        return self.make(self.s3.url)

    @contextmanager
    def broken(self, blobs: BlobStore) -> Iterator[None]:
        """Without the bucket."""
        away = self.s3.root.parent / "away"
        (self.s3.root / self.bucket).rename(away)
        try:
            yield
        finally:
            away.rename(self.s3.root / self.bucket)

    def _path(self, digest: str) -> Path:
        return self.directory / digest[:2] / digest[2:4] / digest

    def stored(self, blobs: BlobStore, digest: str) -> bytes | None:
        path = self._path(digest)
        return path.read_bytes() if path.exists() else None

    def leftovers(self, blobs: BlobStore) -> list[str]:
        files = (path for path in self.directory.rglob("*") if not path.is_dir())
        temporary = sorted(str(path) for path in files if path != self._path(path.name))
        return temporary + self.s3.unfinished(self.bucket)

    def make_older(self, blobs: BlobStore, digest: str, age: timedelta) -> None:
        at = (_now() - age).timestamp()
        os.utime(self._path(digest), (at, at))


def stored(s3: S3Server, bucket: str) -> list[str]:
    """The files of a bucket, parts of unfinished uploads included."""
    files = (path for path in (s3.root / bucket).rglob("*") if path.is_file())
    return sorted(str(path.relative_to(s3.root / bucket)) for path in files)


def every(method: str, part: str, action: int) -> Callable[[str, str], int | None]:
    return lambda seen, path: action if seen == method and part in path else None


def first(method: str, part: str, action: int) -> Callable[[str, str], int | None]:
    done: list[str] = []

    def rule(seen: str, path: str) -> int | None:
        if seen == method and part in path and not done:
            done.append(path)
            return action
        return None

    return rule


# -- multipart uploads -----------------------------------------------------------------------------

PIECES = [bytes([number]) * MIB for number in range(6)]
ONCE = {"retries": {"max_attempts": 0}}
LARGE = hashlib.sha256(b"".join(PIECES)).hexdigest()


def test_a_large_blob_is_uploaded_in_parts(
    s3: S3Server, proxy: S3Proxy, bucket: str, make_store: MakeStore
) -> None:
    blob = make_store(proxy.url).put(PIECES)
    assert (blob.digest, blob.size) == (LARGE, 6 * MIB)
    assert proxy.count("POST", "uploads") == 1
    assert proxy.count("PUT", "partNumber=") == 2
    assert s3.unfinished(bucket) == []
    with make_store(s3.url).open(LARGE) as file:
        assert hashlib.sha256(file.read()).hexdigest() == LARGE


@pytest.mark.parametrize("action", [503, -1], ids=["slow down", "cut"])
@pytest.mark.parametrize("where", ["partNumber=2", LARGE])
def test_a_request_that_fails_once_is_repeated(
    proxy: S3Proxy, make_store: MakeStore, action: int, where: str
) -> None:
    proxy.rule = first("PUT", where, action)
    store = make_store(proxy.url)
    assert store.put(PIECES).digest == LARGE
    assert store.size(LARGE) == 6 * MIB


@pytest.mark.parametrize(
    ("method", "part", "action", "reason"),
    [
        ("PUT", "partNumber=2", 503, "refused by the test"),
        ("PUT", "partNumber=2", 403, "refused by the test"),
        ("PUT", "partNumber=2", -1, "closed|disconnected|reset"),
        ("POST", "uploadId=", 403, "refused by the test"),
    ],
    ids=["slow down", "denied", "cut", "not completed"],
)
def test_an_upload_that_fails_in_the_middle_leaves_nothing(
    s3: S3Server,
    proxy: S3Proxy,
    bucket: str,
    make_store: MakeStore,
    method: str,
    part: str,
    action: int,
    reason: str,
) -> None:
    store = make_store(proxy.url, config_kwargs=ONCE)
    proxy.rule = every(method, part, action)
    with pytest.raises(StorageError, match=f"(?i){reason}") as caught:
        store.put(PIECES)
    assert f"cannot write to the blobs at s3://{bucket}/blobs" in str(caught.value)
    assert stored(s3, bucket) == []
    assert store.size(LARGE) is None


def test_a_copy_to_the_final_key_that_is_denied_leaves_nothing(
    s3: S3Server, proxy: S3Proxy, bucket: str, make_store: MakeStore
) -> None:
    store = make_store(proxy.url)
    proxy.rule = lambda method, path: 403 if method == "PUT" and "/tmp/" not in path else None
    with pytest.raises(StorageError, match="refused by the test"):
        store.put([b"content"])
    assert stored(s3, bucket) == []


# -- reading ---------------------------------------------------------------------------------------


def test_a_download_that_breaks_leaves_no_half_file(
    s3: S3Server, proxy: S3Proxy, make_store: MakeStore, tmp_path: Path
) -> None:
    make_store(s3.url).put(PIECES)
    reader = make_store(proxy.url, config_kwargs=ONCE)
    proxy.rule = every("GET", LARGE, -MIB)
    with pytest.raises(StorageError, match="cannot read from"):
        reader.open(LARGE)
    assert [path for path in (tmp_path / "cache-1").rglob("*") if path.is_file()] == []
    proxy.rule = lambda _method, _path: None
    with reader.open(LARGE) as file:
        assert hashlib.sha256(file.read()).hexdigest() == LARGE


def test_an_upload_and_its_first_job_download_nothing_and_another_server_downloads_once(
    s3: S3Server, proxy: S3Proxy, make_store: MakeStore
) -> None:
    with a_server(blobs=make_store(proxy.url)) as server:
        upload(server)
        for value in (1, 2):
            assert server.submit(a_request("w.Echo", f"value = {value}")).result(WAIT) == value
        digest = server.binary("words").digest
        assert proxy.count("GET", f"/{digest}") == 0
    other = make_store(proxy.url)
    for _ in range(2):
        with other.local_path(digest) as path:
            assert path.stat().st_size > 0
    assert proxy.count("GET", f"/{digest}") == 1


def test_an_empty_store_is_listed_with_few_requests(proxy: S3Proxy, make_store: MakeStore) -> None:
    store = make_store(proxy.url)
    store.check()
    store.put([b"content"])
    proxy.seen.clear()
    assert store.usage() == (1, 7)
    assert len(list(store.digests(modified_before=_now() + timedelta(hours=1)))) == 1
    assert len(proxy.seen) <= 6


def test_what_one_server_commits_or_deletes_another_one_sees(s3: S3Server, make_store: MakeStore) -> None:
    one, other = make_store(s3.url), make_store(s3.url)
    assert one.usage() == other.usage() == (0, 0)
    digest = one.put([b"content"]).digest
    assert other.usage() == (1, 7)
    with other.open(digest) as file:
        assert file.read() == b"content"
    one.delete(digest)
    assert other.size(digest) is None
    assert other.usage() == (0, 0)
    with pytest.raises(BlobNotFound):
        other.open(digest)


# -- sweeping --------------------------------------------------------------------------------------


def test_a_sweep_removes_old_blobs_that_nothing_refers_to(
    s3: S3Server, bucket: str, make_store: MakeStore
) -> None:
    store = make_store(s3.url)
    with a_server(blobs=store) as server:
        upload(server)
        unused = store.put([b"nobody refers to this"]).digest
        unfinished = s3.root / bucket / "blobs" / "tmp" / ("0" * 16)
        unfinished.parent.mkdir(exist_ok=True)
        unfinished.write_bytes(b"of a writer that was killed")
        old = (_now() - timedelta(days=2)).timestamp()
        for path in (s3.root / bucket / "blobs").rglob("*"):
            os.utime(path, (old, old))
        server.prune()
        assert store.size(unused) is None
        assert not unfinished.exists()
        assert server.submit(a_request("w.Echo", "value = 1")).result(WAIT) == 1


# -- access ----------------------------------------------------------------------------------------


def set_policy(s3: S3Server, bucket: str, *statements: dict[str, Any]) -> None:
    document = {"Version": "2012-10-17", "Statement": list(statements)}
    s3.files.call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps(document))


def test_the_documented_permissions_suffice(s3: S3Server, bucket: str, make_store: MakeStore) -> None:
    documented = json.loads(POLICY.read_text(encoding="utf-8").partition("```json\n")[2].partition("```")[0])
    s3.add_user("writer", "writer-secret-key")
    for statement in documented["Statement"]:
        statement["Principal"] = {"AWS": ["writer"]}
        resource = statement["Resource"].replace("my-bucket/jobserver", f"{bucket}/blobs")
        statement["Resource"] = resource.replace("my-bucket", bucket)
    set_policy(s3, bucket, *documented["Statement"])
    store = make_store(s3.url, key="writer", secret="writer-secret-key")
    store.check()
    digest = store.put(PIECES).digest
    with make_store(s3.url, key="writer", secret="writer-secret-key").open(digest) as file:
        assert len(file.read()) == 6 * MIB
    with store.create() as abandoned:
        for piece in PIECES:
            abandoned.write(piece)
    assert store.usage() == (1, 6 * MIB)
    store.sweep(modified_before=_now() + timedelta(hours=1))
    store.delete(digest)
    assert stored(s3, bucket) == []


@pytest.mark.parametrize("wrong", ["secret", "user", "bucket"])
def test_access_that_is_denied_is_named_without_the_credentials(
    s3: S3Server, bucket: str, make_store: MakeStore, wrong: str
) -> None:
    store = make_store(s3.url, **({} if wrong == "bucket" else {"secret": "hunter3-hunter3-hunter3"}))
    if wrong == "user":
        s3.add_user("stranger", "stranger-secret-key")
        store = make_store(s3.url, key="stranger", secret="stranger-secret-key")
    if wrong == "bucket":
        (s3.root / bucket).rmdir()
    with pytest.raises(StorageError) as caught:
        store.check()
    reason = {
        "secret": "signature",
        "user": "Access Denied|Forbidden",
        "bucket": "bucket does not exist",
    }[wrong]
    assert caught.match(f"(?i)cannot write to the blobs at s3://{bucket}/blobs: .*({reason})")
    assert "hunter" not in str(caught.value)
    assert "stranger-secret" not in str(caught.value)


def test_an_endpoint_that_is_gone_is_named(make_store: MakeStore) -> None:
    store = make_store("http://127.0.0.1:1", config_kwargs=ONCE)
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:1/"):
        store.check()


def test_credentials_of_the_environment_are_in_no_log_and_no_file(
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ROOT_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ROOT_SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    settings = Settings.from_mapping(
        {
            "jobserver.data-dir": str(tmp_path / "data"),
            "jobserver.blobs": {"url": f"s3://{bucket}/blobs", "options.skip_instance_cache": True},
        }
    )
    with (
        caplog.at_level(logging.INFO),
        JobServer.from_settings(settings, launcher=InlineLauncher(FUNCTIONS)) as server,
    ):
        upload(server)
        assert server.submit(a_request("w.Echo", "value = 1")).result(WAIT) == 1
        assert server.check()["blobs"] is None
        s3_files = stored(s3, bucket)
        assert len(s3_files) == 1
    assert ROOT_SECRET not in caplog.text
    assert ROOT_KEY not in caplog.text
    written = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if ROOT_SECRET.encode() in path.read_bytes()]
