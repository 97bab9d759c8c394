"""Learning while playing: rounds, exact resume after an end at any point, snapshots, and datasets of them."""

import json

import numpy as np
import pytest

from semopo_tf import behave, collect
from semopo_tf.config import load
from semopo_tf.data.cards import read_card
from semopo_tf.data.episodes import episode_files, read_episode
from semopo_tf.engine import compiling
from semopo_tf.envs import behaviours as envs_behaviours
from semopo_tf.envs import tasks
from semopo_tf.errors import ConfigError, DataError
from semopo_tf.methods import STATE_LEARNERS, sac
from semopo_tf.run import collecting, online, players, snapshots
from semopo_tf.storage import npz

TASK = ["--task", "exbmdp_point", "--env.action_repeat", "1"]
TINY = ["--batch.size", "8", "--actor.units", "8", "--critic.units", "8", "--jit", "off", "--device", "cpu"]
ROUNDS = ["--online.episodes", "5", "--online.updates", "6"]


def train(logdir, *more):
    return behave.main(["train", *TASK, *TINY, *ROUNDS, "--logdir", str(logdir), *more])


def contents(logdir):
    """Everything that must not depend on interruptions."""
    names = ["metrics.jsonl", *(f"{folder}/*.npz" for folder in ("episodes", "snapshots", "ckpt-*"))]
    return {str(path.relative_to(logdir)): path.read_bytes() for name in names for path in logdir.glob(name)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("online") / "run"
    train(logdir)
    return logdir


def test_a_round_is_an_episode_and_its_updates(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [row["decisions"] for row in rows] == [50, 100, 150, 200, 250]
    assert [row["step"] for row in rows] == [0, 6, 12, 18, 24]  # the first of two uniform episodes teaches nothing
    assert [path.stem for path in sorted((undisturbed / "snapshots").glob("*"))] == [
        f"{decisions:09d}" for decisions in (100, 150, 200, 250)
    ]
    assert (undisturbed / "DONE").exists()
    played = online.read_rows(undisturbed / "episodes" / "000004.npz")
    assert played["seen"].shape == (51, 4) and played["reward"].sum() == pytest.approx(rows[4]["return"])


class Ended(BaseException):
    """As SIGKILL: nothing is cleaned up that a file would show."""


def end_at(monkeypatch, point, number, run):
    """Let a run end at a later call of one of its methods than the first `number`."""
    whole, calls = getattr(online.Online, point), []

    def ends(self, *arguments):
        calls.append(arguments)
        if len(calls) > number:
            raise Ended
        return whole(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(online.Online, point, ends)
        with pytest.raises(Ended):
            run()


@pytest.mark.parametrize("point", ["_play", "_learn", "_save"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_run_that_ends_at_any_point_goes_on_to_the_same_bytes(tmp_path, undisturbed, monkeypatch, point, number):
    end_at(monkeypatch, point, number, lambda: train(tmp_path / "run"))
    train(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_a_replay_that_is_too_small_is_made_anew(tmp_path, undisturbed, monkeypatch):
    """The number of records is not known where episodes end early; the results do not depend on the room."""
    small = online.Replay

    def cramped(**sizes):
        return small(**sizes | {"records": 60 if sizes["records"] == 255 else sizes["records"]})

    monkeypatch.setattr(online, "Replay", cramped)
    train(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(undisturbed)


def test_the_same_command_again_is_done_and_another_configuration_is_refused(undisturbed, capsys):
    before = contents(undisturbed)
    train(undisturbed)
    assert "this run is complete; collect with --policy snapshot:" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds a run with another configuration: seed"):
        train(undisturbed, "--seed", "2")
    assert contents(undisturbed) == before


def test_an_episode_that_is_shorter_than_a_window_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected episodes of at least batch.length = 60 records, received 51; lower"):
        train(tmp_path / "run", "--batch.length", "60")
    assert not (tmp_path / "run" / "config.yaml").exists()  # the corrected command is not refused


def test_another_seed_is_another_run(tmp_path, undisturbed):
    train(tmp_path / "run", "--seed", "2")
    assert contents(tmp_path / "run")["metrics.jsonl"] != contents(undisturbed)["metrics.jsonl"]


def test_a_damaged_episode_of_a_run_is_named(tmp_path, undisturbed):
    (tmp_path / "a.npz").write_bytes((undisturbed / "episodes" / "000000.npz").read_bytes()[:100])
    with pytest.raises(DataError, match=r"a.npz: cannot be read"):
        online.read_rows(tmp_path / "a.npz")


def test_snapshots_are_evaluated_once(undisturbed, capsys, monkeypatch):
    behave.main(["evaluate", "--logdir", str(undisturbed), "--episodes", "3"])
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5 and table[1].split()[0] == "100"
    monkeypatch.setattr(snapshots, "play", None)  # nothing is played a second time
    behave.main(["evaluate", "--logdir", str(undisturbed), "--episodes", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 5


def collected(out, *words):
    collecting.player.cache_clear()
    assert collect.main(["--task", "exbmdp_point", "--out", str(out), *words]) == 0
    return [read_episode(path) for path in episode_files(out)], read_card(out)


def test_what_is_written_twice_to_keep_tensorflow_out_is_equal():
    assert {snapshots.STATE_METHOD} == set(STATE_LEARNERS)
    bounds = (envs_behaviours.MIN_LOG_STD, envs_behaviours.MAX_LOG_STD)
    assert bounds == (sac.MIN_LOG_STD, sac.MAX_LOG_STD)


def test_a_snapshot_plays_a_dataset(tmp_path, undisturbed):
    episodes, card = collected(tmp_path / "a", "--policy", f"snapshot:{undisturbed}@150", "--episodes", "2")
    assert card["policy"] == "snapshot" and card["behaviour"]["decisions"] == 150
    again, _ = collected(tmp_path / "b", "--policy", f"snapshot:{undisturbed}@150", "--episodes", "2")
    other, _ = collected(tmp_path / "c", "--policy", f"snapshot:{undisturbed}@250", "--episodes", "2")
    np.testing.assert_array_equal(episodes[0].action, again[0].action)
    assert not np.array_equal(episodes[0].action, other[0].action)


def test_a_greedy_behaviour_plays_its_mean_and_its_card_says_so(tmp_path, undisturbed):
    words = ["--policy", f"snapshot:{undisturbed}@150", "--episodes", "1"]
    (episode,), card = collected(tmp_path / "a", *words, "--greedy")
    assert card["behaviour"]["greedy"] is True
    environment = tasks.make("exbmdp_point", size=32, action_repeat=1)
    environment.reset(card["files"][0]["seed"])
    layers = envs_behaviours.read_layers(undisturbed / "snapshots" / "000000150.npz")
    mean, _ = np.split(envs_behaviours.forward(layers, environment.state, envs_behaviours.relu), 2)
    np.testing.assert_allclose(episode.action[1], np.tanh(mean), atol=1e-6)
    (noisy,), card = collected(tmp_path / "b", *words)
    assert "greedy" not in card["behaviour"] and not np.array_equal(noisy.action, episode.action)
    for there, asked, line in (("a", [], "True there, None asked"), ("b", ["--greedy"], "None there, True asked")):
        with pytest.raises(ConfigError, match=f"behaviour.greedy: {line}"):
            collected(tmp_path / there, *words, *asked)


def test_level_medrep_is_the_training_in_its_order(tmp_path, undisturbed):
    words = ["--level", "medrep", "--behaviour", str(undisturbed), "--episodes", "4", "--returns", "all"]
    episodes, card = collected(tmp_path / "a", *words)
    assert (card["level"], card["behaviour"]["snapshots"], card["behaviour"]["episodes"]) == ("medrep", 4, 4)
    seeds = [row["seed"] for row in card["files"]]
    for number, decisions in enumerate((100, 150, 200, 250)):  # each snapshot plays one of the four episodes
        environment = tasks.make("exbmdp_point", size=32, action_repeat=1)
        environment.reset(seeds[number])
        policy = snapshots.Behaviours(undisturbed).policy(environment, decisions)
        action, _ = policy(None, policy.initial(1), np.array([seeds[number]]), 0)
        np.testing.assert_array_equal(action[0], episodes[number].action[1])


def test_a_replay_ends_before_the_behaviour_returns_more_than_is_kept(undisturbed, monkeypatch):
    """Else its last episodes would be rejected for ever."""
    run = snapshots.Behaviours(undisturbed)
    trained = dict(zip((100, 150, 200, 250), (5.0, 9.0, 20.0, 30.0)))
    monkeypatch.setattr(run, "training_returns", lambda: trained)
    assert collect.end_of_replay(run, "exbmdp_point", None) == 250
    assert collect.end_of_replay(run, "exbmdp_point", (2.0, 20.0)) == 200
    assert collect.end_of_replay(run, "exbmdp_point", (0.0, 1.0)) == 250  # none; the band is refused as it is played
    monkeypatch.setattr(collect, "paper_band", lambda task, level: (18.0, 50.0))
    monkeypatch.setattr(run, "within", lambda low, high: 200)
    assert collect.end_of_replay(run, "exbmdp_point", (2.0, 10.0)) == 150


def test_level_medium_is_a_snapshot_in_the_band_and_its_episodes_are_too(tmp_path, undisturbed):
    run = snapshots.Behaviours(undisturbed)
    means = [run.returns(decisions).mean() for decisions in run.decisions]
    low, high = sorted(means)[1] - 1e-6, sorted(means)[1] + 30
    words = ["--level", "medium", "--behaviour", str(undisturbed), "--episodes", "6", "--returns", f"{low}:{high}"]
    episodes, card = collected(tmp_path / "a", *words)
    fitting = [each for each, mean in zip(run.decisions, means, strict=True) if low <= mean <= high]
    assert card["behaviour"]["decisions"] in fitting and card["kept_returns"] == [low, high]
    assert all(low <= episode.reward.sum(dtype=np.float64) <= high for episode in episodes)


def test_rejected_episodes_are_counted_and_a_collection_goes_on_with_the_same_bytes(tmp_path):
    free, _ = collected(tmp_path / "free", "--episodes", "12")
    middle = float(np.median([episode.reward.sum(dtype=np.float64) for episode in free]))
    words = ["--episodes", "6", "--returns", f"{middle}:50"]
    whole, card = collected(tmp_path / "a", *words)
    assert card["rejected"] > 0 and min(episode.reward.sum() for episode in whole) >= middle - 1e-4
    collected(tmp_path / "b", *words)
    for path in episode_files(tmp_path / "b")[2:4]:
        path.unlink()
    _, again = collected(tmp_path / "b", *words)
    assert again == card
    assert [path.read_bytes() for path in episode_files(tmp_path / "a")] == [
        path.read_bytes() for path in episode_files(tmp_path / "b")
    ]


def test_the_bands_of_the_levels_are_those_of_table_3():
    assert collect.paper_band("dmcdrv_walker_walk", "medium") == (401.5, 598.0)
    assert collect.paper_band("gym_CarRacing-v2", "random") == (-82.0, 149.2)
    assert collect.paper_band("exbmdp_point", "random") is None
    words = ["--task", "dmc_cheetah_run", "--out", "x", "--level", "random"]
    assert collect.parse(words).returns == (3.1, 198.2) and collect.parse([*words, "--returns", "all"]).returns is None


def test_random_of_an_older_card_goes_on_with_uniform_actions():
    older = {"task": "dmc_walker_walk", "policy": "random"}
    assert collect.as_in_card("random", "dmc_walker_walk", older) == "uniform"
    assert collect.as_in_card("random", "dmc_walker_walk", older | {"behaviour": {"kind": "networks"}}) == "random"
    assert collect.as_in_card("random", "dmc_walker_walk", None) == "random"
    assert collect.as_in_card("random", "exbmdp_point", {"policy": "random"}) == "random"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--policy", "clever"], "--policy: expected random, .* or export:DIR for exbmdp_point, received 'clever'"),
        (
            ["--policy", "iid", "--greedy"],
            "--greedy: expected a behaviour of python -m semopo_tf.behave .*, received iid",
        ),
        (["--policy", "snapshot:RUN@120"], "received 120; the nearest is 100"),
        (["--policy", "snapshot:nowhere@1"], "nowhere: expected the logdir of a run of python -m semopo_tf.behave"),
        (["--policy", "export:nowhere"], "nowhere: expected what python -m semopo_tf.export wrote"),
        (["--level", "medium"], "--level medium: expected --behaviour with the logdir"),
        (["--level", "medium", "--behaviour", "RUN"], "expected --returns LOW:HIGH, as the paper has no exbmdp_point"),
        (
            ["--level", "medrep", "--behaviour", "RUN", "--policy", "iid"],
            "--behaviour: expected --level .*, and no --pol",
        ),
        (["--level", "medium", "--behaviour", "RUN", "--returns", "900:901"], "with a mean return of 900 to 901"),
        (["--behaviour", "RUN"], "--behaviour: expected --level medrep or medium beside it"),
        (["--returns", "5"], "--returns: expected LOW:HIGH, such as 401.5:598, or all, received '5'"),
        (["--returns", "9:8"], "--returns: expected LOW:HIGH"),
        (["--returns", "900:901"], r"--returns 900:901: expected a return in it within \d+ episodes, received"),
    ],
)
def test_what_cannot_be_collected_is_one_line(tmp_path, undisturbed, monkeypatch, words, line):
    monkeypatch.setattr(collecting, "CANDIDATES", 3)
    words = [word.replace("RUN", str(undisturbed)) for word in words]
    with pytest.raises(ConfigError, match=line):
        collected(tmp_path / "out", "--episodes", "1", *words)


def test_a_snapshot_of_another_task_is_refused(undisturbed):
    with pytest.raises(ConfigError, match="expected a behaviour of dmc_walker_walk, received one that learned exbmdp_"):
        snapshots.make(f"snapshot:{undisturbed}@100", "dmc_walker_walk", None)
    snapshots.Behaviours(undisturbed).require_task("exbmdp_point")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["play"], "play: expected train or evaluate"),
        (["train", "--logdir", "x"], "--task: expected a value, received none"),
        (["train", "--task", "walker_walk"], "--logdir: expected a value, received none"),
    ],
)
def test_wrong_words(words, line):
    with pytest.raises(ConfigError, match=line):
        behave.main(words)


def test_a_task_of_the_suite_needs_no_prefix():
    words = ["--task", "walker_walk", "--task=walker_walk", "--task", "exbmdp_point", "--task", "catch:Catch"]
    assert behave._with_suite(words) == [
        *("--task", "dmc_walker_walk", "--task=dmc_walker_walk"),
        *("--task", "exbmdp_point", "--task", "catch:Catch"),
    ]


# --- a learner that sees images --------------------------------------------------------------------------------------

TIA = ["--configs", "tia", "exbmdp_point", "debug", "--online.episodes", "4", "--device", "cpu", "--jit", "off"]
TIA += ["--model.drp_updates", "2", "--online.prefill", "1", "--online.updates", "2", "--online.snapshot_every", "1"]


def train_tia(logdir, *more):
    return behave.main(["train", *TIA, "--logdir", str(logdir), *more])


@pytest.fixture(scope="module")
def tia(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("tia") / "run"
    train_tia(logdir)
    return logdir


def test_tia_learns_from_images_in_rounds(tia):
    rows = [json.loads(line) for line in (tia / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert {"image_loss", "exo_reward_loss", "actor_loss", "return"} <= rows[-1].keys()
    assert online.read_rows(tia / "episodes" / "000003.npz")["seen"].shape == (51, 32, 32, 3)


# The loop is that of the behaviours above; here the frames are gathered anew, which the end in the training part shows.
@pytest.mark.parametrize(
    ("point", "number"),
    [("_learn", 3), *(pytest.param(*case, marks=pytest.mark.full) for case in (("_play", 2), ("_save", 1)))],
)
def test_tia_goes_on_to_the_same_bytes(tmp_path, tia, monkeypatch, point, number):
    end_at(monkeypatch, point, number, lambda: train_tia(tmp_path / "run"))
    train_tia(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tia)


def test_a_snapshot_of_tia_plays_as_in_training(tmp_path, tia):
    run = snapshots.Behaviours(tia)
    assert run.sees_images and snapshots.sees_images(f"snapshot:{tia}@200", "exbmdp_point")
    episodes, card = collected(tmp_path / "a", "--policy", f"snapshot:{tia}@200", "--episodes", "2")
    again, _ = collected(tmp_path / "b", "--policy", f"snapshot:{tia}@200", "--episodes", "2")
    np.testing.assert_array_equal(episodes[1].action, again[1].action)
    assert card["behaviour"]["kind"] == "snapshot" and run.returns(200, 2).shape == (2,)
    greedy, card = collected(tmp_path / "c", "--policy", f"snapshot:{tia}@200", "--episodes", "2", "--greedy")
    assert card["behaviour"]["greedy"] is True and not np.array_equal(greedy[1].action, episodes[1].action)


@pytest.mark.parametrize("average", [0, 3])
def test_a_snapshot_of_images_has_all_the_weights_that_act(tmp_path, average):
    """Also the mean of the actor's weights, where that plays."""
    words = ["--actor_critic.average", f"{average}", "--online.noise", "0.0"]
    config = load([*TIA, *words])
    player = players.make_player(config, compiling.OFF, steps=2)
    rng = np.random.default_rng(0)
    for variable in player.learner.variables().values():
        if variable.dtype.is_floating:
            variable.assign(variable + rng.normal(0, 0.1, variable.shape).astype(variable.dtype.as_numpy_dtype))
    (tmp_path / "weights.npz").write_bytes(npz.pack(player.snapshot()))
    saved = players.saved_player(config, player.world, tmp_path / "weights.npz", noise=0.0)
    image, seeds = rng.integers(0, 256, (1, *player.world.image_shape), np.uint8), np.array([1])
    actions = [policy(image, policy.initial(1), seeds, 0)[0] for policy in (player.explorer(), saved)]
    np.testing.assert_array_equal(*actions)
