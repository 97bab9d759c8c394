"""One contract for everything that learns: every registered name, and a toy that proves that another kind fits.

Each check is a function, so that the tests at the end can plant a defect and see the check find it.
"""

import itertools
from functools import partial

import numpy as np
import pytest
import synthetic
import tensorflow as tf
import tiny

from semopo_tf import config as configuration
from semopo_tf import random
from semopo_tf.data.dataset import open_dataset
from semopo_tf.engine import cost
from semopo_tf.engine.loop import StageLoop
from semopo_tf.methods import LEARNERS, STATE_LEARNERS
from semopo_tf.nets.accounting import Cost
from semopo_tf.run import build
from semopo_tf.run.trainer import Trainer
from semopo_tf.storage.records import read_records
from semopo_tf.types import Learner, Stage

B, T, UPDATES = 2, 4, 3
EPISODES, RECORDS = 8, 20  # of the dataset
# Who learns in which stage: the variables of these groups change, and no others.
MODEL_BASED = {"model": {"model", "model_opt"}, "policy": {"policy"}}
TRAINS = {
    "semopo": MODEL_BASED,
    "se_rs": MODEL_BASED,
    "se_rs_drp": MODEL_BASED,
    "offline_dv2": MODEL_BASED,
    "tia": MODEL_BASED,
    "bc": {"policy": {"encoder", "actor", "optimizer"}},
    "drq_bc": {"policy": {"encoder", "actor", "critic", "slow_critic", "optimizer"}},
    "drq_cql": {"policy": {"encoder", "actor", "critic", "slow_critic", "optimizer"}},
    "lompo": {"model": {"model", "model_opt"}, "encode": {"real"}, "imagine": {"latent"}, "policy": {"policy"}},
    "infogating": {"policy": {"encoder", "inverse", "mask", "actor", "optimizer"}},
    "toy": {"first": {"first"}, "second": {"second"}, "third": {"third"}},
}
ANY_BATCH = {"encode"}  # stages that cost the same whatever the batch: one whole episode
HOST_CALLS = {"PyFunc", "EagerPyFunc", "PyFuncStateless", "HostCall", "Print", "PrintV2"}


class Toy(Learner):
    """Three stages, no images, and a policy whose state is a count."""

    def __init__(self, config, *, image_size, action_size, jit=None):
        self._weights = {f"{name}/w": tf.Variable(tf.zeros([action_size])) for name in ("first", "second", "third")}
        self.stages = [
            Stage(name, 8, "all", partial(self._update, f"{name}/w"), images=False)
            for name in ("first", "second", "third")
        ]

    def _update(self, name, batch, key):
        weight, noise = self._weights[name], random.normal(key, "toy", self._weights[name].shape)
        weight.assign(0.9 * weight + 0.1 * tf.reduce_mean(batch.action, [0, 1]) + 0.01 * noise)
        return {"loss": tf.reduce_sum(weight), "finite": tf.ones([])}

    def variables(self):
        return self._weights

    def cost(self, stage, batch, length):
        return Cost()

    def policy(self):
        return Count(self._weights)


class Count:
    """Acts with the toy's weights and counts its decisions."""

    def __init__(self, weights):
        self._weights = weights

    def initial(self, episodes):
        return 0

    def __call__(self, image, state, seeds, step):
        action = np.tanh(sum(weight.numpy() for weight in self._weights.values()))
        return np.repeat(action[None], len(image), 0), state + 1


@pytest.fixture(scope="module", params=["toy", *sorted(LEARNERS)])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def data(tmp_path_factory, name):
    return synthetic.dataset(tmp_path_factory.mktemp("data"), EPISODES, records=RECORDS, size=image_size(name))


def image_size(name):
    return tiny.STACK_SIZE if name in tiny.STACKED else tiny.IMAGE_SIZE


def config_of(name, **flags):
    if name not in tiny.STACKED:
        return tiny.config("semopo" if name == "toy" else name, batch__size=B, batch__length=T, **flags)
    return tiny.config(name, sizes={}, batch__size=B, **flags)


def make(name, **flags) -> Learner:
    sizes = {"image_size": image_size(name), "action_size": tiny.ACTION_SIZE}
    if name in LEARNERS and LEARNERS[name].counts:
        sizes |= {"episodes": EPISODES, "transitions": EPISODES * (RECORDS - 1)}
    return Toy(None, **sizes) if name == "toy" else build.make_learner(config_of(name, **flags), **sizes)


class Feed:
    """Batches of a dataset for any stage of a learner, as the trainer makes them."""

    def __init__(self, data, name):
        self.dataset = open_dataset(data)
        self.sampler = build.make_sampler(config_of(name), self.dataset)

    def sampled(self, stage):
        """(view, key) -> batch."""
        table = stage.prepare(self.dataset.frames) if stage.prepare else None
        if not stage.images:
            table = tf.zeros([len(self.dataset.frames), 0])
        source = self.sampler.source(stage.view, stage.stacks, batch=B, length=T, episode=stage.episode)
        return lambda view, key: source.sample(key, table=table)


@pytest.fixture(scope="module")
def feed(data, name):
    return Feed(data, name)


def updates(learner, stage, feed, steps):
    """Take some updates of a stage, one after the other; their metrics."""
    sample, found = feed.sampled(stage), []
    for step in steps:
        key = random.Key(3, stage.name, tf.constant(step, tf.int64))
        found.append({name: float(value) for name, value in stage.update(sample(stage.view, key), key).items()})
    return found


def group(variable_name):
    return variable_name.split("/")[0]


# --- the checks -------------------------------------------------------------------------------------------------------


def check_training_table(learner, feed, table):
    """Each stage changes something in each of its groups, and nothing in any other."""
    assert list(table) == [stage.name for stage in learner.stages]
    for stage in learner.stages:
        before = tiny.snapshot(learner.variables())
        (metrics,) = updates(learner, stage, feed, [0])
        assert metrics["finite"] == 1.0
        changed = {
            group(name) for name, value in tiny.snapshot(learner.variables()).items() if (value != before[name]).any()
        }
        assert changed == table[stage.name], f"stage {stage.name} trains {sorted(changed)}"


def check_variables_are_complete(first, second, feed):
    """A learner made from another seed, with the first one's variables, goes on as the first one does: to the byte."""
    assert list(first.variables()) == list(second.variables())
    for stage, twin in zip(first.stages, second.stages, strict=True):
        updates(first, stage, feed, range(2))
        tiny.assign(second.variables(), tiny.snapshot(first.variables()))
        said = [updates(each, own, feed, range(2, 4)) for each, own in ((first, stage), (second, twin))]
        assert said[0] == said[1], f"stage {stage.name}: other metrics"
        for name, value in tiny.snapshot(first.variables()).items():
            assert value.tobytes() == second.variables()[name].numpy().tobytes(), f"stage {stage.name}: {name}"


def check_no_host_call(stage, feed):
    """A compiled chunk never returns to Python."""
    loop = StageLoop(stage, feed.sampled(stage), seed=3, jit=False)
    definition = loop._update.graph.as_graph_def()
    nodes = itertools.chain(definition.node, *(function.node_def for function in definition.library.function))
    assert {node.op for node in nodes} & HOST_CALLS == set()


# --- every learner ----------------------------------------------------------------------------------------------------


def test_every_registered_name_has_a_line_in_the_table_and_an_overlay():
    assert set(TRAINS) == {*LEARNERS, "toy"}
    overlays = configuration.read_yaml(configuration.CONFIG_FILE)["methods"].values()
    assert {*LEARNERS, *STATE_LEARNERS} == {overlay["method"] for overlay in overlays}


def test_stages_have_names_of_their_own_that_a_checkpoint_can_carry(name):
    names = [stage.name for stage in make(name).stages]
    assert len(set(names)) == len(names)
    assert all(name.isalpha() and name.islower() for name in names)


def test_the_same_seed_makes_the_same_learner_and_another_seed_another(name):
    one, same = make(name, seed=1).variables(), make(name, seed=1).variables()
    assert [value.numpy().tobytes() for value in one.values()] == [value.numpy().tobytes() for value in same.values()]
    if name != "toy":
        other = make(name, seed=2).variables()
        assert any(value.numpy().tobytes() != other[key].numpy().tobytes() for key, value in one.items())


def test_a_stage_trains_what_the_table_says_and_nothing_else(name, feed):
    check_training_table(make(name), feed, TRAINS[name])


def test_all_state_is_in_the_variables(name, feed):
    check_variables_are_complete(make(name, seed=1), make(name, seed=2), feed)


def test_no_compiled_chunk_calls_the_host(name, feed):
    for stage in make(name).stages:
        check_no_host_call(stage, feed)


def test_the_policy_plays_any_number_of_episodes_inside_the_bounds(name, rng):
    policy = make(name).policy()
    state = policy.initial(3)
    for step in range(2):
        image = rng.integers(0, 256, (3, image_size(name), image_size(name), 3), np.uint8)
        action, state = policy(image, state, np.array([1, 2, 3]), step)
        assert action.shape == (3, tiny.ACTION_SIZE)
        assert (np.abs(action) <= 1).all()


def test_the_estimate_of_memory_counts_every_variable_and_says_what_each_stage_costs(name):
    learner = make(name)
    needed = cost.estimate(learner, batch=B, length=T, frames=700)
    assert needed.weights == sum(value.nbytes for value in tiny.snapshot(learner.variables()).values())
    assert needed.frames == 700
    for stage in learner.stages:
        one, two = (learner.cost(stage.name, batch, T) for batch in (B, 2 * B))
        if stage.name in ANY_BATCH:
            assert one.flops == two.flops > 0
        else:
            assert (one.flops == two.flops == 0) if name == "toy" else (0 < one.flops < two.flops)


class Killed(Exception):
    """Ends a run in the middle."""


ALIKE = ("se_rs", "se_rs_drp", "offline_dv2")  # SeMOPO with other settings: killed in the full run of the tests only
KILLED = [pytest.param(each, marks=pytest.mark.full) if each in ALIKE else each for each in ("toy", *sorted(LEARNERS))]


@pytest.mark.parametrize("name", KILLED, indirect=True, scope="module")
def test_a_killed_run_resumes_bit_for_bit_in_every_stage(name, data, tmp_path, monkeypatch):
    """One run in one go; one that is killed before a chunk of every stage and started again each time."""
    steps = {"steps__policy": 8, "save_every": 4, "log_every": 4, "updates_per_call": 2}
    steps |= {} if name in tiny.STACKED else {"steps__model": 8}
    quiet = {"video__every": 0, "eval__every": 0, "eval__final_episodes": 0, "offline_dir": data}
    run, kill_at = StageLoop.run, set()

    def interrupted(loop, step, updates):
        if (loop.stage.name, step) in kill_at:
            kill_at.remove((loop.stage.name, step))
            raise Killed
        return run(loop, step, updates)

    def train(logdir):
        config = config_of(name, **steps, **quiet, logdir=logdir)
        logdir.mkdir(exist_ok=True)
        trainer = Trainer(config, logdir, **({"make_learner": Toy} if name == "toy" else {}))
        trainer.run()
        return trainer._learner.stages

    stages = train(tmp_path / "whole")
    monkeypatch.setattr(StageLoop, "run", interrupted)
    for stage in stages:
        kill_at.add((stage.name, min(6, stage.steps - 2)))
        with pytest.raises(Killed):
            train(tmp_path / "killed")
    train(tmp_path / "killed")
    names = [stage.name for stage in stages]
    last = f"ckpt-{names[-1]}-000000008/tensors.npz"
    for file in ("metrics.jsonl", last):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    phases = [row["phase"] for row in read_records(tmp_path / "whole" / "metrics.jsonl")]
    assert list(dict.fromkeys(phases)) == names


# --- planted defects --------------------------------------------------------------------------------------------------


class Trespasser(Toy):
    """Its first stage moves the second's weight too."""

    def _update(self, name, batch, key):
        if name == "first/w":
            self._weights["second/w"].assign_add(tf.ones([tiny.ACTION_SIZE]))
        return super()._update(name, batch, key)


class Forgetful(Toy):
    """Keeps a momentum that no checkpoint holds."""

    def _update(self, name, batch, key):
        self.momentum = getattr(self, "momentum", None) or tf.Variable(0.0)
        self.momentum.assign(0.9 * self.momentum + 1)
        self._weights[name].assign_add(self.momentum * tf.ones([tiny.ACTION_SIZE]))
        return super()._update(name, batch, key)


class Caller(Toy):
    """Asks Python in the middle of an update."""

    def _update(self, name, batch, key):
        extra = tf.numpy_function(lambda: np.float32(0), [], tf.float32, stateful=False)
        return super()._update(name, batch, key) | {"extra": tf.ensure_shape(extra, [])}


@pytest.fixture(scope="module")
def toy_feed(tmp_path_factory):
    return Feed(synthetic.dataset(tmp_path_factory.mktemp("data"), size=tiny.IMAGE_SIZE), "toy")


def planted(kind):
    return kind(None, image_size=tiny.IMAGE_SIZE, action_size=tiny.ACTION_SIZE)


def test_a_stage_that_trains_what_another_owns_is_found(toy_feed):
    with pytest.raises(AssertionError, match=r"stage first trains \['first', 'second'\]"):
        check_training_table(planted(Trespasser), toy_feed, TRAINS["toy"])


def test_a_variable_that_no_checkpoint_holds_is_found(toy_feed):
    with pytest.raises(AssertionError, match="stage first: other metrics"):
        check_variables_are_complete(planted(Forgetful), planted(Forgetful), toy_feed)


def test_a_call_of_the_host_is_found(toy_feed):
    with pytest.raises(AssertionError, match="PyFunc"):
        check_no_host_call(planted(Caller).stages[0], toy_feed)
