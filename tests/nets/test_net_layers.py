"""The networks against loops, their shapes and parameter counts, and their initial values."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny

from semopo_tf.nets import layers
from semopo_tf.nets.layers import (
    MLP,
    Decoder,
    Encoder,
    EnsembleHead,
    GRUCell,
    MaskBlend,
    StandardGRUCell,
    TwoInputDense,
)

modes = pytest.mark.parametrize("mode", tiny.MODES)


def built(layer, width, rng):
    """A layer with random weights, and the weights by name under "net"."""
    layer.build(None if width is None else (None, *np.atleast_1d(width)))
    variables = layers.named_variables({"net": layer})
    tiny.randomise(variables, rng)
    return layer, tiny.Weights(variables)


def count(layer):
    return sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)


# ------------------------------------------------------------------------------------------------------------------ sha


def test_sizes_of_the_convolutions():
    assert layers.conv_sizes(64, [4, 4, 4, 4]) == [31, 14, 6, 2]
    assert layers.deconv_sizes([5, 5, 6, 6]) == [5, 13, 30, 64]


def test_a_kernel_larger_than_what_is_left_is_refused():
    with pytest.raises(
        ValueError, match=r"expected each kernel to fit, received 4 on an edge of 2; try --encoder\.kernels 4,4,4,4$"
    ):
        layers.conv_sizes(64, [4, 4, 4, 4, 4])


def test_embedding_and_image_at_the_released_size():
    encoder = Encoder(depth=48, kernels=[4, 4, 4, 4], act="elu", name="encoder")
    encoder.build((None, 64, 64, 3))
    assert encoder.embed_size(64) == 1536
    assert encoder(tf.zeros([2, 64, 64, 3])).shape == (2, 1536)
    assert encoder(tf.zeros([1, 2, 64, 64, 3])).shape == (1, 2, 1536)
    decoder = Decoder(depth=48, kernels=[5, 5, 6, 6], act="elu", channels=6, name="decoder")
    decoder.build((None, 1224))
    assert decoder(tf.zeros([1, 2, 1224])).shape == (1, 2, 64, 64, 6)


def dense_count(inputs, outputs):
    return inputs * outputs + outputs


def conv_count(kernel, inputs, outputs):
    return kernel * kernel * inputs * outputs + outputs


def test_parameter_counts_at_the_released_sizes():
    encoder = Encoder(depth=48, kernels=[4, 4, 4, 4], act="elu", name="encoder")
    encoder.build((None, 64, 64, 3))
    assert (
        count(encoder)
        == conv_count(4, 3, 48) + conv_count(4, 48, 96) + conv_count(4, 96, 192) + conv_count(4, 192, 384)
        == 1_551_312
    )
    for channels, expected in ((3, 9_886_611), (6, 9_891_798)):
        decoder = Decoder(depth=48, kernels=[5, 5, 6, 6], act="elu", channels=channels, name="decoder")
        decoder.build((None, 1224))
        by_hand = (
            dense_count(1224, 1536)
            + conv_count(5, 1536, 192)
            + conv_count(5, 192, 96)
            + conv_count(6, 96, 48)
            + conv_count(6, 48, channels)
        )
        assert count(decoder) == by_hand == expected
    mask = MaskBlend(name="mask")
    mask.build((None, 64, 64, 6))
    assert count(mask) == 7
    head = MLP(layers=4, units=400, act="elu", outputs={"reward": 1}, name="head")
    head.build((None, 1224))
    assert count(head) == dense_count(1224, 400) + 3 * dense_count(400, 400) + dense_count(400, 1) == 971_601


@pytest.mark.parametrize(("actions", "expected"), [(6, 976_012), (4, 974_408), (21, 988_042), (3, 973_606)])
def test_parameter_count_of_the_actor(actions, expected):
    actor = MLP(layers=4, units=400, act="elu", outputs={"loc": actions, "std": actions}, name="actor")
    actor.build((None, 1224))
    assert (
        count(actor) == dense_count(1224, 400) + 3 * dense_count(400, 400) + 2 * dense_count(400, actions) == expected
    )


# ----------------------------------------------------------------------------------------------------------- against lo


@modes
def test_encoder_matches_the_loops(mode, rng):
    encoder, weights = built(Encoder(depth=2, kernels=[4, 4], act="elu", name="net"), (10, 10, 3), rng)
    image = tiny.float32(rng.uniform(-0.5, 0.5, (2, 3, 10, 10, 3)))
    expected = reference.over_frames(lambda frame: reference.encode(frame, weights.encoder("net")), image)
    assert expected.shape == (2, 3, 4)
    tiny.close(tiny.run(mode, encoder, image), expected)


@modes
def test_decoder_matches_the_loops(mode, rng):
    decoder, weights = built(Decoder(depth=2, kernels=[4, 4], act="elu", channels=3, name="net"), 7, rng)
    feat = tiny.float32(rng.normal(size=(2, 3, 7)))
    expected = reference.over_frames(lambda x: reference.decode(x, weights.decoder("net")), feat)
    assert expected.shape == (2, 3, 10, 10, 3)
    tiny.close(tiny.run(mode, decoder, feat), expected)


@modes
def test_mask_is_the_sigmoid_of_a_1_x_1_convolution(mode, rng):
    mask, weights = built(MaskBlend(name="mask"), (5, 4, 6), rng)
    endo, exo = tiny.float32(rng.normal(size=(2, 3, 5, 4, 3))), tiny.float32(rng.normal(size=(2, 3, 5, 4, 3)))
    kernel, bias = weights.values["net/conv/kernel"].reshape(-1), weights.values["net/conv/bias"].item()
    _, expected = reference.blend(0.0, 0.0, endo, exo, kernel, bias)
    received = tiny.run(mode, mask, np.concatenate([endo, exo], -1))
    assert received.shape == (2, 3, 5, 4, 1)
    tiny.close(received, expected)


@modes
def test_mlp_matches_the_loops(mode, rng):
    net, weights = built(MLP(layers=2, units=5, act="elu", outputs={"loc": 3, "std": 2}, name="net"), 4, rng)
    x = tiny.float32(rng.normal(size=(2, 6, 4)))
    received = tiny.run(mode, net, x)
    for name, width in (("loc", 3), ("std", 2)):
        assert received[name].shape == (2, 6, width)
        tiny.close(received[name], reference.mlp(x, *weights.mlp("net", name)))


@modes
def test_two_input_dense_is_a_dense_layer_on_the_concatenation(mode, rng):
    layer, weights = built(TwoInputDense(5, first=3, second=4, name="net"), None, rng)
    x, y = tiny.float32(rng.normal(size=(2, 6, 3))), tiny.float32(rng.normal(size=(2, 6, 4)))
    received = tiny.run(mode, lambda x, y: layer(x, layer.project(y)), x, y)
    tiny.close(received, reference.dense(np.concatenate([x, y], -1), weights.dense("net")))


@modes
def test_two_input_dense_without_a_second_input_is_a_dense_layer_on_the_first(mode, rng):
    layer, weights = built(TwoInputDense(5, first=3, second=0, name="net"), None, rng)
    x, ignored = tiny.float32(rng.normal(size=(6, 3))), tiny.float32(rng.normal(size=(6, 2)))
    tiny.close(
        tiny.run(mode, lambda x, y: layer(x, layer.project(y)), x, ignored), reference.dense(x, weights.dense("net"))
    )


@modes
def test_gru_matches_the_equations(mode, rng):
    cell, weights = built(GRUCell(5, inputs=4, name="net"), None, rng)
    x, state = tiny.float32(rng.normal(size=(6, 4))), tiny.float32(rng.normal(size=(6, 5)))
    gru = reference.GRU(*(weights.values[f"net/{part}"] for part in ("kernel", "bias", "scale", "offset")))
    tiny.close(tiny.run(mode, cell, x, state), reference.gru_step(x, state, gru))


@modes
def test_the_standard_gru_is_that_of_keras(mode, rng):
    cell, weights = built(StandardGRUCell(5, inputs=4, name="net"), None, rng)
    kernel, recurrent, bias, own = (
        weights.values[f"net/{part}"] for part in ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
    )
    keras_cell = keras.layers.GRUCell(5)
    keras_cell.build((None, 4))
    keras_cell.set_weights([kernel, recurrent, np.stack([bias, own])])
    x, state = tiny.float32(rng.normal(size=(6, 4))), tiny.float32(rng.normal(size=(6, 5)))
    expected = keras_cell(tiny.as_tensor(x), tiny.as_tensor(state))[0]
    tiny.close(tiny.run(mode, cell, x, state), expected)
    assert cell.cost(6).flops == 2 * 6 * (4 * 15 + 5 * 15)


def test_a_recurrent_kernel_starts_orthogonal():
    cell = StandardGRUCell(5, inputs=4, name="net")
    cell.build()
    variables = layers.named_variables({"net": cell})
    layers.initialise(variables, 1)
    recurrent = variables["net/recurrent_kernel"].numpy()
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(5), atol=1e-6)
    limit = np.sqrt(6 / (4 + 15))
    assert 0.9 * limit < np.abs(variables["net/kernel"].numpy()).max() <= limit
    assert not variables["net/bias"].numpy().any()


def test_gru_with_zero_weights_forgets_at_the_rate_of_its_update_bias():
    # Candidate tanh(.5 * 0) = 0, update sigmoid(-1) = 0.268941: what is left is 0.731059 of the state.
    cell = GRUCell(3, inputs=2, name="gru")
    cell.build()
    state = tf.constant([[1.0, -2.0, 4.0]])
    tiny.close(cell(tf.ones([1, 2]), state), 0.7310586 * state.numpy())


def test_gru_normalises_over_all_three_gates_with_epsilon_1e_3():
    # One unit, W = 0, biases (3, 0, -3): mean 0, variance 6, so the gates are 3 / sqrt(6.001), 0 and -3 / sqrt(6.001) =
    # -1.224643.
    cell = GRUCell(1, inputs=1, name="gru")
    cell.build()
    cell.bias.assign([3.0, 0.0, -3.0])
    update = 1 / (1 + np.exp(1.2246427 + 1))
    tiny.close(cell(tf.zeros([1, 1]), tf.ones([1, 1])), [[1 - update]])


@modes
def test_ensemble_is_one_two_layer_network_for_each_member(mode, rng):
    head, weights = built(EnsembleHead(members=3, inputs=4, hidden=6, outputs=5, act="elu", name="net"), None, rng)
    x, w = tiny.float32(rng.normal(size=(7, 4))), weights.values
    expected = []
    for k in range(3):
        hidden = reference.elu(reference.dense(x, (w["net/hidden_kernel"][k], w["net/hidden_bias"][k])))
        expected.append(reference.dense(hidden, (w["net/out_kernel"][k], w["net/out_bias"][k])))
    tiny.close(tiny.run(mode, head, x), np.stack(expected))


@modes
def test_the_drawn_member_is_all_members_and_then_a_choice_with_the_same_gradients(mode, rng):
    head, _ = built(EnsembleHead(members=3, inputs=4, hidden=6, outputs=5, act="elu", name="net"), None, rng)
    x, w = rng.normal(size=(5, 2, 4)), rng.normal(size=(5, 2, 5))
    member = np.array([2, 0, 0, 2, 1])
    variables = [weight.value for weight in head.trainable_weights]

    def chosen(x):
        everything = tf.reshape(head(tf.reshape(x, [10, 4])), [3, 5, 2, 5])
        return tf.stack([everything[k, g] for g, k in enumerate(member)])

    def with_gradients(function):
        def call(x, w):
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = function(x)
                value = tf.reduce_sum(output * w)
            return output, tape.gradient(value, [x, *variables])

        return call

    received = tiny.run(mode, with_gradients(lambda x: head.drawn(x, tf.constant(member))), x, w)
    for one, other in zip(
        tf.nest.flatten(received), tf.nest.flatten(tiny.run(mode, with_gradients(chosen), x, w)), strict=True
    ):
        tiny.close(one, other)


def test_a_member_that_was_not_drawn_has_no_gradient_and_no_influence(rng):
    head, _ = built(EnsembleHead(members=3, inputs=4, hidden=6, outputs=5, act="elu", name="net"), None, rng)
    x, member = tf.constant(rng.normal(size=(2, 3, 4)), tf.float32), tf.constant([0, 2])
    with tf.GradientTape() as tape:
        before = head.drawn(x, member)
        gradients = tape.gradient(before, [weight.value for weight in head.trainable_weights])
    for gradient in gradients:
        assert not tf.convert_to_tensor(gradient)[1].numpy().any()
        assert tf.convert_to_tensor(gradient)[0].numpy().any()
    for weight in head.trainable_weights:
        weight.assign(weight.value.numpy() + np.array([0, 100, 0]).reshape(3, *[1] * (len(weight.shape) - 1)))
    np.testing.assert_array_equal(head.drawn(x, member), before)


# ----------------------------------------------------------------------------------------------------------- initial va


def dense_pair(names):
    pair = {name: keras.layers.Dense(300, name="dense") for name in names}
    for layer in pair.values():
        layer.build((None, 200))
    return layers.named_variables(pair)


def test_initial_values_depend_on_seed_and_name_alone():
    one, other = dense_pair(["a", "b"]), dense_pair(["b", "c", "a"])
    layers.initialise(one, 3)
    layers.initialise(other, 3)
    np.testing.assert_array_equal(one["a/kernel"], other["a/kernel"])
    np.testing.assert_array_equal(one["b/kernel"], other["b/kernel"])
    assert (one["a/kernel"].numpy() != one["b/kernel"].numpy()).mean() > 0.99
    layers.initialise(other, 4)
    assert (one["a/kernel"].numpy() != other["a/kernel"].numpy()).mean() > 0.99


@pytest.mark.parametrize(
    ("layer", "name", "fans"),
    [
        # Glorot uniform: limit sqrt(6 / (in + out)), a convolution's fans times its window, an ensemble's members each
        # on their own.
        (
            EnsembleHead(members=9, inputs=60, hidden=40, outputs=20, act="elu", name="net"),
            "net/hidden_kernel",
            60 + 40,
        ),
        (TwoInputDense(50, first=70, second=30, name="net"), "net/kernel", 100 + 50),
        (GRUCell(40, inputs=60, name="net"), "net/kernel", 100 + 120),
        (keras.layers.Conv2D(32, 4, name="net"), "net/kernel", 16 * (16 + 32)),
        (keras.layers.Conv2DTranspose(32, 4, name="net"), "net/kernel", 16 * (16 + 32)),
    ],
)
def test_kernels_are_glorot_uniform_and_everything_else_keeps_its_constant(layer, name, fans):
    layer.build((None, 8, 8, 16) if isinstance(layer, keras.layers.Conv2D | keras.layers.Conv2DTranspose) else None)
    variables = layers.named_variables({"net": layer})
    layers.initialise(variables, 0)
    limit, values = np.sqrt(6 / fans), variables[name].numpy()
    assert 0.99 * limit < np.abs(values).max() <= limit * (1 + 1e-6)
    assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.03)
    for other, variable in variables.items():
        if not other.endswith("kernel"):
            assert (variable.numpy() == (1.0 if other.endswith("scale") else 0.0)).all()


def test_two_variables_of_one_name_are_refused():
    class Twins(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="twins")
            self.parts = [keras.layers.Dense(2, name="same") for _ in range(2)]

        def build(self, input_shape):
            for part in self.parts:
                part.build(input_shape)

    twins = Twins()
    twins.build((None, 3))
    with pytest.raises(ValueError, match="net/same/kernel: two variables have this name"):
        layers.named_variables({"net": twins})
