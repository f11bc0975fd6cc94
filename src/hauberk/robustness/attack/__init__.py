"""Attacks, one file each. A new attack is one file and one line here."""

from hauberk.robustness.attack.pgd import pgd as pgd
