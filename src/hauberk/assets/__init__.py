"""Model assets: files that can run code, what software stands behind a model, and how well it can be copied."""

from hauberk.assets.scan import scan_bytes as scan_bytes
from hauberk.assets.scan import scan_file as scan_file
from hauberk.assets.scan import scan_paths as scan_paths
from hauberk.assets.scan.convert import convert_safe as convert_safe
from hauberk.assets.scan.load import guard_pickle as guard_pickle
from hauberk.assets.scan.load import safe_load as safe_load
