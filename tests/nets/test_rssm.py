"""The recurrent state-space model against a step-by-step loop in float64."""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf.nets.layers import named_variables
from semopo_tf.nets.rssm import RSSM, alike, observe_together
from semopo_tf.types import Latent

B, T, E, A, D, S, C, K = 3, 6, 8, 2, 5, 3, 4, 3
modes = pytest.mark.parametrize("mode", tiny.MODES)


class Case:
    """A model with random weights and one random sequence; resets in the middle of two of the three rows."""

    def __init__(self, latent: str, actions: int = A, **more):
        rng = np.random.default_rng(7)
        sizes = {
            "deter": D,
            "stoch": S,
            "classes": C,
            "hidden": 7,
            "ensemble": K,
            "ensemble_hidden": 6,
            "min_std": 0.1,
            "act": "elu",
        }
        self.rssm = RSSM(name="rssm", latent=latent, action_size=actions, embed_size=E, **sizes, **more)
        self.rssm.build()
        self.variables = named_variables({"rssm": self.rssm})
        tiny.randomise(self.variables, rng, gain=1.5)
        self.classes = C if latent == "categorical" else 0
        self.weights = tiny.Weights(self.variables)
        self.p = self.weights.rssm("rssm", S, self.classes)
        self.embed, self.action = tiny.float32(rng.normal(size=(B, T, E))), tiny.float32(rng.uniform(-1, 1, (B, T, A)))
        self.is_first = np.zeros((B, T), bool)
        self.is_first[:, 0] = self.is_first[1, 3] = self.is_first[2, 4] = self.is_first[2, 5] = True
        self.noise = tiny.float32(rng.uniform(0.05, 0.95, (B, T, S)) if self.classes else rng.normal(size=(B, T, S)))
        self.member = rng.integers(0, K, T)

    def inputs(self, **changed):
        values = {"embed": self.embed, "action": self.action, "is_first": self.is_first, "noise": self.noise} | changed
        return [tiny.as_tensor(value) for value in values.values()]

    def filter(self, embed, *others):
        return self.rssm.observe(self.rssm.evidence(embed), *others)

    def observe(self, **changed):
        return self.filter(*self.inputs(**changed))

    def by_hand(self, p=None, members=None):
        action = self.action if self.rssm.action_size else self.action[..., :0]
        members = self.member if members is None else members

        def sample(stats, t):
            return reference.latent_sample(stats, self.noise[:, t])

        return reference.observe(self.embed, action, self.is_first, sample, members, p or self.p)


@pytest.fixture(scope="module", params=["gaussian", "categorical"])
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module", params=["gaussian", "categorical"])
def own(request):
    """A model whose members have bodies of their own."""
    return Case(request.param, ensemble_bodies="own")


def at(latent: Latent, t: int) -> Latent:
    return tf.nest.map_structure(lambda x: x[:, t], latent)


def same(one, other, tolerance=1e-5):
    for x, y in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        tiny.close(x, y, tolerance)


# ----------------------------------------------------------------------------------------------------------------- obse


@modes
def test_observe_and_drawn_priors_match_the_loop(mode, case):
    def both(embed, action, is_first, noise, member):
        post = case.filter(embed, action, is_first, noise)
        return post, case.rssm.prior(post.deter, member)

    post, prior = tiny.run(mode, both, *case.inputs(), case.member)
    deter, stoch, expected_post, expected_prior = case.by_hand()
    tiny.close(post.deter, deter)
    tiny.close(post.stoch, stoch)
    for name in expected_post:
        tiny.close(post.stats[name], expected_post[name])
        tiny.close(prior[name], expected_prior[name])


def test_a_model_without_action_input_matches_the_loop_and_ignores_actions():
    case = Case("gaussian", actions=0)
    post = case.observe()
    deter, stoch, stats, _ = case.by_hand()
    tiny.close(post.deter, deter)
    tiny.close(post.stoch, stoch)
    tiny.close(post.stats["std"], stats["std"])
    for x, y in zip(tf.nest.flatten(post), tf.nest.flatten(case.observe(action=-3 * case.action)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_observe_is_a_loop_of_one_step_observations(case):
    whole = case.observe()
    latent = case.rssm.initial(B)
    for t in range(T):
        now = slice(t, t + 1)
        embed, action, is_first, noise = case.inputs()
        one = case.filter(embed[:, now], action[:, now], is_first[:, now], noise[:, now], latent)
        latent = at(one, 0)
        same(latent, at(whole, t), 1e-6)


def test_the_action_of_record_t_leads_to_state_t(case):
    """A change of action[t] moves the states from t on and none before."""
    before = case.observe()
    action = case.action.copy()
    action[0, 3] += 0.5
    after = case.observe(action=action)
    np.testing.assert_array_equal(after.deter[0, :3], before.deter[0, :3])
    assert (after.deter[0, 3].numpy() != before.deter[0, 3].numpy()).any()
    np.testing.assert_array_equal(after.deter[1:], before.deter[1:])


def test_image_t_moves_the_posterior_of_t_and_the_deterministic_state_only_afterwards(case):
    before = case.observe()
    embed = case.embed.copy()
    embed[0, 3] += 5.0
    after = case.observe(embed=embed)
    np.testing.assert_array_equal(after.deter[0, :4], before.deter[0, :4])
    name = "logit" if case.classes else "mean"
    np.testing.assert_array_equal(after.stats[name][0, :3], before.stats[name][0, :3])
    assert (after.stats[name][0, 3].numpy() != before.stats[name][0, 3].numpy()).all()
    assert (after.deter[0, 4].numpy() != before.deter[0, 4].numpy()).any()


def test_nothing_crosses_a_first_record(case):
    """Row 1 restarts at 3: what comes before, and the action into 3, have no influence from 3 on."""
    before = case.observe()
    embed, action = case.embed.copy(), case.action.copy()
    embed[1, :3], action[1, :4] = 9.0, -9.0
    after = case.observe(embed=embed, action=action)
    for x, y in zip(tf.nest.flatten(after), tf.nest.flatten(before), strict=True):
        np.testing.assert_array_equal(x[1, 3:], y[1, 3:])
        assert (x[1, :3].numpy() != y[1, :3].numpy()).any()


def test_a_first_record_forgets_the_state_it_is_given(case):
    post = case.observe()
    start = at(post, T - 1)
    embed, action, is_first, noise = case.inputs()
    same(case.filter(embed, action, is_first, noise, start), post, 0)
    carried = case.filter(embed, action, tf.zeros_like(is_first), noise, start)
    assert (carried.deter[:, 0].numpy() != post.deter[:, 0].numpy()).any(-1).all()


# ------------------------------------------------------------------------------------------------------------------ pri


def test_the_first_action_enters_where_it_is_wanted_beside_a_state_of_zero():
    dropped, kept = Case("gaussian"), Case("gaussian", first_action=True)
    zeroed = np.where(kept.is_first[..., None], 0, kept.action)
    tiny.close(kept.observe(action=zeroed).deter, dropped.observe().deter)
    assert np.abs(kept.observe().deter - dropped.observe().deter)[:, 0].max() > 1e-3
    alone = kept.observe(
        is_first=kept.is_first[:, :1], embed=kept.embed[:, :1], action=kept.action[:, :1], noise=kept.noise[:, :1]
    )
    tiny.close(alone.deter[:, 0], kept.observe(is_first=np.zeros_like(kept.is_first)).deter[:, 0])


@modes
def test_two_models_in_one_scan_are_each_by_itself(mode, case):
    """Values, and the gradients to all weights and inputs, of an endogenous and an exogenous model of other weights."""
    latent = "categorical" if case.classes else "gaussian"
    models = [Case(latent).rssm, Case(latent, actions=0).rssm]
    variables = named_variables({"one": models[0], "two": models[1]})
    tiny.randomise(variables, np.random.default_rng(3), gain=1.5)
    assert alike(models) and not alike(models[:1])
    inputs = [case.embed, case.embed[::-1].copy()], [case.action, case.action], [case.noise, case.noise[::-1].copy()]

    def states(observe):
        def run(embed, action, noise):
            with tf.GradientTape() as tape:
                tape.watch([embed, action])
                evidence = [model.evidence(x) for model, x in zip(models, embed, strict=True)]
                each = list(zip(evidence, action, [tf.constant(case.is_first)] * 2, noise, strict=True))
                latents = observe(models, each)
                total = tf.add_n([tf.reduce_sum(tf.sin(x)) for x in tf.nest.flatten(latents)])
            sources = [*variables.values(), *embed, action[0]]
            return latents, tape.gradient(total, sources, unconnected_gradients="zero")

        return tiny.run(mode, run, *inputs)

    def apart(models, inputs):
        return [model.observe(*each) for model, each in zip(models, inputs, strict=True)]

    same(states(observe_together), states(apart))


@modes
def test_the_drawn_prior_is_all_priors_and_then_a_choice(mode, case):
    deter = case.observe().deter
    drawn = tiny.run(mode, case.rssm.prior, deter, case.member)
    everything = tiny.run(mode, case.rssm.prior_all, deter)
    for name, value in drawn.items():
        assert everything[name].shape[:3] == (K, B, T)
        chosen = np.stack([everything[name][case.member[t], :, t] for t in range(T)], 1)
        tiny.close(value, chosen)


def test_all_priors_match_the_loop(case):
    deter = case.by_hand()[0]
    received = case.rssm.prior_all(tf.constant(deter, tf.float32))
    for name, value in reference.all_priors(deter, case.p).items():
        tiny.close(received[name], value)


def test_members_are_drawn_one_a_step_and_uniformly():
    rssm = Case("gaussian").rssm
    drawn = np.concatenate([rssm.draw_members(tiny.key(step), "member", 50).numpy() for step in range(60)])
    counts = np.bincount(drawn, minlength=K)
    assert len(counts) == K
    # 3000 draws over three: 1000 each, standard deviation 26.
    assert (np.abs(counts - 1000) < 130).all()


def test_noise_is_standard_normal_or_uniform(case):
    noise = case.rssm.draw(tiny.key(), "state", (100, 100)).numpy()
    assert noise.shape == (100, 100, S)
    mean, std = (0.5, 12**-0.5) if case.classes else (0.0, 1.0)
    assert noise.mean() == pytest.approx(mean, abs=0.03)
    assert noise.std() == pytest.approx(std, rel=0.03)


# -------------------------------------------------------------------------------------------------------------- imagina


@modes
def test_one_imagined_step_matches_the_equations(mode, case):
    deter, stoch, _, _ = case.by_hand()
    latent = Latent(deter[:, 2], stoch[:, 2], {key: value[:, 2].numpy() for key, value in case.observe().stats.items()})
    received = tiny.run(mode, case.rssm.step, latent, case.action[:, 3], np.int64(1), case.noise[:, 3])
    state = reference.advance(stoch[:, 2], case.action[:, 3], deter[:, 2], case.p)
    stats = reference.prior(state, 1, case.p)
    tiny.close(received.deter, state)
    for name in stats:
        tiny.close(received.stats[name], stats[name])
    tiny.close(received.stoch, reference.latent_sample(stats, case.noise[:, 3]))


def test_an_imagined_step_predicts_what_observe_then_corrects(case):
    """From the posterior of t - 1 under action[t]: the same deterministic state, and the prior of t."""
    post = case.observe()
    for t in (1, 2):
        _, action, _, noise = case.inputs()
        ahead = case.rssm.step(at(post, t - 1), action[:, t], tf.constant(case.member[t]), noise[:, t])
        prior = case.rssm.prior(post.deter, tf.constant(case.member))
        tiny.close(ahead.deter, post.deter[:, t])
        for name, value in ahead.stats.items():
            tiny.close(value, prior[name][:, t])


@modes
def test_open_loop_is_repeated_steps(mode, case):
    start = at(case.observe(), 1)
    received = tiny.run(mode, case.rssm.open_loop, start, case.action[:, 2:], case.member[2:], case.noise[:, 2:])
    latent = start
    for i in range(T - 2):
        _, action, _, noise = case.inputs()
        latent = case.rssm.step(latent, action[:, 2 + i], tf.constant(case.member[2 + i]), noise[:, 2 + i])
        same(tf.nest.map_structure(lambda x, i=i: x[:, i], received), latent)


# ------------------------------------------------------------------------------------------------------- bodies of thei


@modes
def test_members_with_bodies_of_their_own_match_the_loop(mode, own):
    def both(embed, action, is_first, noise, member):
        post = own.filter(embed, action, is_first, noise)
        return post, own.rssm.prior(own.rssm.prior_input(post), member)

    post, prior = tiny.run(mode, both, *own.inputs(), own.member)
    deter, stoch, expected_post, expected_prior = own.by_hand()
    tiny.close(post.deter, deter)
    tiny.close(post.stoch, stoch)
    for name in expected_post:
        tiny.close(post.stats[name], expected_post[name])
        tiny.close(prior[name], expected_prior[name])


@modes
def test_an_imagined_step_with_own_bodies_predicts_what_observe_then_corrects(mode, own):
    """From the posterior of t - 1 under action[t]: the same state of the recursion, and the prior of t."""
    post = own.observe()
    prior = own.rssm.prior(own.rssm.prior_input(post), tf.constant(own.member))
    for t in (1, 2):
        _, action, _, noise = own.inputs()
        member = tf.constant(own.member[t])
        ahead = tiny.run(mode, own.rssm.step, at(post, t - 1), action[:, t], member, noise[:, t])
        tiny.close(ahead.deter, post.deter[:, t])
        tiny.close(ahead.before, post.before[:, t])
        for name, value in ahead.stats.items():
            tiny.close(value, prior[name][:, t])


def test_members_with_bodies_of_their_own_share_nothing_but_the_state_before(own):
    """No weight of the recursion moves a prediction; each member has its share of every layer of the ensemble."""
    inputs = own.rssm.prior_input(own.observe())
    with tf.GradientTape(persistent=True) as tape:
        stats = own.rssm.prior_all(inputs)
        each = [tf.add_n([tf.reduce_sum(tf.sin(x[k])) for x in stats.values()]) for k in range(K)]
    for name, variable in own.variables.items():
        for k in range(K):
            gradient = tape.gradient(each[k], variable)
            if not name.startswith("rssm/prior/"):
                assert gradient is None, name
            else:
                assert [bool(np.any(part)) for part in gradient.numpy()] == [member == k for member in range(K)], name


def test_two_models_with_own_bodies_in_one_scan_are_each_by_itself():
    models = [Case("gaussian", ensemble_bodies="own"), Case("gaussian", actions=0, ensemble_bodies="own")]
    inputs = []
    for model in models:
        embed, *others = model.inputs()
        inputs.append((model.rssm.evidence(embed), *others))
    together = observe_together([model.rssm for model in models], inputs)
    same(together, [model.observe() for model in models], 1e-6)
    assert together[0].before.shape[-1] == models[0].rssm.feat_size + A
    assert together[1].before.shape[-1] == models[1].rssm.feat_size


@modes
def test_the_states_of_all_members_are_samples_of_their_priors_with_one_noise(mode, case):
    latent = case.observe()
    received = tiny.run(mode, case.rssm.step_all, latent, case.noise)
    assert received.deter.shape == (K, B, T, D)
    for k in range(K):
        stats = reference.prior(latent.deter.numpy().astype(np.float64), k, case.p)
        tiny.close(received.stoch[k], reference.latent_sample(stats, case.noise))
        tiny.close(received.deter[k], latent.deter, 0)


# --------------------------------------------------------------------------------------------------------------- the re


def test_features_are_the_flat_stochastic_state_and_then_the_deterministic_one(case):
    post = case.observe()
    feat = case.rssm.features(post)
    assert feat.shape == (B, T, case.rssm.feat_size)
    tiny.close(feat, reference.features(post.deter.numpy(), post.stoch.numpy(), case.p), 0)


def test_the_initial_state_is_zero(case):
    initial = case.rssm.initial(4)
    assert initial.deter.shape == (4, D)
    assert initial.stoch.shape == ((4, S, C) if case.classes else (4, S))
    assert all(not x.numpy().any() for x in tf.nest.flatten(initial))


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_gradients_through_the_recursion_are_those_of_central_differences(mode):
    """All weights at once, along a random direction: the slope of a random function of states, posteriors and priors in
    float64.
    """
    case, rng = Case("gaussian"), np.random.default_rng(3)
    w = {
        name: tiny.float32(rng.normal(size=(B, T, D if name == "deter" else S)))
        for name in ("deter", "stoch", "post", "prior")
    }
    direction = {name: rng.normal(size=value.shape) for name, value in case.weights.values.items()}

    def value(deter, stoch, post, prior):
        return (
            (deter * w["deter"]).sum()
            + (stoch * w["stoch"]).sum()
            + (post["std"] * w["post"]).sum()
            + (prior["mean"] * w["prior"]).sum()
        )

    def gradients(*inputs):
        with tf.GradientTape() as tape:
            post = case.filter(*inputs)
            prior = case.rssm.prior(post.deter, tf.constant(case.member))
            terms = (
                post.deter * w["deter"],
                post.stoch * w["stoch"],
                post.stats["std"] * w["post"],
                prior["mean"] * w["prior"],
            )
            total = tf.add_n([tf.reduce_sum(term) for term in terms])
        return tape.gradient(total, list(case.variables.values()))

    received = tiny.run(mode, gradients, *case.inputs())
    slope = sum((gradient * direction[name]).sum() for name, gradient in zip(case.variables, received, strict=True))
    h = 1e-5
    up, down = (value(*case.by_hand(case.weights.moved(direction, sign * h).rssm("rssm", S))) for sign in (1, -1))
    assert slope == pytest.approx((up - down) / (2 * h), rel=1e-4)


@pytest.mark.parametrize(("actions", "expected"), [(6, 2_723_392), (4, 2_722_992), (21, 2_726_392), (3, 2_722_792)])
def test_parameter_count_at_the_released_size(actions, expected):
    sizes = {
        "deter": 200,
        "stoch": 32,
        "classes": 32,
        "hidden": 200,
        "ensemble": 7,
        "ensemble_hidden": 200,
        "min_std": 0.1,
        "act": "elu",
    }
    rssm = RSSM(name="rssm", latent="categorical", action_size=actions, embed_size=1536, **sizes)
    rssm.build()
    assert sum(int(np.prod(weight.shape)) for weight in rssm.trainable_weights) == expected
    # Input, GRU with its normalisation, seven heads, posterior.
    dense = [(1024 + actions, 200), (400, 600)] + 7 * [(200, 200), (200, 1024)] + [(200 + 1536, 200), (200, 1024)]
    assert sum(i * o + o for i, o in dense) + 2 * 600 == expected
    assert rssm.feat_size == 1224
