"""Membership inference, one file per family. A new attack is one file and one line here."""

from hauberk.privacy.membership.entropy import entropy_membership as entropy_membership
from hauberk.privacy.membership.entropy import modified_entropy as modified_entropy
from hauberk.privacy.membership.loss import confidence_membership as confidence_membership
from hauberk.privacy.membership.loss import loss_membership as loss_membership
