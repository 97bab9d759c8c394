"""Compiled chunks: their size changes no result, a bad update is refused and reported, and XLA agrees with the plain
graph.
"""

import re

import numpy as np
import pytest
import tensorflow as tf
import tiny

from semopo_tf import random
from semopo_tf.engine import compiling, devices
from semopo_tf.engine.loop import HostImages, Pace, StageLoop
from semopo_tf.errors import DeviceError
from semopo_tf.types import Batch

B, T = 2, 3
POISONED = 103  # the update whose batch holds a reward that is not a number
FIXED = 1000  # from this update on, all updates get one and the same batch
# Learning rates at which a hundred updates of a tiny model show.
RATES = {"model_opt.lr": 0.01, "actor_opt.lr": 0.01, "critic_opt.lr": 0.01, "penalty.weight": 0.1}


def sample(view, key):
    """A batch as a pure function of the key."""
    key = key._replace(step=tf.minimum(key.step, FIXED))
    shape = [B, T, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3]
    return Batch(
        tf.cast(random.integers(key, f"{view}_image", shape, 256), tf.uint8),
        2 * random.uniform(key, f"{view}_action", [B, T, tiny.ACTION_SIZE]) - 1,
        tf.where(key.step == POISONED, np.float32(np.nan), random.normal(key, f"{view}_reward", [B, T])),
        tf.broadcast_to(tf.range(T) == 0, [B, T]),
        tf.zeros([B, T], tf.bool),
    )


class Case:
    """One agent and the traced loops of its stages; every run starts from the same weights."""

    def __init__(self, overlays, *, jit="off", device="/CPU:0", stages=("model", "policy"), rates=RATES):
        self.learner = tiny.learner(*overlays, jit=jit, device=device, **rates)
        tiny.randomise(self.learner.world_model.trained, np.random.default_rng(1))
        chosen = compiling.choose_jit(jit, device)
        self.loops = {
            stage.name: StageLoop(stage, sample, seed=3, jit=chosen.of(stage))
            for stage in self.learner.stages
            if stage.name in stages
        }
        self.variables = self.learner.variables()
        self.start = tiny.snapshot(self.variables)

    def run(self, stage, first, *chunks):
        """(weights, metric means, what each chunk said) after chunks of the given sizes from update `first` on."""
        tiny.assign(self.variables, self.start)
        loop, said, step = self.loops[stage], [], first
        for size in chunks:
            said.append(loop.run(step, size))
            step += said[-1].done
        return tiny.snapshot(self.variables), loop.take_means(), said


@pytest.fixture(scope="module")
def case():
    return Case(tiny.PAPER)


@pytest.mark.parametrize("stage", ["model", "policy"])
def test_the_chunk_size_changes_no_byte(case, stage):
    weights, means, said = case.run(stage, 0, 6)
    assert said[0].done == 6 and said[0].finite
    assert any((weights[name] != value).any() for name, value in case.start.items())
    for chunks in ((1,) * 6, (2, 4)):
        other_weights, other_means, other_said = case.run(stage, 0, *chunks)
        assert other_means == means
        assert other_said[-1].last == said[0].last
        for name, value in weights.items():
            np.testing.assert_array_equal(other_weights[name], value)
    assert case.loops[stage].traces == 1


def test_a_chunk_is_a_python_loop_of_updates(case):
    weights, means, said = case.run("policy", 5, 3)
    tiny.assign(case.variables, case.start)
    rows = []
    for step in range(5, 8):
        key = tiny.key(step, "policy", seed=3)
        rows.append(tiny.arrays(case.learner.update_policy(sample("policy", key), key)))
    for name, value in weights.items():
        tiny.close(case.variables[name], value)
    for name, mean in means.items():
        tiny.close(mean, np.mean([row[name] for row in rows]))
        tiny.close(said[0].last[name], rows[-1][name])


def test_a_chunk_stops_before_an_update_that_is_not_finite_and_says_so(case):
    good, good_means, _ = case.run("model", 100, 3)
    weights, means, said = case.run("model", 100, 10)
    assert (said[0].done, said[0].finite) == (3, False)
    assert np.isnan(said[0].last["reward_loss"]) and np.isfinite(said[0].last["image_loss"])
    assert means == good_means
    for name, value in good.items():
        np.testing.assert_array_equal(weights[name], value)


def test_a_bad_update_at_the_start_of_a_chunk_changes_nothing(case):
    weights, _, said = case.run("model", POISONED, 2)
    assert (said[0].done, said[0].finite) == (0, False)
    for name, value in case.start.items():
        np.testing.assert_array_equal(weights[name], value)
    assert case.run("model", POISONED + 1, 2)[2][0].done == 2  # the loop goes on working


def test_means_are_over_all_chunks_since_the_last_row_and_then_start_afresh(case):
    loop = case.loops["policy"]
    _, means, said = case.run("policy", 0, 1, 1)
    for name in loop.names:
        assert means[name] == pytest.approx((said[0].last[name] + said[1].last[name]) / 2, rel=1e-6)
    assert loop.count == 0 and not loop.sums.any()


EPOCH = 50


@pytest.mark.parametrize(
    "overlays", [pytest.param(tiny.PAPER, marks=pytest.mark.full), tiny.RELEASED], ids=["paper", "released"]
)
def test_full_partial_and_off_agree_to_rounding_over_an_epoch(overlays):
    """Fifty updates of each stage in one call; under `full` that is the whole epoch as one XLA program. Each against
    itself to the bit. The program for a GPU is run on the CPU.
    """
    rates = {"penalty.weight": 0.1}
    cases = {jit: Case(overlays, jit=jit, rates=rates) for jit in ("off", "partial", "full")}
    cases["full on a GPU"] = Case(overlays, jit="full", device="/GPU:0", rates=rates)
    for stage in ("model", "policy"):
        weights, means, said = cases["off"].run(stage, 0, EPOCH)
        assert said[0].done == EPOCH
        for jit in list(cases)[1:]:
            other_weights, other_means, _ = cases[jit].run(stage, 0, EPOCH)
            in_two, means_in_two, _ = cases[jit].run(stage, 0, 20, EPOCH - 20)
            assert means_in_two == other_means
            for name, mean in means.items():
                tiny.close(other_means[name], mean, 1e-4)
            for name, value in weights.items():
                tiny.close(other_weights[name], value, 1e-4)
                np.testing.assert_array_equal(in_two[name], other_weights[name])
            assert cases[jit].loops[stage].traces == 1


HOST_WORDS = ("infeed", "outfeed", "send", "recv", "callback", "custom-call", "PyFunc")


def arguments(loop):
    return tf.constant(0, tf.int64), tf.constant(EPOCH, tf.int64), tf.constant(loop.sums)


@pytest.mark.parametrize("stage", ["model", "policy"])
def test_a_compiled_chunk_never_goes_back_to_the_host(stage):
    """Asserted on the optimised XLA program: nothing is fed in or out and nothing calls out of it."""
    loop = Case(tiny.PAPER, jit="full", stages=(stage,)).loops[stage]
    program = loop._chunk.experimental_get_compiler_ir(*arguments(loop))(stage="optimized_hlo")
    assert "while(" in program
    for word in HOST_WORDS:
        assert not re.search(rf"(?<![\w.-]){word}", program, re.IGNORECASE), word


@pytest.mark.parametrize("jit", ["off", "partial"])
def test_a_chunk_that_is_a_graph_calls_no_python(jit):
    loop = Case(tiny.PAPER, jit=jit, stages=("model",)).loops["model"]
    graph = loop._chunk.get_concrete_function(*arguments(loop)).graph.as_graph_def()
    operations = {
        node.op for nodes in (graph.node, *(function.node_def for function in graph.library.function)) for node in nodes
    }
    assert "MatMul" in operations
    assert not [name for name in operations if any(word.lower() in name.lower() for word in HOST_WORDS)]


# ----------------------------------------------------------------------------------------------------------- learning a


def test_model_updates_lower_every_loss_on_a_fixed_batch(case):
    """An image of 300 channels costs 275.7 nats even where it is right, the reward 0.92: a third of what is above that
    is learned.
    """
    _, _, said = case.run("model", FIXED, 1, 150)
    before, after = (chunk.last for chunk in said)
    for name, constant in (("image_loss", 275.7), ("exo_image_loss", 275.7), ("reward_loss", 0.92)):
        assert after[name] - constant < 0.7 * (before[name] - constant), name
    assert after["model_loss"] < before["model_loss"]


def test_policy_updates_raise_the_return_on_a_fixed_batch(case):
    """No copy of the critic is due between 1001 and 1099, so the losses of all updates are against the same slow
    critic.
    """
    _, _, said = case.run("policy", FIXED + 1, 1, 90)
    before, after = (chunk.last for chunk in said)
    assert after["actor_loss"] < before["actor_loss"] - 0.1
    assert after["imagined_reward"] > before["imagined_reward"] + 0.03
    assert after["critic_loss"] < before["critic_loss"] - 0.1


# ----------------------------------------------------------------------------------------------------- pace, device, co


def test_pace_holds_a_given_size_and_never_passes_what_is_left():
    pace = Pace(8, 50)
    pace.took(8, 1000.0)
    assert pace.next(100) == 8
    assert pace.next(3) == 3
    assert pace.next(0) == 1


def test_automatic_pace_grows_to_five_seconds_worth_or_an_epoch():
    pace = Pace(0, 50)
    sizes = []
    for _ in range(6):
        sizes.append(pace.next(1000))
        pace.took(sizes[-1], 0.2 * sizes[-1])
    assert sizes == [1, 4, 16, 25, 25, 25]  # at most four times as many each time; 5 s / 0.2 s
    for _ in range(6):
        pace.took(pace.next(1000), 1e-3)
    assert pace.next(1000) == 50
    pace.took(50, 500.0)  # slow all of a sudden
    assert pace.next(1000) == 1


def test_automatic_pace_learns_nothing_from_a_call_that_took_no_update():
    pace = Pace(0, 50)
    pace.took(0, 3.0)
    assert pace.next(10) == 1


def test_the_cpu_can_be_asked_for_and_other_devices_are_refused_by_name():
    assert devices.choose_device("cpu")[0] == "/CPU:0"
    with pytest.raises(DeviceError, match="--device tpu: expected auto, cpu, gpu or gpu:N"):
        devices.choose_device("tpu")
    with pytest.raises(DeviceError, match="--device gpu:99: TensorFlow sees"):
        devices.choose_device("gpu:99")


@pytest.mark.parametrize(
    ("wanted", "device", "pixels", "vectors", "parts", "products"),
    [
        ("off", "/GPU:0", False, False, False, "library"),
        ("partial", "/GPU:0", False, True, True, "library"),
        ("partial", "/CPU:0", False, True, True, "library"),
        ("full", "/GPU:0", True, True, False, "xla_gpu"),
        ("full", "/CPU:0", True, True, False, "xla_cpu"),
        ("auto", "/GPU:1", True, True, False, "xla_gpu"),
        ("auto", "/CPU:0", False, False, False, "library"),
    ],
)
def test_what_is_compiled_on_which_device(wanted, device, pixels, vectors, parts, products):
    chosen = compiling.choose_jit(wanted, device)
    assert chosen == compiling.Jit(pixels, vectors, parts, products)
    assert chosen.describe() in ("whole chunks", "all but the convolutions", "nothing")


# ------------------------------------------------------------------------------------------------- images from the host


def test_stacks_from_the_host_hold_the_images_of_each_update_in_order_and_are_gathered_ahead():
    asked = []

    def gather(step):
        asked.append(step)
        return np.full((1, 2, 3), step, np.uint8)

    images = HostImages(gather, (1, 2, 3), capacity=4)
    try:
        stack = images.stack(10, 3)
        assert stack.shape == (4, 1, 2, 3)
        assert stack[:, 0, 0, 0].tolist() == [10, 11, 12, 0]
        assert images.stack(13, 4)[:, 0, 0, 0].tolist() == [13, 14, 15, 16]  # three of them were on their way
        assert images.stack(50, 1)[0, 0, 0, 0] == 50  # a jump: what was gathered ahead is not used
    finally:
        images.close()
    assert asked.count(13) == asked.count(14) == asked.count(15) == 1


def test_a_fault_of_the_gathering_thread_reaches_the_caller():
    def gather(step):
        if step == 2:
            raise OSError("the disk is gone")
        return np.zeros((1, 1, 1), np.uint8)

    images = HostImages(gather, (1, 1, 1), capacity=2)
    images.stack(1, 1)
    with pytest.raises(OSError, match="the disk is gone"):
        images.stack(2, 1)
    images.close()


def test_a_chunk_on_images_from_the_host_is_the_chunk_on_images_of_the_device(case):
    def with_image(view, key, image):
        return sample(view, key)._replace(image=image)

    def gather(step):
        return sample("model", tiny.key(step, "model", seed=3)).image.numpy()

    host = HostImages(gather, (B, T, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3), capacity=4)
    weights, means, _ = case.run("model", 0, 4, 2)
    tiny.assign(case.variables, case.start)
    loop = StageLoop(case.learner.stages[0], with_image, seed=3, jit=False, host_images=host)
    assert loop.capacity == 4
    for step, size in ((0, 3), (3, 3)):
        loop.run(step, size)
    loop.close()
    assert loop.take_means() == means
    assert loop.traces == 1
    for name, value in weights.items():
        np.testing.assert_array_equal(case.variables[name], value)


@pytest.mark.parametrize("jit", [False, True])
def test_compiled_functions_give_the_same(jit):
    function = compiling.compiled(lambda x: tf.reduce_sum(tf.tanh(x)), jit=jit)
    tiny.close(function(tf.constant([0.5, 1.0])), np.tanh(0.5) + np.tanh(1.0))
    assert function.experimental_get_tracing_count() == 1
