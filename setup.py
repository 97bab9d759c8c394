"""Installation. Dependencies are stated here and nowhere else; constraints.txt pins the set that the tests run with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Read as text: importing the package would need what is about to be installed.
SOURCE = Path(__file__).with_name("semopo_tf").joinpath("__init__.py").read_text(encoding="utf-8")
VERSION = re.findall(r'^__version__ = "(.+)"$', SOURCE, re.MULTILINE)[0]

TENSORFLOW = ">=2.21,<2.22"

RAY = ["ray>=2.60,<3"]  # ray[default] adds the dashboard
SLURM = ["submitit>=1.5.4,<1.6"]  # the batch script is printed by an inner function of it
# Wheels alone; gym 0.26.2 and gymnasium take both.
CAR_RACING = ["box2d>=2.3.10,<2.4", "pygame-ce>=2.5,<3"]

setup(
    name="semopo_tf",
    version=VERSION,
    description="SeMOPO for TensorFlow 2: offline policies from pixels with moving distractors",
    license="MIT",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["semopo_tf", "semopo_tf.*"]),
    package_data={"semopo_tf": ["*.yaml", "report/*.yaml", "report/*.css"]},
    install_requires=[
        f"tensorflow{TENSORFLOW}",
        f"tensorboard{TENSORFLOW}",
        f"tf-keras{TENSORFLOW}",  # tensorflow-probability imports it, and it must have TensorFlow's version
        "keras>=3.15,<3.16",
        "tensorflow-probability>=0.25,<0.26",
        "numpy>=2,<3",
        "h5py>=3.13,<3.15",  # TensorFlow's upper bound
        "dm_control>=1.0.50,<1.1",
        "mujoco>=3.17,<4",  # dm_control accepts mujoco 4 and then fails on its first task
        "gym==0.26.2",  # the last release; never gym[box2d], which pins a pygame that does not build
        "ruamel.yaml>=0.19,<0.20",
        "imageio>=2.38,<3",
        "imageio-ffmpeg>=0.8,<1",
        "matplotlib>=3.11,<4",
        "pillow>=12,<14",
        "scipy>=1.17,<2",
        "tqdm>=4.67,<5",
    ],
    extras_require={
        # TensorFlow accepts cuDNN from 9.3 on, and fails with it up to 9.23 on bias and activation after a convolution.
        "gpu": [f"tensorflow[and-cuda]{TENSORFLOW}", "nvidia-cudnn-cu12>=9.24,<10"],
        "carracing": CAR_RACING,
        "ray": RAY,
        "slurm": SLURM,
        "dev": [
            *CAR_RACING,
            *RAY,
            *SLURM,
            "hypothesis>=6",
            "mypy>=2,<3",
            "packaging>=26",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.17,<0.18",
            "setuptools>=77",
        ],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1,<2"],
    },
)
