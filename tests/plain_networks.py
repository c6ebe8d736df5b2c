"""The pyramid decoders in NumPy, written from ``docs/format.md`` alone."""

import math

import numpy as np


def pyramid(db, kept, exists):
    """Fills in what is not kept; `exists` is False outside of the channel."""
    filled = _pyramid(np.where(kept & exists, db + 25.0, 0.0), kept & exists, exists) - 25
    return np.where(kept & exists, db, filled)


def _pyramid(values, kept, exists):
    levels = [(values, kept.astype(float), exists.astype(float))]
    for number in range(11):
        halve_time = number < 4
        v, w, e = (_cells(plane, halve_time) for plane in levels[-1])
        levels.append((v / np.maximum(w, 1), np.minimum(w, 1), np.minimum(e, 1)))
    result = levels[-1][0]
    for number in reversed(range(11)):
        v, w, _ = levels[number]
        above = levels[number + 1][2]
        total = _between(result * above, v.shape, number < 4)
        weights = _between(above, v.shape, number < 4)
        result = v + (1 - w) * total / np.where(weights > 0, weights, 1)
    return result


def _cells(plane, halve_time):
    rows, columns = plane.shape
    step = 2 if halve_time else 1
    padded = np.zeros((rows + rows % 2, columns + (columns % 2 if halve_time else 0)))
    padded[:rows, :columns] = plane
    summed = padded[0::2] + padded[1::2]
    return summed[:, 0::step] + summed[:, 1::step] if halve_time else summed


def _between(coarse, shape, halved_time):
    for axis in (0, 1) if halved_time else (0,):
        coarse = np.swapaxes(coarse, 0, axis)
        outside = np.zeros_like(coarse[:1])
        before, after = (
            np.concatenate([outside, coarse[:-1]]),
            np.concatenate([coarse[1:], outside]),
        )
        fine = np.empty((2 * len(coarse), *coarse.shape[1:]))
        fine[0::2], fine[1::2] = 0.75 * coarse + 0.25 * before, 0.75 * coarse + 0.25 * after
        coarse = np.swapaxes(fine, 0, axis)
    return coarse[: shape[0], : shape[1]]


def pyramid_unet(db, kept, exists, settings, tensors):
    """Completes a window with the tensors and the settings of a file of weights."""
    prior, scale = settings["prior"], settings["input_scale"]
    kept = kept & exists
    x = np.where(kept, (db - prior) / scale, 0.0)
    y = _pyramid(x, kept, exists) if settings["start_from_fill"] else x
    q = unet(_planes(x, y, kept, exists), exists, settings, tensors, 1024)[..., 0]
    b = np.where(q > 0, settings["most_above"], settings["most_below"]) / scale
    completed = prior + scale * (y + b * np.tanh(q / b))
    return np.where(kept, db, completed)


def unet(planes, exists, settings, tensors, n_bins):
    """Turns planes [bins, frames, inputs] into others; the cosines span `n_bins`."""
    (a, c), depth = settings["cell"], len(settings["features"])
    step, shape = 2 ** (depth - 1), exists.shape
    pads = [(0, -shape[0] % (a * step)), (0, -shape[1] % (c * step))]
    planes, exists = np.pad(planes, [*pads, (0, 0)]), np.pad(exists, pads)
    z = _cells_to_channels(planes, a, c)
    waves = [math.pi * k * (np.arange(len(z)) + 0.5) * a / n_bins for k in (1, 2, 3, 4)]
    waves = np.broadcast_to(np.cos(waves).T[:, None], (*z.shape[:2], 4))
    masks = [np.any(_cells_to_channels(exists[..., None], a, c), -1, keepdims=True)]
    for _ in range(depth - 1):
        masks.append(np.any(_cells_to_channels(masks[-1], 2, 2), -1, keepdims=True))

    def conv(z, name):
        return _conv(z, tensors[f"{name}.kernel"]) + tensors[f"{name}.bias"]

    def block(z, name, mask):
        return z + mask * conv(_g(mask * conv(_g(z), f"{name}.first")), f"{name}.second")

    z = masks[0] * conv(masks[0] * np.concatenate([z, waves], -1), "input")
    finer = []
    for i in range(depth):
        z = block(z, f"down_blocks.{i}", masks[i])
        if i < depth - 1:
            finer.append(z)
            z = _cells_to_channels(z, 2, 2) @ tensors[f"down.{i}.kernel"]
            z = masks[i + 1] * (z + tensors[f"down.{i}.bias"])
    for i in reversed(range(depth)):
        if i < depth - 1:
            z = z @ tensors[f"up.{i}.kernel"] + tensors[f"up.{i}.bias"]
            z = finer[i] + masks[i] * _channels_to_cells(z, 2, 2)
        z = block(z, f"up_blocks.{i}", masks[i])
    return _channels_to_cells(conv(_g(z), "output"), a, c)[: shape[0], : shape[1]]


def _planes(x, y, kept, exists):
    w = kept.astype(float)
    n_kept = _window(w, 5).sum(0)
    n = n_kept / np.maximum(_window(exists.astype(float), 5).sum(0), 1)
    m = _window(x, 5).sum(0) / np.maximum(n_kept, 1)
    h = _window(np.where(exists, y + x - w * y, -np.inf), 7, -np.inf).max(0)
    with np.errstate(invalid="ignore"):
        planes = np.stack([y, w, m - y, 4 * n, h - y, x - w * y], -1)
    return np.where(exists[..., None], planes, 0)


def _window(plane, size, outside=0.0):
    half, (rows, columns) = size // 2, plane.shape
    padded = np.pad(plane, half, constant_values=outside)
    return np.stack(
        [padded[i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    )


def _conv(z, kernel):
    rows, columns, _ = z.shape
    padded = np.pad(z, ((1, 1), (1, 1), (0, 0)))
    return sum(
        padded[i : i + rows, j : j + columns] @ kernel[i, j] for i in range(3) for j in range(3)
    )


def _g(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _cells_to_channels(z, a, c):
    """Row by row, frame by frame and in each plane by plane."""
    return np.concatenate([z[i::a, j::c] for i in range(a) for j in range(c)], -1)


def _channels_to_cells(z, a, c):
    rows, columns, channels = z.shape
    parts = np.split(z, a * c, -1)
    fine = np.empty((rows * a, columns * c, channels // (a * c)))
    for place, part in enumerate(parts):
        fine[place // c :: a, place % c :: c] = part
    return fine
