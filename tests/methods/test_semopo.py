"""The agent: parameter counts of the published configuration, its updates against the equations, and the policy that
acts.
"""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf import config as configuration
from semopo_tf.envs.rollout import play
from semopo_tf.methods.imagination import imagine
from semopo_tf.methods.losses import Penalty
from semopo_tf.run import build
from semopo_tf.types import Observation, Recorded

# --- parameter counts, released size ----------------------------------------------------------------------------------


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables.values())


@pytest.fixture(scope="module")
def full_size():
    return build.make_learner(
        configuration.load(["--configs", "released", "semopo", "walker_walk"]), image_size=64, action_size=6
    )


def test_parameter_counts_of_the_released_separated_model(full_size):
    model = full_size.world_model
    counts = {name: count(model.variables_of(name)) for name in model.layers}
    assert counts == {
        "endo_encoder": 1_551_312,
        "endo_rssm": 2_723_392,
        "exo_encoder": 1_551_312,
        "exo_rssm": 2_723_392,
        "reward": 971_601,
        "endo_decoder": 9_891_798,
        "exo_decoder": 9_891_798,
        "mask": 7,
        "exo_only_decoder": 9_886_611,
    }
    # The released code has a reward head on the exogenous state too, without effect at its published scale.
    assert count(model.trained) + 971_601 == 40_162_824 == sum(counts.values()) + 971_601


def test_optimiser_lists_of_the_released_separated_model(full_size):
    groups = full_size.world_model.groups(split=True)
    assert {name: count(group) for name, group in groups.items()} == {"endo": 25_029_908, "exo": 33_944_918}
    # These two lists are what is stepped: moments exist for each, twice for the shared joint decoder.
    moments = {
        name: v for name, v in full_size.variables().items() if name.startswith("model_opt/") and "/first/" in name
    }
    assert count(moments) == 25_029_908 + 33_944_918


def test_parameter_counts_of_the_released_actor_and_critic(full_size):
    assert count(full_size.actor_critic.actor_variables) == 976_012
    assert count(full_size.actor_critic.critic_variables) == 971_601


def test_parameter_count_of_offline_dv2():
    config = configuration.load(["--configs", "released", "offline_dv2", "walker_walk"])
    learner = build.make_learner(config, image_size=64, action_size=6)
    assert count(learner.world_model.trained) == 15_132_916
    # Encoder, recurrent model, plain decoder, reward head.
    assert count(learner.world_model.trained) == 1_551_312 + 2_723_392 + 9_886_611 + 971_601


# --- updates ----------------------------------------------------------------------------------------------------------


class Case:
    def __init__(self, overlays, **flags):
        rng = np.random.default_rng(5)
        self.config = tiny.config(*overlays, **flags)
        self.learner = tiny.learner(*overlays, **flags)
        self.model = self.learner.world_model
        tiny.randomise(self.model.trained, rng, gain=2.0)
        self.batch = tiny.batch(rng)


@pytest.mark.parametrize(
    ("overlays", "flags"),
    [(tiny.RELEASED, {}), (tiny.PAPER, {"model_opt.weight_decay": 0.01})],
    ids=["two optimisers", "one optimiser"],
)
def test_a_model_update_steps_every_optimiser_on_gradients_of_the_same_weights(overlays, flags):
    """Two updates, because the first Adam step hardly depends on the size of the gradient."""
    case = Case(overlays, **{"model_opt.lr": 0.01, "model_opt.clip": 20.0, **flags})
    config = case.config
    split = config.model.split_optimizers
    groups = case.model.groups(split)
    by_hand = [
        (reference.Adam(lr=0.01, clip=20.0, decay=config.model_opt.weight_decay), list(group))
        for group in groups.values()
    ]
    expected = tiny.snapshot(case.model.trained)
    for step in range(2):
        with tf.GradientTape() as tape:
            total = case.model.losses(case.batch, tiny.key(step)).total
        gradients = dict(zip(case.model.trained, tape.gradient(total, list(case.model.trained.values())), strict=True))
        metrics = case.learner.update_model(case.batch, tiny.key(step))
        expected, norms = reference.shared_step(expected, gradients, by_hand)
        tiny.close([metrics[f"{name}_grad_norm"] for name in groups], norms)
        assert min(norms) > 20.0  # all are clipped, each by its own norm
        assert metrics["model_loss"].numpy() == pytest.approx(total.numpy())
    assert len(groups) == (2 if split else 1)
    for name, value in expected.items():
        tiny.close(case.model.trained[name], value, 3e-5)


def test_one_backward_pass_gives_the_gradients_of_two():
    """The released code differentiates the loss of each model apart and steps the group of each; the gradient of the
    total is both.
    """
    case = Case(tiny.RELEASED)
    weight = case.config.model.exo_only**case.config.model.exo_only_power
    with tf.GradientTape(persistent=True) as tape:
        losses = case.model.losses(case.batch, tiny.key())
        part = losses.metrics
        apart = {
            "endo": part["endo_kl_loss"] + part["reward_loss"] + part["image_loss"],
            "exo": part["exo_kl_loss"] + part["image_loss"] + weight * part["exo_image_loss"],
        }
    for name, group in case.model.groups(True).items():
        variables = list(group.values())
        for one, other in zip(
            tape.gradient(losses.total, variables), tape.gradient(apart[name], variables), strict=True
        ):
            tiny.close(one, other, 1e-5)
            assert np.abs(other).max() > 0


@pytest.fixture(scope="module", params=[tiny.RELEASED, tiny.OFFLINE_DV2], ids=["released", "offline_dv2"])
def case(request):
    return Case(request.param)


def test_updates_are_a_function_of_seed_step_and_batch():
    case = Case(tiny.OFFLINE_DV2)
    saved = tiny.snapshot(case.learner.variables())

    def after(update, step):
        tiny.assign(case.learner.variables(), saved)
        update(case.batch, tiny.key(step))
        result = tiny.snapshot(case.learner.variables())
        tiny.assign(case.learner.variables(), saved)
        return result

    for update in (case.learner.update_model, case.learner.update_policy):
        one, again, other = after(update, 3), after(update, 3), after(update, 4)
        assert all(np.array_equal(one[name], again[name]) for name in one)
        assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_an_update_that_is_not_finite_changes_nothing(case):
    bad = case.batch._replace(reward=tf.fill(case.batch.reward.shape, np.inf))
    before = tiny.snapshot(case.learner.variables())
    assert case.learner.update_model(bad, tiny.key())["finite"].numpy() == 0.0
    for name, value in before.items():
        np.testing.assert_array_equal(case.learner.variables()[name], value)


def test_validation_gives_the_metrics_of_the_losses_and_changes_nothing(case):
    before = tiny.snapshot(case.learner.variables())
    metrics = case.learner.validate(case.batch, tiny.key(2))
    assert metrics["model_loss"].numpy() == case.model.losses(case.batch, tiny.key(2)).total.numpy()
    for name, value in before.items():
        np.testing.assert_array_equal(case.learner.variables()[name], value)


def test_stages_are_model_and_then_policy(case):
    assert [(stage.name, stage.view, stage.steps) for stage in case.learner.stages] == [
        ("model", "model", 12),
        ("policy", "policy", 12),
    ]


def test_policy_updates_imagine_from_every_record_of_the_batch(case):
    """B * T = 8 start states, the configured horizon, discount and penalty weight; metrics are of before the step."""
    key, ac = tiny.key(1, "policy"), case.learner.actor_critic
    start = tf.nest.map_structure(lambda x: tf.reshape(x, [8, *x.shape[2:]]), case.model.posterior(case.batch, key))
    imagined = imagine(case.model, ac, start, key, horizon=5, discount=0.99, penalty=Penalty(**case.config.penalty))
    target = ac.target(imagined)
    expected = {"penalty": imagined.penalty, "imagined_reward": imagined.reward, "target": target}
    expected |= {"actor_loss": ac.actor_loss(imagined, target)[0], "critic_loss": ac.critic_loss(imagined, target)[0]}
    expected = {name: value.numpy().mean() for name, value in expected.items()}
    metrics = case.learner.update_policy(case.batch, key)
    assert metrics["finite"].numpy() == 1.0
    assert expected["penalty"] > 0
    for name, value in expected.items():
        tiny.close(metrics[name], value)


def test_a_share_of_the_policy_update_learns_from_the_records_of_the_batch():
    """Their posterior states, the actions that led to them, and their rewards, penalised; nothing after an ending."""
    case = Case(tiny.PAPER, **{"actor_critic.data_share": 0.5, "penalty.weight": 2.0})
    key, ac = tiny.key(1, "policy"), case.learner.actor_critic
    case.batch = case.batch._replace(is_terminal=tf.constant(np.eye(*case.batch.reward.shape, 1, dtype=bool)))
    posterior = case.model.posterior(case.batch, key)
    penalty = 2.0 * case.model.disagreement(posterior, case.config.penalty.measure).numpy()
    discount = np.where(case.batch.is_terminal, 0.0, 0.99).astype(np.float32)
    recorded = Recorded(case.model.features(posterior), case.batch.action, case.batch.reward - penalty, discount)
    cloning, _, expected = ac.recorded_losses(recorded)
    metrics = case.learner.update_policy(case.batch, key)
    tiny.close(metrics["cloning_loss"], cloning)
    tiny.close(metrics["advantage"], expected["advantage"])
    assert metrics["finite"].numpy() == 1.0 and penalty.min() > 0


# --- initial weights --------------------------------------------------------------------------------------------------


def test_initial_weights_come_from_the_seed():
    one, again, other = (tiny.snapshot(tiny.learner(*tiny.PAPER, seed=seed).variables()) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    kernels = [
        name
        for name in one
        if name.endswith("kernel") and "_opt/" not in name and "first" not in name and "second" not in name
    ]
    assert len(kernels) > 20
    assert all((one[name] != other[name]).mean() > 0.99 for name in kernels)


def test_both_streams_start_from_different_weights():
    model = tiny.learner(*tiny.RELEASED).world_model
    for name, variable in model.trained.items():
        if name.startswith("endo_") and name.endswith("kernel"):
            twin = model.trained[name.replace("endo_", "exo_", 1)]
            assert (variable.numpy() != twin.numpy()).mean() > 0.99, name


# --- acting policy ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def acting(case):
    rng = np.random.default_rng(1)
    tiny.randomise(case.learner.actor_critic.actor_variables, rng)
    return case.learner.policy()


def play_frames(policy, images, seeds):
    """Actions [E, T, A] on given images [E, T, H, W, 3]."""
    state, actions = policy.initial(len(images)), []
    for t in range(images.shape[1]):
        action, state = policy(images[:, t], state, np.array(seeds), t)
        actions.append(action)
    return np.stack(actions, 1)


def frames(rng, episodes=3, length=4):
    return rng.integers(0, 256, (episodes, length, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3), np.uint8)


def test_the_policy_filters_with_its_own_actions_and_takes_the_mode(case, acting, rng):
    """By hand: encode, one posterior step from the last state and action, tanh of the actor's location."""
    images, seeds = frames(rng), [3, 14, 15]
    received = play_frames(acting, images, seeds)
    branch, name = case.model.main, case.model.main.name
    classes = 4 if branch.rssm.dist.noise_kind == "uniform" else 0
    weights = tiny.Weights(case.model.trained | case.learner.actor_critic.actor_variables)
    p = weights.rssm(f"{name}_rssm", classes=classes)
    for episode, seed in enumerate(seeds):
        deter = np.zeros((1, p.gru.bias.shape[0] // 3))
        stoch = np.zeros((1, 3, 4) if classes else (1, 3))
        action = np.zeros((1, tiny.ACTION_SIZE))
        for t in range(images.shape[1]):
            deter = reference.advance(stoch, action, deter, p)
            embed = reference.encode(images[episode, t] / 255 - 0.5, weights.encoder(f"{name}_encoder"))
            stats = reference.posterior(deter, embed[None], p)
            noise = branch.rssm.draw(tiny.key(t, "evaluation", seed), "state", ()).numpy()
            stoch = reference.latent_sample(stats, noise[None])
            action = np.tanh(reference.mlp(reference.features(deter, stoch, p), *weights.mlp("actor", "loc")))
            tiny.close(received[episode, t], action[0], 2e-5)


def test_an_episode_does_not_depend_on_the_others_beside_it(acting, rng):
    images, other = frames(rng), frames(rng)
    received = play_frames(acting, images, [1, 2, 3])
    other[0] = images[0]
    np.testing.assert_array_equal(play_frames(acting, other, [1, 9, 8])[0], received[0])
    assert (
        play_frames(acting, other, [4, 9, 8])[0, -1] != received[0, -1]
    ).any()  # another seed is another latent noise


class Mirror:
    """Five decisions; the image is drawn from (seed, step, last action), so that a difference in the last bit of an
    action shows.
    """

    action_size, image_shape = tiny.ACTION_SIZE, (tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3)

    def observe(self, action):
        entropy = [self.seed, self.time, *np.asarray(action, np.float32).view(np.uint32)]
        image = np.random.default_rng(entropy).integers(0, 256, self.image_shape, np.uint8)
        return Observation(image, 0.0, self.time == 0, self.time == 5, False)

    def reset(self, seed):
        self.seed, self.time = seed, 0
        return self.observe(np.zeros(tiny.ACTION_SIZE))

    def step(self, action):
        self.time += 1
        return self.observe(action)

    def close(self):
        pass


def test_any_number_of_environments_gives_the_same_actions(acting):
    """The settled contract of evaluation: one and eight environments give the same actions, bit for bit."""
    seeds = [3, 14, 15, 9, 2]
    one_by_one = list(play([Mirror()], acting, seeds))
    for count in (2, 3):
        for expected, received in zip(one_by_one, play([Mirror() for _ in range(count)], acting, seeds), strict=True):
            np.testing.assert_array_equal(received.action, expected.action)


def test_step_zero_forgets_the_last_episode(acting, rng):
    images, state = frames(rng), acting.initial(3)
    first, state = acting(images[:, 0], state, np.array([1, 2, 3]), 0)
    _, state = acting(images[:, 1], state, np.array([1, 2, 3]), 1)
    again, _ = acting(images[:, 0], state, np.array([1, 2, 3]), 0)
    np.testing.assert_array_equal(again, first)


def test_actions_are_inside_the_bounds(acting, rng):
    assert (np.abs(play_frames(acting, frames(rng), [1, 2, 3])) <= 1).all()


# --- evidence, remat and precision ------------------------------------------------------------------------------------


def with_evidence(learner, batch):
    """The batch with the cached evidence of its frames in place of the images."""
    size, length = batch.reward.shape
    frames = batch.image.numpy().reshape(-1, *batch.image.shape[2:])
    return batch._replace(image=tf.reshape(learner.evidence(frames), [size, length, -1]))


def test_a_policy_update_from_the_cache_is_the_update_from_the_images(case):
    cached = with_evidence(case.learner, case.batch)
    assert cached.image.dtype == tf.float32
    tiny.close(tf.reshape(case.model.main.evidence(case.batch.image), cached.image.shape), cached.image)
    saved, after = tiny.snapshot(case.learner.variables()), []
    for batch in (case.batch, cached):
        metrics = case.learner.update_policy(batch, tiny.key(1, "policy"))
        after.append((tiny.arrays(metrics), tiny.snapshot(case.learner.variables())))
        tiny.assign(case.learner.variables(), saved)
    for one, other in zip(*after, strict=True):
        for name in one:
            tiny.close(one[name], other[name])


@pytest.mark.parametrize("frames", [1, 3, 8, 11])
def test_evidence_is_that_of_each_frame_whatever_the_blocks(case, frames, monkeypatch):
    monkeypatch.setattr("semopo_tf.methods.filter_policy.EVIDENCE_ROWS", 4)
    images = np.random.default_rng(0).integers(0, 256, (frames, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3), np.uint8)
    table = case.learner.evidence(images)
    assert table.shape[0] == frames
    tiny.close(table, case.model.main.evidence(tf.constant(images)))


@pytest.mark.parametrize("overlays", [tiny.RELEASED, tiny.OFFLINE_DV2], ids=["released", "offline_dv2"])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_decoders_differentiated_by_slices_take_the_same_step(overlays, most):
    whole, sliced = Case(overlays, **{"model_opt.lr": 0.01}), Case(overlays, **{"model_opt.lr": 0.01, "remat": most})
    one, other = (tiny.arrays(case.learner.update_model(case.batch, tiny.key())) for case in (whole, sliced))
    assert set(one) == set(other)
    for name, value in one.items():
        tiny.close(other[name], value)
    for name, variable in whole.learner.variables().items():
        tiny.close(sliced.learner.variables()[name], variable)


PRECISIONS = {"mixed_bfloat16": 0.05, "mixed_float16": 0.01}  # and the relative error allowed to its losses


@pytest.mark.parametrize(
    "overlays", [tiny.PAPER, tiny.RELEASED, tiny.OFFLINE_DV2], ids=["paper", "released", "offline_dv2"]
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_half_precision_keeps_losses_weights_and_metrics_in_float32_and_near_those_of_float32(overlays, precision):
    full, half = Case(overlays), Case(overlays, precision=precision)
    one, other = (case.model.losses(case.batch, tiny.key()) for case in (full, half))
    for tensor in tf.nest.flatten(other):
        assert tensor.dtype == tf.float32
    assert all(variable.dtype in (tf.float32, tf.int64) for variable in half.learner.variables().values())
    for name in ("image_loss", "reward_loss", "model_loss"):
        assert other.metrics[name].numpy() == pytest.approx(one.metrics[name].numpy(), rel=PRECISIONS[precision])
    assert any(
        one.metrics[name].numpy() != other.metrics[name].numpy() for name in one.metrics
    )  # it is another computation
    assert half.learner.evidence(half.batch.image.numpy()[0]).dtype.size == 2
    for key, batch in ((tiny.key(), half.batch), (tiny.key(1), with_evidence(half.learner, half.batch))):
        metrics = tiny.arrays(
            (half.learner.update_model if batch is half.batch else half.learner.update_policy)(batch, key)
        )
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["finite"] == 1.0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_half_precision_learns(precision):
    case = Case(tiny.PAPER, precision=precision, **{"model_opt.lr": 0.01})
    update = tf.function(case.learner.update_model, autograph=False)
    losses, skipped = [], 0
    for _ in range(40):
        metrics = tiny.arrays(update(case.batch, tiny.key()))
        losses.append(metrics["model_loss"])
        skipped += metrics.get("skipped", 0)
    assert skipped < 10
    assert losses[-1] < losses[0] - 0.3 * (
        losses[0] - 2.5 * 275.7
    )  # what lies above the constant of the image likelihoods


def test_an_overflow_of_float16_is_skipped_and_training_goes_on():
    case = Case(tiny.PAPER, precision="mixed_float16")
    scale = case.learner.variables()["model_opt/model_scale/scale"]
    scale.assign(2.0**60)
    update = tf.function(case.learner.update_model, autograph=False)
    before, seen = tiny.snapshot(case.model.trained), []
    for _ in range(60):
        metrics = tiny.arrays(update(case.batch, tiny.key()))
        assert metrics["finite"] == 1.0
        seen.append(metrics["skipped"])
        if not seen[-1]:
            break
        for name, value in before.items():
            np.testing.assert_array_equal(case.model.trained[name], value)
    assert 1 < len(seen) < 60
    assert scale.numpy() == 2.0 ** (60 - sum(seen))
