"""Tensors of a file, by name: read from safetensors, torch's zip files and npz by their place, with no code of the file run."""

from hauberk.assets.tensors.files import WEIGHTS as WEIGHTS
from hauberk.assets.tensors.files import tensors_in as tensors_in
from hauberk.assets.tensors.spec import TensorSpec as TensorSpec
