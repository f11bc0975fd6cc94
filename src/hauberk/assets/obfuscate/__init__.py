"""Obfuscation: names, weights and structure hidden, and what adversaries make of it all the same."""

from hauberk.assets.obfuscate.decoys import add_decoys as add_decoys
from hauberk.assets.obfuscate.decoys import choose as choose
from hauberk.assets.obfuscate.decoys import without_decoys as without_decoys
from hauberk.assets.obfuscate.draws import new_key as new_key
from hauberk.assets.obfuscate.keyed import Locked as Locked
from hauberk.assets.obfuscate.keyed import lock_weights as lock_weights
from hauberk.assets.obfuscate.keyed import unlock_weights as unlock_weights
from hauberk.assets.obfuscate.onnx_files import mix_onnx as mix_onnx
from hauberk.assets.obfuscate.onnx_files import split_onnx as split_onnx
from hauberk.assets.obfuscate.onnx_files import strip_onnx as strip_onnx
from hauberk.assets.obfuscate.onnx_keyed import add_onnx_decoys as add_onnx_decoys
from hauberk.assets.obfuscate.onnx_keyed import onnx_selector as onnx_selector
from hauberk.assets.obfuscate.preserve import Mixed as Mixed
from hauberk.assets.obfuscate.preserve import mix as mix
from hauberk.assets.obfuscate.rename import Renamed as Renamed
from hauberk.assets.obfuscate.rename import rename as rename
from hauberk.assets.obfuscate.rename import rename_module as rename_module
from hauberk.assets.obfuscate.rename import restore as restore
from hauberk.assets.obfuscate.report import AttackReport as AttackReport
from hauberk.assets.obfuscate.report import attack_report as attack_report
from hauberk.assets.obfuscate.scatter import scatter as scatter
