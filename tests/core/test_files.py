"""Files of ours: no link is followed, others get no rights, what is there already is not taken for
ours."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import holdfast
from holdfast import files
from holdfast.admin.backup import archive
from holdfast.admin.backup.archive import Writer
from holdfast.admin.backup.spool import Spool
from holdfast.cli import common
from holdfast.errors import ConfigError
from holdfast.host.directory import LOCK_FILE, DirectoryLock

SOURCE = Path(holdfast.__file__).parent


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    kept = os.umask(0)
    yield
    os.umask(kept)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def append(path: Path) -> None:
    with files.appending(path) as file:
        file.write(b"ours")


def write(path: Path) -> None:
    files.write_private(path, "ours")


def create(path: Path) -> None:
    os.close(files.create(path))


OPENERS: list[Callable[[Path], None]] = [append, write, create]


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_not_followed(
    tmp_path: Path, opener: Callable[[Path], None], there: bool
) -> None:
    victim = tmp_path / "victim"
    if there:
        victim.write_text("precious")
    path = tmp_path / "ours"
    path.symlink_to(victim)
    try:
        opener(path)
    except OSError as error:
        assert "symbolic link" in str(error)
    assert victim.exists() is there
    assert not there or victim.read_text() == "precious"


@pytest.mark.parametrize("opener", OPENERS)
def test_what_is_made_is_its_owners_alone(tmp_path: Path, opener: Callable[[Path], None]) -> None:
    files.make_directory(tmp_path / "a" / "b")
    opener(tmp_path / "a" / "b" / "file")
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700
    assert mode(tmp_path / "a" / "b" / "file") == 0o600
    with DirectoryLock(tmp_path / "new" / "x" / ".." / "b") as lock:
        made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
        assert {path.name for path in made} == {"new", "x", "b", LOCK_FILE} and lock.descriptors
        assert all(mode(path) == (0o700 if path.is_dir() else 0o600) for path in made)


@pytest.mark.parametrize("opener", [append, create])
def test_what_is_no_file_is_refused(tmp_path: Path, opener: Callable[[Path], None]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):
        opener(tmp_path / "pipe")


def test_rights_that_others_have_to_a_file_of_ours_are_taken_away(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before ")
    (tmp_path / "log").chmod(0o666)
    append(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "before ours" and mode(tmp_path / "log") == 0o600


def test_a_backup_begins_a_file_of_its_own(tmp_path: Path) -> None:
    partial = tmp_path / "b.backup.partial"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    partial.symlink_to(victim)
    with pytest.raises(ConfigError, match="symbolic link"):
        Writer(tmp_path / "b.backup")
    partial.unlink()
    partial.write_text("left by an interrupted backup")
    partial.chmod(0o666)
    with Writer(tmp_path / "b.backup") as writer:
        assert mode(partial) == 0o600
        with pytest.raises(ConfigError, match="another process"):
            Writer(tmp_path / "b.backup")
        writer.add(archive.Head(1, "0", 1, "c", 1, 1, ["g1c0"], "g1reg", [0, 0], 1.0))
        writer.finish()
    assert (
        mode(tmp_path / "b.backup") == 0o600
        and not partial.exists()
        and victim.read_text() == "precious"
    )


def test_a_backup_that_was_replaced_meanwhile_does_not_appear(tmp_path: Path) -> None:
    with Writer(tmp_path / "b.backup") as writer:
        (tmp_path / "b.backup.partial").unlink()
        (tmp_path / "b.backup.partial").write_text("another's")
        with pytest.raises(ConfigError, match="replaced"):
            writer.finish()
    assert not (tmp_path / "b.backup").exists()


def test_a_spool_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "spool").symlink_to(victim)
    with Spool(tmp_path / "spool"):
        assert not (tmp_path / "spool").is_symlink() and mode(tmp_path / "spool") == 0o600
    assert victim.read_text() == "precious"


def test_a_password_that_everybody_may_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    for given, said in ((0o600, ""), (0o640, ""), (0o644, "read"), (0o602, "write")):
        secret.chmod(given)
        common.warn_of_open_secrets(str(secret), "", str(tmp_path / "missing"))
        warned = capsys.readouterr().err
        assert (f"every user may {said} " in warned and "chmod" in warned) if said else warned == ""
        assert "s3cret" not in warned


def test_files_are_opened_for_writing_in_one_place() -> None:
    """Outside of tests' helpers: by `holdfast.files`, or with the same flags where a lock needs its
    own order."""
    careful = {
        "files.py",
        "engines/local/lock.py",
        "host/directory.py",
        "host/pipes.py",
        "pipes.py",
    }
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE))
        if name in careful or name.startswith("testing/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in (
                    "write_text",
                    "write_bytes",
                    "touch",
                    "mkdir",
                    "makedirs",
                ), f"{name}:{node.lineno}"
                if ast.unparse(node.func) == "os.open":
                    assert "O_CREAT" not in ast.unparse(node), f"{name}:{node.lineno}"
                elif (
                    node.func.attr == "open"
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                ):
                    assert node.args[0].value == "rb", f"{name}:{node.lineno}"


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ours"
    synced: list[tuple[str, int]] = []

    def fsync(opened: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(opened).st_mode)
        synced.append(
            (
                "directory" if is_directory else "file",
                os.fstat(opened).st_size if not is_directory else 0,
            )
        )
        assert path.exists() is is_directory

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_private(path, "precious")
    assert synced == [("file", 8), ("directory", 0)] and path.read_text() == "precious"
