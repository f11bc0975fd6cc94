"""Attacks, one file each. A new attack is one file and one line here."""

from hauberk.robustness.attack.fgm import fgm as fgm
from hauberk.robustness.attack.fgm import fgsm as fgsm
from hauberk.robustness.attack.hop_skip_jump import hop_skip_jump as hop_skip_jump
from hauberk.robustness.attack.pgd import pgd as pgd
from hauberk.robustness.attack.random_noise import random_noise as random_noise
from hauberk.robustness.attack.square import square as square
from hauberk.robustness.attack.transfer import transfer as transfer
