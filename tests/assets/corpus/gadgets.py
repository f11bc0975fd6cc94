"""Names that run commands or code, import, read, write or call out: each called with a harmless text."""

from __future__ import annotations

from corpus.asm import COMMAND, call, four, name, old_name, short

_GADGETS = """
os system|os popen|os execl|os execve|os execvp|os spawnl|os spawnv|os spawnvp|os posix_spawn|os startfile|os remove|os unlink
os rename|os kill|os putenv|os open
posix system|posix popen|posix execv|posix fork|posix posix_spawn|nt system|nt startfile|nt spawnv|posixpath os.system
subprocess Popen|subprocess run|subprocess call|subprocess check_call|subprocess check_output|subprocess getoutput
subprocess getstatusoutput
_posixsubprocess fork_exec|commands getoutput|popen2 popen3|pty spawn|platform popen|platform _syscmd_ver
builtins eval|builtins exec|builtins compile|builtins __import__|builtins open|builtins getattr|builtins setattr
builtins input|builtins breakpoint|builtins globals|builtins vars|builtins map|builtins filter|builtins classmethod
builtins type
__builtin__ eval|__builtin__ execfile|__builtin__ apply|__builtin__ file
importlib import_module|importlib __import__|importlib reload|importlib.util spec_from_file_location
_frozen_importlib __import__|imp load_source|imp load_dynamic|pkgutil resolve_name|pkgutil get_loader|zipimport zipimporter
runpy run_path|runpy run_module|runpy _run_code|code interact|code InteractiveInterpreter|codeop compile_command|timeit timeit
timeit main|timeit Timer|trace Trace|profile run|cProfile run|cProfile runctx|pdb run|pdb Pdb|bdb Bdb|doctest debug_script
doctest testfile
ctypes CDLL|ctypes PyDLL|ctypes cdll|ctypes.util find_library|_ctypes dlopen|cffi FFI|mmap mmap
pickle loads|pickle load|_pickle loads|cPickle loads|dill loads|cloudpickle loads|joblib load|marshal loads|marshal load
shelve open|dbm open|types FunctionType|types CodeType|types MethodType
operator attrgetter|operator methodcaller|operator itemgetter|_operator attrgetter|functools partial|functools reduce
functools partialmethod|itertools starmap|string Formatter
shutil rmtree|shutil copyfile|shutil move|shutil unpack_archive|tempfile mkdtemp|glob glob|fileinput input|io open|_io open
io FileIO|pathlib Path.unlink|logging.config listen|logging.config fileConfig
socket socket|socket create_connection|_socket socket|urllib.request urlopen|urllib.request urlretrieve|urllib2 urlopen
http.client HTTPSConnection|ftplib FTP|smtplib SMTP|telnetlib Telnet|xmlrpc.client ServerProxy|webbrowser open|requests get
requests.api post|httpx get|aiohttp ClientSession|ssl get_server_certificate
asyncio run|asyncio.unix_events _UnixSubprocessTransport._start|asyncio create_subprocess_shell
concurrent.futures ThreadPoolExecutor|multiprocessing Process|multiprocessing.util spawnv_passfds
multiprocessing.popen_spawn_posix spawn.os.system|threading Thread|threading Timer|_thread start_new_thread|sched scheduler
signal signal|atexit register|gc get_objects|weakref finalize
sys exit|sys settrace|sys modules|sys setrecursionlimit|site main|sysconfig get_config_var|distutils.spawn spawn
distutils.file_util write_file|setuptools setup|pip main|pip._internal main|ensurepip bootstrap|venv create
idlelib.pyshell ModifiedInterpreter.runcommand|idlelib.run Executive.runcode|idlelib.autocomplete AutoComplete.get_entity
idlelib.calltip get_entity|idlelib.debugobj ObjectTreeItem.SetText|lib2to3.pgen2.grammar Grammar.loads
lib2to3.pgen2.pgen ParserGenerator.make_label
pydoc pipepager|pydoc locate|pydoc tempfilepager|test.support.script_helper assert_python_ok|unittest.mock patch|pytest main
compileall compile_file|py_compile compile|cgitb lookup|antigravity geohash|turtle Turtle|tkinter Tk|ensurepip._main main
aifc open
torch load|torch hub.load|torch.hub load|torch.hub load_state_dict_from_url|torch.serialization load
torch.storage _load_from_bytes|torch.utils.collect_env run|torch.utils._config_module ConfigModule.load_config
torch.utils.bottleneck.__main__ run_cprofile|torch.utils.cpp_extension load_inline
torch.utils.data.datapipes.utils.decoder basichandlers|torch.jit load|torch.jit.unsupported_tensor_ops execWrapper
torch.jit.frontend get_jit_def|torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression
torch.fx.graph_module reduce_graph_module|torch.fx.graph_module _forward_from_src|torch._dynamo.guards GuardBuilder.get
torch._inductor.codecache compile_file|torch._inductor.codecache CppCodeCache.load|torch.package PackageImporter
torch.ops load_library|torch.distributed.rpc rpc_sync|torch.multiprocessing spawn
torch.testing._internal.common_utils run_tests|torch.cuda.memory _snapshot|torch.onnx.verification GraphInfo
torch.nn.modules.module Module._call_impl
numpy f2py.crackfortran.myeval|numpy.f2py.crackfortran myeval|numpy.f2py.crackfortran _eval_length
numpy.f2py.crackfortran param_eval|numpy.f2py.crackfortran getlincoef|numpy.f2py.diagnose run_command|numpy.f2py compile
numpy load|numpy loadtxt|numpy fromfile|numpy memmap|numpy genfromtxt|numpy save|numpy tofile
numpy.testing._private.utils runstring|numpy.testing rundocs|numpy.distutils.exec_command exec_command|numpy.lib.npyio load
numpy.ctypeslib load_library|numpy.__builtins__ eval|numpy.core.memmap memmap|numpy frompyfunc|numpy vectorize
pandas read_pickle|pandas read_csv|pandas.io.pickle read_pickle|pandas.io.common get_handle|pandas.core.frame DataFrame.query
pandas.core.computation.eval eval|pandas.eval eval|pandas.core.frame DataFrame.to_csv
sklearn.datasets load_files|sklearn.datasets fetch_openml|sklearn.utils._testing assert_run_python_script
sklearn.utils import_module|sklearn.pipeline Pipeline.fit|sklearn.externals joblib.load|scipy.io loadmat
scipy._lib._ccallback LowLevelCallable
mlflow.projects.backend.local _run_entry_point|transformers pipeline|transformers AutoModel.from_pretrained
keras.models load_model|keras.layers Lambda|tensorflow load_op_library|tensorflow.python.framework.load_library load_library
jinja2 Template|yaml unsafe_load|fsspec open|boto3 client|paramiko SSHClient|pexpect run|sh sh|fabric Connection
IPython start_ipython|jupyter_client run_kernel|cv2 imread|PIL.Image open|lxml.etree parse|sqlite3 connect
sqlalchemy create_engine|psutil Process|pyperclip copy|numba jit|triton compile|sympy sympify
sympy.parsing.sympy_parser parse_expr|networkx read_gpickle|nltk.data load|langchain load_prompt|gradio Interface|ray init
dask.delayed delayed
"""


def gadgets() -> dict[str, bytes]:
    """Return a pickle for every gadget, the two ways of naming it in turn."""
    made = {}
    listed = [one.strip() for row in _GADGETS.strip().splitlines() for one in row.split("|")]
    for index, one in enumerate(listed):
        module, _, attribute = one.partition(" ")
        file = f"{module}.{attribute}.pkl".replace("/", "-")
        if index % 3:
            made[file] = call(module, attribute, COMMAND)
        else:
            made[file] = old_name(module, attribute) + b"(S'true'\ntR."
    made["imported-only.pkl"] = four(name("subprocess", "Popen"))
    made["as-value.pkl"] = four(b"}" + short("a") + name("os", "system") + b"s")
    return made
