"""The structures that cross module borders, one line and one shape per field.

The letters of a shape are `B` batch, `T` time, `N = B*T` start states, `H` horizon, `K` ensemble members, `A` action,
`D` deter, `S` stoch, `C` classes, `F` feature and `E` environments. Everything is batch-major. Arrays are NumPy in data
and acting, tensors in learning.

Record `t` of an episode holds the image o_t and the action and reward that *led to* it; record 0 has action 0 and
reward 0:

    image   o_0   o_1   o_2  ...  o_T
    action   0    a_1   a_2  ...  a_T       o_{t-1} --a_t--> o_t
    reward   0    r_1   r_2  ...  r_T       r_t received on arriving at o_t, summed over the repeated simulator steps
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

Tensor = Any  # tf.Tensor or np.ndarray; this module imports neither TensorFlow nor a simulator


class Episode(NamedTuple):
    """One episode of `L = T + 1` records."""

    image: np.ndarray  # [L, H, W, 3] uint8, 0..255
    action: np.ndarray  # [L, A] float32, in [-1, 1]; row 0 is zero
    reward: np.ndarray  # [L] float32 (float16 accepted on reading); row 0 is zero
    discount: np.ndarray  # [L] float32, 1 - is_terminal
    is_first: np.ndarray  # [L] bool, true at row 0 only
    is_last: np.ndarray  # [L] bool, true at the last row only
    is_terminal: np.ndarray  # [L] bool, a real termination, not a time limit
    log: Mapping[str, np.ndarray] = MappingProxyType({})  # [L, ...] numbers for analysis; no learner ever reads them

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but `log`, by name."""
        return {name: array for name, array in self._asdict().items() if name != "log"}


class Batch(NamedTuple):
    """`B` windows of `T` consecutive records, each window from one episode."""

    image: Tensor  # [B, T, H, W, 3] uint8, or [B, T, ...] as prepared by the stage
    action: Tensor  # [B, T, A] float32
    reward: Tensor  # [B, T] float32
    is_first: Tensor  # [B, T] bool, true at column 0 only
    is_terminal: Tensor  # [B, T] bool


class WithEpisode(NamedTuple):
    """Windows, and one whole training episode beside them: the batch of a stage that has `episode`.

    The episode is as long as the longest; after the end of a shorter one its last record is repeated with is_first
    true. So a transition leads to each record where is_first is false, and to no other.
    """

    windows: Batch  # [B, T, ...]
    episode: Batch  # [1, L, ...]


class Transitions(NamedTuple):
    """`B` transitions between stacks of frames, for learners without a recurrent state.

    Transition `t` of an episode with stacks of F = 3 frames and n steps:

        o_{t-3}  o_{t-2}  o_{t-1} | o_t  ...  o_{t+n-1} ...  o_{t-1+k}
        [-------- image --------]   a_t led from o_{t-1} to o_t
                     [-- next_image, ends here --]    [-- later_image, ends here --]

    In place of frames before the first of the episode stands the first.
    """

    image: Tensor  # [B, H, W, 3F] uint8, the oldest frame first
    action: Tensor  # [B, A] float32
    reward: Tensor  # [B] float32, sum of g^i r_{t+i} over i = 0 .. n-1
    discount: Tensor  # [B] float32, g^n, and 0 where o_{t+n-1} is a termination
    next_image: Tensor  # [B, H, W, 3F] uint8; [B, 0] where the stage does not ask for it
    later_image: Tensor  # the same, k frames after `image`; k is drawn


class Stacks(NamedTuple):
    """The transitions that a stage learns from."""

    frames: int  # F, in a stack
    steps: int  # n
    discount: float  # g
    following: bool  # whether `next_image` is there
    later: int = 0  # the largest k of `later_image`; 0: it is not there


class Latent(NamedTuple):
    """The state of one recurrent state-space model. `...` is `[B]`, `[B, T]` or `[N]`."""

    deter: Tensor  # [..., D] deterministic recurrent state
    stoch: Tensor  # [..., S] Gaussian sample or [..., S, C] one-hot sample
    stats: Mapping[str, Tensor]  # of the distribution of stoch: {mean, std} each [..., S] or {logit} [..., S, C]
    # [..., F + A] the features before this state and the action that led to it, where the ensemble's members have
    # bodies of their own, which read these; else nothing.
    before: Tensor = ()


class Imagined(NamedTuple):
    """`N` rollouts of `H` steps in the endogenous model; column 0 is the start state."""

    feat: Tensor  # [N, H+1, F]
    action: Tensor  # [N, H+1, A]; action[:, t] led to feat[:, t]; column 0 is zero
    reward: Tensor  # [N, H+1] predicted reward on arriving at feat[:, t], minus the penalty
    penalty: Tensor  # [N, H+1] weighted uncertainty penalty, already inside `reward`
    discount: Tensor  # [N, H+1]
    weight: Tensor  # [N, H+1] product of the discounts before t
    entropy: Tensor  # [N, H] of the policy at states 0 .. H-1, its features stopped


class Recorded(NamedTuple):
    """`B` windows of `T` records of the data, as the endogenous filter sees them. Nothing here has a gradient."""

    feat: Tensor  # [B, T, F] of the posterior states
    action: Tensor  # [B, T, A]; action[:, t] led to feat[:, t]
    reward: Tensor  # [B, T] received on arriving at feat[:, t], minus the penalty
    discount: Tensor  # [B, T] for the step from t to t+1; 0 at a termination


class Stage(NamedTuple):
    """One stage of learning: `steps` calls of `update` on batches of the sampler's view `view`.

    Checkpoints, records and resume use `name` and `steps` and know nothing else about a learner.
    """

    name: str  # lower-case letters
    steps: int  # number of updates
    view: str  # the sampler's view that the batches come from
    # (batch, key) -> scalar metrics and `finite`, 1.0 or 0.0; pure TensorFlow, assigns its own variables. An update
    # that is not finite changes nothing.
    update: Callable[[Any, Any], Mapping[str, Tensor]]
    images: bool = True  # whether `batch.image` holds images
    # frames [N, H, W, 3] uint8 -> [N, ...], computed once when the stage begins, from the weights at that point; the
    # batches hold its rows in place of the images. With neither this nor images, `batch.image` is [B, T, 0].
    prepare: Callable[[np.ndarray], Tensor] | None = None
    # (batch, key) -> metrics and gradients of the update by name; changes nothing. A dump uses it to name what is not
    # finite.
    gradients: Callable[[Any, Any], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] | None = None
    stacks: Stacks | None = None  # the batches are `Transitions` of this form; by default a `Batch` of windows
    # updates taken so far -> number of a training episode, counted on from the last to the first: the batches are
    # `WithEpisode`. Such a stage has `prepare`, or no images.
    episode: Callable[[Tensor], Tensor] | None = None
    validated: bool = False  # whether `Learner.validate` adds held-out metrics to the rows of this stage
    pictured: bool = False  # whether `Learner.pictures` is filmed every `video.every` updates
    evaluated: bool = False  # whether the policy is evaluated every `eval.every` updates


class Observation(NamedTuple):
    """What an environment returns at reset and after each decision."""

    image: np.ndarray  # [H, W, 3] uint8
    reward: float  # summed over the repeated simulator steps; 0 at reset
    is_first: bool
    is_last: bool
    is_terminal: bool
    # True states for analysis, if the environment knows them; always the same names.
    log: Mapping[str, np.ndarray] = MappingProxyType({})


class Environment(Protocol):
    """A simulator observed through pixels. One object plays many episodes, each a function of its seed and actions."""

    action_size: int
    image_shape: tuple[int, int, int]

    def reset(self, seed: int) -> Observation: ...

    def step(self, action: np.ndarray) -> Observation: ...

    def close(self) -> None: ...


class Policy(Protocol):
    """Acts in `E` environments at once. Its memory is passed as `state`, so one rollout loop serves all methods."""

    def initial(self, episodes: int) -> Any: ...

    def __call__(self, image: np.ndarray, state: Any, seeds: np.ndarray, step: int) -> tuple[np.ndarray, Any]:
        """Act on image [E, H, W, 3] uint8; seeds [E] are the episodes', step counts the decisions since reset.

        Returns:
          action [E, A] and the next state.
        """
        ...


class Learner(Protocol):
    """Everything that learns from a dataset. Trainer, checkpoints, records and resume need nothing else.

    A learner is a function of (configuration, seed, batches): all its state is in `variables`, all its randomness comes
    from the keys passed to it.
    """

    stages: Sequence[Stage]  # in the order of training

    def variables(self) -> Mapping[str, Any]:
        """Stable name -> tf.Variable, or a part of one with `numpy` and `assign`: all that a checkpoint holds."""
        ...

    def cost(self, stage: str, batch: int, length: int) -> Any:
        """`nets.accounting.Cost` of one update of a stage on `batch` windows of `length` records."""
        ...

    def policy(self) -> Policy:
        """The acting policy. It reads the variables, so it always plays with the newest weights."""
        ...

    def validate(self, batch: Any, key: Any) -> Mapping[str, Tensor]:
        """Metrics of a held-out batch of the form of the validated stage; trains nothing. None by default."""
        return {}

    def pictures(self, batch: Batch, key: Any, context: int) -> Mapping[str, Tensor]:
        """Video rows for a batch, each [B, T, H, W, 1 or 3] in 0..1; none by default.

        Args:
          context: frames that are observed before the rest is predicted.
        """
        return {}
