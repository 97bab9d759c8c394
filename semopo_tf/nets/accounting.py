"""What a computation costs: arithmetic, and memory kept for its gradient. Each layer states it from its own shapes."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cost:
    """Cost of a forward pass or of a whole update. The sum of two is the cost of both.

    FLOPs are two for each multiply-add of matrix products and convolutions. Elementwise operations, padding and
    recomputation do not count.
    """

    flops: int = 0
    bytes: int = 0  # kept for the gradient: each layer's output before and after its activation function
    input_flops: int = 0  # the part of `flops` in layers that read the input: what the gradient to the input costs

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.input_flops + other.input_flops)

    def then(self, *layers: "Cost") -> "Cost":
        """Followed by layers that read the output of this one."""
        return replace(sum(layers, self), input_flops=self.input_flops)

    def forward(self) -> "Cost":
        """Without a gradient: nothing is kept."""
        return replace(self, bytes=0)

    def frozen(self) -> "Cost":
        """Forward, and the gradient to the input."""
        return replace(self, flops=2 * self.flops)

    def trained(self, *, input_gradient: bool = True) -> "Cost":
        """Forward, the gradient to the weights, and the gradient to the input where something learns from it."""
        return replace(self, flops=3 * self.flops - (0 if input_gradient else self.input_flops))


def product(rows: int, inputs: int, outputs: int, size: int = 4) -> Cost:
    """A matrix product [rows, inputs] x [inputs, outputs], or a convolution cut into windows.

    Args:
      size: bytes of one output number.
    """
    flops = 2 * rows * inputs * outputs
    return Cost(flops, 2 * size * rows * outputs, flops)
