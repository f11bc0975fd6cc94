"""load_model from files: exported programs, TorchScript, pickles, ONNX, skops; broken and hostile ones among them."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import onnx
import pytest
import skops.io
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import hauberk
from hauberk import Access
from hauberk.core.errors import ModelError, UnsafeFile
from hauberk.io.batches import in_parts, whole_batches
from hauberk.io.hostile import check_archive

IRIS, KIND = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
        ).eval()


@pytest.fixture(scope="module")
def files(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of file that torch makes of one network."""
    folder = tmp_path_factory.mktemp("models")
    example = (torch.zeros(4, 1, 8, 8),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, example), folder / "fixed.pt2")
        any_size = torch.export.export(net, example, dynamic_shapes=({0: torch.export.Dim("n", max=512)},))
        torch.export.save(any_size, folder / "any.pt2")
        torch.jit.script(net).save(str(folder / "script.pt"))
    torch.save(net, folder / "whole.pt")
    torch.save(net.state_dict(), folder / "state.pt")
    return folder


def samples(n: int) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))


# Exported programs


@pytest.mark.parametrize("name", ["fixed.pt2", "any.pt2"])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 11])
def test_an_exported_program_answers_any_batch_like_the_network(files: Path, net: nn.Module, name: str, n: int) -> None:
    target = hauberk.load_model(files / name)
    x = samples(n)
    assert target.access is Access.GRADIENT and target.files == ((files / name).resolve(),) and target.name == name[:-4]
    assert target.logits(x).shape == (n, 3) and torch.allclose(target.logits(x), net(x), atol=1e-6)
    assert target.ledger.queries == 2 * n


@pytest.mark.parametrize("name", ["fixed.pt2", "any.pt2"])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_gradients_flow_through_the_padding(files: Path, net: nn.Module, name: str, n: int) -> None:
    weights = torch.rand(n, 3, generator=torch.Generator().manual_seed(5))
    found, wanted = samples(n).requires_grad_(), samples(n).requires_grad_()
    (hauberk.load_model(files / name).logits(found) * weights).sum().backward()
    (net(wanted) * weights).sum().backward()
    assert torch.allclose(found.grad, wanted.grad, atol=1e-6) and float(wanted.grad.abs().sum()) > 0


def test_a_fixed_batch_is_told_and_sets_the_batch_size(files: Path) -> None:
    target = hauberk.load_model(files / "fixed.pt2", batch_size=10)
    assert target.batch_size == 8
    (notice,) = target.notices
    assert "exported for batches of 4" in notice
    free = hauberk.load_model(files / "any.pt2", batch_size=10)
    assert free.batch_size == 10 and free.notices == ()
    assert [whole_batches(size, 4) for size in (1, 4, 7, 256)] == [4, 4, 4, 256]


def test_a_program_that_was_exported_in_training_mode_is_told(tmp_path: Path) -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train(), (torch.zeros(2, 3),))
    torch.export.save(program, tmp_path / "train.pt2")
    assert any("training mode" in notice for notice in hauberk.load_model(tmp_path / "train.pt2").notices)


def test_a_program_of_two_inputs_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    torch.export.save(torch.export.export(Two(), (torch.zeros(2, 3), torch.zeros(2, 3))), tmp_path / "two.pt2")
    with pytest.raises(ModelError, match="takes 2 inputs: x, y"):
        hauberk.load_model(tmp_path / "two.pt2")


def test_normalisation_goes_before_a_program(files: Path, net: nn.Module) -> None:
    target = hauberk.load_model(files / "fixed.pt2", normalize=([0.3], [0.5]))
    assert target.batch_size == 256 and torch.allclose(target.logits(samples(5)), net((samples(5) - 0.3) / 0.5), atol=1e-5)


def test_parts_of_one_size_are_what_is_asked() -> None:
    sizes: list[int] = []

    def ask(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return part * 2

    assert in_parts(torch.arange(7.0)[:, None], 3, ask).flatten().tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert sizes == [3, 3, 3]
    with pytest.raises(ModelError, match=r"shape \(2, 1\) to 3 samples"):
        in_parts(torch.ones(4, 1), 3, lambda part: part[:2])


# Exported programs that would run code when they are opened or called


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Copy an archive with its entries changed."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return target


def program_changed(change: Callable[[dict[str, object]], None]) -> Callable[[dict[str, bytes]], None]:
    def run(entries: dict[str, bytes]) -> None:
        (name,) = (name for name in entries if name.endswith("models/model.json"))
        program = json.loads(entries[name])
        change(program)
        entries[name] = json.dumps(program).encode()

    return run


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def graph(program: dict) -> dict:
    return program["graph_module"]["graph"]


def test_an_expression_that_is_python_is_not_evaluated(files: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    attacks = [
        f"__import__('pathlib').Path('{mark}').touch()", f"open('{mark}', 'w')", f"Symbol.__class__.mro()[0]('{mark}')",
        "(lambda: 1)()", "[1 for _ in (1,)]", "exec(chr(49))", "Symbol('a b')", "s0.free_symbols", "s0 if s1 else s2",
        "Integer(" * 3000,
    ]
    for attack in attacks:
        def change(program: dict, attack: str = attack) -> None:
            first = next(iter(graph(program)["tensor_values"].values()))
            first["sizes"][0] = {"as_expr": {"expr_str": attack, "hint": {"as_int": 4}}}

        broken = rewritten(files / "any.pt2", tmp_path / "any.pt2", program_changed(change))
        with pytest.raises(UnsafeFile, match="is more than arithmetic"):
            hauberk.load_model(broken)
    assert not mark.exists()


def test_operators_that_are_any_function_are_not_called(files: Path, tmp_path: Path) -> None:
    for name in (
        "torch.os.system", "torch.load", "torch.hub.load", "torch.ops.load_library", "torch.ops.aten.from_file.default",
        "math.os", "_operator.attrgetter", "_operator.methodcaller", "torch.ops.aten.relu.__class__", "os.system",
        "torch.ops.aten.no_such.default",
        "torch.ops.aten.relu.default.__call__", "torch.ops.higher_order.triton_kernel_wrapper_functional", "#evil",
    ):
        def change(program: dict, name: str = name) -> None:
            graph(program)["nodes"][0]["target"] = name

        broken = rewritten(files / "fixed.pt2", tmp_path / "fixed.pt2", program_changed(change))
        with pytest.raises(UnsafeFile, match=f"it calls '{name}'"):
            hauberk.load_model(broken)


def test_guards_names_and_structures_that_are_code_are_refused(files: Path, tmp_path: Path) -> None:
    def guard(program: dict) -> None:
        program["guards_code"] = ["__import__('os').system('true') == 0"]

    def good_guard(program: dict) -> None:
        program["guards_code"] = ["L['input'].size()[0] <= 512"]

    def name(program: dict) -> None:
        graph(program)["inputs"][-1]["as_tensor"]["name"] = "x): import os #"

    def key(program: dict) -> None:
        graph(program)["tensor_values"]["a = 1; import os"] = next(iter(graph(program)["tensor_values"].values()))

    def spec(program: dict) -> None:
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        call["in_spec"] = call["in_spec"].replace("builtins.tuple", "__enum__")

    def custom(program: dict) -> None:
        graph(program)["custom_obj_values"] = {"obj": {"name": "obj", "class_fqn": "x"}}

    for change, message in (
        (guard, "more than a comparison"), (name, "no identifier"), (key, "no identifier"), (spec, "names objects to import"),
        (custom, "custom classes"),
    ):
        with pytest.raises(UnsafeFile, match=message):
            hauberk.load_model(rewritten(files / "any.pt2", tmp_path / "any.pt2", program_changed(change)))
    hauberk.load_model(rewritten(files / "any.pt2", tmp_path / "any.pt2", program_changed(good_guard)))


def test_pickles_and_libraries_inside_a_program_are_not_opened(files: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save(Trap(mark), tmp_path / "trap.pt")
    trap = (tmp_path / "trap.pt").read_bytes()

    def inputs(entries: dict[str, bytes]) -> None:
        entries[next(name for name in entries if "sample_inputs" in name)] = trap

    def weights(entries: dict[str, bytes]) -> None:
        name = next(name for name in entries if name.endswith("weights_config.json"))
        config = json.loads(entries[name])
        next(iter(config["config"].values()))["use_pickle"] = True
        entries[name] = json.dumps(config).encode()

    def constant(entries: dict[str, bytes]) -> None:
        entries["fixed/data/constants/opaque_obj_0"] = pickle.dumps(Trap(mark))

    def library(entries: dict[str, bytes]) -> None:
        entries["fixed/data/aotinductor/model/model.so"] = b"\x7fELF"

    def legacy(entries: dict[str, bytes]) -> None:
        entries["fixed/data/weights/model.pt"] = trap

    for change in (inputs, weights, constant, library, legacy):
        with pytest.raises(UnsafeFile, match="would run code when opened"):
            hauberk.load_model(rewritten(files / "fixed.pt2", tmp_path / "fixed.pt2", change))
    assert not mark.exists()


def test_a_program_of_the_older_layout_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        for name in ("version", "serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"):
            archive.writestr(name, b"8.1")
    with pytest.raises((ModelError, UnsafeFile)):
        hauberk.load_model(tmp_path / "old.pt2")


@pytest.mark.parametrize("name", ["fixed.pt2", "script.pt", "state.pt", "whole.pt"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_file_cut_short_says_so(files: Path, tmp_path: Path, name: str, share: float) -> None:
    whole = (files / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"is broken|is empty|cannot be opened"):
        hauberk.load_model(tmp_path / name)


@pytest.mark.parametrize("name", ["x.pt2", "x.pt", "x.onnx", "x.skops"])
def test_noise_is_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ModelError, match="broken"):
        hauberk.load_model(tmp_path / name)


# TorchScript and pickles


def test_torchscript_is_supported_with_a_notice(files: Path, net: nn.Module) -> None:
    target = hauberk.load_model(files / "script.pt")
    x = samples(5).requires_grad_()
    assert torch.allclose(target.logits(x), net(x), atol=1e-6) and target.logits(x).requires_grad
    (notice,) = target.notices
    assert notice == "the model is TorchScript, which torch no longer develops: export it with torch.export.save (.pt2)"


def test_a_script_that_writes_files_is_refused(tmp_path: Path) -> None:
    class Writer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.save(x, "somewhere")
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Writer()).save(str(tmp_path / "writer.pt"))
    with pytest.raises(UnsafeFile, match=r"its script calls torch.save"):
        hauberk.load_model(tmp_path / "writer.pt")
    assert hauberk.load_model(tmp_path / "writer.pt", trust=True).access is Access.GRADIENT


def test_a_whole_pickled_module_needs_trust(files: Path, net: nn.Module) -> None:
    with pytest.raises(UnsafeFile, match=r"it is a whole pickled object and asks for [\w.]+.*trust=True"):
        hauberk.load_model(files / "whole.pt")
    target = hauberk.load_model(files / "whole.pt", trust=True)
    assert torch.equal(target.logits(samples(3)), net(samples(3))) and "trusted by your own word" in target.notices[0]


def test_a_state_dict_alone_asks_for_its_code(files: Path) -> None:
    with pytest.raises(ModelError, match=r"a state dict of \d+ tensors and no model.*module:attr' with weights = 'state.pt'"):
        hauberk.load_model(files / "state.pt")
    shutil.copy(files / "state.pt", files / "state.safetensors")
    with pytest.raises(ModelError, match="holds weights and no model"):
        hauberk.load_model(files / "state.safetensors")


@pytest.mark.parametrize("name", ["trap.pt", "trap.pth", "trap.pkl", "trap.joblib"])
def test_code_in_a_file_is_not_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    if name.startswith("trap.pt"):
        torch.save(Trap(mark), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(UnsafeFile, match="run"):
        hauberk.load_model(tmp_path / name)
    assert not mark.exists()
    with pytest.raises(ModelError):  # what comes out is no model
        hauberk.load_model(tmp_path / name, trust=True)
    assert mark.exists()


def test_archives_that_burst_or_point_outside_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (100 << 20))
    with pytest.raises(UnsafeFile, match=r"would grow from \d+ to 104857600 bytes"):
        hauberk.load_model(tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("../../etc/passwd", b"x")
    with pytest.raises(UnsafeFile, match="names a place outside itself"):
        check_archive(tmp_path / "out.zip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
            archive.writestr("a", b"x")
            archive.writestr("a", b"y")
    with pytest.raises(UnsafeFile, match="2 entries, 1 different"):
        check_archive(tmp_path / "twice.zip")


def test_an_unknown_kind_of_file_lists_the_known(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"no kind of model that is known here. Expected package.module:attr.*onnx"):
        hauberk.load_model(tmp_path / "model.h5")
    with pytest.raises(ModelError, match="is a folder"):
        hauberk.load_model(tmp_path)


# ONNX

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10 - 0.5


def onnx_model(path: Path, batch: int | str, location: str = "", dtype: int = TensorProto.FLOAT) -> Path:
    """x @ WEIGHT, for batches of one size or any; with its weights in a file beside it where `location` names one."""
    weight = numpy_helper.from_array(WEIGHT.astype(helper.tensor_dtype_to_np_dtype(dtype)), "weight")
    if location:
        onnx.external_data_helper.set_external_data(weight, location, offset=0, length=len(weight.raw_data))
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
    x, scores = (helper.make_tensor_value_info(name, dtype, [batch, width]) for name, width in (("x", 4), ("scores", 3)))
    made = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["scores"])], "linear", [x], [scores], [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("n", [0, 1, 4, 7])
def test_onnx_answers_any_batch(tmp_path: Path, batch: int | str, n: int) -> None:
    target = hauberk.load_model(onnx_model(tmp_path / "m.onnx", batch))
    x = torch.rand(n, 4)
    assert torch.allclose(target.logits(x), x @ torch.from_numpy(WEIGHT), atol=1e-6) and target.access is Access.SCORE
    copy = pickle.loads(pickle.dumps(target.predictor))
    assert torch.equal(copy(x), target.predictor(x))


def test_onnx_takes_the_type_it_was_made_for(tmp_path: Path) -> None:
    target = hauberk.load_model(onnx_model(tmp_path / "m.onnx", "n", dtype=TensorProto.DOUBLE))
    assert target.logits(torch.ones(2, 4)).dtype is torch.float64
    with pytest.raises(ModelError, match=r"takes tensor\(int64\)"):
        hauberk.load_model(onnx_model(tmp_path / "i.onnx", "n", dtype=TensorProto.INT64))


def test_onnx_names_the_shape_it_wants(tmp_path: Path) -> None:
    target = hauberk.load_model(onnx_model(tmp_path / "m.onnx", "n"))
    with pytest.raises(ModelError, match=r"refused a batch of shape \(2, 5\).*\['n', 4\]"):
        target.logits(torch.ones(2, 5))


def test_onnx_of_the_network_agrees_with_it(net: nn.Module, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net, (torch.zeros(4, 1, 8, 8),), dynamo=True, verbose=False)
    program.save(tmp_path / "net.onnx")
    target = hauberk.load_model(tmp_path / "net.onnx", batch_size=6)
    assert target.batch_size == 4 and torch.allclose(target.logits(samples(9)), net(samples(9)), atol=1e-5)


def test_onnx_weights_beside_the_model_are_read_and_listed(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(WEIGHT.tobytes())
    target = hauberk.load_model(onnx_model(tmp_path / "m.onnx", "n", "m.bin"))
    assert torch.allclose(target.logits(torch.eye(4)), torch.from_numpy(WEIGHT))
    assert [path.name for path in target.files] == ["m.onnx", "m.bin"]
    (tmp_path / "m.bin").unlink()
    with pytest.raises(ModelError, match=r"m\.bin does not exist"):
        hauberk.load_model(tmp_path / "m.onnx")


def test_onnx_weights_outside_its_folder_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "link", "sub/../../secret", "."):
        with pytest.raises(UnsafeFile, match="outside its own folder"):
            hauberk.load_model(onnx_model(folder / "m.onnx", "n", location))


def test_onnx_cut_short_says_so(tmp_path: Path) -> None:
    whole = onnx_model(tmp_path / "m.onnx", "n").read_bytes()
    for cut in (10, 100, len(whole) - 3):
        (tmp_path / "m.onnx").write_bytes(whole[:cut])
        with pytest.raises(ModelError, match=r"broken|cannot be opened"):
            hauberk.load_model(tmp_path / "m.onnx")


# Estimators in files


def test_skops_opens_what_it_trusts_and_lists_what_not(tmp_path: Path) -> None:
    x = torch.tensor(IRIS)
    simple, forest = LogisticRegression(max_iter=500).fit(IRIS, KIND), RandomForestClassifier(5, random_state=0).fit(IRIS, KIND)
    skops.io.dump(simple, tmp_path / "simple.skops")
    skops.io.dump(forest, tmp_path / "forest.skops")
    target = hauberk.load_model(tmp_path / "simple.skops")
    assert target.labels(x).tolist() == simple.predict(IRIS).tolist() and target.outputs == "probabilities"
    assert target.files == ((tmp_path / "simple.skops").resolve(),) and target.name == "simple"
    with pytest.raises(UnsafeFile, match=r"asks for 1 types that are not known to be safe: sklearn.tree._tree.Tree.*trust=True"):
        hauberk.load_model(tmp_path / "forest.skops")
    trusted = hauberk.load_model(tmp_path / "forest.skops", trust=True)
    assert np.allclose(trusted.scores(x).numpy(), forest.predict_proba(IRIS))
    whole = (tmp_path / "simple.skops").read_bytes()
    (tmp_path / "cut.skops").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="broken"):
        hauberk.load_model(tmp_path / "cut.skops")


@pytest.mark.parametrize("name", ["m.pkl", "m.joblib"])
def test_pickled_estimators_need_trust(tmp_path: Path, name: str) -> None:
    fitted = LogisticRegression(max_iter=500).fit(IRIS, KIND)
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(fitted))
    else:
        joblib.dump(fitted, tmp_path / name)
    with pytest.raises(UnsafeFile, match="is a pickle, which runs whatever code its maker put into it"):
        hauberk.load_model(tmp_path / name)
    target = hauberk.load_model(tmp_path / name, trust=True)
    assert target.labels(torch.tensor(IRIS)).tolist() == fitted.predict(IRIS).tolist()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is broken"):
        hauberk.load_model(tmp_path / name, trust=True)
