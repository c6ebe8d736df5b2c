"""Plain PyTorch copies of the decoders, with our parameters."""

import math
import sys
from typing import Any

from jaxsparse.nn.pyramid import PyramidConfig
from jaxsparse.nn.pyramid_unet import PyramidUNetConfig
from jaxsparse.nn.sparse_cnn import SparseCNNConfig

try:
    import torch
    from torch.nn import functional
except ImportError:
    sys.exit("this benchmark needs PyTorch: pip install 'jaxsparse[benchmark]'")

# On a GPU it would compute convolutions with fewer digits than we do.
torch.backends.cudnn.allow_tf32 = False


def copy_of(config: Any, params: Any) -> torch.nn.Module:
    """Makes a network's copy, from dense spectrograms and masks [B, 1, F, T] to completed ones.

    Args:
        config: Our network's.
        params: Its parameters, as NumPy arrays.
    """
    return {SparseCNNConfig: SparseCNN, PyramidUNetConfig: PyramidUNet}[type(config)](
        config, params
    )


class SparseConv(torch.nn.Module):
    """A sparsity-invariant convolution."""

    def __init__(self, config: SparseCNNConfig, layer: Any) -> None:
        super().__init__()
        self.kernel, self.bias = _kernel(layer), _bias(layer)
        self.size, self.eps = layer["kernel"].shape[0], config.eps

    def forward(self, x: Any, mask: Any) -> tuple[Any, Any]:
        """Applies the layer; returns the next mask as well."""
        size, pad = self.size, self.size // 2
        taps = size * size
        total = functional.conv2d(x * mask, self.kernel * taps, padding=pad)
        count = functional.avg_pool2d(mask, size, 1, pad) * taps
        x = total / (count + self.eps) + self.bias[None, :, None, None]
        return x, functional.max_pool2d(mask, size, 1, pad)


class SparseCNN(torch.nn.Module):
    """The thesis' network."""

    def __init__(self, config: SparseCNNConfig, params: Any) -> None:
        super().__init__()
        hidden = [params["hidden"][i] for i in sorted(params["hidden"])]
        self.layers = torch.nn.ModuleList(
            SparseConv(config, layer) for layer in (*hidden, params["output"])
        )
        self.offset, self.scale = config.input_offset, config.input_scale

    def forward(self, dense: Any, mask: Any) -> Any:
        """Completes spectrograms."""
        x = (dense - self.offset) / self.scale
        for index, layer in enumerate(self.layers):
            x, mask = layer(functional.relu(x) if index else x, mask)
        return x * self.scale + self.offset


class Block(torch.nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first, self.second = Conv(block["first"]), Conv(block["second"])

    def forward(self, x: Any, exists: Any) -> Any:
        """Applies the block."""
        y = _gelu(self.first(_gelu(x)) * exists)
        return x + self.second(y) * exists


class Conv(torch.nn.Module):
    """A 3x3 convolution with zeros outside."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.kernel, self.bias = _kernel(layer), _bias(layer)

    def forward(self, x: Any) -> Any:
        """Applies the layer."""
        return functional.conv2d(x, self.kernel, self.bias, padding=1)


class Dense(torch.nn.Module):
    """A linear layer over channels."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.from_numpy(layer["kernel"].T.copy()))
        self.bias = _bias(layer)

    def forward(self, x: Any) -> Any:
        """Applies the layer."""
        return functional.conv2d(x, self.kernel[:, :, None, None], self.bias)


class PyramidUNet(torch.nn.Module):
    """The decoder that ships."""

    def __init__(self, config: PyramidUNetConfig, params: Any) -> None:
        super().__init__()
        self.config = config

        def each(kind: type, name: str) -> torch.nn.ModuleList:
            found = params.get(name, {})
            return torch.nn.ModuleList(kind(found[i]) for i in sorted(found))

        self.input, self.output = Conv(params["input"]), Conv(params["output"])
        self.down_blocks, self.up_blocks = each(Block, "down_blocks"), each(Block, "up_blocks")
        self.down, self.up = each(Dense, "down"), each(Dense, "up")

    def forward(self, dense: Any, mask: Any) -> Any:
        """Completes spectrograms, kept bins as they are."""
        config, shape = self.config, dense.shape[2:]
        stride = config._unet.stride
        pads = [0, -shape[1] % stride[1], 0, -shape[0] % stride[0]]
        exists = functional.pad(torch.ones_like(mask), pads)
        weight, padded = functional.pad(mask, pads), functional.pad(dense, pads)
        known = (padded - config.prior) / config.input_scale * weight
        start = _fill(known, weight, exists, PyramidConfig())
        x = self._layers(_statistics(start, known, weight, exists), exists)
        above, below = (n / config.input_scale for n in (config.most_above, config.most_below))
        limit = torch.where(x > 0, above, below)
        completed = (start + limit * torch.tanh(x / limit)) * config.input_scale + config.prior
        completed = padded * weight + (1 - weight) * completed
        return completed[..., : shape[0], : shape[1]]

    def _layers(self, planes: Any, exists: Any) -> Any:
        cell = self.config.cell
        x = _to_channels(planes, cell)
        masks = [functional.max_pool2d(exists, cell)]
        for _ in self.down:
            masks.append(functional.max_pool2d(masks[-1], 2))
        place = (torch.arange(x.shape[2], device=x.device) + 0.5) * cell[0]
        order = torch.arange(1, 5, device=x.device)[:, None]
        waves = torch.cos(math.pi * order * place / self.config._unet.n_bins)
        waves = waves[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[3])
        x = self.input(torch.cat([x, waves], 1) * masks[0]) * masks[0]
        finer = []
        for i, block in enumerate(self.down_blocks):
            x = block(x, masks[i])
            if i < len(self.down):
                finer.append(x)
                x = self.down[i](_to_channels(x, (2, 2))) * masks[i + 1]
        for i in reversed(range(len(self.up_blocks))):
            if i < len(self.up):
                x = finer[i] + _from_channels(self.up[i](x), (2, 2)) * masks[i]
            x = self.up_blocks[i](x, masks[i])
        return _from_channels(self.output(_gelu(x)), cell)


def _kernel(layer: Any) -> torch.nn.Parameter:
    # From HWIO to OIHW.
    return torch.nn.Parameter(torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy()))


def _bias(layer: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(layer["bias"].copy()))


def _gelu(x: Any) -> Any:
    return functional.gelu(x, approximate="tanh")


def _to_channels(x: Any, cell: tuple[int, int]) -> Any:
    """Makes the entries of each cell its channels, each with the planes that there were."""
    batch, planes, height, width = x.shape
    x = x.reshape(batch, planes, height // cell[0], cell[0], width // cell[1], cell[1])
    return x.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // cell[0], width // cell[1])


def _from_channels(x: Any, cell: tuple[int, int]) -> Any:
    batch, channels, rows, columns = x.shape
    x = x.reshape(batch, *cell, channels // math.prod(cell), rows, columns)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, rows * cell[0], columns * cell[1])


def _statistics(start: Any, known: Any, weight: Any, exists: Any) -> Any:
    def box(x: Any) -> Any:
        return functional.avg_pool2d(x, 5, 1, 2) * 25

    n_kept = box(weight)
    density = n_kept / box(exists).clamp(min=1)
    mean = box(known) / n_kept.clamp(min=1)
    seen = torch.where(exists > 0, start + known - weight * start, -math.inf)
    highest = functional.max_pool2d(seen, 7, 1, 3)
    planes = [start, weight, mean - start, 4 * density, highest - start, known - weight * start]
    return torch.where(exists > 0, torch.cat(planes, 1), 0)


def _fill(level: Any, weight: Any, exists: Any, config: PyramidConfig) -> Any:
    known, own_weight, finer = level, weight, []
    for i in range(config.levels):
        stride = (2, 2 if i < config.time_levels else 1)
        finer.append((stride, level, weight, exists))
        level, weight = _sum_cells(level, stride), _sum_cells(weight, stride)
        level, weight = level / weight.clamp(min=1), weight.clamp(max=1)
        exists = _sum_cells(exists, stride).clamp(max=1)
    filled, around = level, torch.zeros_like(level)
    for stride, level, weight, own in reversed(finer):
        around = _interpolate(filled, exists, stride, level.shape[2:])
        filled, exists = level + (1 - weight) * around, own
    return known + (1 - own_weight) * around


def _sum_cells(x: Any, stride: tuple[int, int]) -> Any:
    x = functional.pad(x, [0, -x.shape[3] % stride[1], 0, -x.shape[2] % stride[0]])
    return functional.avg_pool2d(x, stride) * math.prod(stride)


def _interpolate(coarse: Any, exists: Any, stride: tuple[int, int], shape: Any) -> Any:
    both = torch.cat([coarse * exists, exists], 1)
    for axis in (2, 3):
        if stride[axis - 2] > 1:
            both = _double(both, axis)
    both = both[..., : shape[0], : shape[1]]
    total, weights = both[:, :1], both[:, 1:]
    return total / torch.where(weights > 0, weights, 1)


def _double(x: Any, axis: int) -> Any:
    n = x.shape[axis]
    padded = functional.pad(x, [0, 0, 1, 1] if axis == 2 else [1, 1])
    before, after = padded.narrow(axis, 0, n), padded.narrow(axis, 2, n)
    halves = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return halves.flatten(axis, axis + 1)
