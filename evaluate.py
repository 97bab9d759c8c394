"""Play a trained policy in the simulator: python evaluate.py --logdir RUN --episodes 50 --video."""

from semopo_tf.errors import run_command
from semopo_tf.evaluation import main

if __name__ == "__main__":
    run_command(main)
