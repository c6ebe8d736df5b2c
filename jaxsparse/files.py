"""Files and folders that appear whole or not at all, and paths that say nothing of a machine."""

import errno
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write(path: str | os.PathLike[str] | int, data: bytes | memoryview) -> None:
    """Writes a file so that it appears whole or not at all.

    The bytes go to a temporary file in the same directory, which then takes the target's name. A
    symbolic link is followed. A device, a pipe and what is open already are written directly: they
    must not be replaced.

    Args:
      path: the target; an existing file is replaced. Or the descriptor of an open file.
      data: all of its bytes.

    Raises:
      OSError: the directory is missing or not writable, the disk is full, the target is a
        directory. The temporary file is removed.
    """
    atomic_write_parts(path, (data,))


def atomic_write_parts(
    path: str | os.PathLike[str] | int, parts: Iterable[bytes | memoryview]
) -> None:
    """Writes a file of several parts; see `atomic_write`."""
    # The link of an open pipe leads nowhere, though it can be opened: so `path`, not what it is.
    if isinstance(path, int) or (os.path.exists(path) and not os.path.isfile(path)):
        with open(path, "wb", closefd=not isinstance(path, int)) as file:
            file.writelines(parts)
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".jaxsparse-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


@contextmanager
def whole_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Makes a folder that appears whole or not at all, or, over files that are there, one by one.

    What is filled is a temporary folder beside the target, which then takes the target's name. In
    a target that has files already they are replaced one by one, a page, ``index.html``, last.

    Args:
      out: the target.
      force: whether to write into a folder that isn't empty.

    Yields:
      The folder to fill, with files alone.

    Raises:
      OSError: the target isn't empty and not forced, is no folder, or can't be written.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(out))
    if out.is_dir() and any(out.iterdir()) and not force:
        raise FileExistsError(f"{out} is not empty")
    target = Path(os.path.realpath(out))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(target.parent))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".jaxsparse-") as temporary:
        # The temporary folder itself is readable by its owner alone.
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        if not target.is_dir() or not any(target.iterdir()):
            os.replace(folder, target)
            return
        made = sorted(folder.iterdir(), key=lambda file: file.name == "index.html")
        for file in made:
            # Before the first one is replaced.
            if (target / file.name).is_dir():
                raise IsADirectoryError(
                    errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(out / file.name)
                )
        for file in made:
            os.replace(file, target / file.name)


def portable_path(path: Path) -> str:
    """Writes a path without what is particular to this machine, for cards and tables.

    Args:
      path: below the directory ``$JAXSPARSE_DATA``, relative, or any other.

    Returns:
      The path from ``$JAXSPARSE_DATA``; a relative one as it is; of any other only the name.
    """
    root = os.environ.get("JAXSPARSE_DATA")
    if root and path.is_relative_to(root):
        return str(Path("$JAXSPARSE_DATA") / path.relative_to(root))
    return path.name if path.is_absolute() else str(path)
