"""Measure training speed and memory: python bench.py [--configs released ...] [--batch B --length T] [--json FILE]
[--compare FILE].
"""

from semopo_tf.bench import main
from semopo_tf.errors import run_command

if __name__ == "__main__":
    run_command(main)
