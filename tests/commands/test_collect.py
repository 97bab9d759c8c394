import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clips import write_grey

from semopo_tf import collect
from semopo_tf.data.cards import read_card
from semopo_tf.data.episodes import read_episode
from semopo_tf.envs import contract, tasks, videos
from semopo_tf.envs.contract import ContractError
from semopo_tf.envs.rollout import RandomPolicy, retry_seed
from semopo_tf.errors import ConfigError, LockedError, SemopoError, SimulatorError, StorageError, one_line
from semopo_tf.run import collecting
from semopo_tf.storage.files import Files, locked, sha256
from semopo_tf.types import Observation

# A user's own file: an environment without a simulator, registered, then the ordinary command.
SCRIPT = """
import os, sys, time
import numpy as np
import semopo_tf
from semopo_tf import collect
from semopo_tf.errors import run_command
from semopo_tf.types import Observation

class Noise:
    action_size, image_shape = 2, (8, 8, 3)

    def __init__(self, **settings):
        self.pause = float(sys.argv[sys.argv.index("--action_repeat") + 1]) / 1000

    def observe(self, reward):
        image = self.rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        return Observation(image, reward, self.time == 0, self.time == 20, False)

    def reset(self, seed):
        self.rng, self.time = np.random.default_rng(seed), 0
        return self.observe(0.0)

    def step(self, action):
        if self.pause == 1.234:
            os._exit(1)
        time.sleep(self.pause)
        self.time += 1
        return self.observe(float(action.sum()))

    def close(self):
        pass

semopo_tf.register("noise", Noise)
if __name__ == "__main__":
    run_command(collect.main)
"""


class Still:
    """Six decisions of a 64 x 64 world that pays 1 per decision and then ends."""

    action_size, image_shape = 3, (64, 64, 3)

    def __init__(self, **settings):
        self.closed = False

    def observe(self):
        return Observation(
            np.full((64, 64, 3), self.time, np.uint8),
            min(self.time, 1.0),
            self.time == 0,
            self.time == 6,
            self.time == 6,
        )

    def reset(self, seed):
        self.time = 0
        return self.observe()

    def step(self, action):
        self.time += 1
        return self.observe()

    def close(self):
        self.closed = True


@pytest.fixture
def still(monkeypatch):
    monkeypatch.setitem(tasks._registry, "still", Still)
    collecting.player.cache_clear()
    yield
    collecting.player.cache_clear()


def arguments(out, **changes):
    flags = {"task": "still", "episodes": 3, "out": out} | changes
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.startswith(".")}


def test_episode_files_follow_the_layout(tmp_path, still, capsys):
    assert collect.main(arguments(tmp_path / "a")) == 0
    files = sorted((tmp_path / "a").glob("*.npz"))
    seeds = [int(np.random.SeedSequence([1, index]).generate_state(1)[0]) for index in range(3)]
    assert [path.name for path in files] == [f"{index:06d}-{seed:08x}-6.npz" for index, seed in enumerate(seeds)]
    with np.load(files[0]) as file:
        layout = {name: (file[name].dtype.name, file[name].shape) for name in file.files}
        assert not file["action"][0].any()
        assert file["reward"].tolist() == [0, 1, 1, 1, 1, 1, 1]
        assert file["discount"].tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert layout == {
        "image": ("uint8", (7, 64, 64, 3)),
        "action": ("float32", (7, 3)),
        "reward": ("float32", (7,)),
        "discount": ("float32", (7,)),
        "is_first": ("bool", (7,)),
        "is_last": ("bool", (7,)),
        "is_terminal": ("bool", (7,)),
    }
    assert "3 episodes, 21 records, return 6.00 +- 0.00" in capsys.readouterr().out


def test_card_tells_how_the_episodes_were_made(tmp_path, still):
    collect.main(arguments(tmp_path, seed=4, background_color="rgb", size=32, mask_rule="blue"))
    card = read_card(tmp_path)
    assert (card["status"], card["task"], card["policy"], card["seed"]) == ("complete", "still", "random", 4)
    assert card["environment"] == {"size": 64, "action_repeat": 2, "camera": -1}  # the environment has its own size
    assert card["behaviour"]["kind"] == "networks"
    assert card["background"] == {
        "source": "none",
        "color": "rgb",
        "split": "train",
        "seed": 0,
        "mask_rule": "blue",
        "clips": [],
    }
    assert set(card["versions"]) == {"numpy"}  # no simulator plays this task
    assert (card["episodes"], card["records"]) == (3, 21)
    assert card["returns"] == {"mean": 6, "std": 0, "min": 6, "p25": 6, "median": 6, "p75": 6, "max": 6}
    assert [entry["return"] for entry in card["files"]] == [6, 6, 6]
    assert [entry["file"] for entry in card["files"]] == sorted(path.name for path in tmp_path.glob("*.npz"))
    assert [entry["sha256"] for entry in card["files"]] == [sha256(path) for path in sorted(tmp_path.glob("*.npz"))]
    assert [entry["seed"] for entry in card["files"]] == [collecting.episode_seed(4, index) for index in range(3)]


def test_statistics_by_hand(tmp_path):
    for index in range(4):
        (tmp_path / f"{index}").write_bytes(b"")
    episodes = [
        collecting.Written(index, f"{index}", index, score, 2) for index, score in enumerate((1.0, 2.0, 3.0, 10.0))
    ]
    # Mean 4; squared deviations 9 + 4 + 1 + 36 = 50, over 4; quartiles by linear interpolation at 0.75, 1.5, 2.25.
    expected = {"mean": 4, "std": 12.5**0.5, "min": 1, "p25": 1.75, "median": 2.5, "p75": 4.75, "max": 10}
    assert collect.describe(tmp_path, episodes)["returns"] == pytest.approx(expected)


def test_more_episodes_continue_a_dataset(tmp_path, still, capsys):
    collect.main(arguments(tmp_path / "grown", episodes=2))
    before = contents(tmp_path / "grown")
    collect.main(arguments(tmp_path / "grown", episodes=4))
    collect.main(arguments(tmp_path / "whole", episodes=4))
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    assert {
        name: data for name, data in contents(tmp_path / "grown").items() if name in before and name.endswith("npz")
    }.items() <= before.items()
    assert "2 of 4 episodes are there, collecting 2" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"holds episode 3, but --episodes asks for 3; raise --episodes"):
        collect.main(arguments(tmp_path / "grown", episodes=3))


def test_damaged_and_left_over_files_are_replaced(tmp_path, still, capsys):
    collect.main(arguments(tmp_path))
    whole = contents(tmp_path)
    victim = sorted(tmp_path.glob("*.npz"))[1]
    victim.write_bytes(victim.read_bytes()[:100])
    (tmp_path / ".tmp-123-x.npz").touch()
    collect.main(arguments(tmp_path))
    assert contents(tmp_path) == whole
    assert not list(tmp_path.glob(".tmp-*"))
    assert "truncated or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, r"seed: 1 there, 2 asked"),
        ({"mask_rule": "blue"}, r"background.mask_rule: 'sky' there, 'blue' asked"),
        ({"action_repeat": 1}, r"environment.action_repeat: 2 there, 1 asked"),
        ({"policy": "uniform"}, r"policy: 'random' there, 'uniform' asked"),
    ],
)
def test_other_recipe_in_the_same_folder_is_refused(tmp_path, still, changes, message):
    collect.main(arguments(tmp_path, episodes=1))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=message):
        collect.main(arguments(tmp_path, episodes=1, **changes))
    assert contents(tmp_path) == before


def test_foreign_files_are_refused(tmp_path, still):
    np.savez(tmp_path / "mine.npz", image=np.zeros(3))
    with pytest.raises(ConfigError, match=r"empty directory or one with dataset.json, received 1 npz files"):
        collect.main(arguments(tmp_path))
    collect.main(arguments(tmp_path / "b", episodes=1))
    (tmp_path / "mine.npz").rename(tmp_path / "b" / "mine.npz")
    with pytest.raises(ConfigError, match=r"mine.npz: belongs to no episode of this collection"):
        collect.main(arguments(tmp_path / "b", episodes=1))


def test_two_collectors_do_not_share_a_folder(tmp_path, still):
    with (
        locked(tmp_path / collect.LOCK_NAME, wait=False, what="test"),
        pytest.raises(LockedError, match="is in use by process"),
    ):
        collect.main(arguments(tmp_path))


def test_out_that_cannot_be_written(tmp_path, still):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be written .*choose another --out"):
        collect.main(arguments(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: --task, --out"),
        (["--task", "still", "--out", "x", "--episode", "3"], "--episode: unknown flag, did you mean --episodes?"),
        (["--tsk", "still", "--out", "x"], "--tsk: unknown flag, did you mean --task?"),
        (["--task", "still", "--out", "x", "--episodes", "many"], "argument --episodes: invalid int value: 'many'"),
        (["--task", "still", "--out", "x", "--episodes", "0"], "--episodes: expected at least 1, received 0"),
        (["--task", "still", "--out", "x", "--seed", "-1"], "--seed: expected at least 0, received -1"),
        (["--task", "still", "--out", "x", "--mask_rule", "red"], "argument --mask_rule: invalid choice: 'red'"),
        (["--task", "still", "--out", "x", "--policy", "best"], "for still, received 'best'"),
    ],
)
def test_wrong_flags(argv, message):
    with pytest.raises(ConfigError) as caught:
        collect.main(argv)
    assert message in str(caught.value)
    assert "\n" not in one_line(caught.value)


def test_background_keeps_its_absolute_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert videos.absolute_source("clips") == str(tmp_path / "clips")
    assert videos.absolute_source("~/clips") == "/home/someone/clips"
    assert videos.absolute_source("builtin:driving") == "builtin:driving"


def test_card_of_a_moving_background(tmp_path, capsys):
    write_grey(tmp_path / "a.mkv", [1, 2])
    (tmp_path / "b.mkv").write_text("no video")
    (tmp_path / "c.mkv").touch()
    names = (
        "size",
        "action_repeat",
        "camera",
        "background",
        "background_color",
        "background_split",
        "background_seed",
        "mask_rule",
    )
    values = (8, 2, -1, str(tmp_path), "grey", "train", 0, "sky")
    recipe = collecting.Recipe("dmcdrv_cartpole_balance", "uniform", tuple(zip(names, values, strict=True)))
    card = collect.make_card(recipe, seed=1)
    collecting.player(recipe).close()
    collecting.player.cache_clear()
    assert card["background"] == {
        "source": str(tmp_path),
        "color": "grey",
        "split": "train",
        "seed": 0,
        "mask_rule": "sky",
        "clips": ["a.mkv"],
    }
    assert card["versions"]["backend"] == os.environ["MUJOCO_GL"]
    assert "warning: background b.mkv is skipped: " in capsys.readouterr().err


def test_moving_background_has_to_be_named(tmp_path):
    with pytest.raises(ConfigError, match="needs a moving background; add --background builtin:driving"):
        collect.main(arguments(tmp_path, task="dmcdrv_walker_walk"))


@pytest.fixture
def script(tmp_path):
    """Starts the user's file. `pause` is the length of a decision in milliseconds; it belongs to the recipe."""
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(collect.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

    def start(out, *, episodes=8, pause=10, processes=1, **options):
        flags = arguments(tmp_path / out, task="noise", episodes=episodes, action_repeat=pause, processes=processes)
        return subprocess.Popen(
            [sys.executable, str(path), *flags],
            env=os.environ | {"PYTHONPATH": paths},
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


def wait_for_episodes(folder, count, seconds=120):
    until = time.monotonic() + seconds
    while len(list(folder.glob("[!.]*.npz"))) < count and time.monotonic() < until:
        time.sleep(0.01)


def test_L01_killed_collection_continues_to_the_same_bytes(tmp_path, script):
    first = script("killed", stdout=subprocess.DEVNULL)
    wait_for_episodes(tmp_path / "killed", 3)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert 3 <= len(list((tmp_path / "killed").glob("[!.]*.npz"))) < 8
    assert json.loads((tmp_path / "killed" / "dataset.json").read_text())["status"] == "incomplete"
    again = script("killed", stdout=subprocess.DEVNULL, processes=2)
    whole = script("whole", stdout=subprocess.DEVNULL)
    for process in (again, whole):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 9


def children_of(pid):
    """The worker processes of `pid`, read from /proc: a small machine may have no `ps`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while it is being looked at
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"spawn_main" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def workers_of(process):
    workers, until = [], time.monotonic() + 120
    while len(workers) < 2:
        assert time.monotonic() < until, "two workers did not start"
        time.sleep(0.05)
        workers = children_of(process.pid)
    return workers


def test_workers_end_with_their_parent(tmp_path, script):
    process = script("out", stdout=subprocess.DEVNULL, processes=2, pause=1000, episodes=40)
    workers = workers_of(process)
    time.sleep(2)  # they have begun
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_R19_a_killed_worker_is_replaced_and_the_result_is_the_same(tmp_path, script):
    whole = script("whole", stdout=subprocess.DEVNULL, pause=5)
    process = script("killed", stdout=subprocess.DEVNULL, processes=2, pause=5)
    wait_for_episodes(tmp_path / "killed", 2)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "a collecting process died, starting again with" in errors
    assert whole.wait(timeout=60) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_R19_workers_that_always_die_end_the_command(tmp_path, script):
    """The script's environment ends its process at a decision of 1234 ms."""
    process = script("out", stdout=subprocess.DEVNULL, processes=2, pause=1234)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 6, errors
    assert errors.count("a collecting process died, starting again") == collecting.RESTARTS
    assert f"collecting processes died {collecting.RESTARTS + 1} times" in errors


def spoil(monkeypatch, *seeds, error=RuntimeError):
    """`still` fails at the first decision of episodes with these seeds."""

    class Spoiled(Still):
        def reset(self, seed):
            self.spoiled = seed in seeds
            return super().reset(seed)

        def step(self, action):
            if self.spoiled:
                raise error("mjWARN_BADQACC")
            return super().step(action)

    monkeypatch.setitem(tasks._registry, "still", Spoiled)


def test_L02_E02_a_spoiled_episode_gets_the_next_seed_and_is_kept_at_the_next_start(
    tmp_path, still, monkeypatch, capsys
):
    first = collecting.episode_seed(1, 1)
    spoil(monkeypatch, first)
    collect.main(arguments(tmp_path / "a"))
    card = read_card(tmp_path / "a")
    assert card["discarded"] == 1
    assert [entry["seed"] for entry in card["files"]] == [
        collecting.episode_seed(1, 0),
        retry_seed(first, 1),
        collecting.episode_seed(1, 2),
    ]
    assert (
        "3 episodes, 21 records, return 6.00 +- 0.00, 1 attempts discarded and played again with another seed"
        in capsys.readouterr().out
    )
    before = contents(tmp_path / "a")
    next((tmp_path / "a").glob("000000-*")).unlink()
    collect.main(arguments(tmp_path / "a"))
    assert contents(tmp_path / "a") == before


def test_L02_E02_more_than_a_tenth_of_spoiled_episodes_ends_the_command(tmp_path, still, monkeypatch):
    spoil(monkeypatch, *(collecting.episode_seed(1, index) for index in (0, 2)))
    with pytest.raises(
        SimulatorError, match="2 of 3 episodes could not be played with their own seed, expected at most 1"
    ):
        collect.main(arguments(tmp_path))
    assert read_card(tmp_path)["status"] == "incomplete"


def test_L02_two_files_of_one_episode_are_refused(tmp_path, still):
    collect.main(arguments(tmp_path))
    path = sorted(tmp_path.glob("*.npz"))[0]
    (tmp_path / f"000000-{retry_seed(collecting.episode_seed(1, 0), 1):08x}-6.npz").write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="belongs to no episode of this collection"):
        collect.main(arguments(tmp_path))


def test_L02_a_full_disk_ends_the_collection_and_it_goes_on_later(tmp_path, still, monkeypatch):
    collect.main(arguments(tmp_path / "whole"))
    written, write = [], Files.write

    def fill_up(files, path, data):
        written.append(path)
        if path.suffix == ".npz" and len([path for path in written if path.suffix == ".npz"]) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(files, path, data)

    with monkeypatch.context() as full:
        full.setattr(Files, "write", fill_up)
        with pytest.raises(StorageError, match=r"No space left on device\); free some space"):
            collect.main(arguments(tmp_path / "a"))
    assert len(list((tmp_path / "a").glob("*.npz"))) == 1
    collect.main(arguments(tmp_path / "a"))
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_L01_twenty_kills_at_any_point_lose_nothing_and_change_nothing(tmp_path, rng):
    """Real SIGKILLs of the built-in testbed's collection, from its first line to its card; the command is repeated
    until it ends.
    """
    context = multiprocessing.get_context("forkserver")  # spares each process the start of the interpreter
    context.set_forkserver_preload(["semopo_tf.collect"])

    def start(out):
        process = context.Process(
            target=collect.main,
            args=(["--task", "exbmdp_point", "--episodes", "150", "--seed", "3", "--out", str(out)],),
        )
        process.start()
        return process

    whole, out, kills = start(tmp_path / "whole"), tmp_path / "killed", 0
    while kills < 20:
        process, have = start(out), len(list(out.glob("[!.]*.npz")))
        if kills % 2:
            wait_for_episodes(out, have + int(rng.integers(1, 5)), seconds=5)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was faster
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        assert len(list(out.glob("[!.]*.npz"))) >= have
    assert kills == 20
    for process in (whole, start(out)):
        process.join()
        assert process.exitcode == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_errors_of_a_worker_come_through():
    # They travel to the parent by pickling, so every class has to survive it.
    import multiprocessing.reduction as reduction

    for kind in SemopoError.__subclasses__():
        copy = reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(kind("what; remedy")))
        assert (type(copy), str(copy)) == (kind, "what; remedy")


# --- environments of other people: the whole command ------------------------------------------------------------------


class Buffered(Still):
    """Draws into one buffer, and scales the action in place."""

    def __init__(self, **settings):
        super().__init__()
        self.canvas = np.zeros((64, 64, 3), np.uint8)

    def observe(self):
        self.canvas[:] = self.time
        return super().observe()._replace(image=self.canvas)

    def step(self, action):
        action *= 0.5
        return super().step(action)


def counted(**changes):
    """A registered class whose observations have these fields; `played` lists its episodes."""

    played = []

    class Counted(Still):
        def reset(self, seed):
            played.append(seed)
            return super().reset(seed)

        def observe(self):
            seen = super().observe()
            return seen._replace(**{name: value(self.time) for name, value in changes.items()})

    Counted.played = played
    return Counted


def expected_actions(index=0):
    seed, policy = np.array([collecting.episode_seed(1, index)]), RandomPolicy(3)
    return [[0, 0, 0], *(policy(None, None, seed, step)[0][0].tolist() for step in range(6))]


@pytest.fixture
def registered(still, monkeypatch):
    monkeypatch.setattr(contract, "_said", set())

    def register(kind):
        collecting.player.cache_clear()
        monkeypatch.setitem(tasks._registry, "still", kind)
        return kind

    return register


def test_I01_I02_one_buffer_and_an_action_changed_in_place_give_the_right_files(tmp_path, registered, capsys):
    collect.main(arguments(tmp_path / "right", policy="uniform"))
    registered(Buffered)
    collect.main(arguments(tmp_path / "buffered", policy="uniform"))
    assert contents(tmp_path / "buffered") == contents(tmp_path / "right")
    episode = read_episode(min((tmp_path / "buffered").glob("*.npz")))
    assert episode.image[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert episode.action.tolist() == expected_actions()
    assert capsys.readouterr().err == ""


HARMLESS = {
    "reward at reset": {"reward": lambda time: 1.0},
    "reward (1,)": {"reward": lambda time: np.array([min(time, 1.0)])},
    "one channel": {"image": lambda time: np.full((64, 64, 1), time, np.uint8)},
    "is_first left out": {"is_first": lambda time: False},
}


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS)
def test_I03_a_harmless_difference_is_said_once_and_never_collected_again(tmp_path, registered, capsys, changes):
    collect.main(arguments(tmp_path / "right"))
    kind = registered(counted(**changes))
    collect.main(arguments(tmp_path / "a"))
    assert contents(tmp_path / "a") == contents(tmp_path / "right")
    assert capsys.readouterr().err.count("semopo_tf: warning: Counted.") in (1, 2)  # of reset, of step
    collect.main(arguments(tmp_path / "a"))
    assert len(kind.played) == 3
    assert "collecting 0" in capsys.readouterr().out


REFUSED = {
    "huge reward": (
        {"reward": lambda time: 1e7 * (time > 0)},
        "Counted.step: expected rewards within 1e+06 of zero, received 1e+07; rescale or repair them",
    ),
    "many logs": (
        {"log": lambda time: {f"x{index}": np.zeros(2) for index in range(70)}},
        "expected at most 64 arrays, received 77",
    ),
    "odd log": (
        {"log": lambda time: {"a/../x": np.zeros(2)}},
        "expected members called <name>.npy, received 'log_a/../x",
    ),
    "a pair as image": (
        {"image": lambda time: (0, 0)},
        "Counted.reset: expected image uint8 [64, 64, 3], received int64",
    ),
}


@pytest.mark.parametrize("changes, line", REFUSED.values(), ids=REFUSED)
def test_I03_what_training_would_refuse_ends_the_command_at_the_first_episode(tmp_path, registered, changes, line):
    kind = registered(counted(**changes))
    with pytest.raises(ContractError) as caught:
        collect.main(arguments(tmp_path))
    assert line in str(caught.value) and str(caught.value).startswith("Counted.")
    assert caught.value.exit_code == 6
    assert len(kind.played) == 1
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".tmp-*"))
    assert read_card(tmp_path)["status"] == "incomplete"


def test_I03_with_several_processes_too_the_first_episode_is_checked_before_the_second_is_played(tmp_path, script):
    path = tmp_path / "mine.py"
    path.write_text(
        SCRIPT.replace("float(action.sum())", "1e7").replace(
            "def reset(self, seed):", "def reset(self, seed):\n        print('reset', file=sys.stderr, flush=True)"
        )
    )
    process = script("out", stdout=subprocess.DEVNULL, processes=3, pause=1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 6
    assert errors.splitlines()[0] == "reset" and errors.count("reset") == 1
    assert errors.splitlines()[1:] == [
        "semopo_tf: simulator error (exit 6): Noise.step: expected rewards within 1e+06 of zero, received 1e+07; "
        "rescale or repair them"
    ]


def test_I03_an_environment_without_a_member_leaves_no_directory_behind(tmp_path, registered):
    registered(type("Without", (), {"__init__": lambda self, **settings: None, "reset": Still.reset}))
    with pytest.raises(ContractError, match=r"^environment Without: .* missing action_size, image_shape, step, close;"):
        collect.main(arguments(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_I03_episodes_of_another_size_are_not_joined(tmp_path, registered):
    collect.main(arguments(tmp_path, episodes=1))
    registered(type("Small", (Still,), {"image_shape": (32, 32, 3)}))
    before = contents(tmp_path)
    message = "made in another way .environment.size: 64 there, 32 asked"
    with pytest.raises(ConfigError, match=message):
        collect.main(arguments(tmp_path, episodes=2))
    assert contents(tmp_path) == before


def test_I16_the_card_holds_the_size_that_was_seen(tmp_path, registered):
    large = np.zeros((96, 96, 3), np.uint8)
    observe = {"observe": lambda self: Still.observe(self)._replace(image=large + np.uint8(self.time))}
    registered(type("Large", (Still,), {"image_shape": large.shape} | observe))
    collect.main(arguments(tmp_path, episodes=1))
    assert read_card(tmp_path)["environment"]["size"] == 96
    collect.main(arguments(tmp_path, episodes=2))  # goes on


def test_I01_episodes_whose_images_never_change_are_named_once(tmp_path, registered, capsys):
    registered(counted(image=lambda time: np.full((64, 64, 3), 9, np.uint8)))
    collect.main(arguments(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("semopo_tf: warning: Counted.step: all 7 images of 000000-") and "are equal" in line


def test_I08_an_episode_that_never_ends_ends_the_command(tmp_path, registered, monkeypatch):
    registered(counted(is_last=lambda time: False, is_terminal=lambda time: False, reward=lambda time: 0.0))
    with pytest.raises(
        ContractError, match=r"is_last within 30 decisions, .* at a time limit, or raise --max_decisions"
    ):
        collect.main(arguments(tmp_path / "a", max_decisions=30))
    monkeypatch.setattr(collecting, "MAX_EPISODE_BYTES", 20 * 64 * 64 * 3)
    with pytest.raises(
        ContractError, match=r"within 17 decisions, .*, or shrink the images: a file holds 17 decisions"
    ):
        collect.main(arguments(tmp_path / "b", max_decisions=30))


def test_I08_the_most_decisions_change_no_byte_of_what_ends(tmp_path, registered):
    collect.main(arguments(tmp_path / "a"))
    collect.main(arguments(tmp_path / "b", max_decisions=6))
    collect.main(arguments(tmp_path / "b", max_decisions=600))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(ConfigError, match="--max_decisions: expected at least 1, received 0"):
        collect.main(arguments(tmp_path / "b", max_decisions=0))
