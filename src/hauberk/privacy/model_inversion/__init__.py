"""Inputs won back from a model, its answers or its inner layers, one file each. A new method is one file and one line here."""

from hauberk.privacy.inversion.feature_inversion import feature_inversion as feature_inversion
from hauberk.privacy.model_inversion.batch_norm import deep_inversion as deep_inversion
from hauberk.privacy.model_inversion.decoder import decoder_inversion as decoder_inversion
from hauberk.privacy.model_inversion.decoder import train_decoder as train_decoder
from hauberk.privacy.model_inversion.federated_gan import federated_gan as federated_gan
from hauberk.privacy.model_inversion.gan import train_gan as train_gan
from hauberk.privacy.model_inversion.gmi import gmi as gmi
from hauberk.privacy.model_inversion.judge import Judgement as Judgement
from hauberk.privacy.model_inversion.judge import judge_inversion as judge_inversion
from hauberk.privacy.model_inversion.label_only import label_only_inversion as label_only_inversion
from hauberk.privacy.model_inversion.mi_face import mi_face as mi_face
from hauberk.privacy.model_inversion.prior import GaussianPrior as GaussianPrior
from hauberk.privacy.model_inversion.prior import Prior as Prior
from hauberk.privacy.model_inversion.shadow import shadow_inversion as shadow_inversion
