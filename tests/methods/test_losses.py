"""Losses, returns and penalties against loops in float64, hand-made numbers and limiting cases."""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf.methods import losses

modes = pytest.mark.parametrize("mode", tiny.MODES)


# --- KL ---------------------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("level", [0.3, 3.0])
def test_balanced_kl_floors_the_mean_not_the_elements(mode, level, rng):
    value = tiny.float32(rng.uniform(0, 2 * level, (3, 4)))
    expected = max(value.mean(), 1.0)  # 0.2 x + 0.8 x
    tiny.close(tiny.run(mode, lambda v: losses.balanced_kl(v, v, balance=0.8, free=1.0), value), expected)


def test_balanced_kl_by_hand():
    # Means 3 and 2: 0.2 * 3 + 0.8 * 2. Means 0.5 and 2: 0.2 * 1 + 0.8 * 2. Means 0: 0.2 + 0.8 = 1.
    def kl(post_side, prior_side):
        return losses.balanced_kl(tf.constant([post_side]), tf.constant([prior_side]), balance=0.8, free=1.0).numpy()

    assert kl([2.0, 4.0], [0.0, 4.0]) == pytest.approx(2.2)
    assert kl([1.0, 0.0], [0.0, 4.0]) == pytest.approx(1.8)
    assert kl([0.0, 0.0], [0.0, 0.0]) == pytest.approx(1.0)


def test_balanced_kl_gives_no_gradient_below_the_floor_and_its_share_above_it():
    post_side, prior_side = tf.constant([[0.2, 0.4]]), tf.constant([[3.0, 5.0]])
    with tf.GradientTape() as tape:
        tape.watch([post_side, prior_side])
        loss = losses.balanced_kl(post_side, prior_side, balance=0.8, free=1.0)
    by_post, by_prior = tape.gradient(loss, [post_side, prior_side])
    tiny.close(by_post, [[0.0, 0.0]])
    tiny.close(by_prior, [[0.4, 0.4]])  # 0.8 shared by two elements of a mean


# --- returns ----------------------------------------------------------------------------------------------------------


def next_values(value, bootstrap):
    """v_1 .. v_H from v_0 .. v_{H-1} and v_H."""
    return np.concatenate([value[:, 1:], bootstrap[:, None]], 1)


@modes
def test_lambda_return_golden_numbers(mode):
    # G_2 = 3 + .99 * .8 = 3.792; G_1 = 2 + .99 (.05 * .7 + .95 * 3.792) = 5.601026; G_0 = 1 + .99 (.05 * .6 + .95 *
    # 5.601026).
    returns = tiny.run(
        mode,
        lambda r, v, d: losses.lambda_return(r, v, d, lambda_=0.95),
        np.array([[1.0, 2, 3]]),
        np.array([[0.6, 0.7, 0.8]]),
        np.full((1, 3), 0.99),
    )
    np.testing.assert_allclose(returns, [[6.297465, 5.601026, 3.792]], atol=5e-7 * 4)


@modes
def test_lambda_return_matches_the_loop_with_any_discounts(mode, rng):
    reward, value = tiny.float32(rng.normal(size=(4, 6))), tiny.float32(rng.normal(size=(4, 6)))
    bootstrap, discount = tiny.float32(rng.normal(size=4)), tiny.float32(rng.uniform(0, 1, (4, 6)))
    received = tiny.run(
        mode,
        lambda r, v, d: losses.lambda_return(r, v, d, lambda_=0.7),
        reward,
        next_values(value, bootstrap),
        discount,
    )
    tiny.close(received, reference.lambda_return(reward, value, bootstrap, discount, 0.7))


def test_lambda_return_limits(rng):
    """lambda 0 is one step and then the value; lambda 1 is the discounted sum of all rewards and the last value."""
    reward, after = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))

    def returns(lambda_):
        return losses.lambda_return(
            *(tf.constant(x, tf.float32) for x in (reward, after, np.full((3, 5), 0.9))), lambda_=lambda_
        )

    tiny.close(returns(0.0), reward + 0.9 * after)
    monte_carlo = sum(0.9**t * reward[:, t] for t in range(5)) + 0.9**5 * after[:, -1]
    tiny.close(returns(1.0)[:, 0], monte_carlo)


def test_lambda_return_of_an_endless_reward_is_its_value():
    """Reward 1 for ever is worth 1 / (1 - gamma); with that value as bootstrap every return is it, for any lambda."""
    worth = np.full((2, 8), 10.0, np.float32)
    received = losses.lambda_return(tf.ones([2, 8]), tf.constant(worth), tf.fill([2, 8], 0.9), lambda_=0.95)
    tiny.close(received, worth)


def test_lambda_return_gradients_by_hand():
    # H = 2: G_0 = r_0 + d_0 [(1 - l) v_1 + l (r_1 + d_1 v_2)], with d = (.9, .8), l = .5, v = (2, 4), r = (1, 3).
    reward, after, discount = tf.constant([[1.0, 3.0]]), tf.constant([[2.0, 4.0]]), tf.constant([[0.9, 0.8]])
    with tf.GradientTape() as tape:
        tape.watch([reward, after, discount])
        first = losses.lambda_return(reward, after, discount, lambda_=0.5)[:, 0]
    by_reward, by_value, by_discount = tape.gradient(first, [reward, after, discount])
    tiny.close(by_reward, [[1.0, 0.45]])  # 1, d_0 l
    tiny.close(by_value, [[0.45, 0.36]])  # d_0 (1 - l), d_0 l d_1
    tiny.close(by_discount, [[4.1, 1.8]])  # .5 * 2 + .5 (3 + .8 * 4), d_0 l v_2


# --- actor and critic -------------------------------------------------------------------------------------------------


@modes
def test_actor_and_critic_loss_match_the_loops(mode, rng):
    returns, entropy = tiny.float32(rng.normal(size=(4, 5))), tiny.float32(rng.normal(size=(4, 4)))
    weight, value = (
        tiny.float32(reference.discount_weights(rng.uniform(0, 1, (4, 6)))),
        tiny.float32(rng.normal(size=(4, 5))),
    )
    actor = tiny.run(mode, lambda g, e, w: losses.actor_loss(g, e, w, entropy_scale=0.1), returns, entropy, weight)
    assert actor.shape == (4, 4)
    tiny.close(actor.mean(), reference.actor_loss(returns, entropy, weight, 0.1))
    log_prob = reference.unit_normal_log_prob(returns, value)
    critic = tiny.run(mode, losses.critic_loss, log_prob, weight)
    assert critic.shape == (4, 5)
    tiny.close(critic.mean(), reference.critic_loss(returns, value, weight))


@modes
def test_advantage_weights_match_their_formula_and_count_no_action_more_than_twenty_times(mode, rng):
    advantage = tiny.float32(rng.normal(size=(8, 30)) * 3 + 5)
    z = (advantage - advantage.mean()) / np.sqrt(advantage.var() + 1e-6)
    for temperature in (0.1, 1.0):
        expected = np.exp(z / temperature) / np.exp(z / temperature).mean()
        weights = tiny.run(mode, lambda a, t=temperature: losses.advantage_weights(a, temperature=t), advantage)
        tiny.close(weights, np.minimum(expected, 20), 1e-4)
        assert (expected.max() > 20) == (temperature == 0.1)
    tiny.close(losses.advantage_weights(tf.fill([2, 3], 7.0), temperature=0.3), np.ones((2, 3)))


def test_actor_loss_alignment_by_hand():
    """H = 3, one rollout. Powers of ten show what went where: G_0 must not appear, w_0 goes with G_1 and h_0."""
    target, entropy = tf.constant([[7.0, 10.0, 20.0]]), tf.constant([[0.1, 0.2]])
    weight = tf.constant([[1.0, 0.5, 9.0, 9.0]])
    # -(1 (10 + 2 * .1)), -(.5 (20 + 2 * .2))
    tiny.close(losses.actor_loss(target, entropy, weight, entropy_scale=2.0), [[-10.2, -10.2]])


def test_critic_loss_alignment_by_hand():
    """H = 3: weights w_0 .. w_2; the last weight, of the bootstrap state, is not used."""
    log_prob, weight = tf.constant([[-1.0, -2.0, -3.0]]), tf.constant([[1.0, 0.5, 0.25, 9.0]])
    tiny.close(losses.critic_loss(log_prob, weight), [[1.0, 1.0, 0.75]])


# --- penalties --------------------------------------------------------------------------------------------------------

BY_CENTRE = {"sum_of_squares": reference.disagreement_sum_of_squares, "mean_norm": reference.disagreement_mean_of_norms}
BY_LOG_PROB = {"log_prob_variance": reference.log_prob_variance, "log_prob_std": reference.log_prob_std}


def member_stats(rng, kind, members=4):
    if kind == "categorical":
        return {"logit": tiny.float32(rng.normal(0, 2, (members, 2, 5, 3, 4)))}
    return {
        "mean": tiny.float32(rng.normal(size=(members, 2, 5, 3))),
        "std": tiny.float32(rng.uniform(0.1, 2.1, (members, 2, 5, 3))),
    }


@modes
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("name", BY_CENTRE)
def test_disagreement_of_centres(mode, kind, name, rng):
    stats = member_stats(rng, kind)
    centres = stats["mean"] if kind == "gaussian" else reference.softmax(stats["logit"]).reshape(4, 2, 5, 12)
    received = tiny.run(mode, getattr(losses, name), centres)
    assert received.shape == (2, 5)
    tiny.close(received, BY_CENTRE[name](stats))


@modes
@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("name", BY_LOG_PROB)
def test_spread_of_log_probabilities(mode, kind, name, rng):
    stats = member_stats(rng, kind)
    stoch = rng.normal(size=(2, 5, 3)) if kind == "gaussian" else np.eye(4)[rng.integers(0, 4, (2, 5, 3))]
    log_probs = tiny.float32(
        [reference.latent_log_prob({key: x[k] for key, x in stats.items()}, stoch) for k in range(4)]
    )
    received = tiny.run(mode, getattr(losses, name), log_probs)
    expected = BY_LOG_PROB[name](stats, stoch)
    assert received.shape == (2, 5)
    tiny.close(received / expected, np.ones((2, 5)))


@pytest.mark.parametrize(("factors", "norm", "squares"), [(1, 0.141421, 0.04), (32, 0.8, 1.28)])
def test_worked_example_of_the_penalty(factors, norm, squares):
    # p_1 = (.6, .4), p_2 = (.8, .2), mean (.7, .3): each member is (.1, .1) away, squared length .02 a factor.
    centres = tf.constant([[0.6, 0.4] * factors, [0.8, 0.2] * factors])
    assert losses.mean_norm(centres).numpy() == pytest.approx(norm, abs=1e-6)
    assert losses.sum_of_squares(centres).numpy() == pytest.approx(squares, abs=1e-6)


def test_spread_of_log_probabilities_divides_by_the_number_of_members():
    # 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, over K = 4 (not K - 1).
    log_probs = tf.constant([1.0, 2.0, 3.0, 6.0])
    assert losses.log_prob_variance(log_probs).numpy() == pytest.approx(3.5)
    assert losses.log_prob_std(log_probs).numpy() == pytest.approx(np.sqrt(3.5))


@modes
@pytest.mark.parametrize("members", [1, 7])
@pytest.mark.parametrize("name", [*BY_CENTRE, *BY_LOG_PROB])
def test_identical_members_have_no_penalty_and_no_gradient(mode, members, name, rng):
    shape = (5, 12) if name in BY_CENTRE else (5,)
    same = np.broadcast_to(rng.normal(size=shape), (members, *shape))

    def value_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = getattr(losses, name)(x)
        return value, tape.gradient(value, x)

    value, gradient = tiny.run(mode, value_and_gradient, same)
    np.testing.assert_array_equal(value, np.zeros(5))
    np.testing.assert_array_equal(gradient, np.zeros(same.shape))


@pytest.mark.parametrize("name", [*BY_CENTRE, *BY_LOG_PROB])
def test_penalties_do_not_know_the_order_of_the_members(name, rng):
    x = rng.normal(size=(6, 5, 4) if name in BY_CENTRE else (6, 5)).astype(np.float32)
    function = getattr(losses, name)
    tiny.close(function(tf.constant(x)), function(tf.constant(x[rng.permutation(6)])))


@modes
def test_gradients_of_the_penalties_by_hand(mode):
    """Two members a distance 2d = 0.5 apart on a line, at 0.25 and -0.25 from their mean.

    sum of squares = 2 d^2 with d = (x_1 - x_2) / 2: derivative 2 d = 0.5 by x_1. mean of norms = |d|: derivative 1/2.
    log-prob variance = d^2: derivative d = 0.25. std = |d|: 1/2.
    """

    def gradients(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            values = [
                losses.sum_of_squares(x),
                losses.mean_norm(x),
                losses.log_prob_variance(x[..., 0]),
                losses.log_prob_std(x[..., 0]),
            ]
        return [tape.gradient(value, x)[:, 0, 0] for value in values]

    received = tiny.run(mode, gradients, np.array([[[1.5]], [[1.0]]]))
    for gradient, expected in zip(received, [0.5, 0.5, 0.25, 0.5], strict=True):
        tiny.close(gradient, [expected, -expected])
