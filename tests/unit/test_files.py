"""Files are written beside their place and renamed there: whole or not at all, links untouched, permissions kept."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from axk1.files import remove_unfinished, replacing, write_text


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.json"
    write_text(file, "old 글")
    with pytest.raises(RuntimeError), replacing(file) as stream:
        stream.write(b"half")
        assert file.read_text() == "old 글"
        raise RuntimeError
    assert file.read_text() == "old 글" and list(tmp_path.iterdir()) == [file]
    with replacing(file) as stream:
        stream.write(b"new")
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


def test_a_link_is_replaced_and_what_it_names_stays(tmp_path):
    private, file = tmp_path / "private", tmp_path / "saved.json"
    private.write_text("secret")
    file.symlink_to(private)
    write_text(file, "mine")
    assert private.read_text() == "secret"
    assert not file.is_symlink() and file.read_text() == "mine"
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    write_text(file, "mine")
    assert not (tmp_path / "nowhere").exists() and file.read_text() == "mine"


def test_permissions(tmp_path, umask):
    file = tmp_path / "a"
    write_text(file, "new")
    assert mode_of(file) == 0o640
    file.chmod(0o604)
    write_text(file, "again")
    assert mode_of(file) == 0o604
    write_text(tmp_path / "private", "", 0o600)
    assert mode_of(tmp_path / "private") == 0o600


def test_a_name_of_the_greatest_length(tmp_path):
    file = tmp_path / ("글" * 85)
    write_text(file, "text")
    assert file.read_text() == "text"


def test_a_pipe_is_written_to(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert found == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_standard_output_is_written_to():
    code = "from pathlib import Path; from axk1.files import write_text; write_text(Path('/dev/stdout'), 'out')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "out" and Path("/dev/stdout").is_symlink()


def test_a_folder_is_refused_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "text")
    with pytest.raises(FileNotFoundError, match="missing"):
        write_text(tmp_path / "missing" / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    (tmp_path / "file").touch()
    for place in (tmp_path / "missing" / "file", tmp_path / "file" / "file"):
        with pytest.raises(OSError) as caught:
            write_text(place, "text")
        assert caught.value.filename == str(place) and caught.value.filename2 is None


def test_what_a_killed_process_leaves_is_removed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from axk1.files import replacing\n"
        "with replacing(Path(sys.argv[1]) / 'a') as stream: os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (tmp_path / ".hidden").write_text("the user's")
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]
