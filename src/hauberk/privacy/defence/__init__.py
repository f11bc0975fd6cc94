"""Defences against membership inference and inversion, and the judge of them. A new defence is one file and one line here."""

from hauberk.privacy.defence.bottleneck import Bottleneck as Bottleneck
from hauberk.privacy.defence.bottleneck import mid as mid
from hauberk.privacy.defence.bottleneck import with_bottleneck as with_bottleneck
from hauberk.privacy.defence.distil import Selena as Selena
from hauberk.privacy.defence.distil import dmp as dmp
from hauberk.privacy.defence.distil import selena as selena
from hauberk.privacy.defence.judge import judge_defence as judge_defence
from hauberk.privacy.defence.memguard import memguard as memguard
from hauberk.privacy.defence.outputs import answering as answering
from hauberk.privacy.defence.outputs import labels_alone as labels_alone
from hauberk.privacy.defence.outputs import rounded as rounded
from hauberk.privacy.defence.outputs import top_scores as top_scores
from hauberk.privacy.defence.repeated import Repeated as Repeated
from hauberk.privacy.defence.repeated import defended_references as defended_references
from hauberk.privacy.defence.smoothing import label_smoothing as label_smoothing
from hauberk.privacy.defence.verdict import DefenceVerdict as DefenceVerdict
