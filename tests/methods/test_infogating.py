"""InfoGating against NumPy written from its equations, in float64; who learns from what; what stays as it was."""

import numpy as np
import philox
import pytest
import synthetic
import tensorflow as tf
import tiny
from test_learners import Feed, check_no_host_call, check_training_table, check_variables_are_complete

from semopo_tf import config as configuration
from semopo_tf import random
from semopo_tf.data.dataset import open_dataset
from semopo_tf.data.transitions import TransitionSource
from semopo_tf.errors import ConfigError
from semopo_tf.methods import gating
from semopo_tf.run import build
from semopo_tf.types import Stacks, Transitions

SIZE, FRAMES, ACTIONS, ROWS = tiny.STACK_SIZE, 3, tiny.ACTION_SIZE, 4
WARM, NOISY, NEGATIVES = 6, 2, 4  # of the debug size
STEPS = {"noise": 1, "warm-up": 3, "after": 9}
modes = pytest.mark.parametrize("mode", tiny.MODES)
# Whole updates take XLA many seconds each: one of them in every run of the tests, all in the full one.
slow_modes = pytest.mark.parametrize("mode", ["eager", "graph", pytest.param("xla", marks=pytest.mark.full)])
heads = pytest.mark.parametrize("head", ["bc", "td3bc"])
TRAINS = {
    "bc": {"policy": {"encoder", "inverse", "mask", "actor", "optimizer"}},
    "td3bc": {
        "model": {"encoder", "inverse", "mask", "optimizer"},
        "policy": {"critic", "slow_critic", "actor", "optimizer"},
    },
}


def config(head="bc", **flags):
    """The debug size with more filters: of two, random weights may leave none alive."""
    sizes = {"infogating.filters": "6"}
    return tiny.config("infogating", sizes=sizes, infogating__head=head, batch__size=ROWS, **flags)


def learner(head="bc", rng=None, **flags):
    """At the debug size; with `rng` every variable is random, so that no initial zero hides a mistake."""
    agent = build.make_learner(config(head, **flags), image_size=SIZE, action_size=ACTIONS)
    if rng is not None:
        state = {name: value for name, value in agent.variables().items() if not name.startswith("optimizer/")}
        tiny.randomise(state, rng)
        for name, variable in state.items():
            if name.endswith(("gamma", "moving_variance")):
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return agent


def batch(rng):
    image, following, later = (
        tf.constant(rng.integers(0, 256, (ROWS, SIZE, SIZE, 3 * FRAMES)), tf.uint8) for _ in range(3)
    )
    action = tf.constant(rng.uniform(-1, 1, (ROWS, ACTIONS)), tf.float32)
    reward, discount = (tf.constant(rng.uniform(0, 1, ROWS), tf.float32) for _ in range(2))
    return Transitions(image, action, reward, discount, following, later)


def key(step, stage="policy"):
    return random.Key(3, stage, tf.constant(step, tf.int64))


def stage(agent, name="policy"):
    return next(each for each in agent.stages if each.name == name)


# --- the method in NumPy ----------------------------------------------------------------------------------------------


def relu(x):
    return np.maximum(x, 0)


def conv(x, kernel, bias=0.0, stride=1):
    """[N, H, W, I] with a kernel [k, k, I, O], no padding."""
    k = kernel.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))[:, ::stride, ::stride]  # [N, h, w, I, k, k]
    return np.einsum("nhwiyx,yxio->nhwo", windows, kernel) + bias


def normalised(x, axes, gamma, beta):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5) * gamma + beta


class Twin:
    """The networks with weights by name, in float64."""

    def __init__(self, variables):
        self.values = {name: np.asarray(value, np.float64) for name, value in variables.items()}

    def dense(self, x, name):
        return x @ self.values[f"{name}/kernel"] + self.values[f"{name}/bias"]

    def mlp(self, x, name, output):
        return self.dense(relu(self.dense(x, f"{name}/hidden0")), f"{name}/{output}")

    def block(self, x, name):
        x = conv(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), self.values[f"{name}/conv/kernel"])
        groups = x.reshape(*x.shape[:3], 8, -1)
        flat = normalised(groups, (1, 2, 4), 1, 0).reshape(x.shape)
        return relu(flat * self.values[f"{name}/norm/gamma"] + self.values[f"{name}/norm/beta"])

    def logits(self, image):
        """Of masks, [N, H, W, F], of images in 0..255."""
        x, skips, blocks = image / 255 - 0.5, [], int(np.log2(image.shape[1]) - 1)
        for place in range(blocks):
            x = self.block(nearest(x, x.shape[1] // 2) if place else x, f"mask/down{place}")
            skips.append(x)
        flat = x.reshape(len(x), -1)
        for place in range(3):
            flat = relu(self.dense(flat, f"mask/bottom{place}"))
        x = flat.reshape(x.shape)
        for place in range(blocks):
            skip = skips.pop()
            x = self.block(np.concatenate([nearest(x, skip.shape[1]), skip], -1), f"mask/up{place}")
        return conv(x, self.values["mask/last/kernel"], self.values["mask/last/bias"])

    def encode(self, image):
        x = image / 255 - 0.5
        for place, stride in enumerate((2, 1, 1, 2)):  # the first is the debug size's patch
            x = relu(conv(x, *(self.values[f"encoder/conv{place}/{part}"] for part in ("kernel", "bias")), stride))
        x = self.dense(x.reshape(len(x), -1), "encoder/trunk/dense")
        return np.tanh(normalised(x, -1, *(self.values[f"encoder/trunk/norm/{part}"] for part in ("gamma", "beta"))))

    def energies(self, z, z_k, actions, settled=False):
        """[B, J] of every pair, normalised over all pairs, or by the moving statistics."""
        pairs = [np.concatenate([z[b], z_k[b], action]) for b in range(len(z)) for action in actions[b]]
        x = np.array(pairs) @ self.values["inverse/kernel"]
        mean, variance = (self.values[f"inverse/norm/moving_{name}"] for name in ("mean", "variance"))
        x = (x - mean) / np.sqrt(variance + 1e-5) if settled else normalised(x, 0, 1, 0)
        x = relu(x * self.values["inverse/norm/gamma"] + self.values["inverse/norm/beta"])
        return self.dense(x, "inverse/out").reshape(actions.shape[:2])

    def mean(self, z):
        return np.tanh(self.mlp(z, "actor", "mean"))

    def values_of(self, name, z, action):
        return [self.mlp(np.concatenate([z, action], -1), f"{name}/{q}", "value")[:, 0] for q in ("q0", "q1")]


def nearest(x, edge):
    """Row i of the result is row floor(i H / edge)."""
    index = [i * x.shape[1] // edge for i in range(edge)]
    return x[:, index][:, :, index]


def shifted(image, offset, pad=1):
    """[B, H, W, C], padded by the edge's pixels and cropped at an offset [B, 2]."""
    padded = np.pad(np.asarray(image, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)), "edge")
    return np.stack([padded[b, y : y + SIZE, x : x + SIZE] for b, (y, x) in enumerate(offset)])


def draws(at, stage_name="policy"):
    """What an update draws, from the package's streams."""
    k, shape = key(at, stage_name), [2 * ROWS, SIZE, SIZE, FRAMES]
    return {
        **{name: random.integers(k, name, [ROWS, 2], 3).numpy() for name in ("shift", "later_shift", "next_shift")},
        **{name: gating.half(k, name, ROWS).numpy() for name in ("whole", "later_whole")},
        "mask": random.normal(k, "mask", shape).numpy().astype(np.float64),
        "gaussian": 255 * (random.normal(k, "normal_fill", [*shape[:3], 9]).numpy() + 0.5),
        "uniform": 255 * random.uniform(k, "uniform_fill", [*shape[:3], 9]).numpy(),
        "zero": 0.0,
        "negatives": 2 * random.uniform(k, "negatives", [ROWS, NEGATIVES, ACTIONS]).numpy() - 1.0,
        **{name: random.normal(k, name, [ROWS, ACTIONS]).numpy() for name in ("action", "next_action")},
    }


def noisy(mean, noise, std, clip=0.3):
    return np.clip(mean + np.clip(std * noise, -clip, clip), -1 + 1e-6, 1 - 1e-6)


def cross_entropy(energies):
    """Mean over the rows of -log softmax(-E) at the data's action, the first."""
    odds = np.exp(-energies)
    return -np.log(odds[:, 0] / odds.sum(1)).mean()


def representation(twin, given, drawn, at, mask="relu_tanh", fill="zero"):
    """The losses of the representation, and what the encoder sees of both stacks."""
    image = np.concatenate([shifted(given.image, drawn["shift"]), shifted(given.later_image, drawn["later_shift"])])
    logits = twin.logits(image)
    if at < NOISY:
        logits = noisy(logits, drawn["mask"], 0.5)
    masks = relu(np.tanh(logits)) if mask == "relu_tanh" else 1 / (1 + np.exp(-logits))
    wide = np.stack([masks[..., channel // 3] for channel in range(9)], -1)
    seen = wide * image + (1 - wide) * drawn[fill]
    chosen = np.concatenate([drawn["whole"], drawn["later_whole"]])
    seen[chosen] = image[chosen]
    z, z_k = np.split(twin.encode(seen), 2)
    actions = np.concatenate([np.asarray(given.action)[:, None], drawn["negatives"]], 1)
    energies = twin.energies(z, z_k, actions)
    losses = {"inverse_loss": cross_entropy(energies), "mask_mean": masks.mean(), "mask_square": (masks**2).mean()}
    return losses | {"inverse_accuracy": (energies.argmin(1) == 0).mean()}, seen[:ROWS]


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("edge", "mask", "flat"), [(84, 754_051, 6400), (64, 606_019, 2304)])
def test_the_default_networks_have_the_sizes_of_the_public_code(edge, mask, flat):
    given = configuration.load(["--configs", "infogating", "--actor.units", "4", "--batch.size", "2"])
    agent = build.make_learner(given, image_size=edge, action_size=6)
    sizes = {name: value.shape.as_list() for name, value in agent.variables().items() if "optimizer" not in name}
    assert sum(np.prod(shape) for name, shape in sizes.items() if name.startswith("mask/")) == mask
    assert sizes["encoder/trunk/dense/kernel"] == [flat, 256]
    assert sizes["inverse/kernel"] == [2 * 256 + 6, 256]
    assert [sizes[f"encoder/conv{place}/kernel"][0] for place in range(4)] == [6, 1, 3, 4]


def test_a_small_image_a_number_of_filters_and_float16_are_refused():
    with pytest.raises(ConfigError, match=r"images of 12 pixels: expected 16 or more for the mask network"):
        build.make_learner(config(infogating__patch=1), image_size=12, action_size=2)
    with pytest.raises(ConfigError, match=r"images of 32 pixels: expected larger ones.*--transitions.resize 64"):
        build.make_learner(config(infogating__patch=6), image_size=32, action_size=2)
    with pytest.raises(ConfigError, match=r"mask network: expected a multiple of 8 filters, received 12"):
        learner(infogating__mask_filters=12)
    with pytest.raises(ConfigError, match=r"--precision: expected float32 or mixed_bfloat16 for infogating"):
        learner(precision="mixed_float16")


def test_a_flag_that_has_no_effect_is_refused():
    with pytest.raises(ConfigError, match=r"--drq.filters: expected a setting that infogating reads"):
        learner(drq__filters=8)
    assert len(learner("td3bc", steps__model=7).stages) == 2


# --- the losses -------------------------------------------------------------------------------------------------------


@modes
def test_the_contrastive_loss_is_a_cross_entropy(mode, rng):
    energies = tiny.float32(rng.normal(0, 2, (5, 7)))
    tiny.close(tiny.run(mode, gating.contrastive, energies), cross_entropy(energies))
    tiny.close(tiny.run(mode, gating.contrastive, np.zeros((3, 257))), np.log(257))  # nothing is known


@modes
def test_the_mask_is_opened_in_the_warm_up_and_closed_after_it(mode, rng):
    mask = tiny.float32(rng.uniform(0, 1, (4, 6, 6, 3)))

    def both(mask):
        loss = [gating.mask_loss(mask, tf.constant(warm), weight=0.3, square_weight=0.05) for warm in (True, False)]
        return tf.stack(loss)

    expected = [-0.1 * mask.mean(), 0.3 * mask.mean() + 0.05 * (mask**2).mean()]
    tiny.close(tiny.run(mode, both, mask), expected)


@modes
def test_the_mask_of_each_frame_covers_its_three_colours(mode, rng):
    mask = np.arange(3.0)[None, None, None] * np.ones((1, 2, 2, 1))
    assert tiny.run(mode, gating.over_colours, mask)[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    mask = tiny.float32(rng.uniform(0, 1, (2, 4, 4, 3)))
    image, fill = (tiny.float32(rng.uniform(0, 255, (2, 4, 4, 9))) for _ in range(2))
    received = tiny.run(mode, gating.gated, image, mask, fill)
    for channel in range(9):
        weight = mask[..., channel // 3]
        tiny.close(received[..., channel], weight * image[..., channel] + (1 - weight) * fill[..., channel])


@modes
def test_a_random_half_of_the_batch_is_whole(mode, rng):
    gated, whole = (tiny.float32(rng.uniform(0, 255, (5, 2, 2, 9))) for _ in range(2))

    def mix(gated, whole):
        chosen = gating.half(key(4), "whole", 5)
        return chosen, gating.mixed(gated, whole, chosen)

    chosen, received = tiny.run(mode, mix, gated, whole)
    assert chosen.sum() == 2
    tiny.close(received, np.where(chosen[:, None, None, None], whole, gated))
    counts = np.sum([gating.half(key(at), "whole", 6).numpy() for at in range(600)], 0)
    assert (np.abs(counts - 300) < 60).all()  # five standard deviations
    assert gating.half(key(0), "whole", 1).numpy().tolist() == [False]


# --- whole updates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "mode"),
    [
        *((at, mode) for at in STEPS.values() for mode in ("eager", "graph")),
        (STEPS["after"], "xla"),
        *(pytest.param(STEPS[name], "xla", marks=pytest.mark.full) for name in ("noise", "warm-up")),
    ],
)
def test_the_representation_has_the_losses_of_the_equations(mode, at, rng):
    agent, given = learner("td3bc", rng), batch(rng)
    expected, _ = representation(Twin(agent.variables()), given, draws(at, "model"), at)
    metrics, _ = tiny.run(mode, lambda: stage(agent, "model").gradients(given, key(at, "model")))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert 0 < metrics["mask_mean"] < 1


@pytest.mark.parametrize(("mask", "fill"), [("sigmoid", "gaussian"), ("relu_tanh", "uniform")])
def test_other_masks_and_fills(mask, fill, rng):
    agent, given = learner("td3bc", rng, infogating__mask=mask, infogating__fill=fill), batch(rng)
    expected, _ = representation(Twin(agent.variables()), given, draws(9, "model"), 9, mask, fill)
    metrics, _ = tiny.run("graph", lambda: stage(agent, "model").gradients(given, key(9, "model")))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@slow_modes
@pytest.mark.parametrize("at", STEPS.values(), ids=STEPS)
def test_the_actor_is_cloned_on_mixed_images_encoded_again_after_the_step(mode, at, rng):
    agent, given = learner("bc", rng), batch(rng)
    before, drawn = Twin(agent.variables()), draws(at)
    metrics = tiny.run(mode, lambda: stage(agent).update(given, key(at)))
    after = Twin(agent.variables())
    assert (before.values["encoder/conv0/kernel"] != after.values["encoder/conv0/kernel"]).any()
    _, seen = representation(before, given, drawn, at)
    std = 1 + (0.1 - 1) * at / 125_000
    action = noisy(before.mean(after.encode(seen)), drawn["action"], std)
    np.testing.assert_allclose(metrics["actor_loss"], ((action - given.action.numpy()) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["std"], std, rtol=1e-6)


@slow_modes
def test_the_value_head_has_the_losses_of_the_equations(mode, rng):
    agent, given = learner("td3bc", rng), batch(rng)
    before, drawn, at = Twin(agent.variables()), draws(5), 5
    metrics = tiny.run(mode, lambda: stage(agent).update(given, key(at)))
    after = Twin(agent.variables())
    std = 1 + (0.1 - 1) * at / 125_000
    z = before.encode(shifted(given.image, drawn["shift"]))
    z_next = before.encode(shifted(given.next_image, drawn["next_shift"]))
    next_action = noisy(before.mean(z_next), drawn["next_action"], std)
    least = np.minimum(*before.values_of("slow_critic", z_next, next_action))
    target = given.reward.numpy() + given.discount.numpy() * least
    values = before.values_of("critic", z, given.action.numpy())
    action = noisy(before.mean(z), drawn["action"], std)
    value = np.minimum(*after.values_of("critic", z, action))
    cloning = ((action - given.action.numpy()) ** 2).mean()
    expected = {
        "critic_loss": sum(((each - target) ** 2).mean() for each in values),
        "actor_loss": cloning - 2.5 / np.abs(value).mean() * value.mean(),
        "cloning_loss": cloning,
        "target": target.mean(),
        "value": values[0].mean(),
    }
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, atol=1e-5, err_msg=name)
    slow, old, new = (
        each.values[f"{name}/q1/value/kernel"]
        for each, name in ((after, "slow_critic"), (before, "slow_critic"), (after, "critic"))
    )
    tiny.close(slow, old + 0.01 * (new - old))


# --- who learns from what ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic.dataset(tmp_path_factory.mktemp("data"), size=SIZE)


@heads
def test_every_learner_contract_holds_for_both_heads(head, data):
    feed = Feed(data, "infogating")
    check_training_table(learner(head), feed, TRAINS[head])
    check_variables_are_complete(learner(head, seed=1), learner(head, seed=2), feed)
    for each in learner(head).stages:
        check_no_host_call(each, feed)


def gradients(agent, given, at, name="policy"):
    return tiny.arrays(stage(agent, name).gradients(given, key(at, name))[1])


def groups(names):
    return {name.split("/")[0] for name in names}


def differing(one, other):
    """Groups of variables whose gradients differ."""
    return groups(name for name in one if (one[name] != other[name]).any())


@heads
def test_gradients_go_to_the_variables_of_the_table_alone(head, rng):
    agent, given = learner(head, rng), batch(rng)
    for name, trained in TRAINS[head].items():
        received = gradients(agent, given, 9, name)
        assert groups(received) == trained - {"optimizer", "slow_critic"}
        for part in groups(received):
            assert any(value.any() for variable, value in received.items() if variable.startswith(f"{part}/"))


@pytest.mark.parametrize(("at", "learns"), [(3, {"encoder", "inverse"}), (9, {"encoder", "inverse", "mask"})])
def test_the_inverse_loss_reaches_the_mask_network_after_the_warm_up_alone(at, learns, rng):
    """Other actions change the gradients of everything that learns from L_inv, and of nothing else but the actor's."""
    agent, given = learner("bc", rng), batch(rng)
    other = given._replace(action=-given.action)
    changed = differing(gradients(agent, given, at), gradients(agent, other, at))
    assert changed == learns | {"actor"}


@pytest.mark.parametrize(("at", "changed"), [(3, set()), (9, {"mask"})])
def test_the_size_of_the_mask_is_a_loss_of_the_mask_network_alone(at, changed, rng):
    agent, given = learner("td3bc", rng), batch(rng)
    for setting in ("mask_weight", "square_weight"):
        twin = learner("td3bc", **{f"infogating__{setting}": 0.7})
        tiny.assign(twin.variables(), tiny.snapshot(agent.variables()))
        pair = [gradients(each, given, at, "model") for each in (agent, twin)]
        assert differing(*pair) == changed


def test_in_the_warm_up_the_mask_network_learns_to_open(rng):
    """Its gradient is that of -0.1 N, by central differences."""
    agent, given, at = learner("td3bc", rng), batch(rng), 3
    received = gradients(agent, given, at, "model")["mask/last/bias"]
    bias, drawn = agent.variables()["mask/last/bias"].numpy(), draws(at, "model")
    for place in range(FRAMES):
        sizes = []
        for by in (1e-4, -1e-4):
            twin = Twin(agent.variables())
            twin.values["mask/last/bias"] = bias + by * np.eye(FRAMES)[place]
            sizes.append(representation(twin, given, drawn, at)[0]["mask_mean"])
        np.testing.assert_allclose(received[place], -0.1 * (sizes[0] - sizes[1]) / 2e-4, rtol=1e-3, atol=1e-7)


def test_after_the_warm_up_all_three_networks_learn_from_the_sum(rng):
    """Gradients of L_inv + mask_weight N + square_weight V, by central differences of the twin."""
    agent, given, at = learner("td3bc", rng), batch(rng), 9
    received, drawn = gradients(agent, given, at, "model"), draws(at, "model")
    for name in ("mask/last/bias", "encoder/trunk/norm/beta", "inverse/norm/beta", "inverse/out/kernel"):
        values = agent.variables()[name].numpy().astype(np.float64)
        totals = []
        for by in (1e-5, -1e-5):
            twin = Twin(agent.variables())
            moved = values.copy()
            moved.flat[0] += by
            twin.values[name] = moved
            losses, _ = representation(twin, given, drawn, at)
            totals.append(losses["inverse_loss"] + 0.1 * losses["mask_mean"] + 1e-3 * losses["mask_square"])
        slope = (totals[0] - totals[1]) / 2e-5
        np.testing.assert_allclose(received[name].flat[0], slope, rtol=2e-3, atol=1e-5, err_msg=name)


def test_the_representation_learns_nothing_from_the_actor_nor_the_actor_at_another_rate(rng):
    agent, given = learner("bc", rng), batch(rng)
    before = gradients(agent, given, 9)
    agent.variables()["actor/mean/bias"].assign([0.5, -0.5])
    assert differing(before, gradients(agent, given, 9)) == {"actor"}


def test_the_critic_learns_from_rewards_and_the_actor_through_it(rng):
    agent, given = learner("td3bc", rng), batch(rng)
    before = gradients(agent, given, 2)
    richer = gradients(agent, given._replace(reward=given.reward + 1), 2)
    assert differing(before, richer) == {"critic", "actor"}  # the actor against the critic after its step
    agent.variables()["actor/mean/bias"].assign([0.5, -0.5])
    assert "critic" in differing(before, gradients(agent, given, 2))  # the target's action


# --- state ------------------------------------------------------------------------------------------------------------


@heads
@slow_modes
def test_an_update_that_is_not_finite_changes_nothing(head, mode, rng):
    agent, given = learner(head, rng), batch(rng)
    no_action, no_reward = given._replace(action=given.action * np.inf), given._replace(reward=given.reward * np.nan)
    bad = {"model": no_action, "policy": no_reward if head == "td3bc" else no_action}
    for each in agent.stages:
        each.update(given, key(0, each.name))
        before = tiny.snapshot(agent.variables())
        metrics = tiny.run(mode, lambda each=each: each.update(bad[each.name], key(1, each.name)))
        assert metrics["finite"] == 0
        for name, value in tiny.snapshot(agent.variables()).items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_an_actor_that_is_not_finite_stops_the_representation_too(rng):
    agent, given = learner("bc", rng), batch(rng)
    agent.variables()["actor/mean/bias"].assign([np.nan, 0])
    before = tiny.snapshot(agent.variables())
    assert float(stage(agent).update(given, key(1))["finite"]) == 0
    for name, value in tiny.snapshot(agent.variables()).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@heads
def test_gradients_change_nothing(head, rng):
    agent, given = learner(head, rng), batch(rng)
    before = tiny.snapshot(agent.variables())
    for each in agent.stages:
        each.gradients(given, key(1, each.name))
    for name, value in tiny.snapshot(agent.variables()).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_the_moving_statistics_are_held_by_the_checkpoint_and_move(rng):
    agent, given = learner("td3bc", rng), batch(rng)
    before = Twin(agent.variables())
    drawn, names = draws(9, "model"), [f"inverse/norm/moving_{name}" for name in ("mean", "variance")]
    stage(agent, "model").update(given, key(9, "model"))
    image = np.concatenate([shifted(given.image, drawn["shift"]), shifted(given.later_image, drawn["later_shift"])])
    wide = np.repeat(relu(np.tanh(before.logits(image))), 3, -1)
    chosen = np.concatenate([drawn["whole"], drawn["later_whole"]])[:, None, None, None]
    z, z_k = np.split(before.encode(np.where(chosen, image, wide * image)), 2)
    actions = np.concatenate([given.action.numpy()[:, None], drawn["negatives"]], 1)
    rows = [np.concatenate([z[b], z_k[b], action]) for b in range(ROWS) for action in actions[b]]
    hidden = np.array(rows) @ before.values["inverse/kernel"]
    for name, new in zip(names, (hidden.mean(0), hidden.var(0, ddof=1)), strict=True):
        tiny.close(agent.variables()[name].numpy(), 0.9 * before.values[name] + 0.1 * new)


# --- at test ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gate", "fill"), [(False, "zero"), (True, "zero"), (True, "gaussian")])
def test_the_policy_sees_whole_images_unless_told_otherwise(gate, fill, rng):
    agent = learner("bc", rng, infogating__gate_at_test=gate, infogating__fill=fill)
    policy, twin = agent.policy(), Twin(agent.variables())
    frame = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    action, _ = policy(frame, policy.initial(2), np.zeros(2, np.int64), 0)
    image = np.tile(frame, 3).astype(np.float64)
    if gate:
        wide = np.repeat(relu(np.tanh(twin.logits(image))), 3, -1)
        image = wide * image + (1 - wide) * (0 if fill == "zero" else 127.5)
    tiny.close(action, twin.mean(twin.encode(image)))


def test_held_out_metrics_are_without_noise_and_by_the_moving_statistics(rng):
    agent, given = learner("bc", rng), batch(rng)
    twin, drawn = Twin(agent.variables()), draws(2)
    metrics = tiny.arrays(agent.validate(given, key(2)))
    image = [np.asarray(each, np.float64) for each in (given.image, given.later_image)]
    tiny.close(metrics["cloning_loss"], ((twin.mean(twin.encode(image[0])) - given.action.numpy()) ** 2).mean())
    z, z_k = (twin.encode(each * np.repeat(relu(np.tanh(twin.logits(each))), 3, -1)) for each in image)
    actions = np.concatenate([given.action.numpy()[:, None], drawn["negatives"]], 1)
    tiny.close(metrics["inverse_loss"], cross_entropy(twin.energies(z, z_k, actions, settled=True)))
    assert set(learner("td3bc").validate(given, key(2))) == {"cloning_loss"}


@heads
def test_half_precision_changes_the_losses_by_rounding_alone(head, rng):
    agent, given = learner(head, rng), batch(rng)
    other = learner(head, precision="mixed_bfloat16")
    tiny.assign(other.variables(), tiny.snapshot(agent.variables()))
    for one, two in zip(agent.stages, other.stages, strict=True):
        full, half = (tiny.arrays(each.gradients(given, key(9, one.name))[0]) for each in (one, two))
        assert half["finite"] == 1
        for name in ("inverse_loss", "mask_mean", "actor_loss", "critic_loss"):
            if name in full:
                np.testing.assert_allclose(half[name], full[name], rtol=0.1, err_msg=name)


# --- data -------------------------------------------------------------------------------------------------------------


@heads
def test_the_stages_ask_for_what_they_learn_from(head):
    asked = [each.stacks for each in learner(head, infogating__max_k=14, transitions__n_step=2).stages]
    pairs = Stacks(3, 1, 0.99, following=False, later=14)
    assert asked == ([pairs] if head == "bc" else [pairs, Stacks(3, 2, 0.99, following=True)])


def test_the_later_stack_never_leaves_the_episode(tmp_path):
    """Against an index rule in NumPy, on episodes of several lengths whose pixels name episode and record."""
    lengths, longest, rows = [2, 5, 30], 14, 64
    for number, records in enumerate(lengths):
        item = synthetic.episode(number, records=records, size=SIZE)
        image = np.zeros_like(item.image)
        image[..., 0], image[..., 1] = number, np.arange(records)[:, None, None]
        synthetic.write_episode(tmp_path / f"{number:06d}-0-{records}.npz", item._replace(image=image))
    dataset = open_dataset(tmp_path)
    source = TransitionSource(
        dataset,
        "all",
        np.arange(3),
        Stacks(3, 1, 0.99, following=False, later=longest),
        batch=rows,
        images=tf.constant(dataset.frames),
    )
    places = [(number, t) for number, records in enumerate(lengths) for t in range(1, records)]
    seen = set()
    for at in range(20):
        given = source.sample(key(at))
        drawn = philox.integers(3, "policy", "all_transition", at, rows, len(places))
        pairs = [places[place] for place in drawn]
        left = [min(max(lengths[number] - 1 - t, 1), longest) for number, t in pairs]
        ahead = 1 + philox.integers(3, "policy", "all_later", at, rows, left)
        for row, ((number, t), k) in enumerate(zip(pairs, ahead, strict=True)):
            for stack, end in ((given.image, t - 1), (given.later_image, t - 1 + k)):
                pixels = stack[row, 0, 0].numpy().reshape(3, 3)
                assert (pixels[:, 0] == number).all()
                assert pixels[:, 1].tolist() == [max(end - back, 0) for back in (2, 1, 0)]
                assert end < lengths[number]
            seen.add(int(k))
    assert seen == set(range(1, longest + 1))
