"""Faults: bits and values struck in weights, activations and inputs, the worst bits of all, and the guards that help."""

from hauberk.integrity.faults.bits import PARTS as PARTS
from hauberk.integrity.faults.bits import Flip as Flip
from hauberk.integrity.faults.bits import bit_count as bit_count
from hauberk.integrity.faults.bits import flipped_bits as flipped_bits
from hauberk.integrity.faults.campaign import PLACES as PLACES
from hauberk.integrity.faults.campaign import FaultOutcome as FaultOutcome
from hauberk.integrity.faults.campaign import fault_campaign as fault_campaign
from hauberk.integrity.faults.campaign import faults_by_layer as faults_by_layer
from hauberk.integrity.faults.campaign import right_answers as right_answers
from hauberk.integrity.faults.campaign import time_to_failure as time_to_failure
from hauberk.integrity.faults.guards import Range as Range
from hauberk.integrity.faults.guards import activation_ranges as activation_ranges
from hauberk.integrity.faults.guards import changed_layers as changed_layers
from hauberk.integrity.faults.guards import clipped_ranges as clipped_ranges
from hauberk.integrity.faults.guards import layer_checksums as layer_checksums
from hauberk.integrity.faults.places import faulty_activations as faulty_activations
from hauberk.integrity.faults.places import faulty_inputs as faulty_inputs
from hauberk.integrity.faults.places import faulty_weights as faulty_weights
from hauberk.integrity.faults.search import FlipSearch as FlipSearch
from hauberk.integrity.faults.search import applied as applied
from hauberk.integrity.faults.search import fewest_flips as fewest_flips
from hauberk.integrity.faults.values import KINDS as KINDS
