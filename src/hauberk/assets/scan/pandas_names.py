"""The names that pandas pickles are made of; what some of them may be called with is in `tables.py`."""

from __future__ import annotations

import re

_TSLIBS = "pandas._libs.tslibs"
_DTYPES = "CategoricalDtype StringDtype PeriodDtype DatetimeTZDtype SparseDtype IntervalDtype BooleanDtype".split()  # noqa: SIM905
_NUMBERS = [f"{kind}{bits}Dtype" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)] + ["Float32Dtype", "Float64Dtype"]
CALLS = {
    "pandas.core.indexes.base._new_Index", "pandas.core.indexes.datetimes._new_DatetimeIndex",
    "pandas.core.indexes.period._new_PeriodIndex", "pandas.core.indexes.interval._new_IntervalIndex",
    "pandas._libs.internals._unpickle_block", "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked",
    f"{_TSLIBS}.timestamps._unpickle_timestamp", f"{_TSLIBS}.timedeltas._timedelta_unpickle", f"{_TSLIBS}.nattype._nat_unpickle",
    f"{_TSLIBS}.period._unpickle_period", "pandas._libs.sparse.IntIndex", "pandas._libs.sparse.BlockIndex",
    *(f"pandas.{name}" for name in (*_DTYPES, *_NUMBERS)), *(f"pandas.core.dtypes.dtypes.{name}" for name in _DTYPES),
    *(f"pandas.core.arrays.{name}" for name in (
        "string_.StringDtype", "boolean.BooleanDtype",
        *(f"{module}.{name}" for module in ("integer", "floating") for name in _NUMBERS),
    )),
    *(f"{_TSLIBS}.offsets.{name}" for name in "Day Hour Minute Second Milli Micro Nano".split()),  # noqa: SIM905
    "pandas.core.internals.managers.BlockManager", "pandas.core.internals.managers.SingleBlockManager",
    "pyarrow.lib._restore_array", "pyarrow.lib.type_for_alias", "pyarrow.lib.py_buffer",
}
VALUES = {"pandas.NA"}
PATTERNS = tuple(re.compile(one) for one in (
    r"pandas\.(DataFrame|Series|Categorical|([A-Z]\w*)?Index|Interval|Period)",
    r"pandas\.core\.(frame\.DataFrame|series\.Series|indexes\.\w+\.[A-Z]\w*|internals\.(managers|blocks)\.[A-Z]\w*)",
    r"pandas\.(arrays|core\.arrays(\.\w+)*)\.[A-Z]\w*Array", r"pandas\.core\.arrays\.categorical\.Categorical",
    r"pandas\._libs\.internals\.BlockManager",
))
