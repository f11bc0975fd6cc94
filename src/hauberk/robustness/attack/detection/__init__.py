"""Attacks on object detectors, behind one small protocol."""

from hauberk.robustness.attack.detection.boxes import Boxes as Boxes
from hauberk.robustness.attack.detection.boxes import Damage as Damage
from hauberk.robustness.attack.detection.boxes import damage as damage
from hauberk.robustness.attack.detection.boxes import found as found
from hauberk.robustness.attack.detection.boxes import mean_average_precision as mean_average_precision
from hauberk.robustness.attack.detection.dag import dag as dag
from hauberk.robustness.attack.detection.dpatch import dpatch as dpatch
from hauberk.robustness.attack.detection.population import genetic_detection as genetic_detection
from hauberk.robustness.attack.detection.population import pso_detection as pso_detection
from hauberk.robustness.attack.detection.target import Dense as Dense
from hauberk.robustness.attack.detection.target import DetectorTarget as DetectorTarget
from hauberk.robustness.attack.detection.target import ObjectDetector as ObjectDetector
