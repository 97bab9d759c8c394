"""Counted work and memory against the networks themselves, their graphs, and the design's figures."""

import numpy as np
import pytest
import tensorflow as tf
import tiny

from semopo_tf import config as configuration
from semopo_tf.engine import cost
from semopo_tf.nets import layers
from semopo_tf.run import build

FULL = {"image_size": 64, "action_size": 6}
NAMES = [
    ("semopo", "walker_walk"),
    ("released", "semopo", "hopper_hop"),
    ("semopo", "walker_walk", "small"),
    ("released", "semopo", "walker_walk", "debug"),
    ("offline_dv2", "walker_walk", "small"),
    ("released", "offline_dv2", "walker_walk"),
    ("se_rs_drp", "walker_walk", "small"),
]
PLAIN = ("semopo", "walker_walk", "--kl.strict_elbo", "True")


def load(names):
    return configuration.load(["--configs", *names])


def numbers(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.parametrize("names", [*NAMES, PLAIN, (*PLAIN, "--model.exo_stoch", "8")], ids=" ".join)
def test_parameters_and_the_memory_of_weights_are_those_of_the_agent(names):
    config = load(names)
    agent = build.make_agent(config, **FULL)
    trained = numbers((agent.world_model.trained | agent.world_model.adversary).values())
    assert cost.parameters(config, **FULL) == trained
    moments = [
        v
        for name, v in agent.variables().items()
        if name.startswith("model_opt/") and ("/first/" in name or "/second/" in name)
    ]
    held = cost.memory(config, **FULL, records=1000)
    assert held.weights == 4 * (trained + trained + numbers(moments))  # the second: one gradient each


def counted(function, *shapes):
    """FLOPs of the matrix products and convolutions in a function's graph: two for every weight and position that it
    meets.
    """
    graph = (
        tf.function(function, autograph=False)
        .get_concrete_function(*(tf.TensorSpec(shape, tf.float32) for shape in shapes))
        .graph
    )
    work = {"MatMul": lambda op: op.inputs[0].shape[1], "Conv2D": lambda op: np.prod(op.inputs[1].shape[:3])}
    return sum(2 * np.prod(op.outputs[0].shape) * work[op.type](op) for op in graph.get_operations() if op.type in work)


def test_an_encoder_and_a_reward_head_count_what_their_graphs_hold():
    config, frames = load(NAMES[0]), 3
    encoder = layers.Encoder(**config.encoder, name="encoder", products=False)
    encoder.build((None, 64, 64, 3))
    assert counted(encoder, (frames, 64, 64, 3)) == 2 * frames * cost.work(cost.encoder(config, 64))
    head = layers.MLP(**config.reward_head, outputs={"reward": 1}, name="reward")
    size = cost.feature_size(config.rssm)
    head.build((None, size))
    assert counted(lambda x: head(x)["reward"], (frames, size)) == 2 * frames * cost.work(
        cost.mlp(config.reward_head, size, 1)
    )


def test_a_decoder_counts_every_weight_at_every_input_position():
    config = load(NAMES[0])
    by_hand = (32 + 200) * 1024 + 25 * 1024 * 128 + 5**2 * 25 * 128 * 64 + 13**2 * 36 * 64 * 32 + 30**2 * 36 * 32 * 6
    assert cost.work(cost.decoder(config, 6, 32 + 200)) == by_hand


def test_the_released_configuration_has_the_work_of_the_design():
    config = load(("released", "semopo", "walker_walk", "--batch.size", "16"))
    model = cost.model_update_flops(config, **FULL)
    assert model.total == pytest.approx(1.12e12, rel=0.02)
    assert model.decoders > model.encoders > model.recurrent > model.heads
    # The design's 0.15 evaluates the actor a second time for its entropy; here the entropy comes with the rollout's own
    # evaluation.
    assert cost.policy_update_flops(config, action_size=6).total == pytest.approx(0.118e12, rel=0.01)


def test_work_is_proportional_to_the_batch():
    one, four = (load(("semopo", "walker_walk", "--batch.size", size)) for size in ("4", "16"))
    for count in (lambda c: cost.model_update_flops(c, **FULL), lambda c: cost.policy_update_flops(c, action_size=6)):
        assert 4 * count(one).total == count(four).total


def test_the_joint_model_has_one_stream_and_a_reward_gradient():
    joint, separated = (
        cost.model_update_flops(load((method, "walker_walk")), **FULL) for method in ("offline_dv2", "semopo")
    )
    assert 2 * joint.encoders == separated.encoders
    assert joint.heads > separated.heads  # the reward trains the representation: one more product in its first layer
    assert joint.decoders < separated.decoders / 2


def test_dissociated_reward_prediction_costs_its_head_twenty_steps_a_model_update():
    plain, one, twenty = (
        cost.model_update_flops(load(("se_rs_drp", "walker_walk", *flags)), **FULL).heads
        for flags in (("--model.drp", "False"), ("--model.drp_updates", "1"), ())
    )
    config = load(("se_rs_drp", "walker_walk"))
    head, rows = cost.adversary_head(config), 2 * config.batch.size * config.batch.length
    assert twenty - one == 19 * rows * (3 * cost.work(head) - head[0].multiplications)
    assert one - plain == rows * (5 * cost.work(head) - head[0].multiplications)


def test_memory_of_data_and_evidence_are_exact_and_activations_fall_with_half_precision_and_remat():
    config = load(NAMES[0])
    whole = cost.memory(config, **FULL, records=1000)
    assert whole.frames == 1000 * 64 * 64 * 3
    assert whole.evidence == 1000 * config.rssm.hidden * 4
    assert whole.model_phase == whole.weights + whole.frames + whole.activations
    half = cost.memory(config, **FULL, records=1000, half=True)
    assert half.evidence == whole.evidence / 2
    assert half.activations < whole.activations
    remat = cost.memory(config, **FULL, records=1000, remat_rows=400)
    assert remat.activations < whole.activations / 2
    assert remat.weights == whole.weights
    assert cost.memory(config, **FULL, records=1000, replay_on_device=False).frames == 0
    assert "activations" in cost.describe(whole)


def test_the_least_traffic_counts_five_passes_of_outputs_and_ten_of_weights():
    config = load(("semopo", "walker_walk", "--batch.size", "1", "--batch.length", "2"))
    weights = 10 * 4 * cost.parameters(config, **FULL)
    two, four = (
        cost.model_update_bytes(load(("semopo", "walker_walk", "--batch.size", "1", "--batch.length", length)), **FULL)
        for length in "24"
    )
    assert two - weights == pytest.approx((four - weights) / 2)
    layers = [
        *cost.encoder(config, 64),
        *cost.encoder(config, 64),
        *(layer for layers in cost.decoders(config) for layer in layers),
    ]
    outputs = sum(layer.outputs for layer in layers)
    assert two - weights >= 5 * 4 * 2 * outputs


def test_the_estimated_table_has_the_bytes_of_the_real_one():
    agent, config = tiny.agent(*tiny.PAPER), tiny.config(*tiny.PAPER)
    frames = np.zeros((7, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3), np.uint8)
    table = agent.evidence(frames, jit=False)
    estimate = cost.memory(config, image_size=tiny.IMAGE_SIZE, action_size=tiny.ACTION_SIZE, records=7)
    assert numbers([table]) * table.dtype.size == estimate.evidence
