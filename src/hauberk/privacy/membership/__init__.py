"""Membership inference, one file per family. A new attack is one file and one line here."""

from hauberk.privacy.membership.entropy import entropy_membership as entropy_membership
from hauberk.privacy.membership.entropy import modified_entropy as modified_entropy
from hauberk.privacy.membership.gap import gap_membership as gap_membership
from hauberk.privacy.membership.label_only import augmentation_membership as augmentation_membership
from hauberk.privacy.membership.label_only import boundary_membership as boundary_membership
from hauberk.privacy.membership.learned import learned_membership as learned_membership
from hauberk.privacy.membership.lira import lira as lira
from hauberk.privacy.membership.loss import confidence_membership as confidence_membership
from hauberk.privacy.membership.loss import loss_membership as loss_membership
from hauberk.privacy.membership.quantile import quantile_regression as quantile_regression
from hauberk.privacy.membership.references import References as References
from hauberk.privacy.membership.references import train_references as train_references
from hauberk.privacy.membership.report import MembershipReport as MembershipReport
from hauberk.privacy.membership.rmia import rmia as rmia
from hauberk.privacy.membership.shadow import shadow_membership as shadow_membership
from hauberk.privacy.membership.variance_prior import variance_prior as variance_prior
from hauberk.privacy.membership.white_box import gradient_norm_membership as gradient_norm_membership
from hauberk.privacy.membership.white_box import white_box_membership as white_box_membership
