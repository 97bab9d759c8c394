"""Several datasets in one: `data join`."""

import numpy as np
import pytest
import synthetic

from semopo_tf import collect
from semopo_tf.data import __main__ as data
from semopo_tf.data.cards import read_card, write_card
from semopo_tf.data.dataset import open_dataset
from semopo_tf.data.episodes import episode_files
from semopo_tf.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, *words in (
        ("networks", "--policy", "networks", "--episodes", "2"),
        ("expert", "--policy", "expert", "--episodes", "1"),
        ("loud", "--policy", "expert", "--episodes", "1", "--options", "contrast=0.5"),
    ):
        assert collect.main(["--task", "exbmdp_point", *words, "--out", str(folder / name)]) == 0
    return folder


def joined(collected, target, *names):
    return data.main(["join", *(str(collected / name) for name in names), str(target)])


def test_the_episodes_follow_each_other_byte_for_byte_and_the_card_says_what_they_are(collected, tmp_path, capsys):
    target = tmp_path / "both"
    assert joined(collected, target, "networks", "expert") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{target}: 3 episodes of 2 datasets, 153 records"
    sources = [path for name in ("networks", "expert") for path in episode_files(collected / name)]
    assert [path.read_bytes() for path in episode_files(target)] == [path.read_bytes() for path in sources]
    card, parts = read_card(target), [read_card(collected / name) for name in ("networks", "expert")]
    assert (card["status"], card["task"], card["policy"]) == ("complete", "exbmdp_point", "networks + expert")
    assert card["environment"] == parts[0]["environment"]
    assert [part["episodes"] for part in card["joined"]] == [2, 1]
    assert card["joined"][0]["behaviour"] == parts[0]["behaviour"]
    returns = [row["return"] for part in parts for row in part["files"]]
    assert card["returns"]["mean"] == pytest.approx(np.mean(returns)) and card["returns"]["max"] == max(returns)
    assert len(open_dataset(target).names) == 3
    assert data.main(["check", str(target)]) == 0


def test_the_same_command_mends_what_an_interruption_left(collected, tmp_path):
    target = tmp_path / "both"
    joined(collected, target, "networks", "expert")
    whole = {path.name: path.read_bytes() for path in target.glob("*.*")}
    first, second, _ = episode_files(target)
    first.unlink()
    second.write_bytes(b"half")
    joined(collected, target, "networks", "expert")
    assert {path.name: path.read_bytes() for path in target.glob("*.*")} == whole


def test_what_does_not_belong_together_is_refused_before_anything_is_written(collected, tmp_path):
    target = tmp_path / "both"
    with pytest.raises(ConfigError, match=r"loud: expected environment \{.*\} as in .*, received .*contrast.*; only"):
        joined(collected, target, "networks", "loud")
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in episode_files(collected / "expert"):
        (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match=r"bare: expected a card dataset.json as in .*, received none"):
        data.main(["join", str(collected / "networks"), str(bare), str(target)])
    cut_short = tmp_path / "cut"
    cut_short.mkdir()
    (cut_short / "000000.npz").write_bytes(episode_files(collected / "expert")[0].read_bytes())
    write_card(cut_short, read_card(collected / "expert") | {"status": "incomplete"})
    with pytest.raises(ConfigError, match=r"cut: expected a complete dataset, received one that is incomplete"):
        data.main(["join", str(collected / "networks"), str(cut_short), str(target)])
    assert not target.exists()
    assert data.main(["join", str(bare), str(bare), str(target)]) == 0
    assert "task" not in read_card(target) and read_card(target)["episodes"] == 2
    with pytest.raises(ConfigError, match="holds a dataset that was not made from these files"):
        joined(collected, target, "networks", "expert")


def test_images_of_two_sizes_are_refused(tmp_path):
    for name, size in (("a", 16), ("b", 8)):
        synthetic.dataset(tmp_path / name, size=size)
    with pytest.raises(DataError, match=r"expected images \[16, 16, 3\] and actions .* received \[8, 8, 3\]"):
        data.main(["join", str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "both")])
