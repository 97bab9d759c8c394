"""Act with an exported policy and nothing else of this package: python examples/act.py EXPORT [EPISODE.npz [SEED]]
prints an action a frame. It refuses a TensorFlow that computes something else than export.json says.
"""

import base64
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # the package's kernels: others round otherwise

import numpy as np
import tensorflow as tf

directory, *rest = sys.argv[1:]
facts = json.loads(Path(directory, "export.json").read_text())
policy = tf.saved_model.load(directory)
initial, act = policy.signatures["initial"], policy.signatures["act"]
size = act.structured_input_signature[1]["image"].shape[1]

check = facts["check"]  # a frame, and the state and action that must come out
frame = np.frombuffer(base64.b64decode(check["image"]), np.uint8).reshape(1, size, size, 3)
state = initial(episodes=tf.constant(1))
state = act(image=tf.constant(frame), seed=tf.constant([check["seed"]], tf.int64), **state)
names = list(check["expected"])
differences = [np.abs(state[name].numpy()[0] - np.array(check["expected"][name])).max() for name in names]
worst = int(np.argmax(differences))
if not differences[worst] <= check["tolerance"]:
    expected = f"expected {names[worst]} within {check['tolerance']} of export.json"
    received = f"received a largest difference of {differences[worst]:.3g} with TensorFlow {tf.__version__}"
    remedy = f"use TensorFlow {facts['versions']['tensorflow']}, or set TF_ENABLE_ONEDNN_OPTS=0"
    sys.exit(f"{directory}: {expected}, {received}; {remedy}")

frames = np.load(rest[0])["image"] if rest else np.random.default_rng(0).integers(0, 256, (10, size, size, 3), np.uint8)
if frames.shape[1:] != (size, size, 3):
    remedy = f"resize them, or choose an episode of the policy's task, of {size} x {size} pixels"
    sys.exit(f"{rest[0]}: expected images of {[size, size, 3]}, received {list(frames.shape[1:])}; {remedy}")
seed = tf.constant([int(rest[1]) if len(rest) > 1 else 0], tf.int64)  # decides the latent noise

state = initial(episodes=tf.constant(1))
for frame in frames:
    state = act(image=tf.constant(frame[None]), seed=seed, **state)
    print(*state["action"].numpy()[0].tolist(), flush=True)
