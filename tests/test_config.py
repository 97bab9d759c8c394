"""The configuration: what every combination means, which command lines of the original are understood, and what is
refused.
"""

import copy
import itertools
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from semopo_tf import config as configuration
from semopo_tf.config import CHOICES, CONFIG_FILE, LIMITS, ORIGINAL_FLAGS, Config, load, load_saved
from semopo_tf.errors import ConfigError

DEFAULTS = configuration.defaults().flat()


@pytest.fixture(autouse=True, scope="module")
def parsed_once():
    """Reading the page takes a tenth of a second in plain Python, and these tests read it thousands of times. Every
    caller gets its own copy.
    """
    original, text = configuration.read_yaml, CONFIG_FILE.read_text()
    tree = original(CONFIG_FILE)

    def read(path):
        unchanged = path == CONFIG_FILE and CONFIG_FILE.read_text() == text
        return copy.deepcopy(tree) if unchanged else original(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "read_yaml", read)
        yield


FUZZ = settings(max_examples=200, deadline=None, derandomize=True, database=None)

# --- what every combination means -------------------------------------------------------------------------------------
# out by hand from the paper's Appendix D.1 and the commands published with its code; "paper" is no preset,
# "released" the preset.

PRESETS, METHODS = ("paper", "released"), ("semopo", "offline_dv2", "se_rs_drp")
TASKS = ("walker_walk", "cheetah_run", "hopper_hop", "humanoid_walk")
SIZES = ("full", "small", "debug")
COLUMNS = tuple(itertools.product(PRESETS, METHODS))

# One column for each preset and method at the full size.
BY_PRESET_AND_METHOD = {
    # key:                    (paper semopo, paper offline_dv2, paper se_rs_drp, released semopo, released offline_dv2,
    # released se_rs_drp)
    "method": ("semopo", "offline_dv2", "se_rs_drp", "semopo", "offline_dv2", "se_rs_drp"),
    "model.kind": ("separated", "joint", "separated", "separated", "joint", "separated"),
    "model.reward_gradient": (False, True, True, False, True, True),
    "model.drp": (False, False, True, False, False, True),
    "model.exo_action": ("absent", "absent", "absent", "zero", "zero", "zero"),  # a joint model has no exogenous branch
    "model.exo_only_power": (1, 1, 1, 2, 2, 2),  # applied once; the released code multiplies twice
    "model.split_optimizers": (
        False,
        False,
        False,
        True,
        True,
        True,
    ),  # a joint model has one group of variables either way
    "sampling": ("conservative", "uniform", "uniform", "conservative", "uniform", "uniform"),
    "pool.order": ("file", "file", "file", "return", "return", "return"),
    "pool.grow_by": (1, 1, 1, 0, 0, 0),
    "pool.include_last": (True, True, True, False, False, False),
    "pool.drop_ties": (False, False, False, False, False, False),
    "policy_starts": ("dataset", "dataset", "dataset", "pool", "dataset", "pool"),
    "rssm.latent": ("gaussian", "gaussian", "gaussian", "categorical", "categorical", "categorical"),
    "penalty.measure": ("sum_squares", "sum_squares", "sum_squares", "mean_norm", "mean_norm", "mean_norm"),
    "penalty.weight": (10.0, 10.0, 10.0, 5.0, 10.0, 5.0),
    "model_opt.weight_decay": (0.0, 0.0, 0.0, 1e-6, 1e-6, 1e-6),
    "actor_opt.weight_decay": (0.0, 0.0, 0.0, 1e-6, 1e-6, 1e-6),
    "critic_opt.weight_decay": (0.0, 0.0, 0.0, 1e-6, 1e-6, 1e-6),
    "without_card.mask_rule": ("sky", "sky", "sky", "blue", "blue", "blue"),
}
# (paper, released) at the full size, then the two small sizes, which are the same for both presets unless given as a
# pair.
BY_PRESET_AND_SIZE = {
    # key:              full,               small,        debug
    "steps.model": ((25_000, 25_100), 2000, 12),
    "steps.policy": (100_000, 2000, 12),
    "batch.size": (64, 8, 4),
    "batch.length": (50, 16, 8),
    "pool.start": ((1, 10), (1, 10), 2),
    "pool.grow_every": ((50, 100), 25, 2),
    "encoder.depth": ((32, 48), 16, 2),
    "decoder.depth": ((32, 48), 16, 2),
    "rssm.deter": (200, 128, 8),
    "rssm.stoch": (32, 16, 4),
    "rssm.classes": (32, 16, 4),
    "rssm.hidden": ((400, 200), 128, 8),
    "rssm.ensemble": (7, 5, 2),
    "rssm.ensemble_hidden": ((1024, 200), 128, 8),
    "reward_head.layers": (4, 2, 1),
    "reward_head.units": (400, 128, 8),
    "actor.layers": (4, 2, 1),
    "actor.units": (400, 128, 8),
    "critic.layers": (4, 2, 1),
    "critic.units": (400, 128, 8),
    "model_opt.lr": ((6e-5, 3e-4), 6e-4, (6e-5, 3e-4)),
    "actor_opt.lr": (8e-5, 3e-4, 8e-5),
    "critic_opt.lr": (8e-5, 3e-4, 8e-5),
    "eval.every": ((10_000, 1000), 1000, 0),
    "eval.episodes": (10, 2, 1),
    "eval.final_episodes": (50, 5, 1),
}
# The same in every combination.
ALWAYS = {
    "encoder.kernels": [4, 4, 4, 4],
    "decoder.kernels": [5, 5, 6, 6],
    "rssm.min_std": 0.1,
    "actor.min_std": 0.1,
    "kl.balance": 0.8,
    "kl.free": 1.0,
    "kl.strict_elbo": False,
    "model.image_scale": 1.0,
    "model.reward_scale": 1.0,
    "model.kl_scale": 1.0,
    "model.kl_warmup": 0,
    "model.exo_stoch": 0,
    "model.continue_head": False,
    "model.drp_updates": 20,
    "imagination.horizon": 5,
    "imagination.discount": 0.99,
    "actor_critic.lambda_": 0.95,
    "actor_critic.entropy_scale": 1e-4,
    "actor_critic.slow_every": 100,
    "actor_critic.average": 0,
    "env.action_repeat": 2,
    "env.size": 64,
    "valid_fraction": 0.0,
    "min_length": 0,
    "without_card.background_color": "grey",
    **{f"{net}.act": "elu" for net in ("encoder", "decoder", "rssm", "reward_head", "actor", "critic")},
    **{
        f"{opt}.{key}": value
        for opt in ("model_opt", "actor_opt", "critic_opt")
        for key, value in (("eps", 1e-5), ("clip", 100.0))
    },
}
# Weight of dissociated reward prediction where it is not 20 000; the paper gives none for the humanoid.
DRP_SCALE = {"hopper_hop": 30_000.0}
# Weight of the exogenous-only reconstruction as it enters the loss, (paper, released).
EXO_WEIGHT = {
    "walker_walk": (1.5, 2.25),
    "cheetah_run": (1.5, 2.25),
    "hopper_hop": (2.0, 4.0),
    "humanoid_walk": (1.5, 2.25),
}


def overlays(preset: str, method: str, task: str, size: str) -> list[str]:
    return [*(["released"] if preset == "released" else []), method, task, *([size] if size != "full" else [])]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_combination_has_the_values_of_the_paper_or_of_its_code(preset, method, task, size):
    column = PRESETS.index(preset)
    expected = ALWAYS | {"task": f"dmcdrv_{task}", "model.drp_scale": DRP_SCALE.get(task, 20_000.0)}
    expected |= {key: values[COLUMNS.index((preset, method))] for key, values in BY_PRESET_AND_METHOD.items()}
    for key, values in BY_PRESET_AND_SIZE.items():
        value = values[SIZES.index(size)]
        expected[key] = value[column] if isinstance(value, tuple) else value
    config = load(["--configs", *overlays(preset, method, task, size)])
    received = config.flat()
    assert {key: received[key] for key in expected} == expected
    assert config.model.exo_only**config.model.exo_only_power == EXO_WEIGHT[task][column]


def test_the_table_above_covers_every_key_that_an_overlay_sets():
    page = configuration.read_yaml(CONFIG_FILE)
    behaviours = set(page["methods"]) - set(METHODS)  # which are no methods of the paper: tests/run/test_online.py
    touched = {
        key
        for kind in configuration.KINDS
        for name, overlay in page[kind].items()
        for key in configuration.flatten(overlay)
        if name not in behaviours and not key.startswith(f"{configuration.OF_METHODS}.")
    }
    looks_and_records = {"video.every", "video.episodes", "video.length", "video.context", "log_every", "save_every"}
    assert (
        touched
        - set(ALWAYS)
        - set(BY_PRESET_AND_METHOD)
        - set(BY_PRESET_AND_SIZE)
        - {"task", "model.exo_only", "model.drp_scale"}
        <= looks_and_records
    )


def test_no_overlay_of_earlier_runs_sets_a_key_that_they_lack():
    """Their saved page has the default of such a key, and the same command must still fit it.

    The values of `small32` have changed themselves, so its earlier runs are refused by name anyway.
    """
    page = configuration.read_yaml(CONFIG_FILE)
    named = {"presets": page["presets"], "sizes": page["sizes"], "tasks": TASKS, "methods": METHODS}
    for kind, names in named.items():
        for name in names:
            small32 = {"model.reward_scale", "model.kl_scale", "model.kl_warmup", "actor_critic.average"}
            newer = small32 if name == "small32" else set()
            assert set(configuration.flatten(page[kind][name])) & configuration.LATER == newer, name


def test_a_size_says_more_about_single_methods():
    """After what it says about all, and only about that method."""
    assert load(["--configs", "bc", "small"]).batch.size == 64
    assert load(["--configs", "bc", "small"]).actor.layers == 2
    assert load(["--configs", "semopo", "small"]).batch.size == 8
    assert load(["--configs", "bc", "small", "--batch.size", "5"]).batch.size == 5
    page = configuration.read_yaml(CONFIG_FILE)
    for kind in configuration.KINDS:
        for name, overlay in page[kind].items():
            assert set(overlay.get(configuration.OF_METHODS, {})) <= set(page["methods"]), name


def test_the_variants_of_the_ablation_are_flags():
    """Se+CS is the method itself, Se+RS the same with uniform sampling; nothing else may differ."""
    for preset in ([], ["released"]):
        conservative, uniform = (load(["--configs", *preset, method, "walker_walk"]) for method in ("semopo", "se_rs"))
        assert configuration.differing(conservative, uniform) == {
            "method": ("semopo", "se_rs"),
            "sampling": ("conservative", "uniform"),
        }
        dissociated = load(["--configs", *preset, "se_rs_drp", "walker_walk"])
        assert configuration.differing(uniform, dissociated) == {
            "method": ("se_rs", "se_rs_drp"),
            "model.reward_gradient": (False, True),
            "model.drp": (False, True),
        }


# Of the built-in testbed, from its measured feasibility: networks for 32 pixels, a likelihood that weighs as much as
# that of 64.
TESTBED_TASK = {
    "env.size": 32,
    "env.action_repeat": 1,
    "encoder.kernels": [4, 4, 4],
    "decoder.kernels": [5, 6, 6],
    "model.image_scale": 4.0,
}
TESTBED_SIZE = {
    "steps.model": 1000,
    "steps.policy": 500,
    "batch.size": 12,
    "batch.length": 12,
    "pool.start": 10,
    "pool.grow_every": 20,
    "pool.grow_by": 10,  # all 200 episodes after 400 updates
    "rssm.deter": 64,
    "rssm.stoch": 16,
    "rssm.ensemble": 5,
    "penalty.measure": "mean_norm",
    "penalty.weight": 0.3,
    "imagination.discount": 0.95,
    "actor_critic.entropy_scale": 0.01,
    "model_opt.lr": 1e-3,
    "actor_opt.lr": 5e-4,
    "critic_opt.lr": 5e-4,
}


@pytest.mark.parametrize("method", ["semopo", "se_rs", "offline_dv2"])
@pytest.mark.parametrize("task", ["exbmdp_scroll", "exbmdp_point", "exbmdp_hard"])
def test_the_testbed_has_its_own_networks_and_rates(task, method):
    received = load(["--configs", method, task, "testbed"]).flat()
    expected = {"task": task, "method": method, "model.exo_only": 1.5, **TESTBED_TASK, **TESTBED_SIZE}
    assert {key: received[key] for key in expected} == expected
    assert load(["--configs", method, "testbed", "--task", task]).flat() == received


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", PRESETS)
def test_car_racing_differs_from_the_locomotion_tasks_by_its_terminations(preset, method):
    walker, car = (
        load(["--configs", *overlays(preset, method, task, "full")]) for task in ("walker_walk", "car_racing")
    )
    assert configuration.differing(walker, car) == {
        "task": ("dmcdrv_walker_walk", "gym_CarRacing-v2"),
        "model.continue_head": (False, True),
    }


def test_every_version_of_car_racing_selects_its_overlay():
    for task in ("gym_CarRacing-v2", "gym_CarRacing-v3"):
        by_flag = load(["--task", task])
        assert by_flag.flat() == load(["--configs", "car_racing", "--task", task]).flat()
        assert by_flag.task == task and by_flag.model.continue_head


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("dmcdrv_walker_walk", "walker_walk"),
        ("dmc_humanoid_CMU_run", "humanoid_CMU_run"),
        ("gym_CarRacing-v2", "car_racing"),
        ("gym_car_racing", "car_racing"),
        ("gym_MountainCarContinuous-v0", "mountain_car_continuous"),
        ("exbmdp_point", "exbmdp_point"),
        ("catch:Catch", "catch:Catch"),
        ("", ""),
    ],
)
def test_names_of_tasks_without_their_suites(task, name):
    assert configuration.task_name(task) == name


def test_a_task_flag_alone_selects_the_weights_of_that_task():
    for task in TASKS:
        for prefix in ("dmcdrv", "dmc"):
            by_flag, by_overlay = load(["--task", f"{prefix}_{task}"]), load(["--configs", task])
            assert set(configuration.differing(by_flag, by_overlay)) == (set() if prefix == "dmcdrv" else {"task"})
            assert by_flag.task == f"{prefix}_{task}"
    assert load(["--task", "exbmdp_point"]).task == "exbmdp_point"


def test_the_printed_hyperparameters_are_the_defaults():
    printed = YAML(typ="safe", pure=True).load(
        (Path(configuration.__file__).parent / "report" / "published.yaml").read_text()
    )["paper_hyperparameters"]
    nets = ("encoder", "decoder", "rssm", "reward_head", "actor", "critic")
    keys = {
        "deterministic_size": ["rssm.deter"],
        "stochastic_size": ["rssm.stoch"],
        "latent": ["rssm.latent"],
        "ensemble_mlp_hidden": ["rssm.ensemble_hidden"],
        "reward_layers": ["reward_head.layers"],
        "reward_units": ["reward_head.units"],
        "dense_units": ["rssm.hidden", "actor.units", "critic.units"],
        "activation": [f"{net}.act" for net in nets],
        "batch_size": ["batch.size"],
        "sequence_length": ["batch.length"],
        "model_lr": ["model_opt.lr"],
        "actor_lr": ["actor_opt.lr"],
        "value_lr": ["critic_opt.lr"],
        "grad_clip_norm": ["model_opt.clip", "actor_opt.clip", "critic_opt.clip"],
        "penalty_lambda": ["penalty.weight"],
        "imagination_horizon": ["imagination.horizon"],
        "model_epochs": ["steps.model"],
        "policy_steps": ["steps.policy"],
    }
    # Not stated, not a setting of one run, or checked below.
    others = {"ensemble_members", "seeds", "drp_lambda_radv", "gpu", "total_gpu_hours", "image_shape"}
    assert set(printed) == set(keys) | others
    assert {key: DEFAULTS[key] for name in keys for key in keys[name]} == {
        key: printed[name] for name in keys for key in keys[name]
    }
    assert printed["image_shape"] == [DEFAULTS["env.size"]] * 2 + [3]


# --- order ------------------------------------------------------------------------------------------------------------


def test_the_order_of_overlays_and_flags_does_not_matter():
    names = ["released", "offline_dv2", "hopper_hop", "small"]
    flags = [["--model_opt.lr", "1e-3"], ["--penalty.weight=2"], ["--model.exo_only", "3"], ["--pool.grow_every", "7"]]
    expected = load(["--configs", *names, *itertools.chain(*flags)]).flat()
    for listed in itertools.permutations(names):
        assert load(["--configs", *listed, *itertools.chain(*flags)]).flat() == expected
        apart = [["--configs", *listed[:1]], ["--configs", *listed[1:]]]
        assert (
            load([*itertools.chain(*flags[:2]), *apart[0], *itertools.chain(*flags[2:]), *apart[1]]).flat() == expected
        )
    for order in itertools.permutations([["--configs", *names], *flags]):
        assert load(list(itertools.chain(*order))).flat() == expected


def test_flags_win_over_overlays():
    config = load(["--steps.model", "7", "--configs", "released", "debug"])
    assert (config.steps.model, config.steps.policy) == (7, 12)


# --- the original's command lines -------------------------------------------------------------------------------------

# The two published SeMOPO commands, flag by flag: what each becomes here, either the values it sets or the words of the
# refusal.
PUBLISHED = {
    "cheetah_run": {"task": "dmcdrv_cheetah_run", "disen_only": "1.5"},
    "hopper_hop": {"task": "dmcdrv_hopper_hop", "disen_only": "2.0"},
}
PUBLISHED_FLAGS = [
    # (flag, value, what it sets here | what the message names)
    ("configs", "dmc_vision", "--configs released semopo walker_walk"),
    ("task", "{task}", {"task": "{task}"}),
    ("offline_dir", "DIR", {"offline_dir": "DIR"}),
    ("offline_penalty_type", "meandis", "--penalty.measure (meandis is mean_norm"),
    (
        "offline_lmbd_cons",
        "10",
        "--penalty.weight (the original reads it only with automatic tuning, which is off: its penalty weight stays 5)",
    ),
    ("offline_datset_type", "random-incremental", "--logdir"),
    ("separate_wm", "True", "--model.kind separated"),
    ("disen_scales.reward", "0.0", "leave it out for the published 0.0"),
    ("disen_scales.disen_only", "{disen_only}", "--model.exo_only"),
    ("grad_heads", "none", "--model.reward_gradient (none is False)"),
    ("disen_action_type", "none", "--model.exo_action (none is zero"),
    ("replay.incremental", "True", "--sampling conservative"),
    ("replay.sort_rewards", "True", "--pool.order return"),
    ("steps", "100000", "--steps.policy"),
    ("seed", "0", {"seed": 0}),
    ("logdir", "RUN", {"logdir": "RUN"}),
]


@pytest.mark.parametrize("form", ["apart", "equals"])
@pytest.mark.parametrize("flag, value, outcome", PUBLISHED_FLAGS, ids=[flag for flag, _, _ in PUBLISHED_FLAGS])
@pytest.mark.parametrize("command", PUBLISHED)
def test_each_published_flag_means_the_same_or_is_refused_with_its_name_here(command, flag, value, outcome, form):
    value = value.format(**PUBLISHED[command])
    argv = [f"--{flag}={value}"] if form == "equals" else [f"--{flag}", value]
    if isinstance(outcome, dict):
        received = load(argv).flat()
        assert {key: received[key] for key in outcome} == {
            key: text.format(**PUBLISHED[command]) if isinstance(text, str) else text for key, text in outcome.items()
        }
    else:
        with pytest.raises(ConfigError) as caught:
            load(argv)
        assert f"--{flag}" in str(caught.value)
        assert "of the original code; here it is" in str(caught.value)
        assert outcome in str(caught.value)


@pytest.mark.parametrize(("command", "weight"), [("cheetah_run", 2.25), ("hopper_hop", 4.0)])
def test_a_published_command_translated_by_its_messages_runs_what_the_original_ran(command, weight):
    published = PUBLISHED[command]
    translated = (
        f"--configs released semopo --task {published['task']} --offline_dir DIR --penalty.measure mean_norm "
        "--model.kind separated "
        f"--model.exo_only {published['disen_only']} --model.reward_gradient False --model.exo_action zero --sampling "
        "conservative "
        "--pool.order return --steps.policy 100000 --seed 0 --logdir RUN"
    )
    config = load(translated.split())
    plain = load(["--configs", "released", "semopo", command, "--offline_dir", "DIR", "--seed", "0", "--logdir", "RUN"])
    assert configuration.differing(config, plain) == {}
    assert config.penalty.weight == 5.0
    assert config.model.exo_only**config.model.exo_only_power == weight


def test_a_flag_of_the_original_is_refused_even_without_a_value():
    with pytest.raises(ConfigError, match=r"of the original code; here it is --penalty\.weight"):
        load(["--offline_lmbd"])


@pytest.mark.parametrize("flag", ORIGINAL_FLAGS)
def test_the_remedy_for_an_original_flag_names_keys_and_values_that_exist(flag):
    assert flag not in DEFAULTS
    remedy = ORIGINAL_FLAGS[flag]
    named = re.findall(r"--([\w.]+)", remedy)
    assert named or remedy.startswith("nothing: ")
    assert set(named) <= set(DEFAULTS)
    if " | " in remedy:
        key = re.search(r"--([\w.]+) \w+ \| ", remedy)[1]
        assert set(re.search(rf"--{re.escape(key)} (\w+ \| \w+)", remedy)[1].split(" | ")) == set(CHOICES[key])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model_opt.rl", "1"], "--model_opt.rl: unknown key, did you mean model_opt.lr"),
        (["--lr", "1"], "--lr: unknown key, did you mean model_opt.lr or actor_opt.lr or critic_opt.lr?"),
        (["--rssm", "1"], "--rssm: a section, expected one of its keys: rssm.latent, rssm.deter"),
        (["--totally_else", "1"], "--totally_else: unknown key"),
        (["--configs", "walker_wlak"], "--configs walker_wlak: no such overlay, did you mean walker_walk"),
        (
            ["--configs", "semopo", "offline_dv2"],
            "--configs semopo offline_dv2: expected at most one of the methods, received two",
        ),
        (["--configs", "hopper_hop", "--configs", "walker_walk"], "expected at most one of the tasks, received two"),
        (["--configs", "small", "debug"], "expected at most one of the sizes, received two"),
        (["--seed", "1", "--seed", "2"], "--seed: expected once, received twice"),
        (["--seed=1", "--seed", "1"], "--seed: expected once, received twice"),
        (["--seed"], "--seed: expected a value after the flag, received none"),
        (["--seed", "--logdir", "x"], "--seed: expected a value after the flag, received none"),
        (["seed", "1"], "seed: expected a flag such as --seed 1"),
        (["--seed", "1", "2"], "2: expected a flag such as --seed 1"),
        (["-seed", "1"], "-seed: expected a flag such as --seed 1"),
        (["--"], "--: expected a flag such as --seed 1"),
        (["--jit", "ful"], "--jit: expected one of auto, full, partial, off, received 'ful', did you mean full?"),
        (
            ["--penalty.measure", "meandis"],
            "expected one of sum_squares, mean_norm, log_prob_variance, log_prob_std, received 'meandis'",
        ),
        (["--steps.model", "2.5"], "--steps.model: expected a whole number, received 2.5"),
        (["--steps.model", "many"], "--steps.model: expected a whole number, received 'many'"),
        (["--model_opt.lr", "fast"], "--model_opt.lr: expected a number, received 'fast'"),
        (["--kl.strict_elbo", "1"], "--kl.strict_elbo: expected True or False, received '1'"),
        (["--encoder.kernels", "4,x"], "--encoder.kernels: expected a whole number, received 'x'"),
        (
            ["--task", "dmcdrv_hopper_hop", "--configs", "walker_walk"],
            "expected the task of the overlay walker_walk, received another",
        ),
        (["--imagination.horizon", "0"], "--imagination.horizon: expected a finite number from 2 to 1000, received 0"),
        (["--logdir", "a\0b"], "--logdir: expected text without NUL characters, received 'a\\x00b'"),
        (["--task", "x" * 5000, "--jit", "y" * 5000], "--jit: expected one of auto, full, partial, off, received 'yyy"),
        (["--video.context", "50"], "--video.context: expected less than video.length = 50, received 50"),
    ],
)
def test_K02_K05_K07_mistakes_are_named_with_the_expected_and_a_suggestion(argv, message):
    with pytest.raises(ConfigError) as caught:
        load(argv)
    assert message in str(caught.value)


@FUZZ
@given(st.data())
def test_K02_every_key_with_one_edit_is_refused(data):
    key = data.draw(st.sampled_from(sorted(DEFAULTS)))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_.-0123456789"))
    place = data.draw(st.integers(0, len(key) - 1))
    edited = data.draw(
        st.sampled_from(
            [
                key[:place] + letter + key[place:],  # insertion
                key[:place] + key[place + 1 :],  # deletion
                key[:place] + letter + key[place + 1 :],  # substitution
                key[:place] + key[place : place + 2][::-1] + key[place + 2 :],  # transposition
                key + letter,
                key.upper(),
            ]
        )
    )
    assume(edited not in DEFAULTS and edited)
    value = str(DEFAULTS[key]) or "text"
    for argv in ([f"--{edited}", value], [f"--{edited}={value}"]):
        with pytest.raises(ConfigError):
            load(argv)


@pytest.mark.parametrize("key", [key for key, value in DEFAULTS.items() if not isinstance(value, str)])
def test_K03_every_key_refuses_values_of_another_type(key):
    wrong = ["", "text", "None", "1,2,x", "nan", "inf", "-inf"]
    if isinstance(DEFAULTS[key], bool):
        wrong += ["0", "1", "yes", "on", "T", "2.5"]
    elif isinstance(DEFAULTS[key], int):
        wrong += ["True", "2.5", "1e-3", "0x10", "1,2", "9" * 400, "9" * 5000]
    elif isinstance(DEFAULTS[key], float):
        wrong += ["True", "1,2", "1e", "1e400"]
    else:
        wrong += ["2.5,4", "True", "4,,4", "4 4"]
    for value in wrong:
        with pytest.raises(ConfigError, match=re.escape(f"--{key}: expected")):
            load([f"--{key}={value}"])


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_every_choice_is_accepted_and_nothing_else(key):
    for value in CHOICES[key]:
        assert load([f"--{key}", value]).flat()[key] == value
    for value in ("", "other", CHOICES[key][0].upper(), "1"):
        with pytest.raises(
            ConfigError, match=re.escape(f"--{key}: expected one of {', '.join(CHOICES[key])}, received {value!r}")
        ):
            load([f"--{key}={value}"])


@pytest.mark.parametrize("key", [key for key, value in DEFAULTS.items() if not isinstance(value, str | bool)])
def test_K04_every_number_has_a_range(key):
    """Keys without a range of their own must not be negative."""
    low, high = LIMITS.get(key, (0, math.inf))
    outside = [low - 1, *([high * 2 + 1] if math.isfinite(high) else [])]
    for value in outside:
        with pytest.raises(
            ConfigError, match=re.escape(f"--{key}: expected a finite number from {low:g} to {high:g}, received")
        ):
            load([f"--{key}={value:.17g}"])


def test_K04_no_amount_that_would_break_a_run_later_is_accepted():
    """Zero is a meaning ("never", "none") for some keys and a broken run for others."""
    never = [
        "steps.model",
        "steps.policy",
        "eval.every",
        "eval.final_episodes",
        "video.every",
        "updates_per_call",
        "pool.grow_by",
        "valid_fraction",
    ]
    for key in never:
        assert load([f"--{key}", "0"]).flat()[key] == 0
    for key in (
        "batch.size",
        "pool.start",
        "pool.grow_every",
        "eval.episodes",
        "video.episodes",
        "video.context",
        "log_every",
        "save_every",
    ):
        with pytest.raises(ConfigError, match=f"--{re.escape(key)}: expected a finite number from 1 to"):
            load([f"--{key}", "0"])


PATTERNS = [
    "--(a+)+$ x",
    "--(a+)+$=aaaa",
    "--.* 1",
    "--seed|logdir 1",
    "--[ 1",
    "--\\ 1",
    "--steps",
    "--steps=",
    "--steps 5",
    "---seed 1",
    "--(a|",
]
LONG = [["--(a+)+$=" + "a" * 5000], ["--" + "a" * 100_000, "1"]]


@pytest.mark.parametrize("argv", [*map(str.split, PATTERNS), ["--seed ", "1"], ["--configs=(a+)+$"], *LONG])
def test_K08_keys_are_literal_and_never_patterns(argv):
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load(argv)
    assert time.monotonic() - started < 2
    assert len(str(caught.value)) <= 300


def test_K10_a_home_directory_is_expanded_and_nothing_else(tmp_path, monkeypatch):
    """What a shell would replace stays as it is written, wherever a path comes from."""
    from semopo_tf.data.dataset import cache_place
    from semopo_tf.envs.videos import absolute_source

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", "/elsewhere")
    for word in ("$WHERE/a", "${WHERE}/a", "`pwd`", "$(pwd)", "a;b", "%WHERE%", "{a,b}", "*"):
        assert load(["--logdir", word]).logdir == word
        assert str(cache_place(tmp_path, word, tmp_path)).startswith(word)
        assert absolute_source(f"/{word}") == f"/{word}"
    assert cache_place(tmp_path, "~/caches", tmp_path).parent == tmp_path / "caches"
    for path in Path(configuration.__file__).parent.rglob("*.py"):
        assert "expandvars" not in path.read_text()


# --- values -----------------------------------------------------------------------------------------------------------


def test_flags_take_the_type_of_their_default():
    numbers = (
        "--model_opt.lr 1e-4 --steps.model 1e3 --steps.policy 20.0 --penalty.weight 3 --kl.strict_elbo true "
        "--env.camera -1"
    )
    config = load(
        [
            *numbers.split(),
            "--encoder.kernels",
            "[4, 4]",
            "--decoder.kernels=4,4",
            "--logdir",
            "a=b",
            "--offline_dir=--odd",
        ]
    )
    assert (config.model_opt.lr, config.steps.model, config.steps.policy, config.penalty.weight) == (
        1e-4,
        1000,
        20,
        3.0,
    )
    assert [type(value) for value in (config.steps.model, config.steps.policy, config.penalty.weight)] == [
        int,
        int,
        float,
    ]
    assert (config.kl.strict_elbo, config.encoder.kernels, config.decoder.kernels) == (True, (4, 4), (4, 4))
    assert (config.logdir, config.offline_dir, config.env.camera) == ("a=b", "--odd", -1)


def page(tmp_path, overlay: str) -> Path:
    """configs.yaml with one more size overlay, `extra`."""
    path = tmp_path / "configs.yaml"
    path.write_text(CONFIG_FILE.read_text() + f"\n  extra: {overlay}\n")
    return path


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001"])
def test_K03_numbers_in_an_overlay_may_be_written_in_any_way(tmp_path, written):
    """Other readers of YAML take `1e-4`, without a dot, for text."""
    assert load(["--configs", "extra"], page(tmp_path, f"{{model_opt: {{lr: {written}}}}}")).model_opt.lr == 1e-4


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("{model_opt: {lr: '1e-4'}}", "overlay extra: model_opt.lr: expected a number, received '1e-4'"),
        ("{steps: {model: 2.5}}", "overlay extra: steps.model: expected a whole number, received 2.5"),
        ("{steps: {model: true}}", "overlay extra: steps.model: expected a whole number, received True"),
        ("{kl: {strict_elbo: 1}}", "overlay extra: kl.strict_elbo: expected True or False, received 1"),
        ("{kl: {strict_elbo: no}}", "overlay extra: kl.strict_elbo: expected True or False, received 'no'"),
        ("{task: 3}", "overlay extra: task: expected text, received 3"),
        ("{seed: null}", "overlay extra: seed: expected a whole number, received None"),
        ("{encoder: {kernels: 4}}", "overlay extra: encoder.kernels: expected a list of numbers, received 4"),
        ("{encoder: {kernels: []}}", "overlay extra: encoder.kernels: expected a list of numbers, received []"),
        ("{encoder: {kernels: [4, 2.5]}}", "overlay extra: encoder.kernels: expected a whole number, received 2.5"),
        ("{rssm: {detr: 3}}", "overlay extra: unknown key rssm.detr, did you mean rssm.deter"),
        ("{rssm: 3}", "overlay extra: rssm is a section, received 3"),
        ("{model_opt: {lr: .nan}}", "--model_opt.lr: expected a finite number"),
        ("{seed: -1}", "--seed: expected a finite number from 0 to"),
    ],
)
def test_K02_K03_mistakes_in_an_overlay_are_named(tmp_path, overlay, message):
    with pytest.raises(ConfigError) as caught:
        load(["--configs", "extra"], page(tmp_path, overlay))
    assert message in str(caught.value)


ALIASES = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
NO_PAGES = {
    "cut short": (b"a: [1", "line 1: expected YAML"),
    "a key twice": (b"a: 1\na: 2\n", "line 2: expected YAML, received found duplicate key"),
    "a list": (b"- 1\n- 2\n", "expected a mapping of keys to values, received list"),
    "empty": (b"", "expected a mapping of keys to values, received NoneType"),
    "two documents": (b"a: 1\n---\nb: 2\n", "line 2: expected YAML, received but found another document"),
    "tabs": (b"a:\n\tb: 1\n", "line 2: expected YAML"),
    "byte order marks": (b"a: 1\n\xef\xbb\xbfb: 1\n", "expected YAML, received a directive or a byte order mark"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "cannot be read .text in UTF-16; save it as UTF-8"),
    "another version": (b"%YAML 1.1\n---\na: no\n", "expected YAML, received a directive or a byte order mark"),
    "NUL": (b"a: \0\n", "expected YAML"),
    "brackets": (b"[" * 20_000, "line 1: expected YAML, received maximum depth"),
    "steps": (b"".join(b" " * n + b"a:\n" for n in range(200)), "line 16: expected YAML, received maximum depth"),
    "100 MB": (b"a: " + b"x" * 100_000_000, "cannot be read .more than the 24576 bytes that are read"),
    "aliases": (
        b"a0: &a0 [1]\n" + ALIASES.encode(),
        "expected YAML, received aliases that stand for more than 20000 values",
    ),
    "merges": (
        b"a0: &a0 {b: 1}\n" + MERGES.encode(),
        "expected YAML, received aliases that stand for more than 20000 values",
    ),
    "inside itself": (b"a: &a [*a]\n", "expected YAML, received an alias inside what it stands for"),
    "object": (
        b"a: !!python/object/apply:os.abort []\n",
        "line 1: expected YAML, received could not determine a constructor",
    ),
    "unknown tag": (b"\n\na: !thing 1\n", "line 3: expected YAML"),
}


@pytest.mark.parametrize("content, message", NO_PAGES.values(), ids=NO_PAGES)
def test_K01_K06_a_file_that_is_no_configuration_is_named(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=rf"config\.yaml: {message}"):
        load_saved(path)
    assert time.monotonic() - started < 2  # far less on an idle machine


def test_K01_a_tag_that_names_python_runs_nothing(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "config.yaml"
    for tag in (
        "python/object/apply:pathlib.Path.touch",
        "python/object/new:pathlib.Path",
        "python/name:os.system",
        "python/module:antigravity",
    ):
        path.write_text(f"a: !!{tag} [{marker}]\n")
        with pytest.raises(ConfigError, match="line 1: expected YAML"):
            load_saved(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)]
)
def test_K06_what_is_no_file_is_refused_without_waiting(tmp_path, make):
    make(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        load_saved(tmp_path / "config.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read"):
        load_saved(tmp_path / "config.yaml")


# --- saved and reloaded -----------------------------------------------------------------------------------------------


def reloaded(config: Config, tmp_path: Path) -> Config:
    path = tmp_path / "config.yaml"
    path.write_bytes(config.to_yaml().encode())
    return load_saved(path)


def exactly(config: Config) -> dict[str, str]:
    """Types and all digits: repr tells 1 from 1.0 and True, and every float from its neighbours."""
    return {key: repr(value) for key, value in config.flat().items()}


@pytest.mark.parametrize(
    "names", list(itertools.product(["", "released"], METHODS, TASKS[:1], ["", "small", "small32", "debug"]))
)
def test_K09_a_saved_configuration_reads_back_the_same(names, tmp_path):
    config = load(["--configs", *filter(None, names), "--logdir", "run"])
    assert exactly(reloaded(config, tmp_path)) == exactly(config)


NUMBERS = st.floats(0, 1e300, allow_nan=False)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | st.sampled_from(
    [
        "~",
        "null",
        "true",
        "1e5",
        "3",
        "",
        " ",
        "- a",
        "# no",
        "a: b",
        "'",
        '"',
        "\\",
        "%",
        "!!x",
        "\n",
        "a\nb ",
        "\t",
        "\x85",
        "\u2028",
        "é",
        "🤖",
        "0o7",
        "2024-01-01",
        "\udcff",
    ]
)


# Not shrunk: one example takes a tenth of a second.
@settings(
    FUZZ,
    max_examples=80,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(lr=1e-05, weight=5e-324, scale=1e300, seed=0, text="/data/" + "é" * 20 + " a b \u2028 x")
@given(lr=NUMBERS, weight=NUMBERS, scale=NUMBERS, seed=st.integers(0, 2**32 - 1), text=TEXTS)
def test_K09_floats_and_any_text_survive_saving(tmp_path, lr, weight, scale, seed, text):
    config = load(
        [
            f"--model_opt.lr={lr!r}",
            f"--penalty.weight={weight!r}",
            f"--model.image_scale={scale!r}",
            f"--seed={seed}",
            f"--offline_dir={text}",
        ]
    )
    assert (config.model_opt.lr, config.penalty.weight, config.offline_dir) == (lr, weight, text)
    assert exactly(reloaded(config, tmp_path)) == exactly(config)


def test_a_configuration_of_another_version_is_refused(tmp_path):
    text = load([]).to_yaml()
    for changed, key in (
        (text.replace("seed: 1\n", ""), "seed"),
        (text + "novelty: 3\n", "novelty"),
        (text.replace("  deter:", "  detr:"), "rssm.deter"),
    ):
        assert changed != text
        (tmp_path / "config.yaml").write_text(changed)
        with pytest.raises(
            ConfigError,
            match=rf"config\.yaml: expected the keys of this version, different: .*{re.escape(key)}.*; use the version",
        ):
            load_saved(tmp_path / "config.yaml")


def test_differences_are_listed_by_key():
    one, two = load([]), load(["--seed", "7", "--rssm.deter", "3"])
    assert configuration.differing(one, two) == {"seed": (1, 7), "rssm.deter": (200, 3)}
    assert configuration.differing(one, load([])) == {}


# --- the mapping ------------------------------------------------------------------------------------------------------


def test_a_configuration_is_a_frozen_mapping_with_attributes():
    config = load([])
    assert config.rssm.deter == config["rssm"]["deter"] == dict(config.rssm)["deter"] == 200
    assert list(config) == list(configuration.read_yaml(CONFIG_FILE)["defaults"])
    assert len(config.kl) == 3
    with pytest.raises(AttributeError, match=r"the configuration has no key rssm\.detr"):
        _ = config.rssm.detr
    with pytest.raises(AttributeError, match="frozen"):
        config.rssm.deter = 3
    with pytest.raises(TypeError):
        config["seed"] = 3


def test_reading_is_remembered_by_leaf():
    config = load([])
    assert config.read == set()
    _ = config.rssm
    config.flat()
    assert config.read == set()
    _ = config.rssm.deter
    assert config.read == {"rssm.deter"}
    dict(config.kl)
    assert config.read == {"rssm.deter", "kl.balance", "kl.free", "kl.strict_elbo"}


# --- every key is used ------------------------------------------------------------------------------------------------

IMAGE, ACTIONS = 10, 2  # two layers of 4 x 4: 10 -> 4 -> 1 and back
TASK = "dmcdrv_test_of_keys"


class Still:
    """Three decisions that change nothing."""

    action_size, image_shape = ACTIONS, (IMAGE, IMAGE, 3)

    def _observe(self):
        from semopo_tf.types import Observation

        return Observation(np.zeros(self.image_shape, np.uint8), 0.0, self._step == 0, self._step == 3, False)

    def reset(self, seed):
        self._step = 0
        return self._observe()

    def step(self, action):
        self._step += 1
        return self._observe()

    def close(self):
        pass


def write_dataset(directory: Path) -> Path:
    from semopo_tf.data.episodes import write_episode
    from semopo_tf.types import Episode

    directory.mkdir()
    record = np.arange(9)
    action = np.zeros((9, ACTIONS), np.float32)
    action[1:] = 0.5
    for number in range(4):
        image = np.full((9, IMAGE, IMAGE, 3), 20 * number, np.uint8)
        flags = {"is_first": record == 0, "is_last": record == 8, "is_terminal": record < 0}
        write_episode(
            directory / f"{number}.npz",
            Episode(image, action, record.astype(np.float32), np.ones(9, np.float32), **flags),
        )
    return directory


class Untaught:
    """Stands in for `engine.StageLoop`, whose tracing takes most of the time of so short a run: counts updates and
    makes none.
    """

    capacity = 1

    def __init__(self, stage, sample, *, seed, jit, host_images):
        self.stage, self.sums, self.count = stage, np.zeros(1, np.float32), 0

    def close(self):
        pass

    def run(self, step, updates):
        from semopo_tf.engine.loop import Chunk

        return Chunk(updates, {}, True)

    def take_means(self):
        return {}


def command_line(method: str, directory: Path) -> list[str]:
    short = (
        "--steps.model 2 --steps.policy 2 --eval.every 1 --video.every 2 --log_every 1 --save_every 2 --valid_fraction "
        "0.25"
    )
    flags = f"--configs {method} debug --task {TASK} {short} --encoder.kernels 4,4 --decoder.kernels 4,4"
    return [*flags.split(), "--offline_dir", str(directory / "data"), "--logdir", str(directory / "run")]


def test_every_key_is_read_by_a_run_of_some_method(tmp_path, monkeypatch):
    """A key that no code reads is a setting that does nothing. Sections handed over whole reach constructors that take
    no unknown name.

    The command line's own path, from the flags to the mark of a complete run, for each method: everything but the
    updates themselves, which get their settings when the agent is built.
    """
    from semopo_tf import behave, training
    from semopo_tf.envs import tasks
    from semopo_tf.run import trainer

    monkeypatch.setitem(tasks._registry, TASK, lambda **settings: Still())
    monkeypatch.setattr(trainer, "StageLoop", Untaught)
    read = set()
    for method in (*METHODS, "lompo"):
        (tmp_path / method).mkdir()
        write_dataset(tmp_path / method / "data")
        config = load(command_line(method, tmp_path / method))
        monkeypatch.setattr(training.configuration, "load", lambda argv, config=config: config)
        assert training.main([]) == 0
        assert (tmp_path / method / "run" / "DONE").exists()
        read |= config.read
    for method in ("drq_bc", "drq_cql", "infogating"):
        (tmp_path / method).mkdir()
        write_dataset(tmp_path / method / "data")
        words = ["--configs", method, "debug", "--task", TASK, "--offline_dir", str(tmp_path / method / "data")]
        config = load(
            [*words, "--logdir", str(tmp_path / method / "run"), "--video.every", "0", "--transitions.resize", "16"]
        )
        monkeypatch.setattr(training.configuration, "load", lambda argv, config=config: config)
        assert training.main([]) == 0
        read |= config.read
    for method in ("sac", "tia"):
        words = ["--configs", method, "exbmdp_point", "debug", "--logdir", str(tmp_path / method)]
        config = load([*words, "--batch.length", "2", "--online.episodes", "2", "--online.updates", "1"])
        monkeypatch.setattr(behave.configuration, "load", lambda argv, config=config: config)
        assert behave.main(["train"]) == 0
        read |= config.read
    assert set(DEFAULTS) - read == set()
    assert read <= set(DEFAULTS)


def test_I21_a_page_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "page.yaml").write_bytes(b"\xef\xbb\xbfa: 1\nb: [2]\n")
    assert configuration.read_yaml(tmp_path / "page.yaml") == {"a": 1, "b": [2]}
