"""Durable publishing: what happens when any single call fails."""

import errno
import os
import time

import pytest

from featcache import files
from featcache.files import Disk, publish, publish_bytes


class Failing(Disk):
    """Fails one named call with an error number; records the order of all."""

    def __init__(self, call=None, number=errno.EIO):
        self.call, self.number, self.log = call, number, []

    def __getattribute__(self, name):
        attribute = super().__getattribute__(name)
        if name.startswith("_") or not callable(attribute):
            return attribute

        def wrapped(*args):
            self.log.append(name)
            if name == self.call:
                raise OSError(self.number, os.strerror(self.number))
            return attribute(*args)

        return wrapped


def make(tmp_path, text=b"new"):
    temporary = tmp_path / "x.tmp"
    temporary.write_bytes(text)
    return temporary, tmp_path / "x"


def test_publish_syncs_verifies_links_then_syncs_the_folder(tmp_path):
    disk, verified = Failing(), []
    temporary, target = make(tmp_path)
    publish(temporary, target, verify=lambda path: verified.append((path, list(disk.log))), disk=disk)
    assert target.read_bytes() == b"new" and not temporary.exists()
    assert verified == [(temporary, ["fsync"])]
    assert disk.log == ["fsync", "link", "unlink", "fsync_folder", "fsync"]


def test_publish_never_replaces(tmp_path):
    temporary, target = make(tmp_path)
    target.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        publish(temporary, target)
    assert target.read_bytes() == b"old" and not temporary.exists()


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_failed_call_publishes_nothing_and_is_not_retried(tmp_path, call):
    disk = Failing(call)
    temporary, target = make(tmp_path)
    with pytest.raises(OSError):
        publish(temporary, target, disk=disk)
    assert not target.exists() and not temporary.exists()
    assert disk.log.count("fsync") == 1


def test_a_failed_verification_publishes_nothing(tmp_path):
    temporary, target = make(tmp_path)
    with pytest.raises(OSError, match="not what was meant"):
        publish(temporary, target, verify=lambda path: (_ for _ in ()).throw(OSError("not what was meant")))
    assert not target.exists() and not temporary.exists()


def test_a_failed_folder_sync_raises_so_that_nobody_acknowledges(tmp_path):
    temporary, target = make(tmp_path)
    with pytest.raises(OSError):
        publish(temporary, target, disk=Failing("fsync_folder"))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_without_links_a_claim_and_a_rename_do(tmp_path, number):
    temporary, target = make(tmp_path)
    publish(temporary, target, disk=Failing("link", number))
    assert target.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]
    temporary, _ = make(tmp_path, b"second")
    with pytest.raises(FileExistsError):
        publish(temporary, target, disk=Failing("link", number))
    assert target.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_a_claim_left_by_a_dead_process_is_broken_after_a_minute(tmp_path):
    temporary, target = make(tmp_path)
    claim = tmp_path / "x.claim"
    claim.write_bytes(b"dead")
    with pytest.raises(FileExistsError):
        publish(temporary, target, disk=Failing("link", errno.EPERM))
    assert claim.exists()
    os.utime(claim, (time.time() - 100, time.time() - 100))
    for expected in (FileExistsError, None):
        temporary, _ = make(tmp_path)
        if expected:
            with pytest.raises(expected):
                publish(temporary, target, disk=Failing("link", errno.EPERM))
        else:
            publish(temporary, target, disk=Failing("link", errno.EPERM))
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_failed_replacement_leaves_the_old_content(tmp_path, call):
    target = tmp_path / "x"
    publish_bytes(target, b"old")
    with pytest.raises(OSError):
        publish_bytes(target, b"new", disk=Failing(call))
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_publish_bytes_replaces_only_when_allowed(tmp_path):
    target = tmp_path / "x"
    publish_bytes(target, b"1", replace=False)
    publish_bytes(target, b"2")
    with pytest.raises(FileExistsError):
        publish_bytes(target, b"3", replace=False)
    assert target.read_bytes() == b"2"


def test_only_old_leftovers_are_swept(tmp_path):
    old, young = tmp_path / "old", tmp_path / "young"
    for path in (old, young):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    assert files.remove_stale(tmp_path, 3600) == 1
    assert not old.exists() and young.exists()
    assert files.remove_stale(tmp_path / "absent", 1) == 0


def test_unique_names_sort_by_time():
    names = [files.unique_name() for _ in range(50)]
    assert len(set(names)) == 50 and sorted(names)[0].split("-")[0] <= names[-1].split("-")[0]


def test_a_link_that_a_file_server_made_and_denied_counts(tmp_path):
    class AskedTwice(Disk):
        def link(self, source, target):
            super().link(source, target)
            super().link(source, target)

    temporary, target = make(tmp_path)
    publish(temporary, target, disk=AskedTwice())
    assert target.read_bytes() == b"new" and not temporary.exists()
    temporary, _ = make(tmp_path, b"other")
    with pytest.raises(FileExistsError):
        publish(temporary, target, disk=AskedTwice())
    assert target.read_bytes() == b"new"
