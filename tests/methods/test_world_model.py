"""The world models against the equations in float64: every loss term, its weight, its gradient, and what must not
matter.
"""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf.errors import ConfigError
from semopo_tf.methods import world_model
from semopo_tf.methods.world_model import Kl
from semopo_tf.run import build
from semopo_tf.types import Batch, Latent

COLORS = 3
B, T = 2, 4
STEP = 5
KEY = tiny.key(STEP)

# Name -> (overlays, flags, weight of the exogenous-only image).
SEPARATED = {
    "released": (tiny.RELEASED, {}, 2.25),  # 1.5 squared: the released code multiplies twice
    "released hopper": (tiny.RELEASED, {"model.exo_only": 2.0}, 4.0),
    "paper": (tiny.PAPER, {}, 1.5),
    "larger exogenous state": (tiny.PAPER, {"model.exo_stoch": 6}, 1.5),
    "true action": (tiny.PAPER, {"model.exo_action": "taken", "model.image_scale": 4.0}, 1.5),
    "heavy reward": (tiny.PAPER, {"model.reward_gradient": True, "model.reward_scale": 100.0}, 1.5),
    "heavy KL": (tiny.PAPER, {"model.kl_scale": 4.0}, 1.5),
    "KL growing heavy": (tiny.PAPER, {"model.kl_scale": 4.0, "model.kl_warmup": 4 * STEP}, 1.5),
    "KL grown heavy": (tiny.PAPER, {"model.kl_scale": 4.0, "model.kl_warmup": STEP - 1}, 1.5),
}


class Case:
    """An agent with random weights and a batch."""

    def __init__(self, *names, **flags):
        rng = np.random.default_rng(11)
        self.learner = tiny.learner(*names, **flags)
        self.model = self.learner.world_model
        tiny.randomise(self.model.trained, rng, gain=2.0)  # large enough for KLs above the free nats
        self.batch = tiny.batch(rng, B, T)
        self.weights = tiny.Weights(self.model.trained)
        self.classes = 4 if self.model.main.rssm.dist.noise_kind == "uniform" else 0
        self.image = self.batch.image.numpy() / 255 - 0.5

    def by_hand(self, exo_action="absent", weights=None):
        """All terms of the batch at KEY, by the reference."""
        weights = weights or self.weights
        action, reward, is_first = (
            x.numpy().astype(np.float64) for x in (self.batch.action, self.batch.reward, self.batch.is_first)
        )
        if self.model.main.name == "joint":
            p = {"joint": weights.stream("joint", self.model.main.rssm, KEY, (B, T), self.classes)}
            p |= {"decoder": weights.decoder("decoder"), "reward": weights.mlp("reward", "reward")}
            return reference.joint_terms(p, self.image, action, reward, is_first)
        branches = {"endo": self.model.main.rssm, "exo": self.model.exo.rssm}
        p = {name: weights.stream(name, rssm, KEY, (B, T), self.classes) for name, rssm in branches.items()}
        p |= {"mask": weights.mask(), "reward": weights.mlp("reward", "reward")}
        p |= {
            name: weights.decoder(name)
            for name in ("endo_decoder", "exo_decoder", "exo_only_decoder")
            if f"{name}/dense/kernel" in weights.values
        }
        exo = {"absent": action[..., :0], "zero": np.zeros_like(action), "taken": action}[exo_action]
        return reference.separated_terms(p, self.image, action, exo, reward, is_first)


@pytest.fixture(scope="module")
def released():
    return Case(*tiny.RELEASED)


@pytest.fixture(scope="module")
def paper():
    return Case(*tiny.PAPER)


@pytest.fixture(scope="module")
def joint():
    return Case(*tiny.OFFLINE_DV2)


def gradients(value, variables, tape):
    """By name, with zeros for what is not reached."""
    found = tape.gradient(value, list(variables.values()), unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {name: gradient.numpy() for name, gradient in zip(variables, found, strict=True)}


# --- every term of the loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEPARATED)
def test_every_term_of_the_separated_model_matches_the_equations(name):
    overlays, flags, exo_weight = SEPARATED[name]
    case = Case(*overlays, **flags)
    config = tiny.config(*overlays, **flags)
    metrics = tiny.arrays(case.model.losses(case.batch, KEY).metrics)
    terms = case.by_hand(config.model.exo_action)
    total = 0.0
    kl_weight = 1.75 if config.model.kl_warmup > STEP else config.model.kl_scale  # a quarter of the way from 1 to 4
    for stream in ("endo", "exo"):
        post, prior = terms[f"{stream}_post"], terms[f"{stream}_prior"]
        assert reference.kl(post, prior).mean() > 1.0  # the floor is not what is compared
        tiny.close(metrics[f"{stream}_kl"], reference.kl(post, prior).mean())
        tiny.close(metrics[f"{stream}_kl_loss"], reference.kl_balanced(post, prior))
        entropy = reference.categorical_entropy if case.classes else reference.gaussian_entropy
        tiny.close(metrics[f"{stream}_post_ent"], entropy(post["logit" if case.classes else "std"]).mean())
        tiny.close(metrics[f"{stream}_prior_ent"], entropy(prior["logit" if case.classes else "std"]).mean())
        total += (kl_weight if stream == "endo" else 1.0) * reference.kl_balanced(post, prior)
    tiny.close(metrics["image_loss"], terms["image"])
    tiny.close(metrics["exo_image_loss"], terms["exo_image"])
    tiny.close(metrics["reward_loss"], terms["reward"])
    tiny.close(metrics["mask_mean"], terms["mask"].mean())
    scale = config.model.image_scale
    tiny.close(
        metrics["model_loss"],
        total
        + scale * (terms["image"] + exo_weight * terms["exo_image"])
        + config.model.reward_scale * terms["reward"],
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_every_term_of_the_joint_model_matches_the_equations(scale):
    joint = Case(*tiny.OFFLINE_DV2, **{"model.reward_scale": scale, "model.kl_scale": 2 * scale})
    losses = joint.model.losses(joint.batch, KEY)
    metrics, terms = tiny.arrays(losses.metrics), joint.by_hand()
    kl = reference.kl_balanced(terms["post"], terms["prior"])
    assert kl > 1.0
    tiny.close(metrics["joint_kl_loss"], kl)
    tiny.close(metrics["image_loss"], terms["image"])
    tiny.close(metrics["reward_loss"], terms["reward"])
    tiny.close(losses.total, 2 * scale * kl + terms["image"] + scale * terms["reward"])


def test_the_losses_are_the_same_in_a_graph(released):
    eager = released.model.losses(released.batch, KEY)
    graph = tf.function(released.model.losses, autograph=False)(released.batch, KEY)
    for one, other in zip(tf.nest.flatten(eager), tf.nest.flatten(graph), strict=True):
        tiny.close(one, other)


def test_strict_elbo_is_the_plain_sum_and_its_slope_that_of_central_differences():
    """KL of weight 1 without floor, image, reward; no exogenous-only term. With the reward's gradient let in, the total
    is an ordinary function of all weights, and its slope along a random direction can be taken numerically through
    convolutions, recursion and blend.
    """
    case = Case(*tiny.PAPER, **{"kl.strict_elbo": True, "model.reward_gradient": True})
    assert "exo_only_decoder" not in case.model.layers

    def total(weights):
        terms = case.by_hand(weights=weights)
        kl = reference.kl_strict(terms["endo_post"], terms["endo_prior"]) + reference.kl_strict(
            terms["exo_post"], terms["exo_prior"]
        )
        return kl + terms["image"] + terms["reward"]

    with tf.GradientTape() as tape:
        losses = case.model.losses(case.batch, KEY)
    tiny.close(losses.total, total(tiny.Weights(case.model.trained)))
    assert "exo_image_loss" not in losses.metrics
    rng, h = np.random.default_rng(0), 1e-6
    direction = {name: rng.normal(size=value.shape) for name, value in case.weights.values.items()}
    slope = sum(
        (gradient * direction[name]).sum()
        for name, gradient in gradients(losses.total, case.model.trained, tape).items()
    )
    by_differences = (total(case.weights.moved(direction, h)) - total(case.weights.moved(direction, -h))) / (2 * h)
    assert slope == pytest.approx(by_differences, rel=1e-4)


@pytest.mark.parametrize("stream", ["endo", "exo"])
def test_four_fifths_of_the_balanced_kl_train_the_prior_and_one_fifth_the_posterior(stream, paper):
    """Slope by central differences with the other side's statistics held still."""
    with tf.GradientTape() as tape:
        loss = paper.model.losses(paper.batch, KEY).metrics[f"{stream}_kl_loss"]
    rng, h = np.random.default_rng(1), 1e-6
    direction = {
        name: rng.normal(size=value.shape) for name, value in paper.weights.values.items() if name.startswith(stream)
    }
    here = paper.by_hand()
    still = {"still_post": here[f"{stream}_post"], "still_prior": here[f"{stream}_prior"]}

    def value(by):
        terms = paper.by_hand(weights=paper.weights.moved(direction, by))
        return reference.kl_balanced(terms[f"{stream}_post"], terms[f"{stream}_prior"], **still)

    found = gradients(loss, {name: paper.model.trained[name] for name in direction}, tape)
    slope = sum((gradient * direction[name]).sum() for name, gradient in found.items())
    assert slope == pytest.approx((value(h) - value(-h)) / (2 * h), rel=1e-4)


# --- limiting cases ---------------------------------------------------------------------------------------------------


def test_kl_of_a_posterior_that_equals_its_prior_is_one_nat_with_zero_gradient(released, paper):
    """0.2 max(0, 1) + 0.8 max(0, 1) = 1, and below the floor nothing flows. Without the floor it is 0."""
    for case in (released, paper):
        branch, losses = case.model.main, []
        with tf.GradientTape(persistent=True) as tape:
            post = case.model.posterior(case.batch, KEY)
            prior = branch.rssm.prior(post.deter, branch.rssm.draw_members(KEY, "endo_member", T))
            same = Latent(post.deter, post.stoch, prior)
            losses = [
                branch.kl(same, branch.draw(KEY, same.deter.shape[:2]).member, Kl(0.8, 1.0, strict))[0]
                for strict in (False, True)
            ]
        assert losses[0].numpy() == 1.0
        assert losses[1].numpy() == pytest.approx(0.0, abs=1e-6)
        for gradient in gradients(losses[0], case.model.variables_of(*branch.layers), tape).values():
            np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(("bias", "stream"), [(200.0, "endo"), (-200.0, "exo")])
def test_a_mask_of_one_or_zero_shows_one_stream_alone(bias, stream, released):
    mask = released.model.variables_of("mask")
    before = tiny.snapshot(mask)
    mask["mask/conv/kernel"].assign(tf.zeros_like(mask["mask/conv/kernel"]))
    mask["mask/conv/bias"].assign([bias])
    rows = tiny.arrays(released.model.reconstruct(released.batch, KEY, 2))
    tiny.assign(mask, before)
    assert (rows["mask"] == (1.0 if stream == "endo" else 0.0)).all()
    np.testing.assert_array_equal(rows["joint"], rows[stream])
    assert np.abs(rows["endo"] - rows["exo"]).max() > 0.1


def test_blend_by_hand():
    # .25 * 4 + .75 * 8
    assert world_model.blend(tf.constant([0.25]), tf.constant([4.0]), tf.constant([8.0])).numpy() == [7.0]


def test_pixels_go_from_minus_a_half_to_a_half():
    tiny.close(world_model.preprocess(tf.constant([0, 51, 255], tf.uint8)), [-0.5, -0.3, 0.5])


# --- the exogenous stream does not see actions ------------------------------------------------------------------------


def other_actions(batch: Batch) -> Batch:
    return batch._replace(action=tf.constant(np.random.default_rng(9).uniform(-1, 1, batch.action.shape), tf.float32))


EXOGENOUS = ("exo_kl", "exo_kl_loss", "exo_post_ent", "exo_prior_ent", "exo_image_loss")


@pytest.mark.parametrize("exo_action", ["absent", "zero"])
def test_exogenous_prior_and_posterior_do_not_change_with_the_true_actions(exo_action):
    case = Case(*tiny.PAPER, **{"model.exo_action": exo_action})
    one, other = (
        tiny.arrays(case.model.losses(batch, KEY).metrics) for batch in (case.batch, other_actions(case.batch))
    )
    for name in EXOGENOUS:
        assert one[name] == other[name]
    assert one["endo_kl"] != other["endo_kl"]
    before, after = (
        tiny.arrays(case.model.reconstruct(batch, KEY, 2)) for batch in (case.batch, other_actions(case.batch))
    )
    np.testing.assert_array_equal(before["exo"], after["exo"])  # filtered and open loop
    assert (before["endo"] != after["endo"]).any()


def test_exogenous_stream_follows_the_true_actions_when_it_is_given_them():
    case = Case(*tiny.PAPER, **{"model.exo_action": "taken"})
    one, other = (
        tiny.arrays(case.model.losses(batch, KEY).metrics) for batch in (case.batch, other_actions(case.batch))
    )
    for name in EXOGENOUS:
        assert one[name] != other[name]


def test_a_zero_action_input_and_no_action_input_are_the_same_model():
    """The rows of the input kernel that meet the zero action are all that differs."""
    zero, absent = (Case(*tiny.PAPER, **{"model.exo_action": name}) for name in ("zero", "absent"))
    values = tiny.snapshot(zero.model.trained)
    kernel = values["exo_rssm/input/kernel"]
    assert kernel.shape[0] == absent.model.trained["exo_rssm/input/kernel"].shape[0] + tiny.ACTION_SIZE
    values["exo_rssm/input/kernel"] = kernel[: -tiny.ACTION_SIZE]
    tiny.assign(absent.model.trained, values)
    one, other = zero.model.losses(zero.batch, KEY), absent.model.losses(zero.batch, KEY)
    for name, value in one.metrics.items():
        tiny.close(value, other.metrics[name], 1e-6)


# --- one backward pass for both ---------------------------------------------------------------------------------------


def test_one_backward_pass_gives_each_group_the_gradient_of_its_own_loss(released):
    """In the released code: main loss = KL + joint image + reward, exogenous loss = KL + joint image + w
    exogenous-only image.
    """
    with tf.GradientTape(persistent=True) as tape:
        losses = released.model.losses(released.batch, KEY)
        metrics = losses.metrics
        apart = {
            "endo": metrics["endo_kl_loss"] + metrics["image_loss"] + metrics["reward_loss"],
            "exo": metrics["exo_kl_loss"] + metrics["image_loss"] + 2.25 * metrics["exo_image_loss"],
        }
    groups = released.model.groups(split=True)
    assert set(groups) == set(apart)
    for name, group in groups.items():
        combined, separate = gradients(losses.total, group, tape), gradients(apart[name], group, tape)
        for key in group:
            tiny.close(combined[key] / np.abs(separate[key]).max(), separate[key] / np.abs(separate[key]).max())


def test_groups_share_the_joint_decoder_and_cover_everything(released):
    groups = released.model.groups(split=True)
    shared = set(groups["endo"]) & set(groups["exo"])
    assert {name.split("/")[0] for name in shared} == {"endo_decoder", "exo_decoder", "mask"}
    assert set(groups["endo"]) | set(groups["exo"]) == set(released.model.trained)
    assert {name.split("/")[0] for name in set(groups["endo"]) - shared} == {"endo_encoder", "endo_rssm", "reward"}
    assert {name.split("/")[0] for name in set(groups["exo"]) - shared} == {
        "exo_encoder",
        "exo_rssm",
        "exo_only_decoder",
    }
    assert set(released.model.groups(split=False)["model"]) == set(released.model.trained)


# --- uncertainty ------------------------------------------------------------------------------------------------------

MEASURES = {
    "sum_squares": lambda stats, stoch: reference.disagreement_sum_of_squares(stats),
    "mean_norm": lambda stats, stoch: reference.disagreement_mean_of_norms(stats),
    "log_prob_variance": reference.log_prob_variance,
    "log_prob_std": reference.log_prob_std,
}


@pytest.mark.parametrize("mode", tiny.MODES)
@pytest.mark.parametrize("kind", ["released", "paper", "joint"])
def test_uncertainty_is_the_disagreement_of_all_members_about_the_state(mode, kind, request):
    case = request.getfixturevalue(kind)
    post, name = case.model.posterior(case.batch, KEY), case.model.main.name
    stats = reference.all_priors(
        post.deter.numpy().astype(np.float64), case.weights.rssm(f"{name}_rssm", classes=case.classes)
    )
    received = tiny.run(
        mode, lambda latent: {measure: case.model.main.disagreement(latent, measure) for measure in MEASURES}, post
    )
    for measure, by_hand in MEASURES.items():
        assert received[measure].shape == (B, T)
        tiny.close(received[measure] / by_hand(stats, post.stoch.numpy()), np.ones((B, T)), 2e-5)


def test_uncertainty_of_the_exogenous_stream_has_the_same_form(paper):
    latent = paper.model.exo.observe(
        paper.model.exo.evidence(paper.batch.image), paper.batch.action, paper.batch.is_first, KEY
    )
    stats = reference.all_priors(latent.deter.numpy(), paper.weights.rssm("exo_rssm"))
    tiny.close(paper.model.exo.disagreement(latent, "mean_norm"), reference.disagreement_mean_of_norms(stats))


@pytest.mark.parametrize("measure", MEASURES)
def test_identical_members_are_certain_and_give_a_finite_gradient(measure):
    case = Case(*tiny.PAPER)
    for name, variable in case.model.trained.items():
        if "/prior/" in name:
            variable.assign(tf.repeat(variable[:1], variable.shape[0], 0))
    post = case.model.posterior(case.batch, KEY)
    with tf.GradientTape() as tape:
        tape.watch(post.deter)
        value = case.model.disagreement(post, measure)
    np.testing.assert_allclose(value, np.zeros((B, T)), atol=1e-5)
    assert np.isfinite(tape.gradient(value, post.deter)).all()


# --- posterior and report ---------------------------------------------------------------------------------------------


def test_the_posterior_for_the_policy_is_that_of_the_losses(released):
    for one, other in zip(
        tf.nest.flatten(released.model.posterior(released.batch, KEY)),
        tf.nest.flatten(released.model.losses(released.batch, KEY).posterior),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_report_rows_are_filtered_and_then_open_loop(paper):
    """`context` frames by the posterior, the rest by the priors under the true actions; both streams decoded without
    the mask.
    """
    context, draw = 2, KEY
    rows = tiny.arrays(paper.model.reconstruct(paper.batch, draw, context))
    tiny.close(rows["truth"], paper.image + 0.5)
    tiny.close(rows["error"], (rows["joint"] - rows["truth"] + 1) / 2)
    tiny.close(rows["joint"], rows["mask"] * rows["endo"] + (1 - rows["mask"]) * rows["exo"])
    action = paper.batch.action.numpy().astype(np.float64)
    for name, branch, actions in (("endo", paper.model.main, action), ("exo", paper.model.exo, action[..., :0])):
        p = paper.weights.rssm(f"{name}_rssm")
        noise = branch.rssm.draw(draw, f"{name}_posterior", (B, context)).numpy()
        embed = reference.over_frames(
            lambda frame, name=name: reference.encode(frame, paper.weights.encoder(f"{name}_encoder")), paper.image
        )
        deter, stoch, _, _ = reference.observe(
            embed[:, :context],
            actions[:, :context],
            paper.batch.is_first.numpy()[:, :context],
            lambda stats, t, noise=noise: reference.latent_sample(stats, noise[:, t]),
            np.zeros(context, int),
            p,
        )
        deter, stoch = list(deter.transpose(1, 0, 2)), list(stoch.transpose(1, 0, 2))
        ahead = branch.rssm.draw(draw, f"{name}_open", (B, T - context)).numpy()
        members = branch.rssm.draw_members(draw, f"{name}_open_member", T - context).numpy()
        for i in range(T - context):
            deter.append(reference.advance(stoch[-1], actions[:, context + i], deter[-1], p))
            stoch.append(reference.latent_sample(reference.prior(deter[-1], members[i], p), ahead[:, i]))
        feat = np.stack([reference.features(d, s, p) for d, s in zip(deter, stoch)], 1)
        mean = reference.over_frames(
            lambda x, name=name: reference.decode(x, paper.weights.decoder(f"{name}_decoder")), feat
        )[..., :COLORS]
        tiny.close(rows[name], mean + 0.5)


def test_report_rows_of_the_joint_model(joint):
    rows = tiny.arrays(joint.model.reconstruct(joint.batch, KEY, 2))
    assert {name: row.shape for name, row in rows.items()} == dict.fromkeys(
        ("truth", "joint", "error"), (B, T, 10, 10, 3)
    )
    later = joint.batch._replace(image=tf.concat([joint.batch.image[:, :2], 255 - joint.batch.image[:, 2:]], 1))
    np.testing.assert_array_equal(
        joint.model.reconstruct(later, KEY, 2)["joint"], rows["joint"]
    )  # sees `context` frames, no more


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_loss_without_a_weight_or_of_another_shape_is_refused():
    loss = tf.zeros([2, 3])
    with pytest.raises(ValueError, match=r"expected the same names, received \['image'\] and \['imgae'\]"):
        world_model.weigh({"image": loss}, {"imgae": 1.0}, (2, 3))
    with pytest.raises(ValueError, match="incompatible"):
        world_model.weigh({"image": loss[0]}, {"image": 1.0}, (2, 3))
    with pytest.raises(ValueError, match="incompatible"):
        world_model.weigh({"endo_kl": loss}, {"endo_kl": 1.0}, (2, 3))


def test_weigh_by_hand():
    # 2 * mean(1, 3) + 0.5 * 4
    total = world_model.weigh(
        {"image": tf.constant([[1.0, 3.0]]), "endo_kl": tf.constant(4.0)}, {"image": 2.0, "endo_kl": 0.5}, (1, 2)
    )
    assert total.numpy() == 6.0


def test_decoder_kernels_that_do_not_give_the_image_are_refused():
    with pytest.raises(
        ConfigError,
        match=r"decoder.kernels = \[4, 4\]: expected an image of 12 pixels, received 10; try --decoder\.kernels 3,2,2$",
    ):
        build.make_learner(tiny.config(*tiny.PAPER), image_size=12, action_size=2)


@pytest.mark.parametrize("overlays", [tiny.PAPER, ("offline_dv2",), ("released", "semopo")])
def test_I05_the_continue_head_learns_terminations_from_the_states_that_the_policy_sees(overlays, rng):
    """Its loss by hand, and who learns from it: the head alone where the reward does not shape the states."""
    learner = tiny.learner(*overlays, model__continue_head=True)
    model, batch = learner.world_model, tiny.batch(rng)
    is_terminal = np.zeros(batch.reward.shape, bool)
    is_terminal[0, -1] = is_terminal[1, 1] = True
    batch = batch._replace(is_terminal=tf.constant(is_terminal))
    tiny.randomise(model.trained, rng)
    with tf.GradientTape() as tape:
        losses = model.losses(batch, tiny.key())
        loss = losses.metrics["continue_loss"]
    feat = model.features(losses.posterior).numpy()
    logit = reference.mlp(feat, *tiny.Weights(model.trained).mlp("continue", "continue"))[..., 0]
    tiny.close(loss, np.mean(np.log1p(np.exp(np.where(is_terminal, logit, -logit)))))
    tiny.close(model.continues(tf.constant(feat)), 1 / (1 + np.exp(-logit)))
    gradients = dict(zip(model.trained, tape.gradient(loss, list(model.trained.values())), strict=True))
    learning = {name.split("/")[0] for name, gradient in gradients.items() if gradient is not None}
    shaped = {"joint_encoder", "joint_rssm"} if overlays == ("offline_dv2",) else set()
    assert learning == {"continue"} | shaped
    assert all(np.isfinite(value).all() for value in tiny.arrays(learner.update_policy(batch, tiny.key())).values())
