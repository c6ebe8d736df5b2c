"""Slow and obvious float64 versions in NumPy, written from the formulas and not from the code."""

import re
from dataclasses import dataclass

import jax
import numpy as np

from jaxsparse.contracts import Apply, Decoder


def stft(signal, window, n_fft, hop_length, *, center, pad_mode):
    """The definition: one Fourier transform per frame."""
    signal = np.asarray(signal, np.float64)
    if center:
        signal = np.pad(signal, n_fft // 2, mode=pad_mode)
    if len(signal) < n_fft:
        signal = np.concatenate([signal, np.zeros(n_fft - len(signal))])
    before = (n_fft - len(window)) // 2
    padded_window = np.zeros(n_fft)
    padded_window[before : before + len(window)] = window
    starts = range(0, len(signal) - n_fft + 1, hop_length)
    return np.stack([np.fft.rfft(signal[s : s + n_fft] * padded_window) for s in starts], axis=1)


def project_to_count(scores, count):
    """Keeps the highest scores; the lower index wins among equals, NaN comes last of all."""
    flat = np.asarray(scores, np.float64).ravel()
    order = sorted(
        range(flat.size),
        key=lambda i: (np.isnan(flat[i]), 0 if np.isnan(flat[i]) else -flat[i], i),
    )
    mask = np.zeros(flat.size, bool)
    mask[order[:count]] = True
    return mask.reshape(np.shape(scores))


def sparse_conv(x, mask, kernel, bias, *, normalization="count", eps=1e-8):
    """Output and next mask of one sparse convolution, output by output."""
    x, kernel, bias = (np.asarray(a, np.float64) for a in (x, kernel, bias))
    hard = np.asarray(mask).dtype == bool
    mask = np.asarray(mask, np.float64)
    size = kernel.shape[0]
    half = size // 2
    n_bins, n_frames, _ = x.shape
    output = np.zeros((n_bins, n_frames, kernel.shape[3]))
    next_mask = np.zeros((n_bins, n_frames))
    for f in range(n_bins):
        for t in range(n_frames):
            numerator = np.zeros(kernel.shape[3])
            denominator = np.zeros(kernel.shape[3])
            seen = []
            for i in range(max(f - half, 0), min(f + half + 1, n_bins)):
                for j in range(max(t - half, 0), min(t + half + 1, n_frames)):
                    seen.append(mask[i, j])
                    tap = kernel[i - f + half, j - t + half]
                    if mask[i, j] != 0:  # 0 * NaN would be NaN
                        numerator += mask[i, j] * (x[i, j] @ tap)
                    weight = tap.sum(axis=0) if normalization == "weight" else 1.0
                    denominator += mask[i, j] * weight
            denominator += np.where(denominator < 0, -eps, eps)
            output[f, t] = numerator / denominator + bias
            next_mask[f, t] = max(seen)
    return output, next_mask.astype(bool) if hard else next_mask


def network(params, spectrogram, mask, *, input_offset, input_scale, eps=1e-8):
    """Every hidden layer's output and, last, the spectrogram; kernels are stored per tap."""
    x = (np.asarray(spectrogram, np.float64)[..., None] - input_offset) / input_scale
    outputs = []
    for layer in [*params["hidden"].values(), params["output"]]:
        kernel = np.asarray(layer["kernel"], np.float64)
        kernel = kernel * kernel.shape[0] ** 2
        x, mask = sparse_conv(x, mask, kernel, layer["bias"], eps=eps)
        if layer is not params["output"]:
            x = np.maximum(x, 0)
        outputs.append(x)
    outputs[-1] = outputs[-1][..., 0] * input_scale + input_offset
    return outputs


def derivative(function, at, *, step=1e-6):
    """The gradient of a scalar function of an array by central differences, entry by entry."""
    at = np.asarray(at, np.float64)
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def primitives(function, *arguments):
    """Names of the primitives that a function consists of, inner functions included."""
    return re.findall(r"= ([a-z_]\w*)[\[ \n]", str(jax.make_jaxpr(function)(*arguments)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Compilations:
    """Counts what XLA compiles while the block runs."""

    _event = "/jax/core/compile/backend_compile_duration"

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event, duration_secs, **_):
        self.count += event == self._event


@dataclass(frozen=True)
class MadeUp:
    """Config of a decoder that a test makes of a function."""

    apply: Apply
    halo: int | None = None
    on_host: bool = False

    def build(self):
        return Decoder(self, lambda key: {}, self.apply, self.halo, self.on_host)


def decoder(apply, **settings):
    """A decoder without parameters of its own."""
    return MadeUp(apply, **settings).build()
