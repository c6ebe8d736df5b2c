"""Blue noise: masks drawn without clumps and without holes, by the void-and-cluster method.

R. Ulichney (1993), "The void-and-cluster method for dither array generation", Proc. SPIE 1913: a
tile of ranks of which every threshold keeps bins that are evenly spread.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxsparse.masks import project_ranks
from jaxsparse.types import PRNGKey

# Bins and frames of the tile, and the standard deviation of the Gaussian that tells voids from
# clusters: Ulichney's is 1.5; masks keep 2 to 20 %, so that it has to reach further.
_SIDE, _SIGMA = 64, 1.9
_FIRST_SHARE = 0.1


def blue_noise_mask(
    key: PRNGKey, shape: tuple[int, int], count: int | Int[Array, ""]
) -> Bool[Array, "F T"]:
    """Keeps `count` bins that are evenly spread; each is kept as often as any other.

    The tile is laid from a place that is drawn, along axes and directions that are drawn. The last
    rank that is needed is drawn from its tiles. For the same key, more bins are those and others.

    Args:
        key: Of the draw.
        shape: Of the mask.
        count: Number of ones, from 0 to the number of entries.

    Raises:
        ValueError: If `count` is not in that range; a traced one is not checked.
    """
    place_key, turn_key, rest_key = jax.random.split(key, 3)
    first = jax.random.randint(place_key, (2,), 0, _SIDE)
    down, right, swap = jax.random.bernoulli(turn_key, shape=(3,))
    rows, columns = (
        (start + jnp.where(back, -1, 1) * jnp.arange(size)) % _SIDE
        for start, back, size in zip(first, (down, right), shape, strict=True)
    )
    tile = jnp.asarray(_tile_ranks())
    ranks = jnp.where(swap, tile.T, tile)[rows[:, None], columns[None, :]]
    drawn = jax.random.bits(rest_key, shape, jnp.uint32)
    below = _SIDE**2 - 1 - ranks
    return project_ranks(below * jnp.uint32(2**32 // _SIDE**2) + drawn // _SIDE**2, count)


@functools.cache
def _tile_ranks() -> np.ndarray:
    """The order in which a tile's bins are kept [64, 64], uint32.

    Ulichney's third phase is his second one here: on a torus, the largest void among the ones is
    where the zeros cluster most.
    """
    size = _SIDE**2
    first = int(_FIRST_SHARE * size)
    kept = np.zeros(size, bool)
    kept[np.random.default_rng(0).choice(size, first, replace=False)] = True
    blobs = _blobs()
    density = np.sum([_blob(blobs, int(i)) for i in np.flatnonzero(kept)], axis=0)

    def move(kept: np.ndarray, density: np.ndarray, *, add: bool) -> int:
        """Fills the largest void or thins out the tightest cluster; returns where."""
        candidates = np.where(kept, np.inf, density) if add else np.where(kept, -density, np.inf)
        place = int(candidates.argmin())
        kept[place] = add
        density += _blob(blobs, place) if add else -_blob(blobs, place)
        return place

    while move(kept, density, add=False) != move(kept, density, add=True):
        pass
    ranks = np.zeros(size, np.uint32)
    fewer = kept.copy(), density.copy()
    for rank in reversed(range(first)):
        ranks[move(*fewer, add=False)] = rank
    for rank in range(first, size):
        ranks[move(kept, density, add=True)] = rank
    return ranks.reshape(_SIDE, _SIDE)


def _blobs() -> np.ndarray:
    """The Gaussian around the origin of a torus, on four tiles."""
    distance = np.minimum(np.arange(_SIDE), _SIDE - np.arange(_SIDE))
    line = np.exp(-(distance**2) / (2 * _SIGMA**2))
    return np.tile(np.outer(line, line), (2, 2))


def _blob(blobs: np.ndarray, place: int) -> np.ndarray:
    row, column = divmod(place, _SIDE)
    return blobs[_SIDE - row : 2 * _SIDE - row, _SIDE - column : 2 * _SIDE - column].ravel()
