"""Detectors of adversarial inputs. A new detector is one file and one line here."""

from hauberk.robustness.detect.blacklight import Blacklight as Blacklight
from hauberk.robustness.detect.blacklight import refusing as refusing
from hauberk.robustness.detect.feature_squeezing import FeatureSqueezing as FeatureSqueezing
