"""A checkpoint of another model, method, phase or precision: refused by name before a weight is touched, on real
agents.
"""

from pathlib import Path

import numpy as np
import pytest
import tiny

from semopo_tf.errors import CheckpointError
from semopo_tf.run import build


@pytest.fixture(scope="module")
def semopo():
    return tiny.learner("semopo")


def refused(learner, tensors, message, restore=build.restore):
    """`restore` must raise and leave every variable as it was."""
    before = tiny.snapshot(learner.variables())
    with pytest.raises(CheckpointError, match=message):
        restore(learner.variables() if restore is build.restore else learner, tensors, Path("run/ckpt-model-000000012"))
    after = tiny.snapshot(learner.variables())
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("flag", ["rssm.deter", "rssm.ensemble", "rssm.hidden"])
def test_C05_a_checkpoint_of_another_architecture_names_the_first_variable_that_differs(semopo, flag):
    other = tiny.learner("semopo", **{flag.replace(".", "__"): int(tiny.SIZES[flag]) + 1})
    refused(
        semopo,
        tiny.snapshot(other.variables()),
        r"ckpt-model-000000012: \S+(: expected float32 \[|.* such differences)",
    )


def test_C06_a_checkpoint_of_another_method_is_refused_as_a_run_and_as_a_world_model(semopo):
    joint = tiny.snapshot(tiny.learner("offline_dv2").variables())
    refused(semopo, joint, "it belongs to another model configuration")
    refused(semopo, joint, "it belongs to another model configuration", build.restore_world_model)


def test_C07_a_checkpoint_without_optimiser_state_is_refused(semopo):
    whole = tiny.snapshot(semopo.variables())
    slots = [name for name in whole if "model_opt" in name]
    assert slots
    refused(
        semopo,
        {name: tensor for name, tensor in whole.items() if name not in slots},
        rf"lacks \S*model_opt\S* \({len(slots)} such differences\)",
    )
    refused(semopo, whole | {"policy/extra": np.zeros(1, np.float32)}, r"has policy/extra \(1 such differences\)")


def test_C08_a_checkpoint_of_another_precision_is_refused(semopo):
    """float16 keeps float32 weights and adds a loss scale; weights stored in half precision are refused."""
    half = tiny.snapshot(tiny.learner("semopo", precision="mixed_float16").variables())
    refused(semopo, half, r"has \S*scale\S* \(\d+ such differences\)")
    whole = tiny.snapshot(semopo.variables())
    name = "model/endo_encoder/conv0/kernel"
    refused(semopo, whole | {name: whole[name].astype(np.float16)}, rf"{name}: expected float32 .*, received float16")
