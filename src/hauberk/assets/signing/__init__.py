"""Signatures of models: who made it, and whether it is still what was made.

A signature is a DSSE envelope with an in-toto statement over digests of files, in a sigstore bundle: what the OpenSSF's tool for
models reads and writes. The statement can carry a digest of the tensors, which survives a change of format, and claims.
"""

from hauberk.assets.signing.keys import ALGORITHMS as ALGORITHMS
from hauberk.assets.signing.keys import generate as generate
from hauberk.assets.signing.keys import read_private as read_private
from hauberk.assets.signing.keys import read_public as read_public
from hauberk.assets.signing.policy import Policy as Policy
from hauberk.assets.signing.policy import read_policy as read_policy
from hauberk.assets.signing.sign import Label as Label
from hauberk.assets.signing.sign import sign as sign
from hauberk.assets.signing.verify import Expect as Expect
from hauberk.assets.signing.verify import Verification as Verification
from hauberk.assets.signing.verify import verify as verify
