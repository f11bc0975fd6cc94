"""Reconstruction of inputs and labels, one file each. A new method is one file and one line here."""

from hauberk.privacy.inversion.feature_inversion import feature_inversion as feature_inversion
from hauberk.privacy.inversion.first_linear import first_linear_layer as first_linear_layer
from hauberk.privacy.inversion.idlg import idlg as idlg
