"""Do the update of a dump again and say whether the same tensor is not finite. Exit code 0 when it is, 1 when it is
not.

python -m semopo_tf.replay_dump LOGDIR/dump-<phase>-<step>
"""

from pathlib import Path

from semopo_tf import config as configuration
from semopo_tf.errors import CommandParser, run_command

NOT_REPRODUCED = 1


def main(argv: list[str]) -> int:
    """Rebuild the learner, load the weights and the batch, and do the update.

    Raises:
      SemopoError: when the directory is no dump, or belongs to another model.
    """
    parser = CommandParser(prog="python -m semopo_tf.replay_dump", description="Do the update of a dump again.")
    parser.add_argument("dump", help="directory that a stopped run has named")
    path = Path(parser.parse_args(argv).dump).expanduser()
    import tensorflow as tf  # after the arguments are known to be right

    from semopo_tf.engine import compiling, devices
    from semopo_tf.random import Key
    from semopo_tf.run import build, dump
    from semopo_tf.types import Batch

    facts, arrays, state = dump.read(path)
    config = configuration.load_saved(path / "config.yaml")
    device, description = devices.choose_device(config.device)
    print(
        f"{path.name}: {facts['phase']} update {facts['step'] + 1} of seed {facts['seed']}, then on "
        f"{facts['device']}, now on {description}"
    )
    jit = compiling.choose_jit(config.jit, device)
    with tf.device(device):
        learner = build.make_learner(config, image_size=facts["image_size"], action_size=facts["action_size"], jit=jit)
        build.restore(learner.variables(), state, path / "state.npz")
        stage = next(stage for stage in learner.stages if stage.name == facts["phase"])
        key = Key(facts["seed"], stage.name, tf.constant(facts["step"], tf.int64))
        batch = Batch(*(tf.constant(array) for array in arrays))
        found = dump.examine(learner, stage, batch, key, jit=jit.of(stage))
    wanted = facts["not_finite"][:1]
    print(f"not finite: {', '.join(found) or 'nothing'}")
    same = bool(wanted) and wanted[0] in found
    print(
        f"reproduced: {wanted[0]}" if same else f"not reproduced: expected {', '.join(wanted) or 'a name in dump.json'}"
    )
    return 0 if same else NOT_REPRODUCED


if __name__ == "__main__":
    run_command(main)
