"""The networks: convolutional encoder and decoder, mask blend, dense stacks, and the layers of a recurrent model.

Keras layers that make their sub-layers in the constructor and all weights in `build`. Initial values are Keras'
defaults (Glorot uniform kernels, zero biases), drawn by `initialise` from the run's seed and the variable's name.
Once built, each layer tells what `rows` rows of its input cost.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import keras
import numpy as np
import tensorflow as tf

from semopo_tf.nets import convolutions
from semopo_tf.nets.accounting import Cost, product
from semopo_tf.nets.compute import Target
from semopo_tf.nets.convolutions import STRIDE

MEAN_KERNEL = 78 / 15  # of the paper's decoder, its layers weighted by the pixels that they add
Shape = Sequence[int | None]  # as Keras gives it to `build`; None for the batch


def named_variables(layers: Mapping[str, keras.layers.Layer]) -> dict[str, tf.Variable]:
    """All trainable variables of built layers by a stable name, `<layer>/<sub-layer>/<weight>`.

    Raises:
      ValueError: when two variables have the same name.
    """
    variables: dict[str, tf.Variable] = {}
    for name, layer in layers.items():
        for weight in layer.trainable_weights:
            key = "/".join([name, *weight.path.split("/")[1:]])
            if key in variables:
                raise ValueError(f"{key}: two variables have this name; give the layers of {name} distinct names")
            variables[key] = weight.value
    return variables


def initialise(variables: Mapping[str, tf.Variable], seed: int) -> None:
    """Draw every kernel from (seed, name) alone, Glorot uniform, a `recurrent_kernel` orthogonal; other variables keep
    the values of `build`.
    """
    for name, variable in variables.items():
        if not name.endswith("kernel"):
            continue
        shape = variable.shape.as_list()
        if name.endswith("recurrent_kernel"):
            variable.assign(_orthogonal(seed, name, shape))
            continue
        # Fans are those of one member in ensembles [K, in, out], and times the window in convolutions [h, w, in, out].
        window = int(np.prod(shape[:-2])) if len(shape) == 4 else 1
        limit = np.sqrt(6 / (window * (shape[-2] + shape[-1])))
        variable.assign(_generator(seed, name).uniform(-limit, limit, shape).astype(np.float32))


def initialise_orthogonal(variables: Mapping[str, tf.Variable], seed: int) -> None:
    """Draw every kernel from (seed, name) alone as a random orthogonal matrix [inputs, outputs], times the square root
    of two for convolutions; other variables keep the values of `build`.
    """
    for name, variable in variables.items():
        if not name.endswith("kernel"):
            continue
        shape = variable.shape.as_list()
        variable.assign(_orthogonal(seed, name, shape, gain=np.sqrt(2) if len(shape) == 4 else 1.0))


def _orthogonal(seed: int, name: str, shape: Sequence[int], gain: float = 1.0) -> np.ndarray:
    """A random orthogonal matrix [inputs, outputs] times `gain`, in a kernel's shape."""
    inputs, outputs = int(np.prod(shape[:-1])), shape[-1]
    square, triangle = np.linalg.qr(
        _generator(seed, name).standard_normal((max(inputs, outputs), min(inputs, outputs)))
    )
    square *= np.sign(np.diag(triangle))  # else not uniform over the orthogonal matrices
    matrix = square if inputs >= outputs else square.T
    return (gain * matrix).reshape(shape).astype(np.float32)


def initialise_uniform(variables: Mapping[str, tf.Variable], seed: int) -> None:
    """Draw every kernel, and the bias beside it, from (seed, name) alone, uniform within one over the square root of
    the kernel's inputs: PyTorch's default. Other variables keep the values of `build`.
    """
    for name, variable in variables.items():
        kernel = variables.get(f"{name.rpartition('/')[0]}/kernel")
        if kernel is not None and name.endswith(("/kernel", "/bias")):
            limit = 1 / np.sqrt(np.prod(kernel.shape.as_list()[:-1]))
            shape = variable.shape.as_list()
            variable.assign(_generator(seed, name).uniform(-limit, limit, shape).astype(np.float32))


def _generator(seed: int, name: str) -> np.random.Generator:
    """Of the initial values of a variable."""
    return np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))


def conv_sizes(size: int, kernels: Sequence[int]) -> list[int]:
    """Edge lengths in pixels after each VALID convolution of stride 2: 64 -> 31, 14, 6, 2 for four kernels of 4.

    Raises:
      ValueError: when a kernel is larger than the image that it meets.
    """
    sizes, edge = [], size
    for kernel in kernels:
        if kernel > edge:
            raise ValueError(
                f"encoder.kernels = {list(kernels)}: expected each kernel to fit, received {kernel} on an edge of "
                f"{edge}; try --encoder.kernels {written(fitting_kernels(size)[0])}"
            )
        edge = (edge - kernel) // STRIDE + 1
        sizes.append(edge)
    return sizes


def written(kernels: Sequence[int]) -> str:
    """Kernels as on a command line."""
    return ",".join(map(str, kernels))


def deconv_sizes(kernels: Sequence[int]) -> list[int]:
    """Edge lengths after each VALID transposed convolution of stride 2 from 1 x 1: 5, 5, 6, 6 -> 5, 13, 30, 64."""
    sizes, size = [], 1
    for kernel in kernels:
        size = (size - 1) * STRIDE + kernel
        sizes.append(size)
    return sizes


def fitting_kernels(size: int) -> tuple[list[int], list[int]]:
    """Kernels of an encoder and a decoder for square images of `size` pixels; those of 64 are the paper's.

    The encoder has as many layers of kernel 4 as it takes to an edge of 3 or less. The decoder has three to five
    layers; a kernel one larger in the last layer adds one pixel, in the layer before two, then four, and so on, so the
    binary digits of what is missing say which kernels are larger.
    """
    encoder, edge = list[int](), size
    while edge > 3:
        encoder.append(4)
        edge = (edge - 4) // STRIDE + 1

    def mean(layers: int) -> float:
        return (size + 2**layers - 2) / (2**layers - 1)

    layers = min(range(3, 6), key=lambda count: abs(mean(count) - MEAN_KERNEL))
    kernel = int(mean(layers))
    missing = size + 2**layers - 2 - kernel * (2**layers - 1)
    return encoder, [kernel + (missing >> layer & 1) for layer in reversed(range(layers))]


KERNELS_OF_64 = ((4, 4, 4, 4), (5, 5, 6, 6))  # of encoder and decoder: the configuration's default


def fitted(
    image_size: int, encoder: Mapping[str, Any], decoder: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of encoder and decoder, with kernels for this image size where the default ones do not fit it."""
    encoder, decoder = dict(encoder), dict(decoder)
    if image_size != 64 and (encoder["kernels"], decoder["kernels"]) == KERNELS_OF_64:  # none named for this size
        encoder["kernels"], decoder["kernels"] = fitting_kernels(image_size)
    return encoder, decoder


class Dense(keras.layers.Dense):
    """Keras' layer, with its cost."""

    def cost(self, rows: int) -> Cost:
        inputs, outputs = self.kernel.shape
        return product(rows, inputs, outputs, _size(self))


class Strided(keras.layers.Layer):
    """A Keras convolution of stride 2 without padding, computed by one of `convolutions`."""

    form: Callable[..., tf.Tensor]

    def __init__(self, filters: int, kernel: int, *, target: Target, act: str | None, dtype: str, name: str):
        super().__init__(filters, kernel, STRIDE, activation=act, dtype=dtype, name=name)
        self._target = target

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = self.form(inputs, _value(self.kernel), target=self._target)
        return self.activation(tf.nn.bias_add(x, _value(self.bias)))


class Convolution(Strided, keras.layers.Conv2D):
    """Keras' layer."""

    form = staticmethod(convolutions.convolve)

    def cost(self, rows: int, edge: int) -> Cost:
        """Of `rows` images of `edge` pixels a side."""
        k, _, channels, width = self.kernel.shape
        return product(rows * conv_sizes(edge, [k])[0] ** 2, k * k * channels, width, _size(self))


class TransposedConvolution(Strided, keras.layers.Conv2DTranspose):
    """Keras' transposed layer."""

    form = staticmethod(convolutions.transpose)

    def cost(self, rows: int, edge: int) -> Cost:
        """Of `rows` images of `edge` pixels a side; every weight meets every input pixel."""
        k, _, width, channels = self.kernel.shape
        out, flops = (edge - 1) * STRIDE + k, 2 * rows * edge**2 * k**2 * channels * width
        return Cost(flops, 2 * _size(self) * rows * out**2 * width, flops)


class Encoder(keras.layers.Layer):
    """Image [..., H, W, C] in -0.5..0.5 -> embedding [..., E] in the compute type.

    The layout is TIA's, as in the paper (App. D.1).

    Args:
      depth: channels of the first layer; each further layer has twice as many.
      kernels: edge of each layer's kernel, pixels.
      target: see `convolutions`.
    """

    def __init__(
        self,
        *,
        depth: int,
        kernels: Sequence[int],
        act: str,
        name: str,
        precision: str = "float32",
        target: Target = "library",
    ):
        super().__init__(name=name)
        style: dict[str, Any] = {"act": act, "dtype": precision, "target": target}
        self._depth, self._kernels = depth, list(kernels)
        self._convs = [Convolution(depth * 2**i, kernel, name=f"conv{i}", **style) for i, kernel in enumerate(kernels)]

    def embed_size(self, image_size: int) -> int:
        """Features of the embedding for square images of `image_size` pixels."""
        channels = self._depth << len(self._kernels) - 1
        return conv_sizes(image_size, self._kernels)[-1] ** 2 * channels

    def build(self, input_shape: Shape) -> None:
        self._edges: list[int] = []
        shape: Any = (None, *input_shape[-3:])
        for conv in self._convs:
            self._edges.append(shape[1])
            conv.build(shape)
            shape = conv.compute_output_shape(shape)

    def call(self, image: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(image, [-1, *image.shape[-3:]])
        for conv in self._convs:
            x = conv(x)
        return tf.reshape(x, [*leading(image, 3), int(np.prod(x.shape[1:]))])

    def cost(self, rows: int) -> Cost:
        first, *rest = (conv.cost(rows, edge) for conv, edge in zip(self._convs, self._edges, strict=True))
        return first.then(*rest)


class Decoder(keras.layers.Layer):
    """Features [..., F] -> image channels [..., H, W, C] float32, H = W = `deconv_sizes(kernels)[-1]`.

    Linear at the end. The layout is TIA's, as in the paper (App. D.1).

    Args:
      depth: channels of the layer before the last; each layer before that has twice as many.
      kernels: edge of each layer's kernel, pixels.
      target: see `convolutions`.
    """

    def __init__(
        self,
        *,
        depth: int,
        kernels: Sequence[int],
        act: str,
        channels: int,
        name: str,
        precision: str = "float32",
        target: Target = "library",
    ):
        super().__init__(name=name)
        style: dict[str, Any] = {"dtype": precision, "target": target}
        last = len(kernels) - 1
        self._dense = Dense(depth * 2 ** (last + 2), dtype=precision, name="dense")
        widths = [depth * 2 ** (last - 1 - i) for i in range(last)] + [channels]
        self._deconvs = [
            TransposedConvolution(width, kernel, act=act if i < last else None, name=f"deconv{i}", **style)
            for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True))
        ]

    def build(self, input_shape: Shape) -> None:
        self._dense.build((None, input_shape[-1]))
        self._edges: list[int] = []
        shape: Any = (None, 1, 1, self._dense.units)
        for deconv in self._deconvs:
            self._edges.append(shape[1])
            deconv.build(shape)
            shape = deconv.compute_output_shape(shape)

    def call(self, feat: tf.Tensor) -> tf.Tensor:
        x = self._dense(tf.reshape(feat, [-1, feat.shape[-1]]))[:, None, None, :]
        for deconv in self._deconvs:
            x = deconv(x)
        return tf.cast(tf.reshape(x, [*leading(feat, 1), *x.shape[1:]]), tf.float32)

    def cost(self, rows: int) -> Cost:
        layers = (deconv.cost(rows, edge) for deconv, edge in zip(self._deconvs, self._edges, strict=True))
        return self._dense.cost(rows).then(*layers)


class MaskBlend(keras.layers.Layer):
    """Both decoders' mask features -> the endogenous stream's mask: 1 x 1 convolution, then sigmoid (TIA)."""

    def __init__(self, *, name: str, target: Target = "library"):
        super().__init__(name=name)
        self._target = target
        self._conv = keras.layers.Conv2D(1, 1, name="conv")

    def build(self, input_shape: Shape) -> None:
        self._pixels = cast(int, input_shape[-3]) * cast(int, input_shape[-2])
        self._conv.build((None, *input_shape[-3:]))

    def call(self, mask_features: tf.Tensor) -> tf.Tensor:
        """[..., H, W, 2C], endogenous features first -> [..., H, W, 1] in 0..1, the weight of the endogenous mean."""
        if self._target != "library":  # a weighted sum, which XLA fuses with its neighbours
            kernel = tf.reshape(self._conv.kernel.value, [-1])
            return tf.sigmoid(tf.reduce_sum(mask_features * kernel, -1, keepdims=True) + self._conv.bias.value)
        x = tf.reshape(mask_features, [-1, *mask_features.shape[-3:]])
        return tf.sigmoid(tf.reshape(self._conv(x), [*leading(mask_features, 3), *mask_features.shape[-3:-1], 1]))

    def cost(self, rows: int) -> Cost:
        return product(rows * self._pixels, *self._conv.kernel.shape[2:])


class MLP(keras.layers.Layer):
    """`layers` dense layers of `units`, then one linear output layer for each entry of `outputs`, float32.

    [..., in] -> {name: [..., width]}, `outputs` being {name: width}.
    """

    def __init__(
        self, *, layers: int, units: int, act: str, outputs: Mapping[str, int], name: str, precision: str = "float32"
    ):
        super().__init__(name=name)
        self._hidden = [Dense(units, act, dtype=precision, name=f"hidden{i}") for i in range(layers)]
        self._outputs = {key: Dense(width, dtype=precision, name=key) for key, width in outputs.items()}

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        for dense in self._hidden:
            dense.build((None, width))
            width = dense.units
        for dense in self._outputs.values():
            dense.build((None, width))

    def call(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        for dense in self._hidden:
            x = dense(x)
        return {key: tf.cast(dense(x), tf.float32) for key, dense in self._outputs.items()}

    def cost(self, rows: int) -> Cost:
        outputs = sum((dense.cost(rows) for dense in self._outputs.values()), Cost())
        first, *rest = [*(dense.cost(rows) for dense in self._hidden), outputs]
        return first.then(*rest)


class TwoInputDense(keras.layers.Layer):
    """A dense layer on the concatenation of two inputs, computed in two halves: x @ W_x + (y @ W_y + b).

    In a recurrence only x depends on the previous step; `project` computes the half of y for all steps at once. There
    is one kernel, so that initial values and parameter count are those of the plain layer.

    Args:
      first, second: widths of x and y; `second` may be 0, and then there is no y.
    """

    def __init__(self, units: int, *, first: int, second: int, name: str, precision: str = "float32"):
        super().__init__(name=name)
        self._units, self._first, self._second, self._compute = units, first, second, compute_type(precision)

    def build(self, input_shape: Shape | None = None) -> None:
        self.kernel = self.add_weight((self._first + self._second, self._units), "zeros", name="kernel")
        self.bias = self.add_weight((self._units,), "zeros", name="bias")

    def project(self, y: tf.Tensor) -> tf.Tensor:
        """y [..., second] -> [..., units], bias included."""
        if not self._second:
            return tf.broadcast_to(self.bias.value, [*y.shape[:-1], self._units])
        return matmul_last(y, self.kernel.value[self._first :], self._compute) + self.bias.value

    def first_kernel(self) -> tf.Tensor:
        """W_x, [first, units]."""
        return self.kernel.value[: self._first]

    def call(self, x: tf.Tensor, projected: tf.Tensor) -> tf.Tensor:
        """x [..., first], projected [..., units] -> [..., units], linear."""
        return matmul_last(x, self.first_kernel(), self._compute) + projected

    def cost(self, rows: int) -> Cost:
        """Of the half of x."""
        return product(rows, self._first, self._units)

    def projection_cost(self, rows: int) -> Cost:
        """Of `project`, the half of y."""
        return product(rows, self._second, self._units)


class GRUWeights(NamedTuple):
    """Weights of a `GRUCell` for D units; in a stack of G models each has a first axis G, vectors as [G, 1, 3D]."""

    kernel: tf.Tensor  # [inputs + D, 3D]
    bias: tf.Tensor  # [3D]
    scale: tf.Tensor  # [3D], of the layer normalisation
    offset: tf.Tensor  # [3D]


class GRUCell(keras.layers.Layer):
    """DreamerV2's gated recurrent unit: one dense layer, layer-normalised over all three gates, update bias -1."""

    UPDATE_BIAS = -1.0
    EPSILON = 1e-3

    def __init__(self, units: int, *, inputs: int, name: str, precision: str = "float32"):
        super().__init__(name=name)
        self._units, self._inputs, self._compute = units, inputs, compute_type(precision)

    def build(self, input_shape: Shape | None = None) -> None:
        gates = 3 * self._units
        self.kernel = self.add_weight((self._inputs + self._units, gates), "zeros", name="kernel")
        self.bias = self.add_weight((gates,), "zeros", name="bias")
        self.scale = self.add_weight((gates,), "ones", name="scale")
        self.offset = self.add_weight((gates,), "zeros", name="offset")

    def weights_now(self) -> GRUWeights:
        return GRUWeights(self.kernel.value, self.bias.value, self.scale.value, self.offset.value)

    def call(self, x: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        return self.next(self.weights_now(), x, state)

    def next(self, weights: GRUWeights, x: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """x [B, inputs], state [B, D] -> next state [B, D]; of G models at once with a first axis G everywhere.

        r, c, u = split(layer_norm([x, h] W + b));   r = sigmoid(r),  c = tanh(r c),  u = sigmoid(u - 1)
        h' = u c + (1 - u) h
        """
        parts = matmul_last(tf.concat([x, state], -1), weights.kernel, self._compute) + weights.bias
        mean, variance = tf.nn.moments(parts, [-1], keepdims=True)
        parts = (parts - mean) * tf.math.rsqrt(variance + self.EPSILON) * weights.scale + weights.offset
        reset, candidate, update = tf.split(parts, 3, -1)
        candidate = tf.tanh(tf.sigmoid(reset) * candidate)
        update = tf.sigmoid(update + self.UPDATE_BIAS)
        return update * candidate + (1 - update) * state

    def cost(self, rows: int) -> Cost:
        return product(rows, *self.kernel.shape)


class StandardGRUWeights(NamedTuple):
    """Weights of a `StandardGRUCell` for D units; of G models as for `GRUWeights`."""

    kernel: tf.Tensor  # [inputs, 3D]
    recurrent_kernel: tf.Tensor  # [D, 3D]
    bias: tf.Tensor  # [3D]
    recurrent_bias: tf.Tensor  # [3D]


class StandardGRUCell(keras.layers.Layer):
    """Keras' gated recurrent unit (`keras.layers.GRUCell`, Cho et al. 2014 in cuDNN's form)."""

    def __init__(self, units: int, *, inputs: int, name: str, precision: str = "float32"):
        super().__init__(name=name)
        self._units, self._inputs, self._compute = units, inputs, compute_type(precision)

    def build(self, input_shape: Shape | None = None) -> None:
        gates = 3 * self._units
        self.kernel = self.add_weight((self._inputs, gates), "zeros", name="kernel")
        self.recurrent_kernel = self.add_weight((self._units, gates), "zeros", name="recurrent_kernel")
        self.bias = self.add_weight((gates,), "zeros", name="bias")
        self.recurrent_bias = self.add_weight((gates,), "zeros", name="recurrent_bias")

    def weights_now(self) -> StandardGRUWeights:
        return StandardGRUWeights(
            self.kernel.value, self.recurrent_kernel.value, self.bias.value, self.recurrent_bias.value
        )

    def call(self, x: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        return self.next(self.weights_now(), x, state)

    def next(self, weights: StandardGRUWeights, x: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """x [B, inputs], state [B, D] -> next state [B, D]; of G models at once with a first axis G everywhere.

        z, r, c = split(x W + b),   z', r', c' = split(h U + d)
        z = sigmoid(z + z'),  r = sigmoid(r + r'),  c = tanh(c + r c');   h' = z h + (1 - z) c
        """
        given = matmul_last(x, weights.kernel, self._compute) + weights.bias
        kept = matmul_last(state, weights.recurrent_kernel, self._compute) + weights.recurrent_bias
        (update, reset, candidate), own = tf.split(given, 3, -1), tf.split(kept, 3, -1)
        update, reset = tf.sigmoid(update + own[0]), tf.sigmoid(reset + own[1])
        candidate = tf.tanh(candidate + reset * own[2])
        return update * state + (1 - update) * candidate

    def cost(self, rows: int) -> Cost:
        return product(rows, *self.kernel.shape) + product(rows, *self.recurrent_kernel.shape)


class EnsembleHead(keras.layers.Layer):
    """K heads on one input, with stacked weights [K, in, out]: the prior ensemble (paper, App. D.1).

    Args:
      hidden: units of each head's hidden layer.
      body: units of a layer before it, with which each head has a body of its own; 0: there is none, as in the paper.
    """

    def __init__(
        self,
        *,
        members: int,
        inputs: int,
        hidden: int,
        outputs: int,
        act: str,
        name: str,
        body: int = 0,
        precision: str = "float32",
    ):
        super().__init__(name=name)
        self.members, self._compute = members, compute_type(precision)
        self._widths = {"body": body, "hidden": hidden, "out": outputs} if body else {"hidden": hidden, "out": outputs}
        self._inputs = inputs
        self._act = keras.activations.get(act)

    def build(self, input_shape: Shape | None = None) -> None:
        self._stack, inputs = list[tuple[Any, Any]](), self._inputs
        for name, units in self._widths.items():
            kernel = self.add_weight((self.members, inputs, units), "zeros", name=f"{name}_kernel")
            bias = self.add_weight((self.members, units), "zeros", name=f"{name}_bias")
            self._stack.append((kernel, bias))
            inputs = units

    def drawn(self, x: tf.Tensor, member: tf.Tensor) -> tf.Tensor:
        """The output of one member for each step: x [G, N, in], member [G] int -> [G, N, out].

        Gathers the members' weights rather than their outputs: K times less work and the same gradients. The gather is
        a product with a one-hot matrix, whose gradient is dense and is summed in a fixed order.
        """
        pick = tf.one_hot(member, self.members)
        return self._forward(x, [(_pick(pick, kernel), _pick(pick, bias)) for kernel, bias in self._stacked()])

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """All members: x [N, in] -> [K, N, out]."""
        return self._forward(x, self._stacked())

    def cost(self, rows: int) -> Cost:
        """Of `call`, all members."""
        return self.drawn_cost(self.members * rows)

    def drawn_cost(self, rows: int) -> Cost:
        """Of `drawn`, one member a row."""
        first, *rest = (product(rows, *kernel.shape[1:]) for kernel, _ in self._stack)
        return first.then(*rest)

    def _stacked(self) -> list[tuple[tf.Tensor, tf.Tensor]]:
        return [(kernel.value, bias.value) for kernel, bias in self._stack]

    def _forward(self, x: tf.Tensor, layers: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor:
        """x [N, in] or [G, N, in] through the layers' kernels [G, in, out] and biases [G, out]: [G, N, out]."""
        *before, last = layers
        for kernel, bias in before:
            x = self._act(_matmul(x, kernel, self._compute) + bias[:, None])
        kernel, bias = last
        return _matmul(x, kernel, self._compute) + bias[:, None]


def _pick(one_hot: tf.Tensor, stacked: tf.Tensor) -> tf.Tensor:
    """[G, K] one-hot rows and [K, ...] -> [G, ...]."""
    flat = tf.matmul(one_hot, tf.reshape(stacked, [stacked.shape[0], -1]))
    return tf.reshape(flat, [one_hot.shape[0], *stacked.shape[1:]])


def compute_type(precision: str) -> tf.DType:
    """Type of matrix products and convolutions: `float32`, or of `mixed_float16` and `mixed_bfloat16` the half type."""
    return tf.as_dtype(precision.removeprefix("mixed_"))


def matmul_last(x: tf.Tensor, kernel: tf.Tensor, compute: tf.DType) -> tf.Tensor:
    """x [..., in] times kernel [in, out], as one flat matrix product in the compute type: [..., out] float32.

    Or of G kernels at once: x [G, N, in] times kernel [G, in, out].
    """
    if len(kernel.shape) == 3:
        return _matmul(x, kernel, compute)
    return tf.reshape(_matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel, compute), [*leading(x, 1), kernel.shape[-1]])


def affine(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, compute: tf.DType) -> tf.Tensor:
    """A linear `Dense` layer in the compute type, x [N, in]; of G layers at once with a first axis G, bias [G, 1, out].

    For one layer exactly Keras' operations, so that its sums have the same order.
    """
    product, bias = tf.matmul(tf.cast(x, compute), tf.cast(kernel, compute)), tf.cast(bias, compute)
    return tf.nn.bias_add(product, bias) if len(bias.shape) == 1 else product + bias


def _matmul(x: tf.Tensor, kernel: tf.Tensor, compute: tf.DType) -> tf.Tensor:
    return tf.cast(tf.matmul(tf.cast(x, compute), tf.cast(kernel, compute)), tf.float32)


def _value(variable: keras.Variable) -> tf.Tensor:
    """A layer's variable in its compute type, as Keras casts it inside `call`."""
    return tf.convert_to_tensor(variable.value)


def _size(layer: keras.layers.Layer) -> int:
    """Bytes of one number of a layer's output."""
    return cast(int, tf.as_dtype(layer.compute_dtype).size)


def leading(x: tf.Tensor, event_dims: int) -> list[int]:
    """The shape before the last `event_dims` axes; the axis of unknown size, one at most, is -1."""
    return [-1 if size is None else size for size in x.shape[: len(x.shape) - event_dims]]
