"""The learners: losses, world models, imagination, actor-critic, and one module per method.

Imports the vocabulary and `nets`; a method imports shared parts and never another method. `LEARNERS` maps each value of
`method` in the configuration to the function that builds the learner and the sections that it needs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from semopo_tf.methods import drq, infogating, lompo, sac, semopo


class Registered(NamedTuple):
    """How a learner is built."""

    # (sections by name, image_size=, action_size=, seed=, compute=). Raises ValueError for settings that do not fit
    # together.
    build: Callable[..., Any]
    sections: tuple[str, ...]  # of the configuration
    unread: tuple[str, ...] = ()  # further settings, or sections, that have no effect
    # Whether it is also built with episodes= and transitions=, the training data's numbers of them.
    counts: bool = False


_SEMOPO = Registered(semopo.build, semopo.SECTIONS)
_NAMES = ("semopo", "se_rs", "se_rs_drp", "offline_dv2", "tia")
LEARNERS: dict[str, Registered] = dict.fromkeys(_NAMES, _SEMOPO)
_WINDOWS = ("sampling", "pool", "policy_starts", "batch.length", "steps.model", "world_model", "remat")
LEARNERS |= {
    loss: Registered(partial(drq.build, loss=loss), drq.SECTIONS, _WINDOWS) for loss in ("bc", "drq_bc", "drq_cql")
}
LEARNERS["lompo"] = Registered(lompo.build, lompo.SECTIONS, lompo.UNREAD, counts=True)
_OTHERS = (*(name for name in _WINDOWS if name != "steps.model"), *infogating.UNREAD)
LEARNERS["infogating"] = Registered(infogating.build, infogating.SECTIONS, _OTHERS)

# Learners of behaviours, which see the simulator's state in place of images and learn while they play (`run.online`):
# built with (sections by name, state_size=, action_size=, seed=, steps=, compute=).
STATE_LEARNERS: dict[str, Registered] = {"sac": Registered(sac.build, sac.SECTIONS)}
