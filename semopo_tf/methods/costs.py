"""What one update of a world model or of a policy costs, composed from the costs of its layers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from semopo_tf.methods.actor_critic import ActorCritic
from semopo_tf.methods.world_model import COLORS, WorldModel
from semopo_tf.nets.accounting import Cost
from semopo_tf.nets.layers import Decoder, Encoder, MaskBlend
from semopo_tf.nets.rssm import RSSM

FLOAT = 4  # bytes of a float32


def world_model_update(
    world_model: WorldModel,
    *,
    frames: int,
    remat: int = 0,
    adversary_updates: int = 0,
) -> Cost:
    """FLOPs of one update, and bytes of its activations and gradients.

    Bytes count encoders, decoders, images and gradients. The mask and the recurrent states, some percent of those, are
    left out.

    Args:
      frames: B*T of a batch.
      remat: frames whose decoders are differentiated at a time; 0 for all.
      adversary_updates: steps of the adversary's head, if the model has one, before the update.
    """
    pixels = FLOAT * COLORS * world_model.image_size**2
    at_once = min(frames, remat) if remat else frames
    total = Cost(bytes=2 * pixels * frames + gradient_bytes(world_model.trained | world_model.adversary))
    for layer in world_model.layers.values():
        cost = layer.cost(frames)
        if isinstance(layer, Encoder):
            total += cost.trained(input_gradient=False)
        elif isinstance(layer, Decoder):
            kept = layer.cost(at_once).bytes + 3 * pixels * at_once  # with what the image's likelihood keeps
            total += replace(cost.trained(), bytes=kept)
        elif isinstance(layer, RSSM | MaskBlend):
            total += cost.trained().forward()
        else:
            total += cost.trained(input_gradient=world_model.reward_gradient).forward()
    if adversary := world_model.adversary_head:  # its own steps; then, frozen, it passes the gradient on to its input
        step = adversary.cost(frames).trained(input_gradient=False)
        total += Cost(adversary_updates * step.flops + adversary.cost(frames).frozen().flops)
    return total


def policy_update(
    world_model: WorldModel, actor_critic: ActorCritic, *, starts: int, horizon: int, reward: str = "sampled"
) -> Cost:
    """FLOPs of one actor-critic update in imagination, and bytes of its activations and gradients.

    The batch is filtered from evidence; then H steps are imagined from every record, with the penalty of all members.

    Args:
      starts: B*T of a batch.
      horizon: H.
      reward: of `losses.Penalty`.
    """
    layers, variables = actor_critic.layers, actor_critic.actor_variables | actor_critic.critic_variables
    rssm, steps, states = world_model.main.rssm, starts * horizon, starts * (horizon + 1)
    heads = [head for head in (world_model.reward_head, world_model.continue_head) if head]
    frozen = [rssm.step_cost(steps), rssm.prior_all_cost(states), *(head.cost(states) for head in heads)]
    frozen.append(layers["slow_critic"].cost(steps))
    if reward == "minimum":
        frozen.append(member_rewards(world_model, steps))
    recorded = starts if actor_critic.data_share else 0  # the losses leave out the last of each window
    trained = [layers[name].cost(steps + recorded).trained(input_gradient=False) for name in ("actor", "critic")]
    start = rssm.observe_cost(starts).forward() + layers["slow_critic"].cost(recorded).forward()
    start += Cost(bytes=gradient_bytes(variables))
    return sum([*(cost.frozen() for cost in frozen), *trained], start)


def member_rewards(world_model: WorldModel, steps: int) -> Cost:
    """Of `WorldModel.member_rewards` on so many imagined states."""
    rssm = world_model.main.rssm
    return rssm.prior_all_cost(steps) + world_model.reward_head.cost(rssm.members * steps)


def gradient_bytes(variables: Mapping[str, Any]) -> int:
    """Bytes of one float32 gradient of every variable."""
    return FLOAT * sum(int(variable.shape.num_elements()) for variable in variables.values())
