"""The fuzzer: searches for failures around samples that a model handles, steered by coverage, beside a random control."""

from hauberk.robustness.fuzz.campaign import fuzz as fuzz
from hauberk.robustness.fuzz.campaign import load_failures as load_failures
from hauberk.robustness.fuzz.corpus import Failure as Failure
from hauberk.robustness.fuzz.loop import Options as Options
from hauberk.robustness.fuzz.mutate import Mutator as Mutator
from hauberk.robustness.fuzz.mutate import mutators as mutators
from hauberk.robustness.fuzz.mutate import own as own
from hauberk.robustness.fuzz.objectives import Objective as Objective
from hauberk.robustness.fuzz.results import Campaign as Campaign
from hauberk.robustness.fuzz.validity import Rule as Rule
