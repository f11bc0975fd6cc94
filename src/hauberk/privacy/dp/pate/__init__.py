"""PATE: private aggregation of teacher ensembles, from shards to student."""

from hauberk.privacy.dp.pate.aggregate import Aggregator as Aggregator
from hauberk.privacy.dp.pate.aggregate import Answers as Answers
from hauberk.privacy.dp.pate.aggregate import ConfidentGNMax as ConfidentGNMax
from hauberk.privacy.dp.pate.aggregate import GNMax as GNMax
from hauberk.privacy.dp.pate.aggregate import LNMax as LNMax
from hauberk.privacy.dp.pate.aggregate import count_votes as count_votes
from hauberk.privacy.dp.pate.recipe import Pate as Pate
from hauberk.privacy.dp.pate.recipe import ask as ask
from hauberk.privacy.dp.pate.recipe import pate as pate
from hauberk.privacy.dp.pate.recipe import train_student as train_student
from hauberk.privacy.dp.pate.recipe import train_teachers as train_teachers
from hauberk.privacy.dp.pate.sensitive import SensitiveEpsilon as SensitiveEpsilon
from hauberk.privacy.dp.pate.sensitive import data_dependent_epsilon as data_dependent_epsilon
from hauberk.privacy.dp.pate.smooth import PublishedEpsilon as PublishedEpsilon
from hauberk.privacy.dp.pate.smooth import Smoothing as Smoothing
from hauberk.privacy.dp.pate.smooth import publish_epsilon as publish_epsilon
