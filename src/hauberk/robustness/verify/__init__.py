"""Verification: bounds that no attack can pass. A new bound is one file and one line here; a new layer, one function in
`interval.py`."""

from hauberk.robustness.verify.ibp import certified as certified
from hauberk.robustness.verify.ibp import ibp as ibp
