"""What is timed: ours, and what peers do for the same result."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse import pretrained
from jaxsparse.data.folder import CLIP_SAMPLES
from jaxsparse.masks import count_observed, random_mask
from jaxsparse.nn.sparse_cnn import SparseCNNConfig
from jaxsparse.objectives import mse_objective
from jaxsparse.search.genetic import THESIS, genetic
from jaxsparse.search.lagrangian import lagrangian
from jaxsparse.search.swaps import swaps
from jaxsparse.transforms.mdct import mdct
from jaxsparse.transforms.stft import STFTConfig, stft
from jaxsparse.types import SAMPLE_RATE

SHAPE = (1025, 302)
SPARSITY = 0.95
POPULATION = 50
UPDATES = 10
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 5e-4
# dB in spectrograms; float32 sums in another order, through all layers.
_TOLERANCE = 2e-2
# Of a loss.
_RELATIVE = 1e-3
# A gradient counts as two passes forward.
_WITH_GRADIENT = 3


class Case(NamedTuple):
    """One thing to be done, by several variants.

    Attributes:
        variants: Calls that return when they are done; "ours" is compared with the others.
        multiply_adds: What the thing takes by the direct method.
        n_bytes: What must be read and written once.
        n_each: How many there are of what a time is given for.
        check: Compares results, and raises an AssertionError where they differ.
    """

    variants: dict[str, Callable[[], Any]]
    multiply_adds: float
    n_bytes: float
    n_each: int = 1
    check: Callable[[], None] = lambda: None


class Problem(NamedTuple):
    """A network with spectrograms and masks [B, F, T]."""

    config: Any
    params: Any
    dense: np.ndarray
    masks: np.ndarray

    @property
    def decoder(self) -> Any:
        """Its functions."""
        return self.config.build()

    @property
    def n_ones(self) -> int:
        """Ones of a mask."""
        return count_observed(SHAPE, SPARSITY)

    @property
    def multiply_adds(self) -> int:
        """Of one pass forward for one spectrogram."""
        if isinstance(self.config, SparseCNNConfig):
            widths = (1, *(self.config.features for _ in self.config.kernel_sizes), 1)
            sizes = (*self.config.kernel_sizes, 1)
            layers = zip(sizes, widths, widths[1:], strict=False)
            return math.prod(SHAPE) * sum(size**2 * a * b for size, a, b in layers)
        return self.config.multiply_adds(*SHAPE)

    @property
    def n_bytes(self) -> int:
        """Of parameters, spectrograms, masks and results."""
        parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))
        return parameters + 2 * self.dense.nbytes + self.masks.nbytes


def _problem(network: str, n_clips: int) -> Problem:
    """Noise at the level and spread of speech in dB, and random masks."""
    loaded = pretrained.load_decoder(network)
    count = count_observed(SHAPE, SPARSITY)
    keys = jax.random.split(jax.random.key(0), n_clips)
    masks = jax.vmap(lambda key: random_mask(key, SHAPE, count))(keys)
    dense = np.random.default_rng(0).normal(-25, 15, (n_clips, *SHAPE)).astype(np.float32)
    params = jax.tree.map(np.asarray, loaded.params)
    return Problem(loaded.decoder.config, params, dense, np.asarray(masks))


class Peer:
    """PyTorch's copy of a problem, made when it is first asked for."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    @functools.cached_property
    def network(self) -> Any:
        """The copy."""
        from benchmarks.speed import peers

        return peers.copy_of(self._problem.config, self._problem.params).to(_device())

    @functools.cached_property
    def compiled(self) -> Any:
        """The copy, compiled."""
        import torch

        return torch.compile(self.network)

    @functools.cached_property
    def dense(self) -> Any:
        """Spectrograms [B, 1, F, T]."""
        return _tensor(self._problem.dense)[:, None]

    @functools.cached_property
    def masks(self) -> Any:
        """Masks [B, 1, F, T]."""
        return _tensor(self._problem.masks)[:, None]

    def complete(self, module: str) -> Any:
        """Completes all spectrograms by the network or the compiled one."""
        import torch

        with torch.no_grad():
            return _waited(getattr(self, module)(self.dense, self.masks))

    def losses(self, masks: Any) -> list[float]:
        """Evaluates masks on each clip, one at a time."""
        import torch

        tensors = _tensor(masks)[:, None, None]
        with torch.no_grad():
            return [
                torch.mean((self.network(clip[None], mask) - clip) ** 2).item()
                for clip in self.dense
                for mask in tensors
            ]


def _device() -> str:
    """Where PyTorch computes: where JAX does."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def _tensor(values: Any) -> Any:
    import torch

    return torch.from_numpy(np.asarray(values, np.float32)).to(_device())


def _waited(tensor: Any) -> Any:
    """Waits for PyTorch's device."""
    import torch

    if _device() == "cuda":
        torch.cuda.synchronize()
    return tensor


def _check(ours: Any, theirs: Any, tolerance: float) -> None:
    """Refuses to time what gives another result.

    Raises:
        AssertionError: If they differ.
    """
    error = float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs))))
    assert error < tolerance, f"results are {error} apart"


def _check_relative(ours: Any, theirs: Any) -> None:
    _check(np.asarray(ours) / np.asarray(theirs), 1.0, _RELATIVE)


def forward(network: str, n_clips: int) -> Case:
    """Completes spectrograms."""
    problem = _problem(network, n_clips)
    apply = jax.jit(jax.vmap(problem.decoder.apply, (None, 0, 0)))
    arguments = jax.tree.map(jnp.asarray, (problem.params, problem.dense, problem.masks))
    peer = Peer(problem)

    def ours() -> Any:
        return jax.block_until_ready(apply(*arguments))

    variants = {
        "ours": ours,
        "torch": lambda: peer.complete("network"),
        "torch compiled": lambda: peer.complete("compiled"),
    }

    def check() -> None:
        _check(ours(), variants["torch"]()[:, 0].cpu(), _TOLERANCE)

    work = n_clips * problem.multiply_adds
    return Case(variants, work, problem.n_bytes, check=check)


def training_step(network: str, n_clips: int) -> Case:
    """Makes a step of AdamW for the MSE."""
    problem = _problem(network, n_clips)
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    apply = problem.decoder.apply

    def loss_of(params: Any, dense: Any, masks: Any) -> Any:
        estimates = jax.vmap(apply, (None, 0, 0))(params, dense, masks)
        return jnp.mean(jnp.square(estimates - dense))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, dense: Any, masks: Any) -> Any:
        params, moments = state
        loss, gradient = jax.value_and_grad(loss_of)(params, dense, masks)
        updates, moments = optimizer.update(gradient, moments, params)
        norm = optax.global_norm(gradient)
        return (optax.apply_updates(params, updates), moments), (loss, norm)

    inputs = jnp.asarray(problem.dense), jnp.asarray(problem.masks)
    params = jax.tree.map(jnp.array, problem.params)
    state = [(params, optimizer.init(params))]

    def ours() -> Any:
        state[0], found = update(state[0], *inputs)
        return jax.device_get(found)

    peer = Peer(problem)

    @functools.cache
    def of_torch() -> Any:
        import torch

        weights = peer.network.parameters()
        return torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def theirs(module: str) -> Any:
        import torch
        from torch.nn import functional

        of_torch().zero_grad()
        loss = functional.mse_loss(getattr(peer, module)(peer.dense, peer.masks), peer.dense)
        loss.backward()
        gradients = [p.grad for p in peer.network.parameters()]
        norm = torch.sqrt(sum(torch.sum(g**2) for g in gradients))
        of_torch().step()
        return loss.item(), norm.item()

    def check() -> None:
        # The second step's loss depends on the first one's gradient, too.
        for _ in range(2):
            _check_relative(ours(), theirs("network"))

    variants = {
        "ours": ours,
        "torch": lambda: theirs("network"),
        "torch compiled": lambda: theirs("compiled"),
    }
    work = _WITH_GRADIENT * n_clips * problem.multiply_adds
    return Case(variants, work, problem.n_bytes, check=check)


def _draw(problem: Problem, n_masks: int) -> Any:
    keys = jax.random.split(jax.random.key(1), n_masks)
    return jax.vmap(lambda key: random_mask(key, SHAPE, problem.n_ones))(keys)


def population(network: str, n_clips: int) -> Case:
    """Evaluates populations of masks, one for each clip, by their MSE."""
    from jaxsparse.reconstruct import evaluate_masks

    problem = _problem(network, n_clips)
    masks, peer = _draw(problem, POPULATION), Peer(problem)

    def ours(masks: Any = masks) -> Any:
        evaluate = functools.partial(evaluate_masks, problem.decoder, problem.params)
        clips = [jnp.asarray(clip) for clip in problem.dense]
        return np.concatenate([evaluate(clip, masks, keep_observed=False) for clip in clips])

    variants = {"ours": ours, "torch, a mask at a time": lambda: peer.losses(masks)}
    n_each = n_clips * POPULATION
    return Case(
        variants,
        n_each * problem.multiply_adds,
        problem.n_bytes,
        n_each,
        lambda: _check_relative(ours(masks[:2]), peer.losses(masks[:2])),
    )


def _objective(problem: Problem) -> Any:
    dense = jnp.asarray(problem.dense[0])
    return mse_objective(problem.decoder, problem.params, dense, keep_observed=False)


def _search(make: Callable[[Any], Any], problem: Problem) -> Callable[[], Any]:
    """A step of a search after another, compiled once."""
    search = make(_objective(problem))
    state = [jax.jit(lambda init, key: init(key))(search.init, jax.random.key(0))]
    step = jax.jit(lambda step, key, state: step(key, state), donate_argnums=2)

    def advance() -> Any:
        state[0], info = step(search.step, jax.random.key(1), state[0])
        return jax.block_until_ready(info)

    return advance


def generation(network: str, n_clips: int) -> Case:
    """Makes a generation of the thesis' genetic search, 45 new masks of 50."""
    problem, n_new = _problem(network, 1), 45
    ours = _search(lambda objective: genetic(objective, SHAPE, problem.n_ones, THESIS), problem)
    masks, peer = _draw(problem, n_new), Peer(problem)
    variants = {"ours": ours, "torch, evaluations alone": lambda: peer.losses(masks)}
    return Case(variants, n_new * problem.multiply_adds, problem.n_bytes, n_new)


def relaxation(network: str, n_clips: int) -> Case:
    """Updates scores of a soft mask by its gradient."""
    problem = _problem(network, 1)
    ours = _search(
        lambda objective: lagrangian(objective, SHAPE, problem.n_ones, updates_per_step=UPDATES),
        problem,
    )
    search = functools.cache(lambda: _TorchRelaxation(Peer(problem), problem))
    # Kernels need no gradient: a pass forward, and as much again for the inputs'.
    work = (2 * (UPDATES + 1) + 1) * problem.multiply_adds
    variants = {"ours": ours, "torch": lambda: search().step()}
    return Case(variants, work, problem.n_bytes, UPDATES)


class _TorchRelaxation:
    """The same updates by PyTorch."""

    def __init__(self, peer: Peer, problem: Problem) -> None:
        import torch

        self.peer, self.count = peer, problem.n_ones
        for parameter in peer.network.parameters():
            parameter.requires_grad_(False)
        self.scores = (9 * peer.masks[:1] - 4.5).requires_grad_()
        self.multiplier = torch.zeros((), device=_device())
        self.optimizer = torch.optim.AdamW([self.scores], lr=0.01, weight_decay=0.0)

    def loss(self, mask: Any) -> Any:
        return ((self.peer.network(self.peer.dense, mask) - self.peer.dense) ** 2).mean()

    def step(self) -> float:
        """Makes the updates, and evaluates the soft mask with its gradient and the rounded one."""
        import torch

        for _ in range(UPDATES):
            mask = torch.sigmoid(self.scores)
            violation = mask.mean() - self.count / math.prod(SHAPE)
            loss = self.loss(mask) + self.multiplier * violation
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                self.multiplier.add_(100 * violation)
        self.loss(torch.sigmoid(self.scores)).backward()
        with torch.no_grad():
            kept = torch.zeros_like(self.scores).flatten()
            kept[torch.topk(self.scores.flatten(), self.count).indices] = 1
            return self.loss(kept.view_as(self.scores)).item()


def swap(network: str, n_clips: int) -> Case:
    """Makes a step of the search by swaps: a gradient, and a trial."""
    problem = _problem(network, 1)
    ours = _search(lambda objective: swaps(objective, SHAPE, problem.n_ones), problem)
    return Case({"ours": ours}, 3 * problem.multiply_adds, problem.n_bytes)


def _signals(n_clips: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (n_clips, CLIP_SAMPLES)).astype(np.float32)


def stft_case(network: str, n_clips: int) -> Case:
    """Transforms clips by the STFT."""
    signals, config = _signals(n_clips), STFTConfig()
    given = jnp.asarray(signals)
    transform = jax.jit(jax.vmap(stft))
    sizes: dict[str, Any] = {"n_fft": config.n_fft, "hop_length": config.hop_length}

    def ours() -> Any:
        return jax.block_until_ready(transform(given))

    def of_librosa() -> Any:
        import librosa

        return librosa.stft(signals, **sizes, pad_mode="reflect")

    @functools.cache
    def tensors() -> Any:
        import torch

        return _tensor(signals), torch.hann_window(config.win_length).to(_device())

    def of_torch() -> Any:
        import torch

        clips, window = tensors()
        return _waited(torch.stft(clips, **sizes, window=window, return_complex=True))

    def check() -> None:
        _check(ours(), of_librosa(), 1e-3)
        _check(ours(), of_torch().cpu(), 1e-3)

    frames = n_clips * config.n_frames(CLIP_SAMPLES)
    # A real transform of n samples takes 5/2 n log2 n operations, two of which are one here.
    work = frames * 1.25 * config.n_fft * math.log2(config.n_fft)
    n_bytes = signals.nbytes + frames * config.n_bins * 8
    variants = {"ours": ours, "librosa": of_librosa, "torch": of_torch}
    return Case(variants, work, n_bytes, check=check)


def mdct_case(network: str, n_clips: int) -> Case:
    """Transforms clips by the MDCT."""
    signals, hop = _signals(n_clips), 256
    given = jnp.asarray(signals)
    transform = jax.jit(jax.vmap(mdct))
    n_frames = -(-CLIP_SAMPLES // hop) + 1

    def ours() -> Any:
        return jax.block_until_ready(transform(given))

    @functools.cache
    def tensors() -> Any:
        samples = np.arange(2 * hop) + 0.5
        phases = math.pi / hop * np.outer(np.arange(hop) + 0.5, samples + hop / 2)
        window = np.sin(math.pi * samples / (2 * hop))
        return _tensor(signals), _tensor(math.sqrt(2 / hop) * window * np.cos(phases))

    def of_torch() -> Any:
        from torch.nn import functional

        clips, basis = tensors()
        padded = functional.pad(clips, (hop, n_frames * hop - CLIP_SAMPLES))
        return _waited(basis @ padded.unfold(1, 2 * hop, hop).transpose(1, 2))

    def check() -> None:
        _check(ours(), of_torch().cpu(), 1e-3)

    # As a matrix product: for frames this short it is what both do.
    work = n_clips * n_frames * 2 * hop * hop
    n_bytes = signals.nbytes + n_clips * n_frames * hop * 4
    return Case({"ours": ours, "torch": of_torch}, work, n_bytes, check=check)


def codec_case(network: str, n_clips: int) -> Case:
    """Codes clips at 6 kbit/s and decodes them again; Opus at libsndfile's rate, for scale."""
    import io

    import soundfile

    from jaxsparse.codec import compress, decompress
    from jaxsparse.data.clips import FileClip

    sentence = FileClip(pretrained_sentence(), "sentence").read(CLIP_SAMPLES)
    clips = [np.roll(sentence, 997 * i)[:, None] for i in range(n_clips)]

    def ours() -> Any:
        return [decompress(compress(clip, SAMPLE_RATE)) for clip in clips]

    def opus() -> Any:
        for clip in clips:
            buffer = io.BytesIO()
            soundfile.write(buffer, clip, SAMPLE_RATE, format="OGG", subtype="OPUS")
            buffer.seek(0)
            soundfile.read(buffer)

    return Case({"ours": ours, "opus, its own rate": opus}, 0.0, 0.0)


def pretrained_sentence() -> Any:
    """Path of the sentence that ships."""
    from importlib import resources

    return resources.files("jaxsparse") / "assets" / "sentence.flac"


def overhead(network: str, n_clips: int) -> Case:
    """Makes a generation of a search whose objective costs next to nothing.

    That of evosax has genomes of floats and no fixed count: another task, for scale.
    """
    from evosax.algorithms import SimpleGA

    count = count_observed(SHAPE, SPARSITY)
    weights = jax.random.normal(jax.random.key(0), SHAPE)
    search = genetic(functools.partial(_trivial, weights), SHAPE, count, THESIS)
    state = [jax.jit(search.init)(jax.random.key(0))]
    step = jax.jit(search.step, donate_argnums=1)

    def ours() -> Any:
        state[0], info = step(jax.random.key(1), state[0])
        return jax.block_until_ready(info)

    algorithm = SimpleGA(population_size=POPULATION, solution=jnp.zeros(math.prod(SHAPE)))
    settings = algorithm.default_params
    key = jax.random.key(0)
    start = jax.random.normal(key, (POPULATION, math.prod(SHAPE)))
    theirs = [algorithm.init(key, start, jnp.zeros(POPULATION), settings)]

    @jax.jit
    def of_evosax(key: Any, state: Any) -> Any:
        asked, state = algorithm.ask(key, state, settings)
        losses = asked @ weights.ravel()
        return algorithm.tell(key, asked, losses, state, settings)

    def evosax() -> Any:
        theirs[0], _ = jax.block_until_ready(of_evosax(key, theirs[0]))

    n_bytes = POPULATION * math.prod(SHAPE) / 8
    return Case({"ours": ours, "evosax, floats": evosax}, 0.0, n_bytes)


def _trivial(weights: Any, mask: Any) -> Any:
    return jnp.sum(jnp.where(mask, weights, 0)), ()


THESIS_NETWORK, SHIPPED = "random-95", "unet"
CASES: dict[str, tuple[Callable[[str, int], Case], str]] = {
    "forward": (forward, THESIS_NETWORK),
    "forward-unet": (forward, SHIPPED),
    "step": (training_step, THESIS_NETWORK),
    "step-unet": (training_step, SHIPPED),
    "population": (population, THESIS_NETWORK),
    "population-unet": (population, SHIPPED),
    "generation": (generation, THESIS_NETWORK),
    "generation-unet": (generation, SHIPPED),
    "relaxation": (relaxation, THESIS_NETWORK),
    "relaxation-unet": (relaxation, SHIPPED),
    "swaps": (swap, THESIS_NETWORK),
    "swaps-unet": (swap, SHIPPED),
    "stft": (stft_case, ""),
    "mdct": (mdct_case, ""),
    "codec": (codec_case, ""),
    "overhead": (overhead, ""),
}
"""What can be timed, by name: what makes the case, and with which network."""
ONE_CLIP = {"generation", "relaxation", "swaps", "overhead"}
"""Cases, by the first part of their names, of one clip: searches take clips one after another."""
