"""The adaptive kit: attacks that know the defence. Gradients through what has none, averages over chance, detectors evaded."""

from hauberk.robustness.attack.adaptive.bpda import bpda as bpda
from hauberk.robustness.attack.adaptive.detector_aware import SoftDetector as SoftDetector
from hauberk.robustness.attack.adaptive.detector_aware import Softened as Softened
from hauberk.robustness.attack.adaptive.detector_aware import detector_aware_pgd as detector_aware_pgd
from hauberk.robustness.attack.adaptive.detector_aware import softened_squeezing as softened_squeezing
from hauberk.robustness.attack.adaptive.eot import eot as eot
from hauberk.robustness.attack.adaptive.oars import oars as oars
