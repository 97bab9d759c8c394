"""`python -m semopo_tf.export --logdir RUN --out DIR`: export a policy as a SavedModel that runs without this package.

Two signatures with named tensors. E episodes are played side by side, each with its own state, seed and clock (`step`):

    initial   episodes int32 []
              -> deter [E, D], stoch [E, S] or [E, S, C], action [E, A], step int64 [E]
    act       image uint8 [E, H, W, 3], seed int64 [E] and these four
              -> the same four one decision later; take `action`, in [-1, 1]

A learner that acts on its last F frames has `frames` uint8 [E, H, W, 3F] in place of deter and stoch.

To restart an episode, replace its rows by those of `initial`. `examples/act.py` does all this in a page.
`export.json` beside the model names the run and its checkpoint. It also holds

    signatures   type and shape of every tensor
    graph        names of the same tensors in the graph, for the C and C++ interfaces; the tag is `serve`
    check        a frame (base64 of uint8 [H, W, 3]), a seed, and what `act` must give for them after `initial`: some
                 versions of TensorFlow compute another state without an error
"""

import base64
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import semopo_tf
from semopo_tf.errors import ConfigError, StorageError, run_command
from semopo_tf.run.trained import Run, load_run, run_parser
from semopo_tf.storage.files import FILES, Files, remedy, temporary_sibling

FORMAT = 1
CHECK_SEED = 0
# Largest difference that rounding makes, on another device and with the other kernels; a wrong state differs by more.
TOLERANCE = {"float32": 0.01, "mixed_bfloat16": 0.05, "mixed_float16": 0.05}
SETTINGS = ("TF_ENABLE_ONEDNN_OPTS",)  # environment variables that change the last bit of an action


def main(argv: list[str]) -> int:
    """Export a run's policy.

    Raises:
      SemopoError: any of `errors`, each with its exit code; ConfigError when the target exists.
    """
    parser = run_parser("python -m semopo_tf.export", __doc__.splitlines()[0], "the run whose policy is exported")
    parser.add_argument("--out", required=True, type=Path, help="new directory for the SavedModel and export.json")
    arguments = parser.parse_args(argv)
    out = arguments.out
    if os.path.lexists(out):
        raise ConfigError(
            f"--out {out}: expected a new directory, received one that exists; choose another or remove it"
        )
    run = load_run(arguments.logdir, arguments.checkpoint)
    if run.phase == "model":
        print(f"warning: {run.checkpoint} is from the model phase: its policy is untrained")
    write(out, run, describe(run))
    print(f"{out}: the policy of {arguments.logdir}, {run.checkpoint}")
    return 0


def describe(run: Run) -> dict[str, Any]:
    """The part of export.json about the run."""
    import tensorflow as tf

    config = run.config
    return {
        "format": FORMAT,
        "method": config.method,
        "task": config.task,
        "run_seed": config.seed,
        "phase": run.phase,
        "step": run.step,
        "checkpoint": run.checkpoint,
        **{name: run.sizes[name] for name in ("image_size", "action_size")},
        "action_range": [-1.0, 1.0],
        "action_repeat": config.env.action_repeat,
        "precision": config.precision,
        "versions": {"semopo_tf": semopo_tf.__version__, "tensorflow": tf.__version__, "numpy": np.__version__},
        "settings": {name: os.environ.get(name) for name in SETTINGS},
    }


def write(out: Path, run: Run, facts: Mapping[str, Any], files: Files = FILES) -> None:
    """Write the SavedModel and export.json atomically.

    Args:
      facts: from `describe`; the types and shapes of all tensors are added.

    Raises:
      StorageError: when the disk refuses; the attempt is cleaned up.
    """
    import tensorflow as tf

    temporary, module = temporary_sibling(out), tf.Module()
    try:
        files.make_directory(temporary)
        functions = signatures(run.policy, run.sizes["image_size"])
        read = {id(variable) for variable in functions["act"].variables}
        module.weights = {name: variable for name, variable in run.learner.variables().items() if id(variable) in read}
        # Saving gradients would include the graph of training.
        tf.saved_model.save(
            module, str(temporary), functions, tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        )
        content = {**facts, "signatures": {name: _tensors(function) for name, function in functions.items()}}
        content |= {"graph": graph_names(temporary), "check": check(functions, run)}
        files.write(temporary / "export.json", json.dumps(content, indent=1, allow_nan=False).encode())
        files.sync_tree(temporary)
        files.rename(temporary, out)
        files.sync_directory(out.parent)
    except (OSError, tf.errors.OpError) as error:
        known = error if isinstance(error, OSError) else _as_os_error(error)
        helps = remedy(known, "choose another --out")
        raise StorageError(f"{out}: cannot be written ({known.strerror}); {helps}") from error
    finally:
        files.remove_tree(temporary)


def signatures(policy: Any, image_size: int) -> dict[str, Any]:
    """The functions `initial` and `act` of the module's docstring, traced. They read exactly the variables that acting
    needs.
    """
    import tensorflow as tf

    from semopo_tf.engine.compiling import compiled

    start = policy.start() | {"step": tf.zeros([1], tf.int64)}

    def initial(episodes: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.repeat(value, episodes, 0) for name, value in start.items()}

    def act(image: tf.Tensor, seed: tf.Tensor, *values: tf.Tensor) -> dict[str, tf.Tensor]:
        state = dict(zip(start, values, strict=True))
        step = state.pop("step")
        return policy.decide(image, seed, step, state) | {"step": step + 1}

    observed = {"image": tf.zeros([1, image_size, image_size, 3], tf.uint8), "seed": tf.zeros([1], tf.int64)}
    rows = [tf.TensorSpec([None, *value.shape[1:]], value.dtype, name) for name, value in (observed | start).items()]
    count = [tf.TensorSpec([], tf.int32, "episodes")]
    return {
        "initial": compiled(initial, jit=False, signature=count).get_concrete_function(),
        "act": compiled(act, jit=False, signature=rows).get_concrete_function(),
    }


def check(functions: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """A frame, and the state and action that `act` gives for it at the start of an episode."""
    import tensorflow as tf

    frame = check_frame(run.sizes["image_size"])
    start = functions["initial"](episodes=tf.constant(1))
    after = functions["act"](image=tf.constant(frame[None]), seed=tf.constant([CHECK_SEED], tf.int64), **start)
    return {
        "image": base64.b64encode(frame.tobytes()).decode(),
        "seed": CHECK_SEED,
        "expected": {name: value.numpy()[0].tolist() for name, value in after.items() if value.dtype.is_floating},
        "tolerance": TOLERANCE[run.config.precision],
    }


def check_frame(size: int) -> np.ndarray:
    """A picture of stripes with every value in it, [size, size, 3] uint8, the same for every run."""
    row, column, channel = np.indices((size, size, 3))
    return ((37 * row + 101 * column + 59 * channel) % 256).astype(np.uint8)


def graph_names(directory: Path) -> dict[str, dict[str, dict[str, str]]]:
    """{signature: {inputs | outputs: {name: its tensor in the graph}}} of a SavedModel, such as `act_image:0`."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    (graph,) = SavedModel.FromString((directory / "saved_model.pb").read_bytes()).meta_graphs
    return {
        name: {
            side: {key: tensors[key].name for key in sorted(tensors)}
            for side, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs))
        }
        for name, signature in sorted(graph.signature_def.items())
        if signature.inputs
    }


def _as_os_error(error: Exception) -> OSError:
    """What TensorFlow's file layer reports, as the error of the system that it stands for."""
    import tensorflow as tf

    numbers = {tf.errors.ResourceExhaustedError: errno.ENOSPC, tf.errors.PermissionDeniedError: errno.EACCES}
    return OSError(numbers.get(type(error)), " ".join(str(error).split())[:100])


def _tensors(function: Any) -> dict[str, dict[str, str]]:
    """{inputs | outputs: {name: type and shape}}, such as `float32 [E, 32]`."""
    inputs = {spec.name: spec for spec in function.structured_input_signature[0]}
    sides = {"inputs": inputs, "outputs": function.structured_outputs}
    return {
        side: {name: f"{x.dtype.name} {x.shape.as_list()}".replace("None", "E") for name, x in tensors.items()}
        for side, tensors in sides.items()
    }


if __name__ == "__main__":
    run_command(main)
