"""Reconstruction of inputs and labels, one file each. A new method is one file and one line here."""

from hauberk.privacy.inversion.batch_norm_matching import batch_norm_matching as batch_norm_matching
from hauberk.privacy.inversion.client import ClientUpdate as ClientUpdate
from hauberk.privacy.inversion.client import LocalSteps as LocalSteps
from hauberk.privacy.inversion.client import client_update as client_update
from hauberk.privacy.inversion.distinct_labels import distinct_labels as distinct_labels
from hauberk.privacy.inversion.dlg import dlg as dlg
from hauberk.privacy.inversion.feature_inversion import feature_inversion as feature_inversion
from hauberk.privacy.inversion.first_linear import first_linear_layer as first_linear_layer
from hauberk.privacy.inversion.group_consistency import group_consistency as group_consistency
from hauberk.privacy.inversion.guided import Weights as Weights
from hauberk.privacy.inversion.idlg import idlg as idlg
from hauberk.privacy.inversion.imprint import Imprint as Imprint
from hauberk.privacy.inversion.imprint import imprint as imprint
from hauberk.privacy.inversion.inverting_gradients import inverting_gradients as inverting_gradients
from hauberk.privacy.inversion.label_counts import label_counts as label_counts
from hauberk.privacy.inversion.metrics import Closeness as Closeness
from hauberk.privacy.inversion.metrics import closeness as closeness
from hauberk.privacy.inversion.r_gap import r_gap as r_gap
from hauberk.privacy.inversion.see_through import see_through as see_through
