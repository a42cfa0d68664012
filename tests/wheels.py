"""Wheels of the project for tests: built from a clean checkout, installed into a folder."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path, **environment: str) -> str:
    """The output of a command that succeeds."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment or None, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return run("git", *identity, *arguments, cwd=folder).strip()


def wheel_of(sources: Path, folder: Path) -> Path:
    """The wheel that pip builds of a folder or an archive, with nothing but what is installed."""
    pip = (sys.executable, "-m", "pip", "-q", "wheel", "--no-index", "--no-deps")
    run(*pip, "--no-build-isolation", "-w", folder, sources, cwd=folder.parent)
    return next(folder.glob("*.whl"))


def wheel_by_hook(sources: Path, folder: Path) -> Path:
    """The same wheel by the hook that pip calls, without the seconds of pip."""
    if sources.is_file():
        shutil.unpack_archive(sources, folder / "sources", filter="data")
        [sources] = (folder / "sources").iterdir()
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=sources)
    return next(folder.glob("*.whl"))


def clean_checkout(folder: Path) -> Path:
    """The files here, as they are now, at a commit of their own."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "all")
    return folder


def install(wheel: Path, folder: Path) -> Path:
    """The folder, with an installation without dependencies: those are of this environment."""
    pip = (sys.executable, "-m", "pip", "-q", "install", "--no-index", "--no-deps", "--no-compile")
    run(*pip, "--target", folder, wheel, cwd=folder.parent)
    return folder
