"""What a wheel carries besides the modules: the shipped recipes, and which code it was built from.

Everything else is in pyproject.toml.
"""

import json
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from slm.code_state import BUILD, modules_sha256, state_of  # noqa: E402


def write_state(package: Path) -> None:
    """Record in a copy of the package what it was copied from."""
    state = {**state_of(ROOT / "slm"), "modules_sha256": modules_sha256(package)}
    text = json.dumps(state, indent=1, sort_keys=True) + "\n"
    (package / BUILD).write_text(text, encoding="utf-8")


class BuildPackage(build_py):
    """Builds the package into an empty folder: an older build may have left modules there."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib) / "slm"
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        shutil.copyfile(ROOT / "pipelines.yaml", package / "pipelines.yaml")
        write_state(package)


class SourceArchive(sdist):
    """Packs the sources with their state: where they are built, there is no git."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_state(Path(base_dir) / "slm")


setup(cmdclass={"build_py": BuildPackage, "sdist": SourceArchive})
