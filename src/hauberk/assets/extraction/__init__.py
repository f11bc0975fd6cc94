"""Extraction: how well, and for how many queries, a model can be copied."""

from hauberk.assets.extraction.equation_solving import Solved as Solved
from hauberk.assets.extraction.equation_solving import solve_linear as solve_linear
from hauberk.assets.extraction.substitute import Fidelity as Fidelity
from hauberk.assets.extraction.substitute import fidelity_curve as fidelity_curve
from hauberk.assets.extraction.substitute import substitute as substitute
