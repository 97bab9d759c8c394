"""The method's equations in slow, obvious NumPy: float64, loops, no TensorFlow.

The tests compare the package with this file. Nothing here imports the package, so an error would have to be made twice,
in two different ways, to go unnoticed. Weights are plain arrays: a dense layer is a pair (kernel [in, out], bias
[out]).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

LOG_2PI = math.log(2.0 * math.pi)

Dense = tuple[np.ndarray, np.ndarray]


# --- layers -----------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def elu(x):
    x = np.asarray(x, np.float64)
    return np.where(x > 0, x, np.exp(np.minimum(x, 0.0)) - 1.0)


def softmax(logit):
    e = np.exp(logit - np.max(logit, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dense(x, layer: Dense):
    kernel, bias = layer
    return np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)


def mlp(x, layers: list[Dense], out: Dense):
    """Dense + ELU for every hidden layer, then a linear output layer."""
    for layer in layers:
        x = elu(dense(x, layer))
    return dense(x, out)


def layer_norm(x, scale, offset, eps=1e-3):
    """Over the last axis, with the population variance."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * scale + offset


def conv(image, kernel, bias, stride=2):
    """One image [H, W, I] with a kernel [k, k, I, O], no padding."""
    k = kernel.shape[0]
    size = [(n - k) // stride + 1 for n in image.shape[:2]]
    out = np.zeros((*size, kernel.shape[3]))
    for y in range(size[0]):
        for x in range(size[1]):
            patch = image[y * stride : y * stride + k, x * stride : x * stride + k]
            out[y, x] = np.tensordot(patch, kernel, 3) + bias
    return out


def conv_transpose(image, kernel, bias, stride=2):
    """One image [H, W, I] with a kernel [k, k, O, I], no padding: every input pixel stamps the kernel on the output."""
    k = kernel.shape[0]
    out = np.zeros(((image.shape[0] - 1) * stride + k, (image.shape[1] - 1) * stride + k, kernel.shape[2])) + bias
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            out[y * stride : y * stride + k, x * stride : x * stride + k] += kernel @ image[y, x]
    return out


# --- RSSM -------------------------------------------------------------------------------------------------------------


@dataclass
class GRU:
    kernel: np.ndarray  # [X + D, 3D]: rows of the input first, then of the state
    bias: np.ndarray  # [3D]
    scale: np.ndarray  # [3D], of the layer normalisation
    offset: np.ndarray  # [3D]


def gru_step(x, deter, p: GRU):
    """One layer normalisation over all 3D units; then reset, candidate, update in this order; update bias -1."""
    parts = layer_norm(np.concatenate([x, deter], -1) @ p.kernel + p.bias, p.scale, p.offset, 1e-3)
    reset, candidate, update = np.split(parts, 3, -1)
    reset = sigmoid(reset)
    candidate = np.tanh(reset * candidate)
    update = sigmoid(update - 1.0)
    return update * candidate + (1.0 - update) * deter


@dataclass
class RSSM:
    inp: Dense  # on concat[flat stoch, action]
    gru: GRU
    post_hidden: Dense  # on concat[deter, embed]
    post_out: Dense
    prior_hidden: list[Dense]  # one per member
    prior_out: list[Dense]
    stoch: int
    classes: int  # 0: Gaussian
    prior_body: list[Dense] | None = None  # one per member, on concat[flat stoch, deter, action] of the transition


def gaussian_stats(raw):
    """[..., 2S] -> mean and std, the std by 'sigmoid2': 2 sigmoid(x / 2) + 0.1."""
    mean, std = np.split(raw, 2, -1)
    return {"mean": mean, "std": 2.0 * sigmoid(std / 2.0) + 0.1}


def statistics(raw, p: RSSM):
    if p.classes:
        return {"logit": raw.reshape((*raw.shape[:-1], p.stoch, p.classes))}
    return gaussian_stats(raw)


def flat(stoch, p: RSSM):
    return stoch.reshape((*stoch.shape[:-2], -1)) if p.classes else stoch


def advance(stoch, action, deter, p: RSSM):
    """The deterministic part of a transition."""
    x = elu(dense(np.concatenate([flat(stoch, p), action], -1), p.inp))
    return gru_step(x, deter, p.gru)


def posterior(deter, embed, p: RSSM):
    return statistics(dense(elu(dense(np.concatenate([deter, embed], -1), p.post_hidden)), p.post_out), p)


def prior(read, member: int, p: RSSM):
    """read: the deterministic state, or `before` where each member has a body of its own."""
    x = elu(dense(read, p.prior_body[member])) if p.prior_body else read
    return statistics(dense(elu(dense(x, p.prior_hidden[member])), p.prior_out[member]), p)


def before(deter, stoch, action, p: RSSM):
    """What a body of its own reads of a transition."""
    return np.concatenate([flat(stoch, p), deter, action], -1)


def all_priors(read, p: RSSM):
    """Statistics with a leading member axis [K, ...]."""
    each = [prior(read, k, p) for k in range(len(p.prior_out))]
    return {name: np.stack([stats[name] for stats in each]) for name in each[0]}


def observe(embed, action, is_first, sample, members, p: RSSM):
    """Filter a batch. action[t] led to frame t, so step t consumes action[t].

    embed [B, T, E], action [B, T, A], is_first [B, T]; `sample(stats, t)` gives the posterior sample [B, S(, C)];
    members [T] is the member that defines the prior at each t. Previous state and action are zeroed where is_first.
    Returns deter [B, T, D], stoch, posterior and prior statistics, each batch-major.
    """
    batch, length = is_first.shape
    deter = np.zeros((batch, p.gru.bias.shape[0] // 3))
    stoch = np.zeros((batch, p.stoch, p.classes) if p.classes else (batch, p.stoch))
    deters, stochs, posts, priors = [], [], [], []
    for t in range(length):
        keep = 1.0 - is_first[:, t].astype(np.float64)
        deter = deter * keep[:, None]
        stoch = stoch * keep.reshape((batch,) + (1,) * (stoch.ndim - 1))
        read = before(deter, stoch, action[:, t] * keep[:, None], p)
        deter = advance(stoch, action[:, t] * keep[:, None], deter, p)
        post = posterior(deter, embed[:, t], p)
        stoch = np.asarray(sample(post, t), np.float64)
        deters.append(deter)
        stochs.append(stoch)
        posts.append(post)
        priors.append(prior(read if p.prior_body else deter, int(members[t]), p))

    def join(rows):
        return {name: np.stack([row[name] for row in rows], 1) for name in rows[0]}

    return np.stack(deters, 1), np.stack(stochs, 1), join(posts), join(priors)


# --- distributions ----------------------------------------------------------------------------------------------------


def gaussian_log_prob(x, mean, std):
    """Summed over the last axis."""
    return (-0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * LOG_2PI).sum(-1)


def gaussian_kl(mean_p, std_p, mean_q, std_q):
    """KL(p || q), summed over the last axis."""
    return (np.log(std_q / std_p) + (std_p**2 + (mean_p - mean_q) ** 2) / (2.0 * std_q**2) - 0.5).sum(-1)


def categorical_log_prob(onehot, logit):
    """Summed over the factors."""
    return (np.asarray(onehot, np.float64) * np.log(softmax(logit))).sum((-2, -1))


def categorical_kl(logit_p, logit_q):
    """KL(p || q) = sum_c p_c (ln p_c - ln q_c), summed over the factors."""
    p, q = softmax(logit_p), softmax(logit_q)
    return (p * (np.log(p) - np.log(q))).sum((-2, -1))


def kl(post, prior_):
    """KL(post || prior) of statistics as made by `statistics`: [...]."""
    if "logit" in post:
        return categorical_kl(post["logit"], prior_["logit"])
    return gaussian_kl(post["mean"], post["std"], prior_["mean"], prior_["std"])


def categorical_sample(logit, uniform):
    """One-hot of the first class whose cumulated probability reaches `uniform`. logit [..., S, C], uniform [..., S]"""
    out = np.zeros(logit.shape)
    for index in np.ndindex(logit.shape[:-1]):
        cumulative, chosen = 0.0, logit.shape[-1] - 1
        for c, p in enumerate(softmax(logit[index])):
            cumulative += p
            if uniform[index] <= cumulative:
                chosen = c
                break
        out[(*index, chosen)] = 1.0
    return out


def latent_sample(stats, noise):
    """Standard normal noise for a Gaussian, uniform noise for a categorical."""
    if "logit" in stats:
        return categorical_sample(stats["logit"], noise)
    return stats["mean"] + stats["std"] * noise


def latent_log_prob(stats, stoch):
    if "logit" in stats:
        return categorical_log_prob(stoch, stats["logit"])
    return gaussian_log_prob(stoch, stats["mean"], stats["std"])


def categorical_entropy(logit):
    p = softmax(logit)
    return -(p * np.log(p)).sum((-2, -1))


def gaussian_entropy(std):
    return (0.5 + 0.5 * LOG_2PI + np.log(std)).sum(-1)


# --- model losses -----------------------------------------------------------------------------------------------------


def kl_balanced(post, prior_, balance=0.8, free=1.0, still_post=None, still_prior=None):
    """0.2 max(mean KL(post || sg prior), free) + 0.8 max(mean KL(sg post || prior), free).

    `still_*` are the statistics inside the stop-gradients; they differ from the moving ones only when a derivative is
    taken by hand.
    """
    post_side = kl(post, prior_ if still_prior is None else still_prior).mean()
    prior_side = kl(post if still_post is None else still_post, prior_).mean()
    return (1.0 - balance) * max(post_side, free) + balance * max(prior_side, free)


def kl_strict(post, prior_):
    """ELBO: weight 1, no balance, no free nats."""
    return kl(post, prior_).mean()


def blend(mean_endo, mean_exo, features_endo, features_exo, kernel, bias):
    """Joint mean and mask. Images and mask features [..., H, W, C]; kernel [2C], bias scalar: a 1x1 convolution."""
    mask = sigmoid(np.concatenate([features_endo, features_exo], -1) @ kernel + bias)[..., None]
    return mask * mean_endo + (1.0 - mask) * mean_exo, mask


def image_log_prob(image, mean):
    """Independent unit normals over H, W, C, with the constant. image in -0.5..0.5."""
    return (-0.5 * (image - mean) ** 2 - 0.5 * LOG_2PI).sum((-3, -2, -1))


def unit_normal_log_prob(x, mean):
    return -0.5 * (x - mean) ** 2 - 0.5 * LOG_2PI


@dataclass
class Convs:
    layers: list[Dense]  # kernels as in `conv`, respectively `conv_transpose`
    dense: Dense | None = None  # of a decoder, before the first layer


def encode(image, p: Convs):
    """One image -> embedding: stride 2, ELU after every layer, flattened."""
    for kernel, bias in p.layers:
        image = elu(conv(image, kernel, bias))
    return image.reshape(-1)


def decode(feat, p: Convs):
    """One feature vector -> image channels: linear dense, 1 x 1, ELU after every layer but the last."""
    x = dense(feat, p.dense)[None, None]
    for i, (kernel, bias) in enumerate(p.layers):
        x = conv_transpose(x, kernel, bias)
        if i < len(p.layers) - 1:
            x = elu(x)
    return x


def features(deter, stoch, p: RSSM):
    return np.concatenate([flat(stoch, p), deter], -1)


@dataclass
class Stream:
    """One encoder and recurrent model with the noise of one pass."""

    encoder: Convs
    rssm: RSSM
    noise: np.ndarray  # [B, T, S]
    members: np.ndarray  # [T]

    def observe(self, image, action, is_first):
        """-> features [B, T, F], posterior and prior statistics. image [B, T, H, W, C] in -0.5..0.5."""
        embed = over_frames(lambda frame: encode(frame, self.encoder), image)
        deter, stoch, post, prior_ = observe(
            embed, action, is_first, lambda stats, t: latent_sample(stats, self.noise[:, t]), self.members, self.rssm
        )
        return features(deter, stoch, self.rssm), post, prior_


def over_frames(function, x):
    """Apply a function of one frame to every [b, t] of x [B, T, ...]."""
    rows = [[function(x[b, t]) for t in range(x.shape[1])] for b in range(x.shape[0])]
    return np.array(rows)


def separated_terms(p: dict, image, action, exo_action, reward, is_first):
    """All terms of the separated model as means over batch and time, not weighted.

    p: Streams `endo`, `exo`; Convs `endo_decoder`, `exo_decoder` and, if wanted, `exo_only_decoder`; `mask` (kernel
      [2C], bias);
    `reward` (hidden, out).
    The two streams share nothing but the joint image: m * endo mean + (1 - m) * exo mean.
    """
    endo_feat, endo_post, endo_prior = p["endo"].observe(image, action, is_first)
    exo_feat, exo_post, exo_prior = p["exo"].observe(image, exo_action, is_first)
    colors = image.shape[-1]
    endo = over_frames(lambda feat: decode(feat, p["endo_decoder"]), endo_feat)
    exo = over_frames(lambda feat: decode(feat, p["exo_decoder"]), exo_feat)
    # The first C channels are the mean, the last C the mask features.
    joint, mask = blend(endo[..., :colors], exo[..., :colors], endo[..., colors:], exo[..., colors:], *p["mask"])
    terms = {
        "endo_post": endo_post,
        "endo_prior": endo_prior,
        "exo_post": exo_post,
        "exo_prior": exo_prior,
        "image": -image_log_prob(image, joint).mean(),
        "reward": -unit_normal_log_prob(reward, mlp(endo_feat, *p["reward"])[..., 0]).mean(),
        "mask": mask,
    }
    if "exo_only_decoder" in p:
        exo_only = over_frames(lambda feat: decode(feat, p["exo_only_decoder"]), exo_feat)
        terms["exo_image"] = -image_log_prob(image, exo_only).mean()
    return terms


def joint_terms(p: dict, image, action, reward, is_first):
    """The same for one stream that explains the whole image: Stream `joint`, Convs `decoder`, `reward`."""
    feat, post, prior_ = p["joint"].observe(image, action, is_first)
    mean = over_frames(lambda x: decode(x, p["decoder"]), feat)
    return {
        "post": post,
        "prior": prior_,
        "image": -image_log_prob(image, mean).mean(),
        "reward": -unit_normal_log_prob(reward, mlp(feat, *p["reward"])[..., 0]).mean(),
    }


# --- penalties --------------------------------------------------------------------------------------------------------


def _centres(stats):
    """What the members disagree about: probabilities of the classes, or means; one flat vector per member and state."""
    if "logit" in stats:
        p = softmax(stats["logit"])
        return p.reshape((*p.shape[:-2], -1))
    return stats["mean"]


def disagreement_sum_of_squares(stats):
    """Sum over members of the squared distance to the mean. stats with a leading member axis."""
    centre = _centres(stats)
    return sum(((centre[k] - centre.mean(0)) ** 2).sum(-1) for k in range(len(centre)))


def disagreement_mean_of_norms(stats):
    """Mean over members of the (Frobenius) norm of the distance to the mean."""
    centre = _centres(stats)
    return sum(np.sqrt(((centre[k] - centre.mean(0)) ** 2).sum(-1)) for k in range(len(centre))) / len(centre)


def log_prob_variance(stats, stoch):
    """Population variance over members of ln p_k(stoch)."""
    count = len(next(iter(stats.values())))
    each = [latent_log_prob({name: value[k] for name, value in stats.items()}, stoch) for k in range(count)]
    mean = sum(each) / count
    return sum((value - mean) ** 2 for value in each) / count


def log_prob_std(stats, stoch):
    return np.sqrt(log_prob_variance(stats, stoch))


# --- behaviour --------------------------------------------------------------------------------------------------------


def lambda_return(reward, value, bootstrap, gamma, lambda_):
    """reward, value [N, H], bootstrap [N], gamma scalar or [N, H]: G_t = r_t + gamma [(1 - l) v_{t+1} + l G_{t+1}], G_H
    = v_H.
    """
    reward, value = np.asarray(reward, np.float64), np.asarray(value, np.float64)
    gamma = np.broadcast_to(gamma, reward.shape)
    horizon = reward.shape[1]
    out = np.zeros_like(reward)
    after, value_after = np.asarray(bootstrap, np.float64), np.asarray(bootstrap, np.float64)
    for t in reversed(range(horizon)):
        after = reward[:, t] + gamma[:, t] * ((1.0 - lambda_) * value_after + lambda_ * after)
        out[:, t] = after
        value_after = value[:, t]
    return out


def discount_weights(discount):
    """discount [N, H+1] -> weight_t = prod_{i<t} discount_i: 1, g, g^2, ..."""
    weight = np.ones_like(np.asarray(discount, np.float64))
    for t in range(1, weight.shape[1]):
        weight[:, t] = weight[:, t - 1] * discount[:, t - 1]
    return weight


def returns_of_rollout(reward, value, gamma, lambda_):
    """reward, value [N, H+1] at the states 0..H -> G [N, H]: reward and value of states 0..H-1, bootstrapped with the
    value of state H.
    """
    return lambda_return(reward[:, :-1], value[:, :-1], value[:, -1], gamma, lambda_)


def actor_loss(returns, entropy, weight, entropy_scale):
    """-mean over t = 0..H-2 and N of weight_t (G_{t+1} + scale * entropy of the policy at state t)."""
    count, horizon = returns.shape
    total = 0.0
    for n in range(count):
        for t in range(horizon - 1):
            total += weight[n, t] * (returns[n, t + 1] + entropy_scale * entropy[n, t])
    return -total / (count * (horizon - 1))


def critic_loss(returns, value, weight):
    """-mean over t = 0..H-1 of weight_t ln N(G_t; v_t, 1)."""
    count, horizon = returns.shape
    total = 0.0
    for n in range(count):
        for t in range(horizon):
            total += weight[n, t] * unit_normal_log_prob(returns[n, t], value[n, t])
    return -total / (count * horizon)


def least_reward(deter, read, stoch, noise, p: RSSM, reward):
    """The least reward of the states that the members predict, all with the same noise. [N]"""
    each = [latent_sample(prior(read, k, p), noise) for k in range(len(p.prior_out))]
    return np.min([reward(features(deter, one, p)) for one in each], 0)


def imagine(deter, stoch, act, members, noise, p: RSSM, reward, disagreement, penalty_weight, read=None, least=False):
    """Roll a policy: s_0 is the start, a_{t+1} = act(feat_t, t), s_{t+1} ~ prior of member[t].

    deter [N, D], stoch [N, S(, C)], members [H], noise [H, N, S]; `reward(feat)`, `disagreement(stats of all members,
    stoch)`. `read` [N, F + A] is `before` of the start states, where each member has a body of its own. With `least`
    the reward of the states after the start is `least_reward`.
    Returns feat [N, H+1, F], action [N, H+1, A] (action[:, t] led to feat[:, t], the first is zero), penalised reward
    and penalty [N, H+1], both functions of the arrival state.
    """
    feats, penalties, actions, rewards = [], [], [], []
    for t in range(len(members) + 1):
        read = read if p.prior_body else deter
        feat = features(deter, stoch, p)
        feats.append(feat)
        rewards.append(least_reward(deter, read, stoch, noise[t - 1], p, reward) if least and t else reward(feat))
        penalties.append(penalty_weight * disagreement(all_priors(read, p), stoch))
        if t == len(members):
            break
        action = act(feat, t)
        actions.append(action)
        read = before(deter, stoch, action, p)
        deter = advance(stoch, action, deter, p)
        stoch = latent_sample(prior(read if p.prior_body else deter, int(members[t]), p), noise[t])
    feat, penalty = np.stack(feats, 1), np.stack(penalties, 1)
    action = np.stack([np.zeros_like(actions[0]), *actions], 1)
    return feat, action, np.stack(rewards, 1) - penalty, penalty


class TruncatedNormal:
    """A normal cut to [-1, 1] in every dimension; densities and entropies summed over the last axis."""

    def __init__(self, loc, scale):
        self.loc, self.scale = np.asarray(loc, np.float64), np.asarray(scale, np.float64)
        self.low, self.high = (-1.0 - self.loc) / self.scale, (1.0 - self.loc) / self.scale
        self.mass = ndtr(self.high) - ndtr(self.low)

    @classmethod
    def from_raw(cls, raw_loc, raw_std):
        """The actor's two outputs: loc = tanh(raw), std = 2 sigmoid(raw / 2) + 0.1."""
        return cls(np.tanh(raw_loc), 2.0 * sigmoid(raw_std / 2.0) + 0.1)

    def log_prob(self, x):
        z = (x - self.loc) / self.scale
        return (-0.5 * z**2 - 0.5 * LOG_2PI - np.log(self.scale) - np.log(self.mass)).sum(-1)

    def entropy(self):
        """-E ln p. With z the standardised variable, -ln p = z^2 / 2 + ln(sqrt(2 pi) scale mass) and
        E z^2 = 1 + (a phi(a) - b phi(b)) / mass."""

        def phi(z):
            return np.exp(-0.5 * z**2 - 0.5 * LOG_2PI)

        second = 1.0 + (self.low * phi(self.low) - self.high * phi(self.high)) / self.mass
        return (0.5 * second + 0.5 * LOG_2PI + np.log(self.scale) + np.log(self.mass)).sum(-1)

    def sample(self, uniform):
        """The x with CDF(x) = uniform, kept within +-(1 - 1e-6)."""
        x = self.loc + self.scale * ndtri(ndtr(self.low) + uniform * self.mass)
        return np.clip(x, -1.0 + 1e-6, 1.0 - 1e-6)

    def mode(self):
        return self.loc


# --- optimiser --------------------------------------------------------------------------------------------------------


@dataclass
class Adam:
    """Clip by the global norm, decay every variable of the list (not scaled by lr), then Adam with constant lr.

    The step is lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps): the epsilon stands beside the uncorrected root.
    """

    lr: float
    eps: float = 1e-5
    clip: float = 100.0
    decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self):
        self.count, self.m, self.v = 0, None, None

    def step(self, variables, gradients):
        """Returns (new variables, norm before clipping); the moments stay here."""
        gradients = [np.asarray(g, np.float64) for g in gradients]
        if self.m is None:
            self.m = [np.zeros_like(g) for g in gradients]
            self.v = [np.zeros_like(g) for g in gradients]
        self.count += 1
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        factor = self.clip / norm if norm > self.clip else 1.0
        rate = self.lr * math.sqrt(1.0 - self.beta2**self.count) / (1.0 - self.beta1**self.count)
        out = []
        for i, (x, g) in enumerate(zip(variables, gradients)):
            g = g * factor
            self.m[i] = self.beta1 * self.m[i] + (1.0 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1.0 - self.beta2) * g**2
            x = np.asarray(x, np.float64) * (1.0 - self.decay)
            out.append(x - rate * self.m[i] / (np.sqrt(self.v[i]) + self.eps))
        return out, norm


def shared_step(variables: dict, gradients: dict, optimisers: list[tuple[Adam, list[str]]]):
    """Several optimisers, one after another, over name lists that may overlap; every gradient was taken before the
    first step.

    A shared variable is decayed and stepped once per list, with separate moments; each norm is over its own whole list.
    """
    variables = dict(variables)
    norms = []
    for adam, names in optimisers:
        new, norm = adam.step([variables[n] for n in names], [gradients[n] for n in names])
        variables.update(zip(names, new))
        norms.append(norm)
    return variables, norms


# --- parameter counts -------------------------------------------------------------------------------------------------


def dense_count(inputs, outputs):
    return inputs * outputs + outputs


def conv_count(kernel, inputs, outputs):
    return kernel * kernel * inputs * outputs + outputs
