"""An installation without extras: what it does, and how the rest says which extra it takes."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from jaxsparse import audio, metrics
from jaxsparse.data.clips import find_clips
from jaxsparse.data.loader import make_loader
from jaxsparse.errors import MissingExtraError, needs_extra
from train.main import main as train

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# What only an extra brings, by the names that are imported. (absl comes with the core, too.)
ONLY_IN_EXTRAS = {
    *("array_record", "grain", "pesq", "pystoi", "tensorboardX", "tensorflow_datasets", "tyro")
}
COMMANDS = {
    "eval.masks": "eval",
    "eval.metrics": "eval",
    "eval.reconstruction": "eval",
    "train.surrogate": "eval",
    "train.main": "train",
    "jaxsparse.data.flickr8k": "train",
}

# Everything in one process, since each takes seconds to import JAX.
PLAIN = """
import contextlib, importlib, io, json, pkgutil, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))

import jaxsparse
for module in pkgutil.walk_packages(jaxsparse.__path__, "jaxsparse."):
    if module.name != "jaxsparse.data.flickr8k_builder":
        importlib.import_module(module.name)

import numpy as np
from jaxsparse import errors, metrics
clip = np.sin(np.arange(3000.0, dtype=np.float32))[None]
pair = {"reference": clip, "estimate": 0.5 * clip, "sample_rate": 16000}
said = {"si_sdr": float(metrics.si_sdr(**pair)[0])}
for name in ("reference_pesq", "reference_stoi"):
    try:
        getattr(metrics, name)(**pair)
    except errors.MissingExtraError as error:
        said[name] = str(error)
for name in json.loads(sys.argv[2]):
    main = importlib.import_module(name).main
    arguments = ["--manual-dir", ".", "--data-dir", "no"] if name.endswith("flickr8k") else []
    with contextlib.redirect_stderr(io.StringIO()) as lines:
        code = main(arguments)
    said[name] = [code, lines.getvalue()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def plain():
    """What an interpreter says that has nothing but the core."""
    arguments = [json.dumps(sorted(ONLY_IN_EXTRAS)), json.dumps(list(COMMANDS))]
    run = subprocess.run(
        [sys.executable, "-c", PLAIN, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_core_imports_all_but_one_module_and_has_the_metrics_of_the_device(plain):
    assert plain["si_sdr"] > 80


@pytest.mark.parametrize(
    ("name", "package"), [("reference_pesq", "pesq"), ("reference_stoi", "pystoi")]
)
def test_a_function_names_the_package_and_the_extra(plain, name, package):
    said = f"{package} is not installed: pip install 'jaxsparse[eval]' brings it"
    assert plain[name] == said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_the_extra_in_one_line(plain, name):
    code, line = plain[name]
    assert code == 2
    prefix = re.escape(name.removesuffix(".main"))
    said = rf"{prefix}: \w+ is not installed: pip install 'jaxsparse\[{COMMANDS[name]}\]' brings it"
    assert re.fullmatch(said + "\n", line)


@pytest.fixture
def clips(tmp_path):
    """A folder of one clip."""
    (tmp_path / "clips").mkdir()
    noise = np.random.default_rng(0).normal(scale=0.1, size=(20_000, 1))
    audio.write_wav(tmp_path / "clips" / "noise.wav", noise.astype(np.float32), 16_000)
    return tmp_path / "clips"


def test_a_loader_without_grain(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(MissingExtraError, match=r"grain .*jaxsparse\[train\]"):
        make_loader(find_clips(clips), batch_size=1, seed=0)


def test_a_training_without_grain_ends_in_one_line(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "grain", None)
    assert train(["--data", str(clips), "--workdir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "train: grain is not installed: pip install 'jaxsparse[train]' brings it"
    )


def test_a_prepared_data_set_without_tensorflow_datasets(tmp_path, monkeypatch):
    (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(MissingExtraError, match=r"tensorflow_datasets .*jaxsparse\[train\]"):
        find_clips(tmp_path)


def test_a_score_that_is_installed_needs_no_other(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    metrics.check_installed("stoi")
    with pytest.raises(MissingExtraError):
        metrics.check_installed("pesq_wb")


def test_it_is_an_import_error_and_other_errors_pass():
    with pytest.raises(ImportError) as caught, needs_extra("eval"):
        import no_such_package  # noqa: F401 # pyright: ignore[reportMissingImports]
    assert isinstance(caught.value, MissingExtraError)
    assert caught.value.name == "no_such_package"
    with pytest.raises(ZeroDivisionError), needs_extra("eval"):
        _ = 1 / 0


def packages_of(requirements):
    """Names of the distributions, in lower case with hyphens."""
    names = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {name[0].lower().replace("_", "-") for name in names if name}


def guarded_imports(source):
    """Yields (extra, package) for each import that `needs_extra` surrounds, and the others."""
    tree = ast.parse(source)
    seen = set()
    for block in (node for node in ast.walk(tree) if isinstance(node, ast.With)):
        call = block.items[0].context_expr
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "needs_extra":
            assert isinstance(call.args[0], ast.Constant)
            for node in block.body:
                seen.add(node)
                yield from ((call.args[0].value, name) for name in imported(node))
    for node in ast.walk(tree):
        if node not in seen:
            yield from ((None, name) for name in imported(node))


def imported(node):
    """Top-level packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def test_what_an_extra_brings_is_imported_under_its_name_alone():
    brought = metadata.packages_distributions()
    found = set()
    for folder in ("jaxsparse", "train", "eval"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            # The process that scores starts where `check_installed` has looked; grain's types are
            # imported for the type checker alone.
            exempt = {"_scoring.py": {"pesq", "pystoi"}, "loader.py": {"grain"}}
            for extra, package in guarded_imports(path.read_text("utf-8")):
                if extra is None:
                    assert package not in ONLY_IN_EXTRAS - exempt.get(path.name, set()), path
                else:
                    wanted = packages_of(PROJECT["optional-dependencies"][extra])
                    assert wanted & packages_of(brought[package]), (path, package, extra)
                    found.add(package)
    assert found >= {"grain", "tensorboardX", "tensorflow_datasets", "tyro"}


def test_the_core_names_nothing_that_an_extra_is_for():
    core = packages_of(PROJECT["dependencies"])
    brought = metadata.packages_distributions()
    assert not core & {name for p in ONLY_IN_EXTRAS for name in packages_of(brought[p])}
    assert "librosa" in core
