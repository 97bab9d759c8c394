"""FLOPs and memory of whole updates, and where the frames go."""

import numpy as np
import pytest
import tiny

from semopo_tf import config as configuration
from semopo_tf.engine import cost
from semopo_tf.engine.cost import Memory
from semopo_tf.errors import DeviceError
from semopo_tf.methods import costs
from semopo_tf.run import build

FULL = {"image_size": 64, "action_size": 6}


def load(*names):
    return configuration.load(["--configs", *names])


def model_update(learner, config, **changed):
    settings = {"frames": config.batch.size * config.batch.length, "remat": config.remat}
    settings |= {"adversary_updates": config.model.drp_updates}
    return costs.world_model_update(learner.world_model, **settings | changed)


def policy_update(learner, config):
    sizes = {"starts": config.batch.size * config.batch.length, "horizon": config.imagination.horizon}
    return costs.policy_update(learner.world_model, learner.actor_critic, **sizes, reward=config.penalty.reward)


# FLOPs of a model update and of a policy update, bytes of the activations of a model update; counted by hand from the
# sizes of all layers.
BY_HAND = [
    (("semopo", "walker_walk"), 2_115_183_104_000, 374_968_217_600, 9_175_040_000),
    (("released", "semopo", "hopper_hop"), 4_523_389_440_000, 472_140_800_000, 12_111_052_800),
    (("semopo", "walker_walk", "small"), 24_353_931_264, 1_080_393_728, 249_561_088),
    (("released", "semopo", "walker_walk", "debug"), 283_215_360, 1_451_520, 36_700_160),
    (("offline_dv2", "walker_walk", "small"), 8_361_443_328, 1_080_393_728, 91_537_408),
    (("released", "offline_dv2", "walker_walk"), 1_669_412_044_800, 472_140_800_000, 4_663_296_000),
    (("se_rs_drp", "walker_walk", "small"), 24_818_909_184, 1_080_393_728, 249_561_088),
    (
        ("semopo", "walker_walk", "--kl.strict_elbo", "True", "--model.exo_stoch", "8"),
        1_648_482_406_400,
        374_968_217_600,
        7_266_304_000,
    ),
    (
        ("semopo", "walker_walk", "--precision", "mixed_bfloat16", "--remat", "400"),
        2_115_183_104_000,
        374_968_217_600,
        2_052_812_800,
    ),
]


@pytest.mark.parametrize(
    ("names", "model", "policy", "activations"),
    BY_HAND,
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_updates_cost_what_was_counted_by_hand(names, model, policy, activations):
    config = load(*names)
    learner = build.make_learner(config, **FULL)
    update, trained = model_update(learner, config), learner.world_model.trained | learner.world_model.adversary
    assert update.flops == model
    assert update.bytes == activations + 4 * sum(int(np.prod(variable.shape)) for variable in trained.values())
    assert policy_update(learner, config).flops == policy


def test_the_switches_against_exploitation_cost_what_they_add():
    """Counted by hand at the small size: 128 records, H = 5, K = 5 members, features of 144, 6 actions."""
    flags = {"own": ("--rssm.ensemble_bodies", "own"), "least": ("--penalty.reward", "minimum"), "usual": ()}
    flags["data"] = ("--actor_critic.data_share", "0.5")
    made = {name: load("semopo", "walker_walk", "small", *words) for name, words in flags.items()}
    learners = {name: build.make_learner(config, **FULL) for name, config in made.items()}
    policy = {name: policy_update(learners[name], made[name]).flops for name in flags}
    model = {name: model_update(learners[name], made[name]).flops for name in flags}
    states, head = 5 * 128, 144 * 128 + 128 * 128 + 128
    member = 128 * 128 + 128 * 32
    assert policy["least"] - policy["usual"] == 2 * 2 * states * 5 * (member + head)
    assert model["least"] == model["usual"]
    actor, critic = 144 * 128 + 128 * 128 + 128 * 12, head  # forward, kernels; the gradient to the first layer's inputs
    assert policy["data"] - policy["usual"] == 2 * 128 * (3 * (actor + critic) - 2 * 144 * 128 + critic)
    endo, exo = (144 + 6) * 128, 144 * 128  # the body, before a hidden layer of as many inputs as without it
    assert policy["own"] - policy["usual"] == 2 * 2 * endo * (states + 5 * (states + 128))
    assert model["own"] - model["usual"] == 3 * 2 * 128 * (endo + exo)
    assert all(
        learner.cost("policy", made[name].batch.size, made[name].batch.length).flops == policy[name]
        for name, learner in learners.items()
    )


@pytest.fixture(scope="module")
def small():
    config = load("se_rs_drp", "walker_walk", "small")
    return build.make_learner(config, **FULL), config


def test_work_is_proportional_to_the_frames(small):
    one, four = (model_update(*small, frames=frames) for frames in (32, 128))
    assert 4 * one.flops == four.flops


def test_each_step_of_the_adversary_costs_three_passes_of_its_head_without_the_gradient_to_its_input(
    small, monkeypatch
):
    zero, twenty = (model_update(*small, **changed).flops for changed in ({"adversary_updates": 0}, {}))
    head = small[0].world_model.adversary_head.cost(small[1].batch.size * small[1].batch.length)
    monkeypatch.setattr(small[0].world_model, "adversary_head", None)
    none = model_update(*small).flops
    assert twenty - zero == 20 * (3 * head.flops - head.input_flops)
    assert zero - none == 2 * head.flops


def test_a_reward_gradient_costs_one_more_product(small, monkeypatch):
    flops = []
    for value in (False, True):
        monkeypatch.setattr(small[0].world_model, "reward_gradient", value)
        flops.append(model_update(*small).flops)
    head = small[0].world_model.reward_head.cost(small[1].batch.size * small[1].batch.length)
    assert flops[1] - flops[0] == head.input_flops


def test_remat_keeps_the_decoders_of_fewer_frames(small):
    whole, slices = (model_update(*small, remat=remat) for remat in (0, 16))
    assert slices.bytes < whole.bytes / 2
    assert slices.flops == whole.flops


def test_memory_is_that_of_the_stage_that_needs_most():
    config, learner = tiny.config(*tiny.PAPER), tiny.learner(*tiny.PAPER)
    sizes = (config.batch.size, config.batch.length)
    needed = cost.estimate(learner, batch=sizes[0], length=sizes[1], frames=700)
    most = max(("model", "policy"), key=lambda stage: learner.cost(stage, *sizes).bytes)
    held = sum(variable.numpy().nbytes for variable in learner.variables().values())
    assert needed == Memory(most, held, 700, learner.cost(most, *sizes).bytes)
    assert needed.total == held + 700 + needed.activations
    assert needed.describe().startswith(f"memory of the {most} phase: weights 0.00 GB, frames 0.00 GB, activations")


@pytest.mark.parametrize(
    ("wanted", "available", "frames"),
    [
        ("auto", 0, 50),  # unknown: taken to be enough
        ("auto", 100, 50),
        ("auto", 99, 0),
        ("device", 1, 50),
        ("host", 1000, 0),
    ],
)
def test_frames_go_where_they_fit_or_are_wanted(wanted, available, frames):
    needed = Memory("model", weights=20, frames=50, activations=30)
    assert cost.place_frames(needed, wanted, available).frames == frames


def test_a_learner_that_does_not_fit_is_refused_with_the_remedies():
    needed = Memory("model", weights=1 << 30, frames=1 << 30, activations=1 << 29)
    cost.require_memory(needed, 0)
    cost.require_memory(needed, needed.total)
    with pytest.raises(DeviceError, match=r"at most 2\.5 GB, the estimate is 2\.5 GB; lower --batch\.size"):
        cost.require_memory(needed, needed.total - 1)
