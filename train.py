"""Train a world model and a policy offline: python train.py --configs METHOD TASK --offline_dir DATA --logdir RUN."""

from semopo_tf.errors import run_command
from semopo_tf.training import main

if __name__ == "__main__":
    run_command(main)
