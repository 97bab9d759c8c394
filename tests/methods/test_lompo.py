"""LOMPO against NumPy written from its equations: model loss, rollouts with their penalty, critics and actor; who
learns from what; and the buffers, row by row.
"""

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf import random
from semopo_tf.engine.compiling import choose_jit
from semopo_tf.errors import ConfigError
from semopo_tf.methods import off_policy
from semopo_tf.methods.lompo import neighbours
from semopo_tf.methods.ring import Ring, Rows
from semopo_tf.run import build
from semopo_tf.types import WithEpisode

B, T, LONGEST, LAST = 2, 4, 6, 4  # windows, and an episode of LAST + 1 records, padded to LONGEST
EPISODES, TRANSITIONS = 5, 21
HORIZON, MEMBERS, STOCH, DETER, ACTIONS = 3, 3, 3, 5, tiny.ACTION_SIZE
WEIGHT, DISCOUNT, TAU, NOISE = 5.0, 0.9, 0.1, 0.2


def learner(rng=None, device="/CPU:0", **flags):
    flags = {"batch__size": B, "batch__length": T, "imagination__horizon": HORIZON} | flags
    flags |= {"imagination__discount": DISCOUNT, "lompo__tau": TAU, "lompo__refresh_every": 3}
    config = tiny.config("lompo", **flags)
    sizes = {"image_size": tiny.IMAGE_SIZE, "action_size": ACTIONS}
    made = build.make_learner(
        config, **sizes, episodes=EPISODES, transitions=TRANSITIONS, jit=choose_jit(config.jit, device)
    )
    if rng is not None:
        tiny.randomise(made.world_model.trained, rng)
        tiny.randomise(made.agent.actor_variables | made.agent.critic_variables | made.agent.slow_variables, rng)
    return made


def episode(rng):
    """A whole episode as the sampler gives it."""
    batch = tiny.batch(rng, 1, LONGEST)
    first = (np.arange(LONGEST) == 0) | (np.arange(LONGEST) > LAST)
    return batch._replace(is_first=tf.constant(first[None]))


def both(rng):
    return WithEpisode(tiny.batch(rng, B, T), episode(rng))


def fill(made, rng):
    """Random rows in both buffers."""
    for ring in (made._real, made._latent):
        ring.add(random_rows(rng, TRANSITIONS, STOCH + DETER), tf.fill([TRANSITIONS], True))


def random_rows(rng, count, width):
    """Some of them ends."""
    values = (rng.normal(size=(count, width)), rng.uniform(-1, 1, (count, ACTIONS)), rng.normal(size=(count, width)))
    terminal = (np.arange(count) % 3 == 0).astype(np.float32)
    return Rows(*(tf.constant(x, tf.float32) for x in (*values, rng.normal(size=count), terminal)))


# --- the model in NumPy -----------------------------------------------------------------------------------------------


def softplus(x):
    return np.logaddexp(0, x)


def gaussian(raw):
    """Mean and std = softplus + 0.1 of the raw outputs."""
    mean, std = np.split(raw, 2, -1)
    return mean, softplus(std) + 0.1


def relu(x):
    return np.maximum(x, 0)


class Model:
    """The world model's equations with the weights of a learner."""

    def __init__(self, made):
        weights = tiny.Weights(made.world_model.trained)
        self.dense, self.values, self.mlp = weights.dense, weights.values, weights.mlp
        self.convs, self.deconvs = weights.encoder("joint_encoder"), weights.decoder("decoder")

    def gru(self, x, h):
        """z = s(xWz + bz + hUz + dz), r likewise; c = tanh(xWc + bc + r (hUc + dc)); h' = z h + (1 - z) c."""
        w, u, b, d = (
            np.split(self.values[f"joint_rssm/gru/{part}"], 3, -1)
            for part in ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
        )
        update, reset = (reference.sigmoid(x @ w[gate] + b[gate] + h @ u[gate] + d[gate]) for gate in (0, 1))
        candidate = np.tanh(x @ w[2] + b[2] + reset * (h @ u[2] + d[2]))
        return update * h + (1 - update) * candidate

    def advance(self, stoch, action, deter):
        hidden = reference.elu(reference.dense(np.concatenate([stoch, action], -1), self.dense("joint_rssm/input")))
        return self.gru(hidden, deter)

    def posterior(self, deter, image):
        embed = np.stack([self.encode(one) for one in image])
        hidden = reference.dense(np.concatenate([deter, embed], -1), self.dense("joint_rssm/post_hidden"))
        return gaussian(reference.dense(reference.elu(hidden), self.dense("joint_rssm/post_out")))

    def prior(self, deter, member):
        kernels = [self.values[f"joint_rssm/prior/{part}"][member] for part in ("hidden_kernel", "hidden_bias")]
        outs = [self.values[f"joint_rssm/prior/{part}"][member] for part in ("out_kernel", "out_bias")]
        return gaussian(reference.dense(reference.elu(reference.dense(deter, kernels)), outs))

    def encode(self, image):
        for kernel, bias in self.convs.layers:
            image = relu(reference.conv(image, kernel, bias))
        return image.reshape(-1)

    def decode(self, feat):
        x = reference.dense(feat, self.deconvs.dense)[None, None]
        for place, (kernel, bias) in enumerate(self.deconvs.layers):
            x = reference.conv_transpose(x, kernel, bias)
            x = relu(x) if place + 1 < len(self.deconvs.layers) else x
        return x

    def reward(self, feat):
        return reference.mlp(feat, *self.mlp("reward", "reward"))[..., 0]

    def observe(self, batch, noise):
        """Posterior: deter, stoch [B, T, ...] and statistics (mean, std). The state restarts where is_first; the
        action there enters.
        """
        image = batch.image.numpy() / 255 - 0.5
        action, first = batch.action.numpy().astype(np.float64), batch.is_first.numpy()
        deter, stoch = np.zeros((len(image), DETER)), np.zeros((len(image), STOCH))
        deters, stochs, stats = [], [], []
        for t in range(image.shape[1]):
            keep = 1.0 - first[:, t, None]
            deter = self.advance(stoch * keep, action[:, t], deter * keep)
            stats.append(self.posterior(deter, image[:, t]))
            stoch = stats[-1][0] + stats[-1][1] * noise[:, t]
            deters.append(deter)
            stochs.append(stoch)
        return np.stack(deters, 1), np.stack(stochs, 1), [np.stack(part, 1) for part in zip(*stats, strict=True)]


def posterior_noise(made, key, shape):
    return made.world_model.main.rssm.draw(key, "joint_posterior", shape).numpy().astype(np.float64)


def model_loss_in_numpy(made, batch, key, reward_scale=1.0):
    """KL + image + weight * reward, each the mean over batch and time."""
    model, shape = Model(made), (batch.reward.shape[0], batch.reward.shape[1])
    deter, stoch, post = model.observe(batch, posterior_noise(made, key, shape))
    members = made.world_model.main.rssm.draw_members(key, "joint_member", shape[1]).numpy()
    priors = [model.prior(deter[:, t], members[t]) for t in range(shape[1])]
    prior = [np.stack(part, 1) for part in zip(*priors, strict=True)]
    feat = np.concatenate([stoch, deter], -1)
    mean = np.stack([[model.decode(one) for one in row] for row in feat])
    kl = reference.gaussian_kl(*post, *prior).mean()
    image = -reference.image_log_prob(batch.image.numpy() / 255 - 0.5, mean).mean()
    reward = -reference.unit_normal_log_prob(batch.reward.numpy(), model.reward(feat)).mean()
    return {
        "joint_kl": kl,
        "image_loss": image,
        "reward_loss": reward,
        "model_loss": kl + image + reward_scale * reward,
    }


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("mode", tiny.MODES)
def test_the_model_loss_is_that_of_the_equations(mode, scale, rng):
    made, batch, key = learner(rng, model__reward_scale=scale), tiny.batch(rng, B, T), tiny.key(3)
    found = tiny.run(mode, lambda: made.world_model.losses(batch, key).metrics)
    for name, value in model_loss_in_numpy(made, batch, key, scale).items():
        tiny.close(found[name], value)


def test_the_paper_sizes_have_the_parameters_of_its_layers():
    config = tiny.configuration.load(["--configs", "lompo", "walker_walk"])
    made = build.make_learner(config, image_size=64, action_size=6, episodes=2, transitions=1000)
    count = dict.fromkeys(("joint_encoder", "joint_rssm", "decoder", "reward"), 0)
    for name, variable in made.world_model.trained.items():
        count[name.split("/")[0]] += variable.shape.num_elements()
    assert count["joint_encoder"] == sum(16 * i * o + o for i, o in ((3, 32), (32, 64), (64, 128), (128, 256)))
    deconvs = ((1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, 3, 6))
    assert count["decoder"] == 320 * 1024 + 1024 + sum(k * k * i * o + o for i, o, k in deconvs)
    head = 256 * 256 + 256 + 256 * 128 + 128
    post = (256 + 1024) * 256 + 256 + 256 * 128 + 128
    assert count["joint_rssm"] == (64 + 6) * 256 + 256 + 2 * 256 * 768 + 2 * 768 + post + 7 * head
    assert count["reward"] == 320 * 256 + 256 + 256 * 256 + 256 + 256 + 1
    actor = 320 * 256 + 256 + 3 * (256 * 256 + 256) + 256 * 6 + 6
    assert sum(x.shape.num_elements() for x in made.agent.actor_variables.values()) == actor
    critic = 326 * 256 + 256 + 2 * (256 * 256 + 256) + 256 + 1
    assert sum(x.shape.num_elements() for x in made.agent.critic_variables.values()) == 2 * critic


# --- rows -------------------------------------------------------------------------------------------------------------


def test_neighbours_pair_a_state_with_the_action_that_leaves_it_and_the_reward_of_the_next():
    place = tf.reshape(tf.range(B * T, dtype=tf.float32), [B, T])
    rows = neighbours(place[..., None], 100 + place[..., None], 200 + place, 300 + place)
    now = np.array([0, 1, 2, 4, 5, 6])
    for column, offset in zip(rows, (0, 101, 1, 201, 301), strict=True):
        np.testing.assert_array_equal(np.ravel(column), now + offset)


def test_a_real_row_holds_the_posterior_features_around_an_action_of_the_episode(rng):
    made, whole, key = learner(rng), episode(rng), tiny.key(5, "encode")
    whole = whole._replace(is_terminal=tf.constant(np.arange(LONGEST)[None] >= LAST))
    rows, exists = made.real_rows(whole, key)
    inner = random.Key(key.seed, "encode_episode", key.step)
    deter, stoch, _ = Model(made).observe(whole, posterior_noise(made, inner, (1, LONGEST)))
    feat = np.concatenate([stoch, deter], -1)[0]
    np.testing.assert_array_equal(exists, np.arange(1, LONGEST) <= LAST)
    for t in range(1, LAST + 1):
        tiny.close(rows.feat[t - 1], feat[t - 1])
        tiny.close(rows.next_feat[t - 1], feat[t])
        np.testing.assert_array_equal(rows.action[t - 1], whole.action[0, t])
        np.testing.assert_array_equal(rows.reward[t - 1], whole.reward[0, t])
        assert rows.terminal[t - 1] == (t == LAST)


def actor_in_numpy(made, feat):
    return np.tanh(reference.mlp(feat, *tiny.Weights(made.agent.actor_variables).mlp("actor", "mean")))


def rollouts_in_numpy(made, batch, key):
    """Features [N, H + 1, F], actions [N, H, A], rewards and penalties [N, H] of the next states."""
    model, rssm, size = Model(made), made.world_model.main.rssm, B * T
    deter, stoch, _ = model.observe(batch, posterior_noise(made, key, (B, T)))
    deter, stoch = deter.reshape(size, -1), stoch.reshape(size, -1)
    members = rssm.draw_members(key, "imagined_member", HORIZON).numpy()
    noise = rssm.draw(key, "imagined_state", (HORIZON, size)).numpy()
    exploration = random.normal(key, "exploration", [HORIZON, size, ACTIONS]).numpy()
    feats, actions, rewards, penalties = [np.concatenate([stoch, deter], -1)], [], [], []
    for step in range(HORIZON):
        action = np.clip(actor_in_numpy(made, feats[-1]) + NOISE * exploration[step], -1, 1)
        deter = model.advance(stoch, action, deter)
        mean, std = model.prior(deter, members[step])
        stoch = mean + std * noise[step]
        each = np.stack([reference.gaussian_log_prob(stoch, *model.prior(deter, k)) for k in range(MEMBERS)])
        feats.append(np.concatenate([stoch, deter], -1))
        actions.append(action)
        penalties.append(WEIGHT * each.std(0))
        rewards.append(model.reward(feats[-1]) - penalties[-1])
    return (np.stack(parts, 1) for parts in (feats, actions, rewards, penalties))


@pytest.mark.parametrize("mode", tiny.MODES)
def test_latent_rows_are_rollouts_whose_reward_at_the_next_state_is_penalised(mode, rng):
    made, batch, key = learner(rng), tiny.batch(rng, B, T), tiny.key(2, "imagine")
    made.agent.actor_variables["actor/mean/bias"].assign([2.0, -0.3])  # the noise takes the first action out of bounds
    rows, exists, metrics = tiny.run(mode, lambda: made.latent_rows(batch, key))
    feat, action, reward, penalty = rollouts_in_numpy(made, batch, key)
    assert exists.all() and not rows.terminal.any()
    tiny.close(rows.feat, feat[:, :-1].reshape(len(rows.feat), -1), 2e-5)
    tiny.close(rows.next_feat, feat[:, 1:].reshape(len(rows.feat), -1), 2e-5)
    tiny.close(rows.action, action.reshape(-1, ACTIONS))
    tiny.close(rows.reward, reward.reshape(-1), 1e-4)  # log-densities of tens of nats
    tiny.close(metrics["penalty"], penalty.mean(), 1e-4)
    assert penalty.min() > 0.01 and np.abs(action).max() == 1.0


def test_with_a_continue_head_a_rollout_ends_and_its_end_is_marked(rng):
    made, batch = learner(rng, model__continue_head=True), tiny.batch(rng, B, T)
    batch = batch._replace(is_terminal=tf.constant(np.arange(B * T).reshape(B, T) == T - 1))
    rows, exists, _ = made.latent_rows(batch, tiny.key(2, "imagine"))
    ends = (made.world_model.continues(rows.next_feat) < 0.5).numpy()
    np.testing.assert_array_equal(rows.terminal, ends)
    ends, exists = ends.reshape(B * T, HORIZON), exists.numpy().reshape(B * T, HORIZON)
    assert ends.any() and not ends.all()
    for number in range(B * T):
        alive = number != T - 1
        for step in range(HORIZON):
            assert exists[number, step] == alive
            alive = alive and not ends[number, step]


# --- actor and critics ------------------------------------------------------------------------------------------------


def value_in_numpy(made, name, feat, action):
    weights = tiny.Weights(made.agent.critic_variables | made.agent.slow_variables)
    return reference.mlp(np.concatenate([feat, action], -1), *weights.mlp(name, "value"))[:, 0]


def losses_in_numpy(made, rows):
    feat, action, following, reward, terminal = (np.asarray(x, np.float64) for x in rows)
    played, next_action = actor_in_numpy(made, feat), actor_in_numpy(made, following)
    slow = [value_in_numpy(made, f"slow_critic_{i}", following, next_action) for i in (0, 1)]
    target = reward + DISCOUNT * (1 - terminal) * np.minimum(*slow)
    values = [value_in_numpy(made, f"critic_{i}", feat, action) for i in (0, 1)]
    own = [value_in_numpy(made, f"critic_{i}", feat, played) for i in (0, 1)]
    return {
        "critic_loss": sum(((value - target) ** 2).mean() for value in values),
        "actor_loss": -np.minimum(*own).mean(),
        "target": target.mean(),
    }


@pytest.mark.parametrize("mode", tiny.MODES)
def test_the_losses_of_critics_and_actor_are_those_of_the_equations(mode, rng):
    made, rows = learner(rng), random_rows(rng, 12, STOCH + DETER)
    found = tiny.run(mode, lambda: made.agent.gradients(rows)[0])
    for name, value in losses_in_numpy(made, rows).items():
        tiny.close(found[name], value)


def test_the_losses_by_hand():
    tiny.close(off_policy.bootstrapped(*map(tf.constant, ([1.0, 1.0], [0.0, 1.0], [2.0, 2.0])), discount=0.5), [2, 1])
    values = [tf.constant([1.0, 3.0]), tf.constant([2.0, 0.0])]
    assert float(off_policy.critic_loss(values, tf.constant([1.0, 1.0]))) == (0 + 4) / 2 + (1 + 1) / 2
    assert float(off_policy.actor_loss(values)) == -0.5


def test_slow_critics_start_as_copies_and_follow_by_their_share(rng):
    made, rows = learner(), random_rows(rng, 12, STOCH + DETER)
    pairs = list(zip(made.agent.slow_variables.values(), made.agent.critic_variables.values(), strict=True))
    assert all((slow.numpy() == fast.numpy()).all() for slow, fast in pairs)
    before = [slow.numpy() for slow, _ in pairs]
    assert float(made.agent.learn(rows)["finite"]) == 1
    for (slow, fast), old in zip(pairs, before, strict=True):
        np.testing.assert_allclose(slow, old + TAU * (fast - old), rtol=1e-5, atol=1e-7)


# --- who learns from what ---------------------------------------------------------------------------------------------

LAYERS = {"joint_encoder", "joint_rssm", "decoder", "reward"}
# Loss -> the layers that learn from it.
MODEL_TABLE = {
    "joint_kl_loss": {"joint_encoder", "joint_rssm"},
    "image_loss": {"joint_encoder", "joint_rssm", "decoder"},
    "reward_loss": {"joint_encoder", "joint_rssm", "reward"},
}


@pytest.mark.parametrize("loss", MODEL_TABLE)
def test_every_model_loss_reaches_exactly_its_layers(loss, rng):
    made, trained = learner(rng), {}
    with tf.GradientTape() as tape:
        metrics = made.world_model.losses(tiny.batch(rng, B, T), tiny.key()).metrics
    trained = made.world_model.trained
    gradients = dict(zip(trained, tape.gradient(metrics[loss], list(trained.values())), strict=True))
    reached = {name for name, gradient in gradients.items() if gradient is not None and np.any(gradient.numpy())}
    assert {name.split("/")[0] for name in reached} == MODEL_TABLE[loss]
    assert all(gradients[name] is None for name in trained if name.split("/")[0] not in MODEL_TABLE[loss])
    assert any("prior" in name for name in reached) == (loss == "joint_kl_loss")


def test_a_head_that_is_not_drawn_learns_nothing(rng):
    made, batch, key = learner(rng), tiny.batch(rng, B, T), tiny.key()
    drawn = set(made.world_model.main.rssm.draw_members(key, "joint_member", T).numpy().tolist())
    gradient = made.model_gradients(batch, key)[1]["model/joint_rssm/prior/out_kernel"].numpy()
    assert {k for k in range(MEMBERS) if np.any(gradient[k])} == drawn


def test_critics_learn_from_their_loss_the_actor_from_its_own_and_targets_from_none(rng):
    made, rows = learner(rng), random_rows(rng, 12, STOCH + DETER)
    agent = made.agent
    _, gradients = agent.gradients(rows)
    assert set(gradients) == set(agent.actor_variables | agent.critic_variables)
    moved, step = tiny.Weights(agent.actor_variables | agent.critic_variables | agent.slow_variables).values, 1e-5
    variables = agent.actor_variables | agent.critic_variables | agent.slow_variables
    for name, loss in (("actor/mean/bias", "actor_loss"), ("critic_1/value/kernel", "critic_loss")):
        slopes = []
        for sign in (1, -1):
            values = {key: value.copy() for key, value in moved.items()}
            values[name].flat[0] += sign * step
            slopes.append(losses_of(values, made, rows)[loss])
        np.testing.assert_allclose(gradients[name].numpy().flat[0], (slopes[0] - slopes[1]) / (2 * step), rtol=1e-3)
    with tf.GradientTape(persistent=True) as tape:
        metrics, _ = agent.gradients(rows)
    for owned in (agent.actor_variables, agent.slow_variables, made.world_model.trained):
        assert tape.gradient(metrics["critic_loss"], list(owned.values())) == [None] * len(owned)
    for owned in (agent.slow_variables, made.world_model.trained):
        assert tape.gradient(metrics["actor_loss"], list(owned.values())) == [None] * len(owned)
    assert tape.gradient(metrics["target"], list(variables.values())) == [None] * len(variables)


def losses_of(values, made, rows):
    """`losses_in_numpy` of other weights, in float64."""
    groups = {
        f"{group}_variables": {key: value for key, value in values.items() if key.startswith(group)}
        for group in ("actor", "critic", "slow")
    }
    return losses_in_numpy(SimpleNamespace(agent=SimpleNamespace(**groups)), rows)


def changed(made, update, *given):
    """Groups of variables that an update changes, and its metrics."""
    before = tiny.snapshot(made.variables())
    metrics = tiny.arrays(update(*given))
    after = tiny.snapshot(made.variables())
    return {name.split("/")[0] for name in before if before[name].tobytes() != after[name].tobytes()}, metrics


def test_a_policy_update_adds_to_the_buffers_when_it_is_due_and_only_then(rng):
    made, batch = learner(rng), both(rng)
    fill(made, rng)
    groups = [changed(made, made.update_policy, batch, tiny.key(step, "policy"))[0] for step in range(7)]
    due, not_due = {"policy", "real", "latent"}, {"policy"}
    assert groups == [not_due, not_due, due, not_due, not_due, due, not_due]
    assert made._real._written.numpy() == TRANSITIONS + 2 * LAST
    assert made._latent._written.numpy() == TRANSITIONS + 2 * TRANSITIONS  # 24 rows, of which as many as it can hold
    policy = made.stages[-1]
    assert [int(policy.episode(tf.constant(step))) for step in (2, 5, 8)] == [0, 1, 2]


def test_an_update_that_is_not_finite_changes_nothing(rng):
    made, batch, infinite = learner(rng), both(rng), np.float32(np.inf)
    fill(made, rng)
    bad = batch.episode._replace(reward=batch.episode.reward + infinite)
    windows = batch.windows._replace(reward=batch.windows.reward + infinite)
    cases = [
        (made.update_model, windows, tiny.key(0)),
        (made.update_real, batch._replace(episode=bad), tiny.key(0, "encode")),
        (made.update_policy, batch._replace(episode=bad), tiny.key(2, "policy")),
    ]
    for update, *given in cases:
        groups, metrics = changed(made, update, *given)
        assert (groups, metrics["finite"]) == (set(), 0.0)
    made._latent._columns.reward.assign(tf.fill([TRANSITIONS], infinite))
    for step in (0, 2):
        groups, metrics = changed(made, made.update_policy, batch, tiny.key(step, "policy"))
        assert (groups, metrics["finite"]) == (set(), 0.0)
    made.agent.actor_variables["actor/mean/bias"].assign([np.nan] * ACTIONS)
    groups, metrics = changed(made, made.update_latent, batch.windows, tiny.key(0, "imagine"))
    assert (groups, metrics["finite"]) == (set(), 0.0)


@pytest.mark.parametrize(
    "stage", ["policy", *(pytest.param(name, marks=pytest.mark.full) for name in ("model", "encode", "imagine"))]
)
def test_an_update_is_the_same_in_a_graph_and_under_xla(stage, rng):
    """Both forms of an update: as the library computes it, and as it is compiled for a GPU."""
    seen = []
    for mode, device in (("eager", "/CPU:0"), ("graph", "/CPU:0"), ("xla", "/GPU:0")):
        same = np.random.default_rng(4)
        made, batch = learner(same, device), both(same)
        fill(made, same)
        batch = batch if stage in ("encode", "policy") else batch.windows
        update, key = next(each.update for each in made.stages if each.name == stage), tiny.key(2, stage)
        metrics = tiny.run(mode, lambda update=update, batch=batch, key=key: update(batch, key))
        seen.append((metrics, tiny.snapshot(made.variables())))
    for metrics, variables in seen[1:]:
        for name, value in seen[0][0].items():
            tiny.close(metrics[name], value, 1e-4)
        for name, value in seen[0][1].items():
            np.testing.assert_allclose(variables[name], value, rtol=2e-3, atol=2e-4, err_msg=name)


# --- the buffer -------------------------------------------------------------------------------------------------------


def numbered(first, count):
    """Rows that say which they are."""
    number = np.arange(first, first + count, dtype=np.float32)
    wide = np.repeat(number[:, None], 3, 1)
    return Rows(wide, wide[:, :2] + 0.25, wide + 0.5, number + 0.75, number % 2)


@pytest.mark.parametrize("mode", tiny.MODES)
def test_a_buffer_keeps_the_last_rows_whole(mode, rng):
    capacity, ring = 7, Ring("ring", capacity=7, feat_size=3, action_size=2)
    kept, slots, first = deque(maxlen=capacity), {}, 0
    for count, shares in ((3, 1.0), (5, 0.6), (6, 0.5), (7, 1.0), (4, 0.0), (11, 1.0), (2, 1.0)):
        taken = np.arange(count) < shares * count if count % 2 else rng.uniform(size=count) < shares
        tiny.run(mode, lambda rows, taken: [ring.add(rows, taken), tf.zeros([])][1:], numbered(first, count), taken)
        kept.extend(first + np.flatnonzero(taken))
        first += count
        held = {name: value.numpy() for name, value in ring.variables().items()}
        size = int(ring.size())
        assert size == len(kept)
        assert sorted(held["ring/reward"][:size] - 0.75) == sorted(kept)
        for slot in range(size):
            number = held["ring/reward"][slot] - 0.75
            for column, value in numbered(int(number), 1)._asdict().items():
                np.testing.assert_array_equal(held[f"ring/{column}"][slot], value[0])
            slots[slot] = number
    assert len(slots) == capacity


def test_rows_are_overwritten_in_the_order_in_which_they_came():
    ring = Ring("ring", capacity=4, feat_size=3, action_size=2)
    for first in (0, 3):
        ring.add(Rows(*map(tf.constant, numbered(first, 3))), tf.fill([3], True))
    np.testing.assert_array_equal(ring.variables()["ring/reward"] - 0.75, [4, 5, 2, 3])


def test_draws_are_rows_of_the_filled_part_alike_often_and_a_function_of_seed_and_step():
    ring = Ring("ring", capacity=10, feat_size=3, action_size=2)
    ring.add(Rows(*map(tf.constant, numbered(5, 4))), tf.fill([4], True))
    one, same, other = (ring.draw(tiny.key(step, "policy"), 4000) for step in (1, 1, 2))
    np.testing.assert_array_equal(one.reward, same.reward)
    assert (one.reward.numpy() != other.reward.numpy()).any()
    numbers, counts = np.unique(one.reward.numpy() - 0.75, return_counts=True)
    assert numbers.tolist() == [5, 6, 7, 8] and counts.min() > 850
    np.testing.assert_array_equal(one.feat[:, 0] + 0.75, one.reward)
    np.testing.assert_array_equal(one.next_feat[:, 0] + 0.25, one.reward)


# --- the parts that others ask for ------------------------------------------------------------------------------------


def test_the_buffers_have_room_for_the_training_data_and_the_stages_fill_them():
    made = learner(lompo__latent_rows=20)
    assert [stage.name for stage in made.stages] == ["model", "encode", "imagine", "policy"]
    assert made.stages[1].steps == EPISODES
    assert [made.stages[2].steps, learner().stages[2].steps] == [1, 1]  # 20 and 21 rows, 24 of a rollout
    assert learner(imagination__horizon=2).stages[2].steps == 2
    assert made.variables()["real/feat"].shape == made.variables()["latent/feat"].shape == [TRANSITIONS, STOCH + DETER]


@pytest.mark.parametrize("flag", ["kl.free", "rssm.latent", "actor_critic.lambda_", "drq.tau", "model.drp"])
def test_settings_of_other_learners_are_refused(flag):
    value = {"rssm.latent": "gaussian", "model.drp": "True"}.get(flag, "0.5")
    with pytest.raises(ConfigError, match=f"--{flag}: expected a setting that lompo reads"):
        learner(**{flag.replace(".", "__"): value})


def test_the_dataset_has_to_be_known():
    with pytest.raises(ConfigError, match="numbers of training episodes and transitions"):
        build.make_learner(tiny.config("lompo"), image_size=tiny.IMAGE_SIZE, action_size=ACTIONS)


def test_uncertainty_has_the_measures_of_the_report(rng):
    made, batch = learner(rng), tiny.batch(rng, B, T)
    measures = made.world_model.uncertainties(batch, tiny.key(0, "uncertainty"), [T - 1])["joint"]
    assert {"mean_norm", "log_prob_std", "log_prob_variance", "sum_squares"} <= set(measures)
    assert all((value.numpy() > 0).all() for value in measures.values())
    tiny.close(measures["log_prob_std"] ** 2, measures["log_prob_variance"])


def test_the_switches_against_exploitation_work_here_too_and_cost_what_they_add(rng):
    """The imagined reward is the least of any member, at most the usual one; real transitions are what they were."""
    usual, least = learner(rng), learner(penalty__reward="minimum")
    tiny.assign(least.variables(), {name: value.numpy() for name, value in usual.variables().items()})
    windows, key = tiny.batch(rng, B, T), tiny.key(2, "imagine")
    (one, _, _), (other, _, _) = (made.latent_rows(windows, key) for made in (usual, least))
    lower = (one.reward - other.reward).numpy()
    assert lower.min() >= -1e-4 and lower.max() > 1e-2
    np.testing.assert_array_equal(one.next_feat, other.next_feat)
    own = learner(rng, rssm__ensemble_bodies="own", penalty__reward="minimum")
    for batch, stage in ((windows, "model"), (windows, "imagine")):
        update = own.update_model if stage == "model" else own.update_latent
        assert update(batch, tiny.key(1, stage))["finite"].numpy() == 1
    flops = [made.cost("imagine", B, T).flops for made in (usual, least, own)]
    rssm, head = usual.world_model.main.rssm, usual.world_model.reward_head
    states = B * T * HORIZON
    assert flops[1] - flops[0] == rssm.prior_all_cost(states).flops + head.cost(MEMBERS * states).flops
    assert flops[2] != flops[1]
