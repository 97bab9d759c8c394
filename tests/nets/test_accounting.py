"""What layers say that they cost, against their graphs and against counting by hand."""

import numpy as np
import pytest
import tensorflow as tf

from semopo_tf.nets.accounting import Cost, product
from semopo_tf.nets.layers import MLP, Decoder, Encoder, EnsembleHead, GRUCell, MaskBlend, TwoInputDense
from semopo_tf.nets.rssm import RSSM

ROWS = 3


def counted(function, *shapes):
    """FLOPs of the matrix products and convolutions in a graph: two for every weight at every position."""
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    work = {
        "MatMul": lambda op: op.inputs[0].shape[1],
        "BatchMatMulV2": lambda op: op.inputs[0].shape[-1],
        "Conv2D": lambda op: np.prod(op.inputs[1].shape[:3]),
    }
    return sum(2 * np.prod(op.outputs[0].shape) * work[op.type](op) for op in graph.get_operations() if op.type in work)


def built(layer, *shape):
    layer.build((None, *shape) if shape else None)
    return layer


def test_the_parts_of_an_update():
    layer, other = product(3, 5, 7), product(3, 7, 2)
    assert layer == Cost(2 * 3 * 5 * 7, 2 * 4 * 3 * 7, 2 * 3 * 5 * 7)
    both = layer.then(other)
    assert both == Cost(layer.flops + other.flops, layer.bytes + other.bytes, layer.flops)
    assert both.trained().flops == 3 * both.flops
    assert both.trained(input_gradient=False).flops == 3 * both.flops - layer.flops
    assert both.frozen().flops == 2 * both.flops and both.frozen().bytes == both.bytes
    assert both.forward().bytes == 0
    assert (layer + other).input_flops == layer.flops + other.flops


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (built(Encoder(depth=8, kernels=[4, 4, 4, 4], act="elu", name="a"), 64, 64, 3), [(ROWS, 64, 64, 3)]),
        (built(MaskBlend(name="b"), 10, 10, 6), [(ROWS, 10, 10, 6)]),
        (built(MLP(layers=3, units=7, act="elu", outputs={"x": 2, "y": 5}, name="c"), 11), [(ROWS, 11)]),
        (built(GRUCell(5, inputs=4, name="d")), [(ROWS, 4), (ROWS, 5)]),
        (built(EnsembleHead(members=4, inputs=5, hidden=6, outputs=2, act="elu", name="e")), [(ROWS, 5)]),
        (built(TwoInputDense(6, first=3, second=2, name="f")), [(ROWS, 3), (ROWS, 6)]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_flops_are_those_of_the_graph(layer, shapes):
    assert counted(layer, *shapes) == layer.cost(ROWS).flops > 0


def test_members_with_bodies_of_their_own_cost_their_graph_and_each_a_share():
    head = built(EnsembleHead(members=4, inputs=5, body=7, hidden=6, outputs=2, act="elu", name="e"))
    assert counted(head, (ROWS, 5)) == head.cost(ROWS).flops == 4 * 2 * ROWS * (5 * 7 + 7 * 6 + 6 * 2)
    assert 4 * head.drawn_cost(ROWS).flops == head.cost(ROWS).flops
    assert head.cost(ROWS).bytes == 4 * 2 * 4 * ROWS * (7 + 6 + 2)


def test_the_half_of_a_dense_layer_that_is_projected():
    layer = built(TwoInputDense(6, first=3, second=2, name="f"))
    assert counted(layer.project, (ROWS, 2)) == layer.projection_cost(ROWS).flops


def test_one_drawn_member_costs_a_share_of_all():
    head = built(EnsembleHead(members=4, inputs=5, hidden=6, outputs=2, act="elu", name="e"))
    assert 4 * head.drawn_cost(ROWS).flops == head.cost(ROWS).flops


def test_a_decoder_counts_every_weight_at_every_input_position():
    """Its graph counts more: the phases of the last layer are padded."""
    decoder = built(Decoder(depth=32, kernels=[5, 5, 6, 6], act="elu", channels=6, name="decoder"), 232)
    flops = 232 * 1024 + 25 * 1024 * 128 + 5**2 * 25 * 128 * 64 + 13**2 * 36 * 64 * 32 + 30**2 * 36 * 32 * 6
    outputs = 1024 + 5**2 * 128 + 13**2 * 64 + 30**2 * 32 + 64**2 * 6
    assert decoder.cost(ROWS) == Cost(2 * ROWS * flops, 2 * 4 * ROWS * outputs, 2 * ROWS * 232 * 1024)


def test_bytes_are_those_of_the_compute_type():
    half, full = (
        built(Encoder(depth=8, kernels=[4, 4], act="elu", name="a", precision=precision), 10, 10, 3).cost(ROWS)
        for precision in ("mixed_bfloat16", "float32")
    )
    assert full.bytes == 2 * 4 * ROWS * (4 * 4 * 8 + 16) == 2 * half.bytes
    assert full.flops == half.flops


def test_a_recurrent_model_costs_its_parts():
    sizes = {"stoch": 3, "classes": 4, "deter": 5, "hidden": 7, "ensemble": 2, "ensemble_hidden": 6, "embed_size": 11}
    model = RSSM(name="rssm", latent="categorical", min_std=0.1, act="elu", action_size=2, **sizes)
    model.build()
    recurrence = (12 + 2) * 7 + (7 + 5) * 15
    posterior, member = 5 * 7 + 7 * 12, 5 * 6 + 6 * 12
    assert model.observe_cost(ROWS).flops == 2 * ROWS * (recurrence + posterior)
    assert model.step_cost(ROWS).flops == 2 * ROWS * (recurrence + member)
    assert model.prior_all_cost(ROWS).flops == 2 * ROWS * 2 * member
    assert model.cost(ROWS).flops == 2 * ROWS * (recurrence + posterior + member + 11 * 7)
