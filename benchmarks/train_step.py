"""Time of a whole training step, ours and a plain PyTorch copy's, with the same threads.

``python -m benchmarks.train_step --json`` times forward pass, backward pass and AdamW update of the
default network on 1025 x 302 spectrograms with random 95 % masks: ours with its own kernel
gradient, PyTorch's, and ours with XLA's kernel gradient, in turns in one process. Before anything
is timed, losses and kernel gradients must agree. PyTorch is the extra ``jaxsparse[benchmark]``.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.command import main

# JAX and PyTorch are imported in functions: both count the cores when they start.

SHAPE = (1025, 302)
SPARSITY = 0.95
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 5e-4
LOSS_TOLERANCE = 1e-4
# Of the whole kernel's norm; float32 sums over 309,550 bins in another order.
GRADIENT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    batch: int = 1
    """Spectrograms in a step."""
    repeats: int = 5
    """Timed steps of each variant, of which the median is reported."""
    threads: int = 2
    """Cores that the process may use."""
    json: bool = False
    """Print one line of JSON."""


class Problem(NamedTuple):
    """Inputs of a step: parameters as our network holds them, spectrograms and masks [B, F, T]."""

    params: Any
    spectrograms: np.ndarray
    masks: np.ndarray


class Variant(NamedTuple):
    """One implementation: loss and kernel gradients (HWIO), and a step that blocks till done."""

    loss_and_gradients: Callable[[], tuple[float, list[np.ndarray]]]
    step: Callable[[], None]
    peak_bytes: int | None = None


def make_problem(batch: int) -> Problem:
    """Our initial parameters, and noise at the level and spread of speech in dB."""
    import jax

    from jaxsparse.masks import count_observed, random_mask
    from jaxsparse.nn.sparse_cnn import sparse_cnn

    count = count_observed(SHAPE, SPARSITY)
    keys = jax.random.split(jax.random.key(0), batch)
    masks = jax.vmap(lambda key: random_mask(key, SHAPE, count))(keys)
    spectrograms = np.random.default_rng(0).normal(-25, 15, (batch, *SHAPE)).astype(np.float32)
    params = sparse_cnn().init(jax.random.key(1))
    return Problem(jax.tree.map(np.asarray, params), spectrograms, np.asarray(masks))


def layers(params: Any) -> list[dict[str, Any]]:
    """The layers' parameters in order."""
    return [params["hidden"][i] for i in sorted(params["hidden"])] + [params["output"]]


def ours(problem: Problem, kernel_gradient: Any) -> Variant:
    """Our network, jitted, with donated parameters and optimizer state."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxsparse.nn.sparse_cnn import SparseCNNConfig, sparse_cnn

    apply = sparse_cnn(SparseCNNConfig(kernel_gradient=kernel_gradient)).apply
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def loss(params: Any, spectrograms: jax.Array, masks: jax.Array) -> jax.Array:
        estimates = jax.vmap(apply, in_axes=(None, 0, 0))(params, spectrograms, masks)
        return jnp.mean(jnp.square(estimates - spectrograms))

    def update(state: Any, spectrograms: jax.Array, masks: jax.Array) -> tuple[Any, jax.Array]:
        params, optimizer_state = state
        value, gradients = jax.value_and_grad(loss)(params, spectrograms, masks)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    inputs = jnp.asarray(problem.spectrograms), jnp.asarray(problem.masks)
    # Copied, since a donated buffer must not be NumPy's.
    params = jax.tree.map(jnp.array, problem.params)
    state = [(params, optimizer.init(params))]
    compiled = jax.jit(update, donate_argnums=0).lower(state[0], *inputs).compile()

    def loss_and_gradients() -> tuple[float, list[np.ndarray]]:
        value, gradients = jax.jit(jax.value_and_grad(loss))(
            jax.tree.map(jnp.asarray, problem.params), *inputs
        )
        return float(value), [np.asarray(layer["kernel"]) for layer in layers(gradients)]

    def step() -> None:
        state[0], value = compiled(state[0], *inputs)
        value.block_until_ready()

    return Variant(loss_and_gradients, step, peak_bytes(compiled))


def peak_bytes(compiled: Any) -> int:
    """Temporaries, arguments and outputs of a compiled step; donated buffers count once."""
    memory = compiled.memory_analysis()
    return int(
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def torch_network(problem: Problem, threads: int) -> Any:
    """The network with the problem's parameters as a plain PyTorch module."""
    try:
        import torch
    except ImportError:
        sys.exit("this benchmark needs PyTorch: pip install 'jaxsparse[benchmark]'")
    from torch.nn import functional

    from jaxsparse.nn.sparse_cnn import SparseCNNConfig

    torch.set_num_threads(threads)
    config = SparseCNNConfig()

    class SparseConv(torch.nn.Module):
        def __init__(self, kernel: np.ndarray, bias: np.ndarray) -> None:
            super().__init__()
            # From HWIO to OIHW.
            self.kernel = torch.nn.Parameter(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
            self.bias = torch.nn.Parameter(torch.from_numpy(bias.copy()))
            self.size = kernel.shape[0]

        def forward(self, x: Any, mask: Any) -> tuple[Any, Any]:
            size, pad = self.size, self.size // 2
            taps = size * size
            total = functional.conv2d(x * mask, self.kernel * taps, padding=pad)
            count = functional.avg_pool2d(mask, size, 1, pad) * taps
            x = total / (count + config.eps) + self.bias[None, :, None, None]
            return x, functional.max_pool2d(mask, size, 1, pad)

    class SparseCNN(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(
                SparseConv(layer["kernel"], layer["bias"]) for layer in layers(problem.params)
            )

        def forward(self, spectrograms: Any, mask: Any) -> Any:
            x = (spectrograms - config.input_offset) / config.input_scale
            for index, layer in enumerate(self.layers):
                x, mask = layer(functional.relu(x) if index else x, mask)
            return x * config.input_scale + config.input_offset

    return SparseCNN()


def peer(problem: Problem, threads: int) -> Variant:
    """The same step by PyTorch."""
    network = torch_network(problem, threads)
    # After the network, which says so where PyTorch is missing.
    import torch
    from torch.nn import functional

    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    spectrograms = torch.from_numpy(problem.spectrograms)[:, None]
    masks = torch.from_numpy(problem.masks.astype(np.float32))[:, None]

    def backward() -> Any:
        optimizer.zero_grad()
        loss = functional.mse_loss(network(spectrograms, masks), spectrograms)
        loss.backward()
        return loss

    def loss_and_gradients() -> tuple[float, list[np.ndarray]]:
        value = backward().item()
        kernels: list[Any] = [layer.get_parameter("kernel") for layer in network.layers]
        return value, [kernel.grad.numpy().transpose(2, 3, 1, 0).copy() for kernel in kernels]

    def step() -> None:
        backward()
        optimizer.step()

    return Variant(loss_and_gradients, step)


def check_equal(name: str, variant: Variant, reference: Variant) -> None:
    """Both must compute the same function.

    Raises:
        AssertionError: The losses or a kernel's gradients differ.
    """
    loss, gradients = variant.loss_and_gradients()
    expected_loss, expected_gradients = reference.loss_and_gradients()
    error = abs(loss - expected_loss) / abs(expected_loss)
    assert error < LOSS_TOLERANCE, f"{name}: loss {loss} is not the peer's {expected_loss}"
    for index, (actual, expected) in enumerate(zip(gradients, expected_gradients, strict=True)):
        assert actual.shape == expected.shape
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert error < GRADIENT_TOLERANCE, f"{name}: gradient of kernel {index} is off by {error}"


def run(settings: Settings) -> dict[str, Any]:
    """Check that all variants agree, then time them in turns."""
    problem = make_problem(settings.batch)
    auto, native = ours(problem, "auto"), ours(problem, "native")
    torch_copy = peer(problem, settings.threads)
    check_equal("ours", auto, torch_copy)
    check_equal("native gradient", native, torch_copy)

    variants = {"ours_s": auto, "peer_s": torch_copy, "native_gradient_s": native}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(settings.repeats + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant.step()
            times[name].append(time.perf_counter() - start)
    # The first round warms up.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return medians | {
        "ratio": medians["ours_s"] / medians["peer_s"],
        "native_gradient_ratio": medians["native_gradient_s"] / medians["peer_s"],
        "peak_bytes": auto.peak_bytes,
        "batch": settings.batch,
        "threads": settings.threads,
        "repeats": settings.repeats,
    }


if __name__ == "__main__":
    main(Settings, run, __doc__)
