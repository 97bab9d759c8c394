"""tools/policy_information.py: figures that are known, of shares counted by hand and of datasets of the testbed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from semopo_tf import collect
from semopo_tf.errors import ConfigError

PATH = Path(__file__).parents[2] / "tools" / "policy_information.py"
SPEC = importlib.util.spec_from_file_location("policy_information", PATH)
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


def test_information_of_policies_counted_by_hand():
    """Two states, two actions. One policy plays the state's action, the other the other one: each knows everything,
    their mixture nothing, and the marginals are equal (A.4). So the gap is the difference of the informations, ln 2.
    """
    straight, crossed = np.eye(2), 1 - np.eye(2)
    figures = tool.information(np.stack([straight, crossed]), noise=10**9)
    assert figures["information_each"] == pytest.approx(np.log(2))
    assert figures["information_mixed"] == pytest.approx(0, abs=1e-6)
    assert figures["gap"] == pytest.approx(np.log(2))
    assert figures["gap_of_marginals"] == pytest.approx(0, abs=1e-6)


def test_policies_that_never_look_differ_by_their_marginals_alone():
    """Each plays one action everywhere: no information, and the whole gap is a violation of A.4."""
    shares = np.stack([np.tile([1.0, 0.0], (3, 1)), np.tile([0.0, 1.0], (3, 1))])
    figures = tool.information(shares, noise=10**9)
    assert figures["information_each"] == figures["information_mixed"] == pytest.approx(0, abs=1e-6)
    assert figures["gap"] == figures["gap_of_marginals"] == pytest.approx(np.log(2))


def test_cells_are_shares_of_the_square():
    actions = np.array([[[-1.0, -1.0], [1.0, 1.0], [0.999, -0.01], [0.1, 0.2]]])
    np.testing.assert_array_equal(tool.cells(actions, 2), [[0.25, 0, 0.25, 0.5]])


def test_one_noisy_policy_has_no_gap(rng):
    """Counts of the same policy for all episodes; without the correction the gap would be 0.06."""
    likely = rng.dirichlet(np.ones(9), 40)
    shares = np.stack([[rng.multinomial(64, row) / 64 for row in likely] for _ in range(50)])
    assert abs(tool.information(shares, noise=64)["gap"]) < 0.01


def test_networks_differ_by_at_most_the_logarithm_of_their_number(tmp_path, capsys):
    collect.main(["--task", "exbmdp_point", "--policy", "networks", "--episodes", "3", "--out", str(tmp_path)])
    capsys.readouterr()
    tool.main([str(tmp_path), "--states", "20", "--noise", "2"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["policies"] == 3
    assert 0.5 <= figures["gap"] <= np.log(3) + 1e-9
    assert figures["information_each"] > figures["information_mixed"]


@pytest.mark.parametrize("policy", ["", "mixed"])
def test_what_cannot_be_asked_again_is_refused(tmp_path, policy):
    message = "expected a dataset of exbmdp_"
    if policy:
        message = "--policy: expected one of networks, snapshot, replay, received mixed"
        collect.main(["--task", "exbmdp_point", "--policy", policy, "--episodes", "1", "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match=message):
        tool.main([str(tmp_path)])
