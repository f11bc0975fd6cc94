"""Studies: questions about training methods, answered by training models and measuring them all alike."""

from hauberk.study.run import run_study as run_study
from hauberk.study.settings import SCALES as SCALES
from hauberk.study.settings import Scale as Scale
