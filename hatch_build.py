"""Compiles the inner loops when Gridscore is installed; where that is not possible, their twins in Python run."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "pipeline"


class CompileHook(BuildHookInterface):
    """Compiles each `_*.c` of the package, beside its source.

    `GRIDSCORE_COMPILE=0` leaves it out; `GRIDSCORE_COMPILE=1` makes a failure an error, for whoever builds wheels.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- hatchling's signature
        """Compile, before files are gathered."""
        wanted = os.environ.get("GRIDSCORE_COMPILE", "")
        if self.target_name != "wheel" or wanted == "0":
            return
        try:
            compiled = _compile(Path(self.root))
        except Exception as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"The inner loops are not compiled, and run in Python, slower: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"] += [f"/{path}" for path in compiled]

    def clean(self, versions: list[str]) -> None:  # noqa: ARG002 -- hatchling's signature
        """Remove what was compiled."""
        for path in [*Path(self.root, SOURCES).rglob("_*.so"), *Path(self.root, SOURCES).rglob("_*.pyd")]:
            path.unlink()


def _compile(root: Path) -> list[str]:
    """Compile every source; returns the modules, by their path from the root."""
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    flags = [] if sys.platform == "win32" else ["-O3", "-std=c11", "-fvisibility=hidden"]
    libraries = [] if sys.platform == "win32" else ["m"]
    extensions = [
        Extension(
            ".".join(source.with_suffix("").parts[1:]), [str(source)], extra_compile_args=flags, libraries=libraries
        )
        for source in sorted(path.relative_to(root) for path in (root / SOURCES).rglob("_*.c"))
    ]
    before = Path.cwd()
    scratch = tempfile.mkdtemp()
    os.chdir(root)
    try:
        command = build_ext(
            Distribution({"name": "gridscore", "package_dir": {"": SOURCES}, "ext_modules": extensions})
        )
        command.inplace, command.build_temp, command.force = True, scratch, True
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
        shutil.rmtree(scratch, ignore_errors=True)
    return [Path(SOURCES, command.get_ext_filename(extension.name)).as_posix() for extension in extensions]
