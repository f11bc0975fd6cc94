"""Detectors of adversarial inputs. A new detector is one file and one line here."""

from hauberk.robustness.detect.feature_squeezing import FeatureSqueezing as FeatureSqueezing
