"""Backdoors, and audits that find them. A new one is one file and one line here."""

from hauberk.integrity.backdoor.badnets import badnets as badnets
from hauberk.integrity.backdoor.spectral import spectral_signatures as spectral_signatures
