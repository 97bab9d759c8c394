from types import SimpleNamespace

import pytest

from semopo_tf import doctor
from semopo_tf.errors import ConfigError, SimulatorError


def test_this_machine_is_fine(capsys):
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"ok       {name}" for name in doctor.CHECKS]
    assert "walker walk at 64 x 64" in "".join(lines)


def test_first_problem_gives_the_exit_code(monkeypatch, capsys):
    def fails(error):
        def check():
            raise error

        return check

    checks = {
        "one": lambda: "fine",
        "two": fails(SimulatorError("broken;\nmend it")),
        "three": fails(ConfigError("wrong")),
    }
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert doctor.main([]) == SimulatorError.exit_code
    assert capsys.readouterr().out.splitlines() == [
        "ok       one: fine",
        "problem  two: broken; mend it",
        "problem  three: wrong",
    ]


def test_E05_missing_packages(monkeypatch):
    versions = {"tensorflow": "2.21.0", "numpy": "2.4.6"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    message = (
        r"not installed: keras, .*run pip install keras 'tensorflow-probability\[tf\]' dm_control 'mujoco>=3.17,<4' "
        r".*imageio-ffmpeg"
    )
    with pytest.raises(ConfigError, match=message):
        doctor.check_packages()


def test_mujoco_of_another_generation(monkeypatch):
    monkeypatch.setattr(doctor, "_version", dict.fromkeys(doctor.REQUIRED, "4.0.0").get)
    with pytest.raises(ConfigError, match=r"received 4\.0\.0; run pip install 'mujoco>=3\.17,<4'"):
        doctor.check_packages()


def test_unknown_flags():
    with pytest.raises(ConfigError, match="--fast: unknown flag"):
        doctor.main(["--fast"])


def test_a_card_that_gains_by_bfloat16_is_told(monkeypatch):
    cards = {"/physical_device:GPU:0": (8, 9), "/physical_device:GPU:1": (9, 0)}
    told = SimpleNamespace(get_device_details=lambda card: {"compute_capability": cards[card.name]})
    found = [SimpleNamespace(name=name) for name in cards]
    config = SimpleNamespace(list_physical_devices=lambda kind: found, experimental=told)
    monkeypatch.setattr(doctor, "_tensorflow", lambda: SimpleNamespace(config=config))
    first, second = doctor.check_devices().split(", ")
    assert first == "/physical_device:GPU:0 (faster with --precision mixed_bfloat16)"
    assert second == "/physical_device:GPU:1"
