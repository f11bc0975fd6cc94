"""Attacks that no ball around a sample describes: one change for all inputs, patches, and changes that nature makes as well."""

from hauberk.robustness.attack.physical.colour import colour_curve as colour_curve
from hauberk.robustness.attack.physical.colour import colour_shift as colour_shift
from hauberk.robustness.attack.physical.patch import adversarial_patch as adversarial_patch
from hauberk.robustness.attack.physical.rp2 import non_printability as non_printability
from hauberk.robustness.attack.physical.rp2 import rp2 as rp2
from hauberk.robustness.attack.physical.spatial import spatial_grid as spatial_grid
from hauberk.robustness.attack.physical.spatial import spatial_random as spatial_random
from hauberk.robustness.attack.physical.universal import universal_deepfool as universal_deepfool
from hauberk.robustness.attack.physical.universal import universal_pgd as universal_pgd
