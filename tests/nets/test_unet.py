"""The U-Net's resampling, shapes and initial values. Its numbers: tests/methods/test_infogating.py."""

import numpy as np
import pytest
import tensorflow as tf
import tiny

from semopo_tf.nets.layers import initialise_uniform, named_variables
from semopo_tf.nets.unet import UNet, enlarged, halved

modes = pytest.mark.parametrize("mode", tiny.MODES)


def nearest(x, edge):
    """Row i of the result is row floor(i H / edge)."""
    index = [i * x.shape[1] // edge for i in range(edge)]
    return x[:, index][:, :, index]


@modes
@pytest.mark.parametrize("edge", [2, 3, 5, 10, 21, 42])
def test_resampling_takes_the_nearest_neighbour(mode, edge, rng):
    x = tiny.float32(rng.normal(size=(2, edge, edge, 3)))
    np.testing.assert_array_equal(tiny.run(mode, halved, x), nearest(x, edge // 2).astype(np.float32))
    for larger in (edge, 2 * edge, 2 * edge + 1):
        received = tiny.run(mode, lambda x, larger=larger: enlarged(x, larger), x)
        np.testing.assert_array_equal(received, nearest(x, larger).astype(np.float32))


@pytest.mark.parametrize(("edge", "blocks"), [(16, 3), (32, 4), (47, 4), (64, 5), (84, 5), (128, 6)])
def test_any_size_from_16_pixels_comes_out_as_it_went_in(edge, blocks):
    net = UNet(edge, 2, filters=8, name="net")
    net.build((None, edge, edge, 6))
    assert net(tf.zeros([3, edge, edge, 6])).shape == (3, edge, edge, 2)
    names = named_variables({"net": net})
    assert len({name.split("/")[1] for name in names if "/down" in name}) == blocks
    one, two = net.cost(1), net.cost(2)
    assert two.flops == 2 * one.flops and 0 < one.input_flops < one.flops


def test_the_flops_are_two_for_each_weight_and_position():
    net = UNet(16, 2, filters=8, name="net")
    net.build((None, 16, 16, 6))
    edges = {"down0": 16, "down1": 8, "down2": 4, "up0": 4, "up1": 8, "up2": 16, "last": 16}
    kernels = {name.split("/")[1]: v for name, v in named_variables({"net": net}).items() if name.endswith("kernel")}
    expected = sum(2 * np.prod(kernel.shape) * edges.get(name, 1) ** 2 for name, kernel in kernels.items())
    assert net.cost(1).flops == expected


def test_initial_values_are_uniform_within_the_bound_and_functions_of_seed_and_name():
    net = UNet(16, 2, filters=8, name="net")
    net.build((None, 16, 16, 6))
    variables = named_variables({"net": net})
    initialise_uniform(variables, 5)
    for name, fan_in in (("net/down1/conv/kernel", 9 * 16), ("net/bottom1/kernel", 128), ("net/last/bias", 8)):
        limit, value = 1 / np.sqrt(fan_in), variables[name].numpy()
        assert np.abs(value).max() <= limit
        if value.size > 100:
            assert np.abs(value).max() > 0.95 * limit
            np.testing.assert_allclose(value.std(), limit / np.sqrt(3), rtol=0.05)
    assert (variables["net/down0/norm/gamma"].numpy() == 1).all() and (
        variables["net/up0/norm/beta"].numpy() == 0
    ).all()
    before = tiny.snapshot(variables)
    initialise_uniform(dict(reversed(variables.items())), 5)
    for name, value in tiny.snapshot(variables).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    initialise_uniform(variables, 6)
    assert (variables["net/last/bias"].numpy() != before["net/last/bias"]).all()
