"""Act with an exported policy and nothing else of this package: python examples/act.py EXPORT [EPISODE.npz [SEED]]
prints an action a frame.
"""

import os
import sys

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # the package's kernels: others round otherwise

import numpy as np
import tensorflow as tf

directory, *rest = sys.argv[1:]
policy = tf.saved_model.load(directory)
initial, act = policy.signatures["initial"], policy.signatures["act"]
size = act.structured_input_signature[1]["image"].shape[1]
frames = np.load(rest[0])["image"] if rest else np.random.default_rng(0).integers(0, 256, (10, size, size, 3), np.uint8)
seed = tf.constant([int(rest[1]) if len(rest) > 1 else 0], tf.int64)  # decides the latent noise

state = initial(episodes=tf.constant(1))
for frame in frames:
    state = act(image=tf.constant(frame[None]), seed=seed, **state)
    print(*state["action"].numpy()[0].tolist(), flush=True)
