"""Natural corruptions of inputs that are no images: rows of tables, and text. A new one is one function."""

from hauberk.robustness.inputs.columns import Columns as Columns
from hauberk.robustness.inputs.contract import TableCorruption as TableCorruption
from hauberk.robustness.inputs.contract import TextCorruption as TextCorruption
from hauberk.robustness.inputs.table import column_noise as column_noise
from hauberk.robustness.inputs.table import missing_values as missing_values
from hauberk.robustness.inputs.table import outliers as outliers
from hauberk.robustness.inputs.table import rounding as rounding
from hauberk.robustness.inputs.table import stale_values as stale_values
from hauberk.robustness.inputs.table import stuck_columns as stuck_columns
from hauberk.robustness.inputs.table import swapped_columns as swapped_columns
from hauberk.robustness.inputs.table import unit_slip as unit_slip
from hauberk.robustness.inputs.text import casing as casing
from hauberk.robustness.inputs.text import doubled_letters as doubled_letters
from hauberk.robustness.inputs.text import dropped_letters as dropped_letters
from hauberk.robustness.inputs.text import look_alikes as look_alikes
from hauberk.robustness.inputs.text import neighbour_keys as neighbour_keys
from hauberk.robustness.inputs.text import punctuation as punctuation
from hauberk.robustness.inputs.text import swapped_letters as swapped_letters
from hauberk.robustness.inputs.text import typos as typos
from hauberk.robustness.inputs.text import whitespace as whitespace
