"""numba and llvmlite; where they are not installed, a stand-in for each name, and nothing is compiled.

Modules of loops take the names from here, so that they can be imported anywhere: torch does then what they would.
"""

from typing import Any

try:
    from llvmlite import binding, ir
    from numba import __version__ as numba_version
    from numba import carray, cfunc, config, float32, njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic

    INSTALLED = True
except ImportError:
    INSTALLED = False

    class _Absent:
        """Whatever is called or looked up on it is it again; a class that derives from it derives from nothing."""

        def __call__(self, *_: Any, **__: Any) -> Any:
            return self

        def __getattr__(self, _: str) -> Any:
            return self

        def __mro_entries__(self, _: Any) -> tuple[type, ...]:
            return ()

    binding = ir = carray = cfunc = config = float32 = njit = types = cgutils = intrinsic = numba_version = _Absent()

# Sums may be reordered; NaN and infinity keep their meaning, because a row that is not finite must stay so.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

__all__ = [
    "FASTMATH",
    "INSTALLED",
    "binding",
    "carray",
    "cfunc",
    "cgutils",
    "config",
    "float32",
    "intrinsic",
    "ir",
    "njit",
    "numba_version",
    "types",
]
