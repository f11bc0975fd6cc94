"""Scanner of model files: says what opening a file would run, without opening it. What cannot be verified is never called safe.

A new format is one file and one line here.
"""

from hauberk.assets.scan import arrays as arrays
from hauberk.assets.scan import compressed as compressed
from hauberk.assets.scan import gguf as gguf
from hauberk.assets.scan import hdf5 as hdf5
from hauberk.assets.scan import onnx as onnx
from hauberk.assets.scan import others as others
from hauberk.assets.scan import pickles as pickles
from hauberk.assets.scan import safetensors as safetensors
from hauberk.assets.scan import tars as tars
from hauberk.assets.scan import zips as zips
from hauberk.assets.scan.folder import scan_paths as scan_paths
from hauberk.assets.scan.limits import Limits as Limits
from hauberk.assets.scan.scanner import scan_bytes as scan_bytes
from hauberk.assets.scan.scanner import scan_file as scan_file
from hauberk.assets.scan.verdict import Issue as Issue
from hauberk.assets.scan.verdict import Level as Level
from hauberk.assets.scan.verdict import ScanResult as ScanResult
