"""Checkpoints of a training run: the only file that knows orbax."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    state: Any
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: state on the device, the loader's position, the settings."""

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Opens or creates the directory and keeps the newest `keep` checkpoints in it."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options)

    def latest_step(self) -> int | None:
        """The newest checkpoint's step; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict[str, Any], settings: dict[str, Any]) -> None:
        """Writes a checkpoint in the background.

        Args:
            step: Steps done.
            state: A tree of arrays.
            data: The position of the loader's iterator, as JSON values.
            settings: The run's settings, as JSON values.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data),
                settings=ocp.args.JsonSave(settings),
            ),
        )

    def settings(self) -> dict[str, Any]:
        """The settings that the newest checkpoint was made with.

        Raises:
            FileNotFoundError: If there is no checkpoint.
        """
        return self._restore(settings=ocp.args.JsonRestore()).settings

    def restore(self, like: Any) -> Restored:
        """Reads the newest checkpoint.

        Args:
            like: A tree of arrays or shapes of the state's structure.

        Raises:
            FileNotFoundError: If there is no checkpoint.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        found = self._restore(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        step = self.latest_step()
        assert step is not None
        return Restored(step, found.state, found.data)

    def _restore(self, **items: Any) -> Any:
        step = self.latest_step()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory}")
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()
