"""Builds the native back end while the package is installed; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, str(Path(__file__).parent))
from model.native.build import LIBRARY, BuildError, build


class BuildNative(build_ext):
    """One shared library for every instruction set, loaded by name: no Python extension module."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + LIBRARY.suffix

    def build_extension(self, ext: Extension) -> None:
        try:
            build(Path(self.get_ext_fullpath(ext.name)))
        except BuildError as error:
            raise CompileError(str(error)) from error


# Optional: without a compiler the package installs all the same, and the torch back end serves.
library = Extension("model.native.library", sources=[], optional=True)
setup(ext_modules=[library], cmdclass={"build_ext": BuildNative})
