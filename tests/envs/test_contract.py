"""Environments of other people: what is made right and said, and what is refused with the member to correct."""

import numpy as np
import pytest

from semopo_tf.envs import contract
from semopo_tf.envs.contract import Contract, ContractError
from semopo_tf.envs.rollout import EndlessEpisode, RandomPolicy, play
from semopo_tf.errors import SimulatorError, one_line
from semopo_tf.types import Observation

SIZE, DECISIONS = 4, 5


class World:
    """Five decisions; the image shows the time, the reward is half of it."""

    action_size, image_shape = 2, (SIZE, SIZE, 3)

    def __init__(self, **settings):
        self.received = []

    def reset(self, seed):
        self.time = 0
        return self.observe()

    def step(self, action):
        self.received.append(np.array(action))
        self.time += 1
        return self.observe()

    def observe(self):
        image = np.full(self.image_shape, 10 * self.time % 256, np.uint8)
        return Observation(image, 0.5 * self.time, self.time == 0, self.time == DECISIONS, False)

    def close(self):
        pass


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(contract, "_said", set())


def played(environment, **options):
    (episode,) = play([environment], RandomPolicy(environment.action_size), [3], **options)
    return episode


def assert_same(episode, expected):
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(getattr(episode, name), array)


# --- 1, 2: what is kept belongs to us ---------------------------------------------------------------------------------


class OneBuffer(World):
    """Draws into one array and returns views of it; reward, flags and true states lie in buffers too."""

    def __init__(self):
        super().__init__()
        self.canvas = np.zeros((SIZE, SIZE, 4), np.uint8)
        self.numbers, self.flags, self.state = np.zeros(1), np.zeros(3, bool), np.zeros(2)

    def observe(self):
        self.canvas[:] = 10 * self.time
        self.numbers[:], self.state[:] = 0.5 * self.time, self.time
        self.flags[:] = self.time == 0, self.time == DECISIONS, False
        first, last, terminal = (self.flags[index : index + 1].reshape(()) for index in range(3))
        return Observation(self.canvas[..., :3], self.numbers.reshape(()), first, last, terminal, {"state": self.state})


class OneObject(World):
    """Returns the same mutable object every time."""

    class Seen:
        pass

    def __init__(self):
        super().__init__()
        self.seen = self.Seen()

    def observe(self):
        for name, value in super().observe()._asdict().items():
            setattr(self.seen, name, value)
        return self.seen


@pytest.mark.parametrize("kind", [OneBuffer, OneObject])
def test_I01_an_environment_that_returns_its_own_buffers_gives_the_episode_that_it_showed(kind, capsys):
    episode = played(kind())
    assert episode.image[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert_same(episode, played(World()))
    assert kind is OneObject or episode.log["state"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert capsys.readouterr().err == ""


def test_I01_side_by_side_too():
    reference = list(play([World()], RandomPolicy(2), [3, 4]))
    for episode, expected in zip(play([OneBuffer(), OneBuffer()], RandomPolicy(2), [3, 4]), reference, strict=True):
        assert_same(episode, expected)


class Clipping(World):
    """Scales and clips the action in place."""

    def step(self, action):
        action *= 100
        np.clip(action, -1, 1, out=action)
        return super().step(action)


class ClippingLater(World):
    """Works in two halves and changes the action of `send` when it answers."""

    def send(self, action):
        self.action = action

    def receive(self):
        self.action.fill(7)
        return self.step(self.action)


@pytest.mark.parametrize("kind", [Clipping, ClippingLater])
def test_I02_a_step_that_changes_the_action_changes_its_own_copy(kind):
    environment = kind()
    episode = played(environment)
    assert_same(episode, played(World()))
    assert set(np.abs(np.array(environment.received)).ravel().tolist()) <= {1.0, 7.0}


def test_I02_a_policy_that_reuses_its_array_is_no_danger():
    class Reusing(RandomPolicy):
        def __call__(self, image, state, seeds, step):
            image.fill(0)
            self.array = getattr(self, "array", np.zeros((1, 2), np.float32))
            self.array[:] = super().__call__(image, state, seeds, step)[0]
            return self.array, None

    (episode,) = play([World()], Reusing(2), [3])
    assert_same(episode, played(World()))


# --- 3: harmless, made right and said ---------------------------------------------------------------------------------


def changed(at_reset=None, **changes):
    """A world whose observations have these fields in place of its own; functions are given the field."""

    class Changed(World):
        def observe(self):
            seen = super().observe()
            if at_reset is not None and at_reset != (self.time == 0):
                return seen
            new = {name: value(getattr(seen, name)) if callable(value) else value for name, value in changes.items()}
            return seen._replace(**new)

    return Changed()


def grey(image):
    return image[..., :1]


HARMLESS = {
    "reward at reset": (changed(True, reward=1.5), "reset: the reward 1.5 follows no decision and is left out"),
    "no number at reset": (changed(True, reward=float("nan")), "reset: the reward nan follows no decision"),
    "reward (1,)": (changed(reward=lambda reward: np.array([reward])), "reward has the shape [1], and its only value"),
    "reward (1, 1)": (changed(False, reward=lambda reward: [[reward]]), "step: reward has the shape [1, 1]"),
    "one channel": (changed(image=grey), "image [4, 4, 1] has one colour channel, which becomes all three"),
    "no channel": (changed(image=lambda image: image[..., 0]), "image [4, 4] has one colour channel"),
    "int64 image": (changed(image=lambda image: image.astype(int)), "image is int64 and is taken as uint8"),
    "image as lists": (changed(image=lambda image: image.tolist()), "image is int64 and is taken as uint8"),
    "never first": (changed(is_first=False), "reset: is_first is False and is taken as True"),
    "always first": (changed(is_first=True), "step: is_first is True and is taken as False"),
}


@pytest.mark.parametrize("environment, line", HARMLESS.values(), ids=HARMLESS)
def test_I03_what_is_harmless_is_made_right_and_said_once(environment, line, capsys):
    for _ in range(2):
        assert_same(played(environment), played(World()))
    said = capsys.readouterr().err.splitlines()
    assert any(line in printed and printed.startswith("semopo_tf: warning: Changed.") for printed in said)
    assert len(said) == len({printed.split(":")[2] for printed in said})  # one a member


QUIET = {
    "no reward at reset": changed(True, reward=None),
    "numbers as flags": changed(is_terminal=0, is_last=np.int64),
    "NumPy numbers": changed(reward=np.float64, is_first=np.bool_),
    "Fortran order": changed(image=np.asfortranarray),
    "read-only image": changed(image=lambda image: np.broadcast_to(image[:1, :1], image.shape)),
}


@pytest.mark.parametrize("environment", QUIET.values(), ids=QUIET)
def test_I03_what_makes_no_difference_is_not_said(environment, capsys):
    assert_same(played(environment), played(World()))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shape", [(SIZE, SIZE, 1), (SIZE, SIZE), [SIZE, SIZE, 3], np.array([SIZE, SIZE, 3])])
def test_I03_a_declared_shape_may_be_written_in_any_form(shape):
    class Declared(World):
        image_shape, action_size = shape, np.int64(2)

        def observe(self):
            seen = super().observe()
            return seen._replace(image=np.resize(seen.image, tuple(shape)))

    assert_same(played(Declared()), played(World()))


# --- 3: refused, with the member to correct ---------------------------------------------------------------------------


class Gymnasium(World):
    """What gymnasium's environments return, with our members."""

    def reset(self, seed):
        return super().reset(seed).image, {}

    def step(self, action):
        seen = super().step(action)
        return seen.image, seen.reward, False, seen.is_last, {}


class GymnasiumAfterReset(Gymnasium):
    reset = World.reset


class OldGym(World):
    def reset(self, seed):
        return super().reset(seed).image


class Bare:
    """A gymnasium environment as it is."""

    action_space = observation_space = None

    def reset(self, *, seed=None, options=None):
        return np.zeros(3), {}

    def step(self, action):
        return np.zeros(3), 0.0, False, False, {}

    def close(self):
        pass


class KeywordSeed(World):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed)


class NoSeed(World):
    def reset(self):
        return super().reset(0)


class HalfSplit(World):
    def send(self, action):
        pass


def declared(**attributes):
    return type("Declared", (World,), attributes)


OBSERVATION = "expected an Observation (image, reward, is_first, is_last, is_terminal), received"
REFUSED = {
    "gymnasium's reset": (Gymnasium, f"Gymnasium.reset: {OBSERVATION} a tuple of 2 items; return one"),
    "gymnasium's step": (GymnasiumAfterReset, f"GymnasiumAfterReset.step: {OBSERVATION} a tuple of 5 items; return"),
    "old gym's reset": (OldGym, f"OldGym.reset: {OBSERVATION} an array uint8 [4, 4, 3]; return one"),
    "gymnasium itself": (Bare, "environment Bare: expected the members action_size, image_shape, reset, step, missing"),
    "None": (lambda: None, "environment NoneType: expected the members"),
    "reset by keyword": (KeywordSeed, "KeywordSeed.reset: expected reset(seed), received reset(*, seed=None, options="),
    "reset without a seed": (NoSeed, "NoSeed.reset: expected reset(seed), received reset(); correct its arguments"),
    "half a step": (
        HalfSplit,
        "HalfSplit: expected the members action_size, image_shape, reset, send, receive, missing receive;",
    ),
    "a step that is none": (declared(step=3), "Declared.step: expected step(action), received step that cannot be ca"),
    "wide images": (declared(image_shape=(4, 6, 3)), "image_shape: expected (size, size, 3), received (4, 6, 3)"),
    "channels first": (declared(image_shape=(3, 4, 4)), "image_shape: expected (size, size, 3), received (3, 4, 4)"),
    "four channels": (declared(image_shape=(4, 4, 4)), "image_shape: expected (size, size, 3), received (4, 4, 4)"),
    "no shape": (declared(image_shape=None), "image_shape: expected (size, size, 3), received None"),
    "a shape of actions": (declared(action_size=(2,)), "action_size: expected a whole number of at least 1, rec"),
    "no action": (declared(action_size=0), "action_size: expected a whole number of at least 1, received 0"),
    "float images": (
        lambda: changed(image=lambda image: image / np.float32(255)),
        "Changed.reset: expected image uint8 [4, 4, 3], received float32 [4, 4, 3]; scale it to 0..255 and round it",
    ),
    "negative images": (
        lambda: changed(image=lambda image: image.astype(int) - 1),
        "Changed.reset: expected image uint8 [4, 4, 3], received int64 [4, 4, 3]; scale it to 0..255",
    ),
    "channels first after all": (
        lambda: changed(image=lambda image: image.transpose(2, 0, 1)),
        "Changed.reset: expected image uint8 [4, 4, 3], received uint8 [3, 4, 4]; resize it, or correct image_shape",
    ),
    "render without a mode": (
        lambda: changed(image=None),
        "Changed.reset: expected image uint8 [4, 4, 3], received None; return an array (gymnasium's render needs",
    ),
    "rewards of two": (
        lambda: changed(False, reward=np.zeros(2)),
        "Changed.step: expected reward as one number, received an array float64 [2]; correct reward",
    ),
    "no reward": (
        lambda: changed(False, reward=None),
        "Changed.step: expected reward as one number, received None",
    ),
    "reward as text": (
        lambda: changed(False, reward="1.0"),
        "Changed.step: expected reward as one number, received '1.0'",
    ),
    "flag of another kind": (
        lambda: changed(False, is_last=None),
        "Changed.step: expected is_last as True or False, received None",
    ),
    "flag that counts": (
        lambda: changed(False, is_last=3),
        "Changed.step: expected is_last as True or False, received 3",
    ),
    "an end that is none": (
        lambda: changed(False, is_terminal=True),
        "Changed.step: expected is_last wherever is_terminal, received is_terminal alone; is_last is (terminated or",
    ),
    "log without names": (lambda: changed(log=[1, 2]), "Changed.reset: expected log as a mapping of names to arrays"),
    "log of text": (lambda: changed(log={"where": "here"}), "Changed.reset: expected log['where'] as numbers"),
    "log that comes later": (
        lambda: changed(False, log={"x": 1.0}),
        "Changed.step: expected log['x'] absent as before, received of shape []",
    ),
    "log that grows": (
        lambda: type("Growing", (World,), {"observe": growing})(),
        "Growing.step: expected log['x'] of shape [0] as before, received of shape [1]",
    ),
}


def growing(self):
    return World.observe(self)._replace(log={"x": np.zeros(self.time)})


@pytest.mark.parametrize("make, line", REFUSED.values(), ids=REFUSED)
def test_I03_the_rest_is_refused_with_the_member_to_correct(make, line, capsys):
    with pytest.raises(ContractError) as caught:
        list(play([make()], RandomPolicy(2), [3]))
    assert line in str(caught.value)
    assert caught.value.exit_code == 6
    assert len(one_line(caught.value)) < 400
    assert "is discarded" not in capsys.readouterr().err  # no other seed is tried


def test_I03_an_episode_that_ends_at_reset_may_be_the_seeds_fault():
    class Over(World):
        def reset(self, seed):
            seen = super().reset(seed)
            return seen._replace(is_last=seed == 3)

    discarded = []
    assert len(list(play([Over()], RandomPolicy(2), [3], discarded))) == 1
    assert "Over.reset: expected is_last and is_terminal False" in discarded[0].reason
    with pytest.raises(SimulatorError, match=r"failed with 4 seeds in a row \(last: Changed.reset: expected is_last"):
        played(changed(True, is_last=True))


def test_I03_a_reward_that_float32_cannot_hold_is_not_finite():
    with pytest.raises(SimulatorError, match=r"Changed.step: expected a finite reward, received 1e\+39"):
        played(changed(False, reward=1e39))


def test_I03_an_image_that_fails_after_good_ones_may_be_the_seeds_fault():
    class Flickering(World):
        def reset(self, seed):
            self.seed = seed
            return super().reset(seed)

        def observe(self):
            seen = super().observe()
            return seen._replace(image=None) if self.seed == 3 and self.time == 2 else seen

    discarded = []
    assert len(list(play([Flickering()], RandomPolicy(2), [3], discarded))) == 1
    assert "Flickering.step: expected image uint8 [4, 4, 3], received None" in discarded[0].reason


def test_I03_a_function_in_c_that_does_not_name_its_arguments_is_called():
    assert contract.uncallable(dict.update, {}) is None


def test_a_contract_is_played_as_the_environment_itself():
    environment = Contract(World())
    assert_same(played(environment), played(World()))
    assert (environment.image_shape, environment.action_size, environment.name) == ((SIZE, SIZE, 3), 2, "World")


# --- 8: an episode that never ends ------------------------------------------------------------------------------------


class Endless(World):
    def observe(self):
        return super().observe()._replace(is_last=False, image=np.zeros((SIZE, SIZE, 3), np.uint8))


@pytest.mark.parametrize("count", [1, 2])
def test_I08_an_episode_that_never_ends_is_one_line(count):
    environments = [Endless() for _ in range(count)]
    with pytest.raises(EndlessEpisode) as caught:
        list(play(environments, RandomPolicy(2), [3, 4], most=50))
    assert str(caught.value) == (
        "Endless.step: expected is_last within 50 decisions, received none in episode 3; return is_last at a time limit"
    )
    assert caught.value.exit_code == 6
    assert len(environments[0].received) == 50


def test_I08_an_episode_of_exactly_the_most_decisions_is_played():
    assert len(played(World(), most=DECISIONS).reward) == DECISIONS + 1
    with pytest.raises(EndlessEpisode, match="within 4 decisions"):
        played(World(), most=DECISIONS - 1)
