"""The compiler's settings of every function in the hot loop.

No array is made or kept there, so reference counts are switched off: they would cost more than the work itself.
"""

from __future__ import annotations

from numba import njit

jit = njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
