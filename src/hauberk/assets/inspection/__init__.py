"""What a model file holds, without loading it: tensors, architecture, encryption, scan verdict."""

from hauberk.assets.inspection.look import Inspection as Inspection
from hauberk.assets.inspection.look import inspect_file as inspect_file
