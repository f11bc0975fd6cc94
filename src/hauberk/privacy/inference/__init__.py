"""What a model tells of attributes, of the training data as a whole, of planted secrets. A new method: one file, one line."""

from hauberk.privacy.inference.attributes import csmia as csmia
from hauberk.privacy.inference.attributes import imputation as imputation
from hauberk.privacy.inference.attributes import learned_attribute as learned_attribute
from hauberk.privacy.inference.attributes import likelihood_attribute as likelihood_attribute
from hauberk.privacy.inference.canaries import Planting as Planting
from hauberk.privacy.inference.canaries import plant_canaries as plant_canaries
from hauberk.privacy.inference.exposure import Space as Space
from hauberk.privacy.inference.exposure import exposure_of as exposure_of
from hauberk.privacy.inference.exposure import extrapolated_exposure as extrapolated_exposure
from hauberk.privacy.inference.exposure import rank_exposure as rank_exposure
from hauberk.privacy.inference.exposure import sampled_exposure as sampled_exposure
from hauberk.privacy.inference.judge import AttributeVerdict as AttributeVerdict
from hauberk.privacy.inference.judge import judge_attributes as judge_attributes
from hauberk.privacy.inference.naive_bayes import naive_bayes_record as naive_bayes_record
from hauberk.privacy.inference.properties import judge_property as judge_property
from hauberk.privacy.inference.properties import property_by_answers as property_by_answers
from hauberk.privacy.inference.properties import property_inference as property_inference
from hauberk.privacy.inference.properties import shadow_models as shadow_models
from hauberk.privacy.inference.sensitive import Guesses as Guesses
from hauberk.privacy.inference.sensitive import Sensitive as Sensitive
