"""Imports go one way: a module imports from its own layer and from those below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = (
    {"_version", "compilation", "errors", "files", "sharding", "strict_json", "types"},
    {"contracts", "hearing", "manifest", "mask_files", "settings"},
    {"transforms.grid"},
    {"audio", "transforms", "spectrogram", "masks"},
    {"quantizer"},
    {"blue_noise", "plausible"},
    {"nn.conv"},
    {"nn.sparse_conv"},
    {"nn.network"},
    # Architectures, one file each.
    {"nn"},
    {"interpolate"},
    {"decoders"},
    {"pretrained"},
    {"densification", "learned"},
    {"policies"},
    {"losses"},
    {"reconstruct"},
    {"_scoring"},
    {"metrics"},
    {"terms"},
    {"objectives"},
    {"searched"},
    {"codec.entropy", "codec.header", "codec.context", "codec.mdct_settings"},
    {"codec.segment", "codec.mdct_segment"},
    {"codec.container", "codec.mdct_container"},
    {"codec.description"},
    {"codec.weights"},
    {"codec.rate"},
    {"codec.rdo"},
    {"codec.mdct_channel"},
    {"codec.rate_control"},
    {"codec.stft_stream", "codec.mdct_stream"},
    {"codec.stream"},
    {"batch"},
    {"plots"},
    {"demo_page"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
# What can be read without the library that decodes it.
THE_FORMAT = {
    *("codec.entropy", "codec.header", "codec.segment", "codec.container"),
    *("codec.context", "codec.mdct_segment", "codec.mdct_container", "transforms.grid"),
    *("codec.mdct_settings", "codec.description"),
}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Modules beside the layers, and what they may import of the package.
ASIDE = {
    "data": {"data", "audio", "errors", "types"},
    "search": {"search", "masks", "types", "checkpoint", "manifest", "sharding"},
    "checkpoint": {"errors", "types"},
}
# Modules in the layers that use one that stands beside them.
USERS = {"search": {"objectives", "searched"}, "data": {"batch"}}
# Packages that belong to one place, and the modules that are this place.
OWNERS = {
    "librosa": {"metrics", "plots"},
    "orbax": {"checkpoint"},
    "soundfile": {"audio", "data"},
    "soxr": {"audio", "data"},
}
ONLY_IN_A_CHECKOUT = {"benchmarks", "eval", "tests", "train"}
# They take long to import, and most uses of the package need none of them.
IMPORTED_WHERE_USED = {
    *("grain", "librosa", "matplotlib", "numba", "orbax", "tensorflow_datasets", "torch", "tyro")
}


def modules(folder):
    """Yields (dotted name, path) for every module under a top-level folder of the repository."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(source, module, *, is_package=False):
    """Returns the absolute dotted names that the source imports, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def place(name):
    """Returns the entry of RANK or ASIDE that a name within the package belongs to."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in RANK or prefix in ASIDE:
            return prefix
    # A package without a place of its own, such as nn, stands where its highest module does.
    inside = [entry for entry in RANK if entry.startswith(f"{name}.")]
    return max(inside, key=lambda entry: RANK[entry], default=None)


def allowed(importer, imported):
    if importer == imported:
        return True
    if importer in ASIDE:
        return imported in ASIDE[importer]
    if imported in ASIDE:
        return importer in USERS.get(imported, ())
    return RANK[imported] <= RANK[importer]


def complaints(source, module, *, is_package=False):
    """Returns one line for each import of a module under jaxsparse/ that breaks a rule."""
    here = place(module.partition(".")[2])
    if here is None and module != "jaxsparse":
        return [f"{module} has no place in the layers of {Path(__file__).name}"]
    found = []
    for name in sorted(imports(source, module, is_package=is_package)):
        top, _, rest = name.partition(".")
        if top in ONLY_IN_A_CHECKOUT:
            found.append(f"{module} imports {name}, which is not installed")
        elif top in OWNERS and here not in OWNERS[top]:
            found.append(f"{module} imports {name}, which only {sorted(OWNERS[top])} may")
        elif top == "jax" and here in THE_FORMAT:
            found.append(f"{module} imports {name}: the format depends on no array library")
        elif top == "jaxsparse" and here is not None:
            there = place(rest)
            if there is not None and not allowed(here, there):
                found.append(f"{module} imports {name}: {here} stands below or beside {there}")
    return found


def test_imports_go_one_way():
    found = []
    for module, path in modules("jaxsparse"):
        found += complaints(path.read_text(), module, is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_evaluation_does_not_import_training():
    found = [
        f"{module} imports {name}"
        for module, path in modules("eval")
        for name in imports(path.read_text(), module)
        if name.split(".")[0] == "train"
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxsparse.transforms.stft", "from jaxsparse.nn.network import sparse_cnn"),
        ("jaxsparse.transforms.stft", "from jaxsparse.nn import network"),
        ("jaxsparse.transforms.stft", "from ..nn import network"),
        ("jaxsparse.transforms.stft", "from .. import nn"),
        ("jaxsparse.nn.network", "from ..reconstruct import to_waveform"),
        ("jaxsparse.masks", "def late():\n    import jaxsparse.codec"),
        ("jaxsparse.codec.container", "from jaxsparse.codec import stream"),
        *((f"jaxsparse.{name}", "import jax.numpy as jnp") for name in sorted(THE_FORMAT)),
        ("jaxsparse.codec.header", "from jaxsparse.codec.segment import Segment"),
        ("jaxsparse.codec.segment", "from jaxsparse.codec import container"),
        ("jaxsparse.codec.stream", "from jaxsparse.data.folder import Folder"),
        ("jaxsparse.data.folder", "from jaxsparse import transforms"),
        ("jaxsparse.search.genetic", "from jaxsparse.losses import mse"),
        ("jaxsparse.search.contract", "from jaxsparse.objectives import mse_objective"),
        ("jaxsparse.losses", "from jaxsparse.search.run import run"),
        ("jaxsparse.losses", "from jaxsparse.reconstruct import to_waveform"),
        ("jaxsparse.metrics", "import soundfile as sf"),
        ("jaxsparse.audio", "from librosa import resample"),
        ("jaxsparse.codec.stream", "import orbax.checkpoint as ocp"),
        ("jaxsparse.demo", "from eval import report"),
        ("jaxsparse.novelty", "import numpy"),
    ],
)
def test_made_up_backward_import_is_found(module, source):
    assert len(complaints(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxsparse.nn.network", "from .sparse_conv import sparse_conv\nfrom ..types import Mask"),
        (
            "jaxsparse.codec.stream",
            "from jaxsparse import masks, reconstruct\nfrom jaxsparse.codec import container",
        ),
        ("jaxsparse.data.folder", "import soundfile\nfrom jaxsparse.audio import resample"),
        ("jaxsparse.search.genetic", "from .contract import Search\nfrom jaxsparse import masks"),
        ("jaxsparse.cli", "from jaxsparse import demo"),
        ("jaxsparse.objectives", "from jaxsparse.search.contract import HostObjective"),
    ],
)
def test_made_up_forward_import_passes(module, source):
    assert complaints(source, module) == []


def loaded(module):
    """Returns the modules that importing a module loads, in a fresh interpreter."""
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("__init__", IMPORTED_WHERE_USED),
        ("codec.stream", IMPORTED_WHERE_USED),
        # Together they would add a second to each command.
        ("codec.mdct_stream", IMPORTED_WHERE_USED | {"scipy.interpolate", "scipy.signal"}),
        # Help, a mistyped option and `info` come at once.
        ("cli", IMPORTED_WHERE_USED | {"flax", "jax", "numpy", "scipy"}),
        *((name, IMPORTED_WHERE_USED | {"flax", "jax", "jaxlib"}) for name in sorted(THE_FORMAT)),
    ],
)
def test_heavy_packages_are_imported_where_they_are_used(name, unwanted):
    module = "jaxsparse" if name == "__init__" else f"jaxsparse.{name}"
    assert not loaded(module) & unwanted


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "jaxsparse", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith("usage: jaxsparse")
