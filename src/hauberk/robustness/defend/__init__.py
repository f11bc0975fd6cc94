"""Hardening: each recipe is a loss for `fit`, or for a loop of your own. A new recipe is one file and one line here."""

from hauberk.robustness.defend.adversarial import adversarial as adversarial
from hauberk.robustness.defend.augmix import augmix as augmix
from hauberk.robustness.defend.corrupted import corrupted as corrupted
from hauberk.robustness.defend.trades import trades as trades
