"""Which importable names a model file may refer to: all that is not named here is unknown code, and blocks.

Three uses are told apart. A VALUE is only referred to (a dtype). A CLASS may be made empty and then filled, as unpickling does
without running its constructor. A CALL may be called with any arguments, unless `rules.py` has a rule for them.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable

from hauberk.assets.scan import pandas_names
from hauberk.assets.scan.verdict import Level
from hauberk.core.errors import UsageError


class Use(enum.IntEnum):
    """What a file may do with a name."""

    NOTHING = 0
    VALUE = 1
    CLASS = 2
    CALL = 3


@dataclasses.dataclass(frozen=True)
class Ruling:
    """What a name is, and what may be done with it."""

    level: Level
    use: Use


def _names(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


_LOSSES = (
    "CyHalfBinomialLoss CyHalfMultinomialLoss CyHalfSquaredError CyAbsoluteError CyPinballLoss CyHalfPoissonLoss CyHalfGammaLoss "
    "CyExponentialLoss CyHuberLoss CyHalfTweedieLoss CyHalfTweedieLossIdentity"
)
CALLS = {
    *_names("builtins", "set frozenset list dict tuple int float bool str complex slice range bytearray bytes object"),
    *_names("collections", "OrderedDict Counter deque defaultdict"),
    *_names("datetime", "date datetime time timedelta timezone"),
    *_names("pathlib", "PosixPath PurePosixPath WindowsPath PureWindowsPath"),
    *_names("pathlib._local", "PosixPath PurePosixPath WindowsPath PureWindowsPath"),
    *_names("copyreg", "_reconstructor __newobj__ __newobj_ex__"),
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "types.SimpleNamespace", "_codecs.encode", "functools.partial",
    *_names(
        "torch._utils",
        "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state _rebuild_qtensor "
        "_rebuild_sparse_tensor _rebuild_nested_tensor _rebuild_meta_tensor_no_storage _rebuild_device_tensor_from_numpy "
        "_rebuild_device_tensor_from_cpu_tensor _set_obj_state",
    ),
    *_names("torch", "device Size Generator"), *_names("torch.nn.parameter", "UninitializedParameter UninitializedBuffer"),
    *_names("torch.jit._pickle", "build_intlist build_doublelist build_boollist build_tensorlist restore_type_tag"),
    *_names("torch.nn.functional", "relu gelu silu elu selu leaky_relu tanh sigmoid softplus hardtanh hardswish mish"),
    *_names("torch._C._nn", "gelu silu elu leaky_relu softplus"),
    "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2", "torch.storage._load_from_bytes",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")), "numpy.dtype",
    *_names("numpy.random._pickle", "__randomstate_ctor __generator_ctor __bit_generator_ctor"),
    "numpy.ma.core._mareconstruct", "numpy.rec.recarray", "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    *_names("scipy.sparse._csr", "csr_matrix csr_array"), *_names("scipy.sparse._csc", "csc_matrix csc_array"),
    "sklearn.tree._tree.Tree", "sklearn.neighbors._kd_tree.newObj", "sklearn.neighbors._ball_tree.newObj",
    *_names("sklearn.metrics._dist_metrics", "newObj"),
    *_names(
        "sklearn.linear_model._sgd_fast",
        "Hinge SquaredHinge Log Huber EpsilonInsensitive SquaredEpsilonInsensitive ModifiedHuber SquaredLoss",
    ),
    *_names("sklearn._loss._loss", _LOSSES),
    *_names("sklearn._loss._loss", " ".join(f"__pyx_unpickle_{name}" for name in _LOSSES.split())),
}
_TORCH_TYPES = (
    "float16 float32 float64 bfloat16 half float double int8 int16 int32 int64 short int long uint8 uint16 uint32 uint64 bool "
    "complex32 complex64 complex128 qint8 quint8 qint32 quint4x2 quint2x4 float8_e4m3fn float8_e5m2 float8_e4m3fnuz "
    "float8_e5m2fnuz float8_e8m0fnu per_tensor_affine per_channel_affine per_tensor_symmetric per_channel_symmetric "
    "per_channel_affine_float_qparams strided sparse_coo sparse_csr contiguous_format channels_last channels_last_3d "
    "preserve_format"
)
_STORAGES = "Float Double Half BFloat16 Int Long Short Char Byte Bool ComplexFloat ComplexDouble QInt8 QUInt8 QInt32 QUInt4x2"
VALUES = {
    *_names("torch", _TORCH_TYPES), *_names("torch", " ".join(f"{kind}Storage" for kind in _STORAGES.split())),
    *_names("torch.cuda", " ".join(f"{kind}Storage" for kind in _STORAGES.split())),
    # Functions that estimators are given by default: referred to, never called while the file is loaded.
    *_names("sklearn.feature_selection._univariate_selection", "f_classif f_regression f_oneway chi2 r_regression"),
    *_names("sklearn.cluster._kmeans", "_kmeans_single_lloyd _kmeans_single_elkan"), "numpy.mean", "numpy.record",
    "scipy._lib.array_api_compat.numpy._aliases.asarray",
    # How plain pickle writes a layout in memory.
    *_names("torch._utils", "torch.channels_last torch.channels_last_3d torch.contiguous_format torch.preserve_format"),
    *_names("torch.storage", "UntypedStorage TypedStorage"), *_names("torch", "UntypedStorage TypedStorage"),
    *_names(
        "numpy",
        "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intp uintp float16 float32 float64 longdouble complex64 "
        "complex128 str_ bytes_ object_ void datetime64 timedelta64",
    ),
}
CLASSES = {
    *_names("torch", "Tensor"), *_names("torch.nn.parameter", "Parameter Buffer"), "torch.nn.modules.module._WrappedHook",
    "torch.utils.hooks.RemovableHandle",
    *_names("torch.nn.utils.spectral_norm", "SpectralNorm SpectralNormStateDictHook SpectralNormLoadStateDictPreHook"),
    "torch.nn.utils.weight_norm.WeightNorm", "scipy.interpolate._bsplines.BSpline",
    "numpy.ndarray", "numpy.matrix", "numpy.ma.MaskedArray", "numpy.random.bit_generator.SeedSequence",
    *_names("numpy.random._mt19937", "MT19937"), *_names("numpy.random._pcg64", "PCG64 PCG64DXSM"),
    *_names("numpy.random._philox", "Philox"), *_names("numpy.random._sfc64", "SFC64"),
    *_names("numpy.random.mtrand", "RandomState"), *_names("numpy.random._generator", "Generator"),
    "numpy.ma.core.MaskedArray", "argparse.Namespace", "joblib.numpy_pickle.NumpyArrayWrapper", "sklearn.utils._bunch.Bunch",
    *_names("sklearn._loss.link", "Interval IdentityLink LogitLink LogLink MultinomialLogit"),
    *_names("sklearn.metrics._scorer", "_PassthroughScorer _Scorer _MultimetricScorer"),
    *_names("sklearn.neighbors._kd_tree", "KDTree KDTree64"), *_names("sklearn.neighbors._ball_tree", "BallTree BallTree64"),
}
# Class names alone: no dots, a capital first. Packages that hold no class which acts when it is filled or thrown away.
CLASS_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"torch\.nn\.modules\.(activation|adaptive|batchnorm|channelshuffle|container|conv|distance|dropout|flatten|fold"
        r"|instancenorm|linear|loss|normalization|padding|pixelshuffle|pooling|rnn|sparse|transformer|upsampling)\.[A-Z]\w*",
        r"torch\.optim\.([a-z_0-9]+\.[A-Z]\w*|Adafactor|Muon)",
        r"sklearn\.(_loss|calibration|cluster|compose|covariance|cross_decomposition|decomposition|discriminant_analysis|dummy"
        r"|ensemble|feature_extraction|feature_selection|frozen|gaussian_process|impute|isotonic|kernel_approximation|kernel_ridge"
        r"|linear_model|manifold|mixture|model_selection|multiclass|multioutput|naive_bayes|neighbors|neural_network|pipeline"
        r"|preprocessing|random_projection|semi_supervised|svm|tree|metrics\._dist_metrics)(\.\w+)*\._?[A-Z]\w*",
    )
)
# Modules whose names run commands, code, imports, or reach files and networks. Only the wording depends on this list.
_RUNNERS = """
    os posix nt posixpath ntpath subprocess _posixsubprocess sys runpy pty platform commands popen2 socket _socket ssl http urllib
    urllib2 urllib3 httplib requests httpx aiohttp ftplib smtplib telnetlib poplib imaplib xmlrpc webbrowser shutil tempfile glob
    pickle _pickle cPickle dill cloudpickle joblib marshal shelve dbm importlib _frozen_importlib _frozen_importlib_external imp
    pkgutil zipimport ctypes _ctypes cffi code codeop ast inspect types operator _operator timeit trace profile cProfile pstats
    pdb bdb doctest unittest test pytest signal resource threading _thread multiprocessing concurrent asyncio sched atexit gc
    weakref site sysconfig distutils setuptools pip ensurepip venv idlelib lib2to3 turtle tkinter logging fileinput io _io mmap
    nturl2path compileall py_compile pydoc cgi cgitb numpy.testing numpy.distutils numpy.f2py torch.hub torch.utils
    torch.distributed torch.jit torch.multiprocessing torch._inductor torch._dynamo torch.testing torch.ops torch.package
    torch.serialization torch.storage torch.fx torch.cuda mlflow transformers keras tensorflow pandas.io aifc antigravity winreg
    msvcrt _winapi readline rlcompleter xdrlib functools itertools string builtins __builtin__ sklearn.datasets sklearn.utils
"""
_FRAMEWORKS = ("sklearn.", "pandas.", "torch.nn.functional.", "torch._C._nn.", "torch.jit.", "__torch__.")
_SCRIPT = re.compile(r"__torch__(?!\.torch\.classes\.(?!quantized\.|xnnpack\.|sparse\.|mkldnn\.))(\.\w+)+")
# Of these no name may be vouched for: whoever allows one allows everything.
_NEVER = frozenset(
    """os posix nt posixpath ntpath subprocess _posixsubprocess sys builtins __builtin__ importlib _frozen_importlib imp runpy pty
    ctypes _ctypes cffi code codeop pickle _pickle cPickle dill cloudpickle marshal shelve operator _operator types socket shutil
    timeit pdb bdb inspect gc multiprocessing""".split()  # noqa: SIM905
)
DANGEROUS_MODULES = frozenset(_RUNNERS.split())
_DEEPEST = max(name.count(".") + 1 for name in DANGEROUS_MODULES)


def canonical(module: str, name: str) -> tuple[str, str]:
    """Return the Python 3 place of a name that an old pickle gives by its Python 2 place."""
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[(module, name)]
    return IMPORT_MAPPING.get(module, module), name


def judge(module: str, name: str, *, allowed: frozenset[str] = frozenset(), script: bool = False) -> Ruling:
    """Return what may be done with `module.name`; whatever is not listed is blocked.

    Arguments:
        module, name: as the file writes them.
        allowed: further names that may be called, `module.name`.
        script: whether the file is TorchScript, whose own classes stand under `__torch__`, a module that Python does not have.
    """
    module, name = canonical(module, name)
    full = f"{module}.{name}"
    if full in allowed:
        return Ruling(Level.SAFE, Use.CALL)
    if script and _SCRIPT.fullmatch(full):
        return Ruling(Level.SAFE, Use.CLASS)
    # A dotted name walks attributes: the listed names are module and one plain name, but for the layouts.
    if "." not in name or full in VALUES:
        if full in CALLS or full in pandas_names.CALLS:
            return Ruling(Level.SAFE, Use.CALL)
        if full in CLASSES or any(pattern.fullmatch(full) for pattern in (*CLASS_PATTERNS, *pandas_names.PATTERNS)):
            return Ruling(Level.SAFE, Use.CLASS)
        if full in VALUES or full in pandas_names.VALUES:
            return Ruling(Level.SAFE, Use.VALUE)
    parts = full.split(".", _DEEPEST + 1)[: _DEEPEST + 1]
    known_bad = any(".".join(parts[:length]) in DANGEROUS_MODULES for length in range(1, len(parts)))
    return Ruling(Level.DANGEROUS if known_bad else Level.UNKNOWN, Use.NOTHING)


def is_framework(full: str) -> bool:
    """Whether a listed name is more than a container of numbers: a class whose methods the framework runs."""
    return full.startswith(_FRAMEWORKS) or any(pattern.fullmatch(full) for pattern in CLASS_PATTERNS)


def allowed_names(given: Iterable[str]) -> frozenset[str]:
    """Return names given as `module:name` as `module.name`.

    Raises:
        UsageError: when one is not so written, or stands in a module that runs commands or code.
    """
    names = set()
    for one in given:
        module, _, name = one.partition(":")
        if not re.fullmatch(r"[A-Za-z_][\w.]*", module) or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(f"the name to allow is {one[:100]!r}", want="module:name, such as mypackage.nets:Net")
        if module.split(".")[0] in _NEVER:
            raise UsageError(f"{one[:100]} would be allowed", want="a name outside the modules that run commands and code",
                             fix="Convert the file instead: hauberk convert FILE --safe")
        names.add(f"{module}.{name}")
    return frozenset(names)
