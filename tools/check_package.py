"""Builds wheel and sdist into dist/ and tries the wheel: what ``make package`` runs.

The wheel is built from the sdist, so it lacks what the sdist lacks. It is installed with the pinned
versions of the core into a new environment, where nothing may be built, so that no compiler is
needed; its demo runs where none would be found.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
UV = (sys.executable, "-m", "uv", "--quiet")
EXTRAS_BRING = ("grain", "pesq", "pystoi", "tensorflow_datasets", "tyro")


class PackageError(Exception):
    """What is wrong with a distribution, in one line."""


def main() -> int:
    """Builds and checks; returns the exit code."""
    try:
        wheel, sdist = build()
        check_files(wheel)
        with tempfile.TemporaryDirectory(prefix="jaxsparse-package-") as folder:
            try_wheel(wheel, Path(folder))
    except (PackageError, subprocess.CalledProcessError) as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    for path in (wheel, sdist):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")
    return 0


def build() -> tuple[Path, Path]:
    """Builds the sdist, and the wheel from it, and returns wheel and sdist."""
    metadata = ROOT / "jaxsparse.egg-info"
    keep = metadata.exists()
    shutil.rmtree(DIST, ignore_errors=True)
    try:
        run(*UV, "build", "--build-constraints", "requirements-build.txt", "--out-dir", str(DIST))
    finally:
        if not keep:
            shutil.rmtree(metadata, ignore_errors=True)
    # uv's; the project has one.
    (DIST / ".gitignore").unlink(missing_ok=True)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    return wheel, sdist


def check_files(wheel: Path) -> None:
    """Compares the wheel with the checkout: code, stubs, weights, assets and licence.

    Raises:
        PackageError: If a file is missing in one of them.
    """
    names = zipfile.ZipFile(wheel).namelist()
    found = {name for name in names if ".dist-info/" not in name}
    paths = (path for path in (ROOT / "jaxsparse").rglob("*") if path.is_file())
    wanted = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix != ".pyc"}
    if found != wanted:
        raise PackageError(f"only in the wheel or the checkout: {', '.join(found ^ wanted)}")
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        raise PackageError("the wheel has no licence")


def try_wheel(wheel: Path, folder: Path) -> None:
    """Installs the wheel without extras into a new environment and runs its demo.

    Raises:
        CalledProcessError: If the installation or a command fails.
        PackageError: If the environment holds what an extra is for, or the demo doesn't say so.
    """
    environment = folder / "venv"
    run(*UV, "venv", "--python", sys.executable, str(environment))
    python, installing = str(environment / "bin" / "python"), ("--no-build", "--constraints")
    run(*UV, "pip", "install", "--python", python, *installing, "requirements.txt", str(wheel))
    code = f"import importlib.util as u; print(*filter(u.find_spec, {EXTRAS_BRING!r}))"
    if found := run(python, "-c", code, cwd=folder).stdout.strip():
        raise PackageError(f"a plain installation brings {found}")
    # Nothing but the environment itself is on the path: neither a compiler nor the checkout.
    command = str(environment / "bin" / "jaxsparse")
    alone = {"PATH": str(environment / "bin"), "HOME": str(folder)}
    if run(command, "--version", cwd=folder, env=alone).stdout.split()[1] not in wheel.name:
        raise PackageError("jaxsparse --version is not that of the wheel")
    said = run(command, "demo", "--out", "demo", cwd=folder, env=alone).stderr
    if "jaxsparse[eval]" not in said or not (folder / "demo" / "index.html").is_file():
        raise PackageError(f"the demo made no page, or did not name the extra: {said}")


def run(
    *command: str, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; its errors are shown.

    Raises:
        CalledProcessError: If it fails.
    """
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return done


if __name__ == "__main__":
    sys.exit(main())
