"""Several devices: a mesh of one axis, over which batches and populations are split.

Code that can use more than one device asks for the mesh in force::

    with jax.set_mesh(sharding.make_mesh()):
        result = run(search, key, steps=500)

Without one, or with one device, nothing changes. What is computed is the same on any number of
devices, but for rounding where sums over a batch are taken in another order.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

AXIS = "data"
"""Name of the mesh's axis."""


def make_mesh(n_devices: int | None = None) -> Mesh:
    """Makes a mesh of the first devices, by default all of them.

    Args:
        n_devices: Number of devices.

    Raises:
        ValueError: If there are fewer.
    """
    devices = jax.devices()
    n_devices = len(devices) if n_devices is None else n_devices
    if not 1 <= n_devices <= len(devices):
        raise ValueError(f"a mesh has 1 to {len(devices)} devices here, not {n_devices}")
    return jax.make_mesh(
        (n_devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:n_devices]
    )


def n_devices() -> int:
    """Counts the devices of the mesh in force, 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def split(tree: Any, axis: int = 0) -> Any:
    """Splits an axis of traced arrays over the devices of the mesh in force.

    Args:
        tree: Arrays that have the axis.
        axis: Index of the axis.

    Returns:
        The same arrays.
    """
    if n_devices() == 1:
        return tree
    spec = PartitionSpec(*(None,) * axis, AXIS)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), tree)
