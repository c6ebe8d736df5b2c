"""Is this the same run? Manifests say what determines a run, and are compared when it is resumed.

A manifest is a tree of JSON values: settings, digests of weights and data. It lies in a JSON file
beside a run's results, or in a run's checkpoints.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsparse.errors import JaxsparseError
from jaxsparse.files import atomic_write, portable_path
from jaxsparse.strict_json import parse_object

# Digests are told by their beginnings.
_MAX_SHOWN = 24


class ManifestError(JaxsparseError):
    """A manifest that can't be read."""


def plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest's JSON values; paths become portable ones."""
    return json.loads(json.dumps(manifest, default=portable_path))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names what differs between two manifests, each with both values; dots lead into trees."""
    old, new = _flat(before), _flat(plain(now))
    return [
        f"{name} ({_shown(old.get(name))}, now {_shown(new.get(name))})"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]


def check_same(run: object, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with a run of another manifest.

    Args:
        run: The run's folder or name, which begins the message.
        before: Manifest of the run.
        now: Manifest of what is to go on.

    Raises:
        FileExistsError: If they differ; it names what does.
    """
    if changed := differences(before, now):
        raise FileExistsError(
            f"{run} holds a run with another {', '.join(changed)}: take another folder"
        )


def check_file(
    path: Path, run: object, now: Mapping[str, Any], defaults: Mapping[str, Any] = {}
) -> None:
    """Refuses to go on with a run whose file holds another manifest; no file is fine.

    Args:
        path: The file.
        run: The run's folder or name, which begins the message.
        now: Manifest of what is to go on.
        defaults: Stand for what the file lacks.

    Raises:
        FileExistsError: If they differ; it names what does.
        ManifestError: If the file is damaged.
        OSError: If it can't be read.
    """
    if not path.exists():
        return
    try:
        before = parse_object(path.read_bytes())
    except ValueError as error:
        raise ManifestError(f"{path} is damaged: {error}") from error
    check_same(run, {**defaults, **before}, now)


def write_file(path: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a manifest as JSON.

    Raises:
        OSError: If it can't be written.
    """
    atomic_write(path, json.dumps(plain(manifest), indent=1).encode())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_SHOWN or " " in text else f"{text[:12]}..."
