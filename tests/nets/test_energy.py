"""The energy of pairs and its batch normalisation against the plain layer in NumPy."""

import numpy as np
import pytest
import tiny

from semopo_tf.nets.energy import Energy
from semopo_tf.nets.layers import named_variables

modes = pytest.mark.parametrize("mode", tiny.MODES)
B, J, X, Y, UNITS = 3, 4, 5, 2, 6


@pytest.fixture
def energy(rng):
    layer = Energy(UNITS, x_size=X, y_size=Y, name="net")
    layer.build()
    tiny.randomise(named_variables({"net": layer}), rng)
    layer.norm.moving_mean.assign(rng.normal(size=UNITS))
    layer.norm.moving_variance.assign(rng.uniform(0.5, 2, UNITS))
    return layer


def inputs(rng):
    return tiny.float32(rng.normal(size=(B, X))), tiny.float32(rng.uniform(-1, 1, (B, J, Y)))


def reference(layer, x, y, mean=None, variance=None):
    """The energy, and the hidden values [B J, units] before normalisation."""
    own = {name: variable.numpy().astype(np.float64) for name, variable in named_variables({"net": layer}).items()}
    hidden = np.array([np.concatenate([x[b], y[b, j]]) for b in range(B) for j in range(J)]) @ own["net/kernel"]
    mean, variance = (hidden.mean(0), hidden.var(0)) if mean is None else (mean, variance)
    z = (hidden - mean) / np.sqrt(variance + 1e-5) * own["net/norm/gamma"] + own["net/norm/beta"]
    return (np.maximum(z, 0) @ own["net/out/kernel"] + own["net/out/bias"]).reshape(B, J), hidden


@modes
def test_it_is_the_plain_layer_on_all_pairs(mode, energy, rng):
    x, y = inputs(rng)
    expected, hidden = reference(energy, x, y)
    received, moments = tiny.run(mode, lambda x, y: energy(x, y), x, y)
    tiny.close(received, expected)
    tiny.close(moments.mean, hidden.mean(0))
    tiny.close(moments.variance, hidden.var(0))


@modes
def test_with_the_moving_statistics_it_is_a_function_of_each_pair(mode, energy, rng):
    x, y = inputs(rng)
    moving = [np.float64(value.numpy()) for value in (energy.norm.moving_mean, energy.norm.moving_variance)]
    tiny.close(tiny.run(mode, energy.settled, x, y), reference(energy, x, y, *moving)[0])


def test_the_statistics_move_by_a_tenth_when_they_are_told_to(energy, rng):
    x, y = map(tiny.as_tensor, inputs(rng))
    moving = energy.norm.moving_mean, energy.norm.moving_variance
    before = [value.numpy() for value in moving]
    _, moments = energy(x, y)
    assert all((value.numpy() == old).all() for value, old in zip(moving, before, strict=True))
    energy.norm.absorb(moments, B * J)
    hidden = reference(energy, x.numpy(), y.numpy())[1]
    for value, old, new in zip(moving, before, (hidden.mean(0), hidden.var(0, ddof=1)), strict=True):
        tiny.close(value.numpy(), 0.9 * old + 0.1 * new)


def test_the_half_of_the_rows_is_computed_once(energy):
    assert energy.cost(B, J).flops == 2 * (B * X * UNITS + B * J * Y * UNITS + B * J * UNITS)
