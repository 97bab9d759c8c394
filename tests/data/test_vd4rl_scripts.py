"""V-D4RL's own scripts read what `data convert` writes, and the other way round, to the byte. They are run where the
variable VD4RL names a copy of their repository:

    git clone https://github.com/conglu1997/v-d4rl V
    VD4RL=V python -m pytest tests/data/test_vd4rl_scripts.py
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic

from semopo_tf.data import __main__ as data
from semopo_tf.data.episodes import episode_files, read_episode
from semopo_tf.storage.files import sha256

SCRIPTS = Path(os.environ.get("VD4RL", "nowhere")).resolve() / "conversion_scripts"
RECORDS = 501  # of every episode; their scripts know no other
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="VD4RL names no copy of V-D4RL")


def theirs(name: str, source: Path, target: Path) -> None:
    command = [sys.executable, SCRIPTS / name, "--input_dir", source, "--output_dir", target]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def convert(*words: object) -> None:
    data.main(["convert", *map(str, words)])


def require_same(found: list[Path], expected: list[Path]) -> None:
    """Equal episodes, whatever they are called and in whatever order they come."""
    keyed = [{read_episode(path).action.tobytes(): read_episode(path) for path in paths} for paths in (found, expected)]
    assert keyed[0].keys() == keyed[1].keys() and len(keyed[0]) == len(found) == len(expected)
    for key, episode in keyed[1].items():
        for name, array in episode.arrays().items():
            np.testing.assert_array_equal(keyed[0][key].arrays()[name], array)
            assert keyed[0][key].arrays()[name].dtype == array.dtype


def test_their_scripts_and_ours_give_back_what_the_other_wrote(tmp_path):
    ours = synthetic.dataset(tmp_path / "ours", episodes=3, records=RECORDS, size=16)
    (tmp_path / "hdf5").mkdir()
    convert(ours, tmp_path / "hdf5" / "data.hdf5")
    theirs("hdf5_to_npz.py", tmp_path / "hdf5", tmp_path / "npz")
    require_same(episode_files(tmp_path / "npz"), episode_files(ours))
    assert data.main(["check", str(tmp_path / "npz")]) == 0
    theirs("split_hdf5_shards.py", tmp_path / "hdf5", tmp_path / "shards")
    convert(tmp_path / "shards", tmp_path / "joined")
    require_same(episode_files(tmp_path / "joined"), episode_files(ours))
    convert(tmp_path / "joined", tmp_path / "again.hdf5")
    assert sha256(tmp_path / "again.hdf5") == sha256(tmp_path / "hdf5" / "data.hdf5")
