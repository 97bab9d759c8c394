"""`python -m semopo_tf.replay_dump LOGDIR/dump-<phase>-<step>`: repeat the update of a dump.

Exit code 0 if the same tensor is not finite again, 1 if not.
"""

from pathlib import Path

from semopo_tf import config as configuration
from semopo_tf.errors import CommandParser, run_command

NOT_REPRODUCED = 1


def main(argv: list[str]) -> int:
    """Rebuild the learner, load weights and batch, and take the update.

    Raises:
      SemopoError: when the directory is not a dump, or belongs to another model.
    """
    parser = CommandParser(prog="python -m semopo_tf.replay_dump", description="Repeat the update of a dump.")
    parser.add_argument("dump", type=Path, help="the dump directory that the stopped run printed")
    path = parser.parse_args(argv).dump
    import tensorflow as tf  # only after the arguments are checked

    from semopo_tf.engine import compiling, devices
    from semopo_tf.random import Key
    from semopo_tf.run import build, dump

    facts, arrays, state = dump.read(path)
    config = configuration.load_saved(path / "config.yaml")
    device, description = devices.choose_device(config.device)
    print(
        f"{path.name}: {facts['phase']} update {facts['step'] + 1} of seed {facts['seed']}, then on "
        f"{facts['device']}, now on {description}"
    )
    jit = compiling.choose_jit(config.jit, device)
    with tf.device(device):
        learner = build.make_learner(config, **{key: facts[key] for key in build.SIZES if key in facts}, jit=jit)
        build.restore(learner.variables(), state, path / "state.npz")
        stage = next(stage for stage in learner.stages if stage.name == facts["phase"])
        key = Key(facts["seed"], stage.name, tf.constant(facts["step"], tf.int64))
        batch = tf.nest.map_structure(tf.constant, dump.from_names(arrays))
        names = dump.examine(learner, stage, batch, key, jit=jit.of(stage))
    print(f"not finite: {', '.join(names) or 'nothing'}")
    expected = next(iter(facts["not_finite"]), None)
    if expected is not None and expected in names:
        print(f"reproduced: {expected}")
        return 0
    print(f"not reproduced: expected {'a name in dump.json' if expected is None else expected}")
    return NOT_REPRODUCED


if __name__ == "__main__":
    run_command(main)
