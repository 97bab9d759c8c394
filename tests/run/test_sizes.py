"""Square images of any size from 32 to 128 pixels train by themselves."""

import numpy as np
import pytest
import synthetic

from semopo_tf import training
from semopo_tf.nets.layers import conv_sizes, deconv_sizes, fitting_kernels
from semopo_tf.storage.records import read_records


def test_I16_kernels_fit_every_size_and_those_of_64_are_the_papers():
    for size in range(32, 129):
        encoder, decoder = fitting_kernels(size)
        assert deconv_sizes(decoder)[-1] == size and 1 <= conv_sizes(size, encoder)[-1] <= 3
        assert set(encoder) == {4} and max(decoder) - min(decoder) <= 1
    assert fitting_kernels(64) == ([4, 4, 4, 4], [5, 5, 6, 6])


@pytest.mark.parametrize("size", [84, 96])
def test_I16_images_of_another_size_train_without_a_flag(tmp_path, size):
    data = synthetic.dataset(tmp_path / "data", size=size)
    more = ["--steps.model", "2", "--steps.policy", "2", "--eval.every", "0", "--log_every", "1"]
    assert training.main(synthetic.train_flags(data, tmp_path / "run", *more)) == 0
    rows = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert rows and all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
