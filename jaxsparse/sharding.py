"""Several devices: a mesh of one axis, over which batches and populations are split.

Code that can use more than one device asks for the mesh in force::

    with sharding.use("all"):
        result = run(search, key, steps=500)

Without one, or with one device, nothing changes. What is computed is the same on any number of
devices, but for rounding where sums over a batch are taken in another order.

In a cluster each process runs the same program: `use` finds the others, and the mesh has the
devices of all. What is split lies on the devices of several processes then, and what is not split
is the same on all.
"""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxsparse.errors import JaxsparseError

AXIS = "data"
"""Name of the mesh's axis."""
LocalDevices: TypeAlias = int | Literal["all"] | None
"""So many devices of this process, or all of them."""
Devices: TypeAlias = LocalDevices | Literal["cluster"]
"""So many devices of this process; all of them; or those of all processes of a cluster."""


class ShardingError(JaxsparseError):
    """Devices, or processes, that are not there, or among which a batch can't be split."""


@contextlib.contextmanager
def use(devices: Devices) -> Iterator[None]:
    """Puts a mesh in force; a context.

    Args:
        devices: What the mesh is made of; None puts none in force. For ``"cluster"``, which must
            come before anything is computed, the processes find each other by the variables of
            Slurm, Open MPI or a TPU pod, or by ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES``
            and ``JAX_PROCESS_ID``.

    Raises:
        ShardingError: If there are fewer devices, or no cluster.
    """
    if devices is None:
        yield
        return
    if devices == "cluster":
        _join_cluster()
    try:
        mesh = make_mesh(None if isinstance(devices, str) else devices)
    except ValueError as error:
        raise ShardingError(str(error)) from error
    with jax.set_mesh(mesh):
        yield


def _join_cluster() -> None:
    if jax.distributed.is_initialized():
        return
    known = [os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID")]
    try:
        n_processes, index = [None if value is None else int(value) for value in known]
        # It would take SIGTERM away from programs that save what they have done.
        jax.config.update("jax_enable_preemption_service", False)
        given = None not in (n_processes, index, os.environ.get("JAX_COORDINATOR_ADDRESS"))
        jax.distributed.initialize(
            num_processes=n_processes,
            process_id=index,
            cluster_detection_method="deactivate" if given else None,
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise ShardingError(f"no cluster is found: {error}") from error


def make_mesh(n_devices: int | None = None) -> Mesh:
    """Makes a mesh of this process's first devices, by default of all devices of all processes.

    Args:
        n_devices: Number of devices.

    Raises:
        ValueError: If there are fewer, or processes have different numbers of them.
    """
    devices = jax.devices() if n_devices is None else jax.local_devices()
    n_devices = len(devices) if n_devices is None else n_devices
    if not 1 <= n_devices <= len(devices):
        raise ValueError(f"a mesh has 1 to {len(devices)} devices here, not {n_devices}")
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        raise ValueError(f"processes have different numbers of devices: {sorted(counts.values())}")
    # Those of a process beside each other, as `order_of_rows` has them.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered[:n_devices]), (AXIS,), axis_types=(AxisType.Auto,))


def n_devices() -> int:
    """Counts the devices of the mesh in force, 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def n_processes() -> int:
    """Counts the processes whose devices are in the mesh in force, 1 without one."""
    return jax.process_count() if n_devices() == jax.device_count() else 1


def process_index() -> int:
    """Returns the number of this process among those of the mesh in force, from 0."""
    return jax.process_index() if n_processes() > 1 else 0


def is_main() -> bool:
    """Tells the one process that writes files from the others of a cluster."""
    return process_index() == 0


def split(tree: Any, axis: int = 0) -> Any:
    """Splits an axis of traced arrays over the devices of the mesh in force.

    Args:
        tree: Arrays that have the axis.
        axis: Index of the axis.

    Returns:
        The same arrays.
    """
    return _constrain(tree, PartitionSpec(*(None,) * axis, AXIS))


def gather(tree: Any) -> Any:
    """Gives each device of the mesh in force all of some traced arrays."""
    return _constrain(tree, PartitionSpec())


def _constrain(tree: Any, spec: PartitionSpec) -> Any:
    if n_devices() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), tree)


def mean_over_devices(
    function: Callable[..., Any], whole: Sequence[Any], parts: Sequence[Any]
) -> Any:
    """Averages a function over the devices' shares of a batch.

    Args:
        function: From `whole` and a device's share of `parts` to a tree of means over the share,
            such as a loss and its gradient.
        whole: Arguments that each device sees whole.
        parts: Arguments whose first axis is split; the number of devices divides its length.

    Returns:
        The means over the batch.
    """
    if n_devices() == 1:
        return function(*whole, *parts)

    def share(*arguments: Any) -> Any:
        return jax.lax.pmean(function(*arguments), AXIS)

    specs = (PartitionSpec(),) * len(whole) + (PartitionSpec(AXIS),) * len(parts)
    # The mean is taken here, and nothing is differentiated from outside.
    over = jax.shard_map(share, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return over(*whole, *parts)


def order_of_rows(n_rows: int) -> Int[np.ndarray, " n_rows"]:
    """Tells which rows of a batch lie on which device.

    Rows are dealt out to the devices in turn, first to the processes and then to the devices of
    each, so that all devices get the same mixture of first and last ones.

    Args:
        n_rows: Length of the batch.

    Returns:
        Indices of the rows, in the order in which the devices hold them.

    Raises:
        ShardingError: If the number of devices does not divide the length.
    """
    devices, processes = n_devices(), n_processes()
    if n_rows % devices:
        raise ShardingError(f"a batch of {n_rows} can't be split over {devices} devices")
    rows = np.arange(n_rows, dtype=np.int32)
    # Of a process's rows, each so many-th, the devices take turns.
    dealt = rows.reshape(-1, devices // processes, processes)
    return np.transpose(dealt, (2, 1, 0)).ravel()


def place_rows(rows: Float[np.ndarray, "..."]) -> Any:
    """Splits a batch over the devices of the mesh in force, in the order of `order_of_rows`.

    Args:
        rows: This process's share of the batch: of P processes, the p-th has the rows p, p + P,
            p + 2 P and so on.

    Returns:
        The whole batch; as it is where there is no mesh.
    """
    if n_devices() == 1:
        return rows
    own = n_devices() // n_processes()
    ordered = np.concatenate([rows[first::own] for first in range(own)])
    sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(AXIS))
    return jax.make_array_from_process_local_data(sharding, ordered)


def place_batch(tree: Any) -> Any:
    """Splits arrays' first axis over the devices of the mesh in force, in its order.

    Args:
        tree: Arrays of this process, which must be the only one.

    Raises:
        ShardingError: If the number of devices does not divide the length.
    """
    if n_devices() == 1:
        return tree
    order_of_rows(len(jax.tree.leaves(tree)[0]))
    return jax.device_put(tree, NamedSharding(jax.sharding.get_mesh(), PartitionSpec(AXIS)))


def place_whole(tree: Any) -> Any:
    """Gives each device of the mesh in force a copy of some arrays, alike in all processes."""
    if n_devices() == 1:
        return tree
    return jax.device_put(tree, NamedSharding(jax.sharding.get_mesh(), PartitionSpec()))


def fetch(tree: Any) -> Any:
    """Copies arrays that are spread over processes to each process; all of them must call it."""
    return tree if n_processes() == 1 else jax.jit(gather)(tree)


def of_main(value: int) -> int:
    """Returns the main process's value to all processes; all of them must call it."""
    if n_processes() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def any_process(flag: bool) -> bool:
    """Tells whether a flag is set in any process of a cluster; all of them must call it.

    The answer waits for what the devices have been given before.
    """
    if n_processes() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def check_same(value: str, what: str) -> None:
    """Refuses to go on where processes of a cluster differ; all of them must call it.

    Args:
        value: Text that should be the same in all processes.
        what: Name of the text, in the plural.

    Raises:
        ShardingError: If it isn't, in all processes.
    """
    if n_processes() == 1:
        return
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    if not (multihost_utils.process_allgather(digest) == digest).all():
        raise ShardingError(f"the processes of the cluster have different {what}")


def end_if_others_wait(code: int) -> None:
    """Ends this process at once where others of a cluster would wait for it.

    An ordinary exit waits for the others first, and they for the next result of this one.

    Args:
        code: The exit code.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        os._exit(code)
