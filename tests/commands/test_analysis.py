"""The analyses of a run: their records and pictures, the batches that the entropy describes, and the state whose
uncertainty is measured.
"""

import json
import re

import imageio.v3 as imageio
import numpy as np
import pytest
import synthetic
import tensorflow as tf
import tiny

from semopo_tf import analysis, collect, training
from semopo_tf import config as configuration
from semopo_tf.engine import compiling
from semopo_tf.errors import ConfigError, DataError, NumericalError
from semopo_tf.methods.losses import MEASURES
from semopo_tf.report.run_record import read_run
from semopo_tf.run import build, pages
from semopo_tf.run.trained import load_run
from semopo_tf.run.trainer import Trainer
from semopo_tf.training import claim
from semopo_tf.types import Episode, Latent

SIZE = tiny.IMAGE_SIZE
TINY = [word for key, value in tiny.SIZES.items() for word in (f"--{key}", value)]
QUIET = ("--steps.policy", "0", "--eval.final_episodes", "0", "--video.every", "0")

# --- records of real runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.dataset(tmp_path_factory.mktemp("data"), episodes=5, size=SIZE)


def trained(data, logdir, *names, **flags):
    """A run of a few updates at the tiny sizes."""
    given = {key.replace("__", "."): str(value) for key, value in flags.items()}
    sizes = [word for key, value in (tiny.SIZES | given).items() for word in (f"--{key}", value)]
    words = [
        "--configs",
        *names,
        "walker_walk",
        "debug",
        *sizes,
        *QUIET,
        "--offline_dir",
        str(data),
        "--logdir",
        str(logdir),
    ]
    assert training.main(words) == 0
    return logdir


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A separated model of categorical latents and a joint one of Gaussian ones."""
    directory = tmp_path_factory.mktemp("runs")
    return {
        kind: trained(data, directory / kind, *names)
        for kind, names in (("separated", tiny.RELEASED), ("joint", tiny.OFFLINE_DV2))
    }


def stored(logdir, name):
    return json.loads((logdir / "analysis" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("kind", "streams", "rows"),
    [
        ("separated", ["endo", "exo"], ["observation", "endo", "exo", "mask", "both"]),
        ("joint", ["joint"], ["observation", "joint"]),
    ],
)
def test_a_run_is_analysed_and_the_records_are_kept(runs, data, kind, streams, rows, capsys):
    logdir = runs[kind]
    assert analysis.main(["--logdir", str(logdir), "--states", "30", "--epochs", "3"]) == 0
    assert "uncertainty: mean_norm of 30 states: " in capsys.readouterr().out
    found, frames = (
        stored(logdir, "uncertainty"),
        {
            path.name: synthetic.episode(number, size=SIZE).image
            for number, path in enumerate(sorted(data.glob("*.npz")))
        },
    )
    assert (found["phase"], found["step"], found["states"], found["seed"]) == ("model", 12, 30, 0)
    assert sorted(found["measures"]) == sorted(MEASURES)
    for by_stream in found["measures"].values():
        assert list(by_stream) == streams
        assert all(value["mean"] > 0 and value["std"] > 0 for value in by_stream.values())
    groups, values = found["frames"]["groups"], found["frames"]["values"]
    assert groups[0][0][0] != groups[1][0][0]
    assert list(values) == streams and np.shape(values[streams[0]]) == (2, 3)
    picture = imageio.imread(logdir / "analysis" / "uncertainty.png")
    np.testing.assert_array_equal(
        picture, np.concatenate([frames[name][record] for group in groups for name, record in group], 1)
    )

    found = stored(logdir, "reconstruction")
    assert (found["rows"], found["frames"], found["size"], len(found["places"])) == (rows, 8, SIZE, 8)
    assert list(found["mse"]) == [row for row in rows if row not in ("observation", "mask")]
    picture = imageio.imread(logdir / "analysis" / "reconstruction.png")
    assert picture.shape == (len(rows) * SIZE, 8 * SIZE, 3)
    np.testing.assert_array_equal(
        picture[:SIZE], np.concatenate([frames[name][record] for name, record in found["places"]], 1)
    )

    found = stored(logdir, "entropy")
    assert (found["epochs"], found["updates_per_epoch"], found["bins"], found["dimensions"]) == (3, 2, 32, 2)
    assert all(len(rule["entropy"]) == found["epochs"] == len(rule["pool"]) for rule in found["rules"].values())


def test_the_same_checkpoint_gives_the_same_record_and_methods_are_judged_on_the_same_frames(runs, data):
    records = {}
    for kind, logdir in runs.items():
        run = load_run(logdir)
        dataset = analysis.open_data(run.config, logdir)
        records[kind] = [analysis.uncertainty(run, dataset, states)[0] for states in (20, 20, 25)]
        assert records[kind][0] == records[kind][1] != records[kind][2]
    assert records["separated"][0]["frames"]["groups"] == records["joint"][0]["frames"]["groups"]


def test_the_error_of_a_reconstruction_is_that_of_its_rows(runs):
    run = load_run(runs["separated"])
    record, picture = analysis.reconstruction(run, analysis.open_data(run.config, runs["separated"]))
    rows = picture.reshape(5, SIZE, 8, SIZE, 3) / 255
    for name in ("endo", "exo", "both"):
        row = rows[record["rows"].index(name)]
        assert record["mse"][name] == pytest.approx(((row - rows[0]) ** 2).mean(), rel=0.05)
    mask = rows[3]
    np.testing.assert_allclose(rows[4], mask * rows[1] + (1 - mask) * rows[2], atol=2.1 / 255)


def test_what_is_wrong_is_said_in_a_line(runs, data, tmp_path):
    logdir = ["--logdir", str(runs["separated"])]
    with pytest.raises(ConfigError, match="--states: expected at least 1, received 0"):
        analysis.main([*logdir, "--states", "0"])
    with pytest.raises(ConfigError, match="invalid choice: 'entropie'"):
        analysis.main([*logdir, "--only", "entropie"])
    with pytest.raises(DataError, match="no such dataset directory"):
        analysis.main([*logdir, "--offline_dir", str(tmp_path / "nowhere")])
    other = synthetic.dataset(tmp_path / "other", episodes=4, size=SIZE)
    with pytest.raises(DataError, match=r"000004.*: removed since this run began"):
        analysis.main([*logdir, "--offline_dir", str(other)])
    with pytest.raises(NumericalError, match="uncertainty: expected finite numbers"):
        analysis.write(tmp_path, "uncertainty", {"mean": float("inf")}, None)
    assert not (tmp_path / "uncertainty.json").exists()
    config = configuration.load(synthetic.train_flags(data, tmp_path, "--steps.model", "0"))
    with pytest.raises(ConfigError, match=r"entropy: expected a model phase, received steps.model = 0"):
        analysis.entropy(config, analysis.open_dataset(data))


def test_trust_and_bound_play_in_the_simulator_and_only_if_asked_for(tmp_path, capsys):
    data, logdir = tmp_path / "data", tmp_path / "run"
    assert collect.main(["--task", "exbmdp_point", "--policy", "mixed", "--episodes", "4", "--out", str(data)]) == 0
    flags = ["--configs", "offline_dv2", "exbmdp_point", "debug", "--offline_dir", str(data), "--logdir", str(logdir)]
    assert training.main([*flags, *QUIET[2:], "--steps.model", "2", "--steps.policy", "2"]) == 0
    assert not set(pages.PLAYED) & set(pages.ANALYSES)
    capsys.readouterr()
    assert analysis.main(["--logdir", str(logdir), "--only", "trust", "--episodes", "2"]) == 0
    printed, record = capsys.readouterr().out, stored(logdir, "trust")
    assert printed.splitlines()[-1].startswith("trust: rank correlation of sum_squares with the reward's error over 5 ")
    assert (record["phase"], record["step"], record["sources"]["dataset"]["states"]) == ("policy", 2, 20)
    assert read_run(logdir).analyses["trust"] == record  # as the report reads it
    assert not (logdir / "analysis" / "trust.png").exists()
    assert analysis.main(["--logdir", str(logdir), "--only", "bound", "--episodes", "2"]) == 0
    printed, record = capsys.readouterr().out, stored(logdir, "bound")
    assert re.search(r"bound: discounted return .* in the simulator, .*smallest weight of sum_squares", printed)
    assert (record["phase"], record["step"], record["episodes"], record["decisions"]) == ("policy", 2, 2, 50)
    assert read_run(logdir).analyses["bound"] == record
    with pytest.raises(ConfigError, match="--episodes: expected at least 1, received 0"):
        analysis.main(["--logdir", str(logdir), "--only", "trust", "--episodes", "0"])


# --- what is measured -------------------------------------------------------------------------------------------------


def identical_members(learner):
    """Every member of every ensemble gets the first one's weights."""
    for name, variable in learner.world_model.trained.items():
        if "/prior/" in name:
            variable.assign(tf.repeat(variable[:1], variable.shape[0], 0))


@pytest.mark.parametrize("names", [tiny.PAPER, tiny.RELEASED], ids=["gaussian", "categorical"])
def test_identical_members_disagree_about_nothing_and_others_do(names, rng):
    learner = tiny.learner(*names, rssm__ensemble=7)  # a sum of seven equal numbers is rounded
    tiny.randomise(learner.world_model.trained, rng)
    batch, key = tiny.batch(rng), tiny.key(domain="uncertainty")
    measured = compiling.compiled(lambda: learner.world_model.uncertainties(batch, key, [1, 3]), jit=False)
    assert all(tf.reduce_all(value > 0) for by_measure in measured().values() for value in by_measure.values())
    identical_members(learner)
    for by_measure in measured().values():
        assert set(by_measure) == set(MEASURES)
        for value in by_measure.values():
            np.testing.assert_array_equal(value, np.zeros((2, 2)))


@pytest.mark.parametrize("names", [tiny.PAPER, tiny.RELEASED], ids=["gaussian", "categorical"])
def test_the_measures_are_of_the_predicted_state(names, rng):
    """Of the prior's sample under the drawn member, by hand; so the last image changes nothing, and the last action
    only the endogenous stream.
    """
    learner = tiny.learner(*names)
    model = learner.world_model
    tiny.randomise(model.trained, rng)
    batch, key = tiny.batch(rng), tiny.key(domain="uncertainty")
    found = tiny.arrays(model.uncertainties(batch, key, [3]))
    branch = model.main
    deter = model.posterior(batch, key).deter[:, 3]
    stats = branch.rssm.prior_all(deter)
    noise, member = (
        branch.rssm.draw(key, "endo_predicted", (2,)),
        branch.rssm.draw_members(key, "endo_predicted_member", 2).numpy(),
    )
    log_prob = np.empty((3, 2))
    for row in range(2):
        drawn = {name: x[member[row], row] for name, x in stats.items()}
        sample = branch.rssm.dist.sample(drawn, noise[row])
        log_prob[:, row] = branch.rssm.dist.log_prob({name: x[:, row] for name, x in stats.items()}, sample[None])
    centre = branch.rssm.dist.centre(stats).numpy()
    tiny.close(found["endo"]["log_prob_std"][:, 0], log_prob.std(0), 1e-3)
    tiny.close(found["endo"]["log_prob_variance"][:, 0], log_prob.var(0), 1e-3)
    tiny.close(
        found["endo"]["sum_squares"][:, 0], branch.disagreement(Latent(deter, deter, {}), "sum_squares")
    )  # the penalty's own
    tiny.close(found["endo"]["mean_norm"][:, 0], np.linalg.norm(centre - centre.mean(0), axis=-1).mean(0))

    image, action = batch.image.numpy(), batch.action.numpy()
    image[:, 3], action[:, 3] = 255 - image[:, 3], -action[:, 3]
    unseen = tiny.arrays(model.uncertainties(batch._replace(image=tf.constant(image)), key, [3]))
    acted = tiny.arrays(model.uncertainties(batch._replace(action=tf.constant(action)), key, [3]))
    for measure in MEASURES:
        np.testing.assert_array_equal(unseen["endo"][measure], found["endo"][measure])
        np.testing.assert_array_equal(acted["exo"][measure], found["exo"][measure])
        assert (acted["endo"][measure] != found["endo"][measure]).all()


# --- entropy of actions -----------------------------------------------------------------------------------------------


def actions_dataset(directory, spread, records=60):
    """Episodes whose actions are uniform in [-spread, spread], one for each number; of images that nobody looks at."""
    directory.mkdir()
    for number, width in enumerate(spread):
        rng = np.random.default_rng(number)
        action = rng.uniform(-width, width, (records, 3)).astype(np.float32)
        action[0] = 0
        steps, zeros = np.arange(records), np.zeros(records, np.float32)
        image = np.zeros((records, 2, 2, 3), np.uint8)
        episode = Episode(image, action, zeros, zeros + 1, steps == 0, steps == records - 1, zeros > 0)
        synthetic.write_episode(directory / f"{number:03d}.npz", episode)
    return analysis.open_dataset(directory)


def curves(dataset, *flags):
    """Entropy of the first epochs under both rules; the pool grows by an episode every epoch of five updates."""
    growth = (
        "--pool.start",
        "4",
        "--pool.grow_every",
        "5",
        "--pool.grow_by",
        "1",
        "--steps.model",
        "40",
        "--batch.size",
        "16",
    )
    config = configuration.load(synthetic.train_flags(dataset.directory, dataset.directory, *growth, *flags))
    found = analysis.entropy(config, dataset, epochs=30)
    assert (found["epochs"], found["updates_per_epoch"], found["dimensions"]) == (
        8,
        5,
        3,
    )  # the model phase has no more
    assert found["rules"]["conservative"]["pool"] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert found["rules"]["uniform"]["pool"] == [20] * 8
    return tuple(np.array(found["rules"][rule]["entropy"]) for rule in ("conservative", "uniform"))


def test_conservative_sampling_has_less_entropy_where_the_first_episodes_are_nearly_constant(tmp_path):
    conservative, uniform = curves(actions_dataset(tmp_path / "data", [0.05] * 5 + [1.0] * 15))
    assert (conservative < uniform).all()
    assert (
        conservative[:2] < uniform[:2] - 3
    ).all()  # the first five episodes alone: 3 ln(0.1) against 3 ln(2), nearly
    assert conservative[-1] > conservative[0] + 2


def test_conservative_sampling_has_no_less_entropy_where_the_first_episodes_are_like_the_others_or_wilder(tmp_path):
    conservative, uniform = curves(actions_dataset(tmp_path / "alike", [1.0] * 20, records=1000))
    np.testing.assert_allclose(conservative, uniform, atol=0.15)
    conservative, uniform = curves(actions_dataset(tmp_path / "wilder", [1.0] * 5 + [0.05] * 15))
    assert (conservative > uniform).all()


def test_conservative_sampling_follows_the_order_of_the_pool(tmp_path):
    """Equal returns keep the order of the files, so an order by return changes nothing here; held-out episodes are in
    neither curve.
    """
    dataset = actions_dataset(tmp_path / "data", [0.05] * 5 + [1.0] * 15)
    for one, other in zip(curves(dataset), curves(dataset, "--pool.order", "return"), strict=True):
        np.testing.assert_array_equal(one, other)
    config = configuration.load(
        synthetic.train_flags(dataset.directory, dataset.directory, "--valid_fraction", "0.5", "--sampling", "uniform")
    )
    assert analysis.entropy(config, dataset, epochs=1)["rules"]["uniform"]["pool"] == [10]


@pytest.mark.parametrize("rule", ["conservative", "uniform"])
@pytest.mark.parametrize("replay", ["device", "host"])
def test_the_actions_are_those_of_the_batches_that_training_draws(data, tmp_path, rule, replay):
    """Update for update against the trainer's own loop; record 0 has no action of its own and is left out."""
    flags = (
        "--seed",
        "7",
        "--valid_fraction",
        "0.2",
        "--steps.model",
        "40",
        "--pool.grow_every",
        "4",
        "--sampling",
        rule,
        "--replay",
        replay,
    )
    config = configuration.load([*synthetic.train_flags(data, tmp_path), *TINY, *flags])
    claim(config, tmp_path)
    trainer = Trainer(config, tmp_path)
    stage = trainer._learner.stages[0]
    loop, dataset, left_out = trainer._make_loop(stage), trainer._dataset, 0
    first_epoch = []
    for step in (0, 1, 2, 3, 4, 17, 39):
        batch, key = loop.batch(step)
        _, start = trainer._sampler.draw(stage.view, key, batch=config.batch.size, length=config.batch.length)
        taken = (start.numpy()[:, None] + np.arange(config.batch.length)) > 0
        sampler = build.make_sampler(config, dataset, images_on_device=False)
        received = analysis.batch_actions(config, sampler, tf.constant(step, tf.int64)).numpy()
        np.testing.assert_array_equal(received, batch.action.numpy()[taken])
        assert not batch.action.numpy()[~taken].any()
        left_out += (~taken).sum()
        first_epoch += [received] if step < 4 else []
    assert left_out > 0
    found = analysis.entropy(config, dataset, epochs=2)["rules"][rule]["entropy"]
    assert found[0] == analysis.action_entropy(np.concatenate(first_epoch))
    loop.close()


def test_entropy_by_hand(rng):
    """Uniform: ln 2 a dimension. Constant: the floor, ln(2 / 32). Half the actions in each of two bins: ln(2 / 32) + ln
    2.
    """
    grid = np.linspace(-1, 1, 3201)
    assert analysis.action_entropy(np.stack([grid, rng.permutation(grid)], 1)) == pytest.approx(2 * np.log(2), abs=1e-3)
    assert analysis.action_entropy(np.full((10, 1), 0.3)) == pytest.approx(np.log(1 / 16))
    assert analysis.action_entropy(np.array([[-1.0], [1.0]] * 5)) == pytest.approx(np.log(1 / 8))
    narrow = rng.uniform(-0.5, 0.5, (100_000, 1))
    assert analysis.action_entropy(narrow) == pytest.approx(0.0, abs=1e-2)  # ln 1
    assert analysis.action_entropy(np.array([[1.0 + 1e-6], [1.0]])) == analysis.action_entropy(np.ones((2, 1)))


# --- a distractor of pure noise ---------------------------------------------------------------------------------------


def noisy_episode(number, records=40):
    """A red disc that the actions push, in front of a wall whose grey level is drawn anew for every frame."""
    rng = np.random.default_rng(number)
    action = rng.uniform(-1, 1, (records, 2)).astype(np.float32)
    action[0] = 0
    place = np.empty((records, 2))
    place[0] = rng.uniform(1, SIZE - 2, 2)
    for t in range(1, records):
        place[t] = np.clip(place[t - 1] + 2 * action[t], 0, SIZE - 1)
    y, x = np.mgrid[:SIZE, :SIZE]
    share = 1 / (1 + np.exp(4 * (np.hypot(x - place[:, :1, None], y - place[:, 1:, None]) - 2)))[..., None]
    image = (1 - share) * rng.uniform(0, 1, (records, 1, 1, 1)) + share * [0.95, 0.2, 0.1]
    steps, zeros = np.arange(records), np.zeros(records, np.float32)
    return Episode(
        (255 * image).astype(np.uint8), action, zeros, zeros + 1, steps == 0, steps == records - 1, zeros > 0
    )


NOISE = {
    **{
        "sampling": "uniform",
        "encoder__depth": 8,
        "decoder__depth": 8,
        "model__image_scale": 20,
        "batch__size": 8,
        "log_every": 100,
    },
    **{
        "rssm__deter": 32,
        "rssm__stoch": 8,
        "rssm__hidden": 32,
        "rssm__ensemble": 5,
        "rssm__ensemble_hidden": 32,
        "save_every": 10_000,
    },
    **{"steps__model": 1800, "model_opt__lr": 0.001, "batch__length": 10},
}


@pytest.mark.full
def test_a_distractor_of_pure_noise_makes_the_exogenous_members_disagree_more(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(30):
        synthetic.write_episode(tmp_path / "data" / f"{number:03d}.npz", noisy_episode(number))
    logdir = trained(tmp_path / "data", tmp_path / "run", "semopo", **NOISE)
    assert analysis.main(["--logdir", str(logdir), "--only", "uncertainty", "--states", "400"]) == 0
    for measure in ("mean_norm", "sum_squares"):
        found = stored(logdir, "uncertainty")["measures"][measure]
        assert found["exo"]["mean"] > 1.5 * found["endo"]["mean"]
