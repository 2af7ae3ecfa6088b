"""Folders of dead workers go; those of living ones, and whatever is not ours, stay."""

import signal
import subprocess
import sys
from pathlib import Path

from quire_worker.server.private_folder import private_folder

HOLD = """
import sys
from pathlib import Path
from quire_worker.server.private_folder import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_killed_workers_folder_is_removed_by_the_next_one_and_a_living_ones_is_not(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    folders = []
    for holder in holders:
        assert holder.stdout is not None
        folders.append(Path(holder.stdout.readline().strip()))
    holders[0].send_signal(signal.SIGKILL)
    holders[0].communicate(timeout=60)

    with private_folder(tmp_path) as own:
        left = [folder.exists() for folder in folders]
        mode = own.stat().st_mode & 0o777

    holders[1].communicate(timeout=60)
    assert left == [False, True]
    assert mode == 0o700
    assert list(tmp_path.iterdir()) == []


def test_what_only_looks_like_ours_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("quire-models", "quire-abcdefgh", "quire-ABCDEFGH/deeper"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "quire-models" / "lock").touch()
    (elsewhere / "lock").touch()
    (tmp_path / "quire-linkedto").symlink_to(elsewhere)
    before = sorted(tmp_path.iterdir())

    with private_folder(tmp_path):
        pass

    assert sorted(tmp_path.iterdir()) == before
    assert (elsewhere / "lock").exists()
