"""Per-example gradients of an unmodified module in one backward pass."""

from hauberk.privacy.dp.engine import ops as ops
from hauberk.privacy.dp.engine.check import check_model as check_model
from hauberk.privacy.dp.engine.check import to_group_norm as to_group_norm
from hauberk.privacy.dp.engine.registry import treat as treat
from hauberk.privacy.dp.engine.tape import Tape as Tape
from hauberk.privacy.dp.engine.tape import record as record
