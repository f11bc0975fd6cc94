"""load_model from Python: modules, functions, estimators, names in code, weights, normalisation."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

import hauberk
from hauberk import Access, Data, Linf
from hauberk.core.errors import HauberkError, ModelError, UnsafeFile, UsageError
from hauberk.robustness.attack.pgd import pgd

MEAN, STD = [0.3], [0.5]


@pytest.fixture
def net(fresh_cnn: Callable[..., nn.Module]) -> nn.Module:
    return fresh_cnn().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# Modules and functions


def test_a_module_is_one_line(net: nn.Module, x: Tensor) -> None:
    target = hauberk.load_model(net, bounds=(0, 1))
    assert target.access is Access.GRADIENT and target.bounds == (0, 1) and target.name == "Sequential" and target.files == ()
    assert torch.equal(target.logits(x), net(x)) and target.module is net


def test_normalisation_is_one_word_and_attacks_stay_in_input_space(net: nn.Module, x: Tensor) -> None:
    target = hauberk.load_model(net, bounds=(0, 1), normalize=(MEAN, STD))
    assert torch.allclose(target.logits(x), net((x - 0.3) / 0.5), atol=1e-6)
    y = target.labels(x)
    z = pgd(target, x, y, Linf(0.1))
    assert float((z - x).abs().max()) <= 0.1 + 1e-6 and float(z.min()) >= 0 and float(z.max()) <= 1
    asked = x.clone().requires_grad_()
    target.logits(asked).sum().backward()
    inner = ((x - 0.3) / 0.5).requires_grad_()
    net(inner).sum().backward()
    assert torch.allclose(asked.grad, inner.grad / 0.5, atol=1e-5)  # the chain rule through the division


def test_normalisation_leaves_the_owners_modes_alone(net: nn.Module, x: Tensor) -> None:
    for mode in (True, False):
        net.train(mode)
        target = hauberk.load_model(net, normalize=(MEAN, STD))
        target.labels(x)
        assert net.training is mode and bool(target.notices) is mode


def test_normalisation_of_a_function_and_of_an_estimator() -> None:
    x = torch.rand(5, 2)
    target = hauberk.load_model(lambda x: x, normalize=(0.5, 0.25), outputs="logits")
    assert torch.allclose(target.logits(x), (x - 0.5) / 0.25)
    fitted = LogisticRegression().fit(np.array([[-1.0, 0], [1, 0]]), [0, 1])
    assert hauberk.load_model(fitted, normalize=(0.5, 0.25)).labels(torch.tensor([[0.4, 0], [0.6, 0]])).tolist() == [0, 1]


@pytest.mark.parametrize("normalize", [(0.5,), 0.5, (0.5, 0.0), ("a", "b"), (0.5, [0.1, -1])])
def test_a_normalisation_that_is_none_is_refused(net: nn.Module, normalize: object) -> None:
    with pytest.raises(UsageError, match=r"normalize|std"):
        hauberk.load_model(net, normalize=normalize)  # type: ignore[arg-type]


def test_access_is_narrowed_and_never_invented(net: nn.Module) -> None:
    assert hauberk.load_model(net, access="label").access is Access.LABEL
    with pytest.raises(ModelError, match="GRADIENT access was asked of a model that grants SCORE"):
        hauberk.load_model(lambda x: x, access="gradient")
    with pytest.raises(UsageError, match="access is 'white'"):
        hauberk.load_model(net, access="white")


@pytest.mark.parametrize("source", ["nowhere.pt2", "nowhere.onnx", "nowhere", "no_such_package_here:build"])
def test_what_is_not_there_is_named(source: str) -> None:
    with pytest.raises(ModelError, match=source.split(":")[0]):
        hauberk.load_model(source)


# Names in code


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "layers.py").write_text("from torch import nn\nWIDTH = 3\n")
    file = tmp_path / "shop.py"
    file.write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn
            import layers

            def build():
                return nn.Sequential(nn.Linear(2, layers.WIDTH), nn.Dropout(0.5))

            made = build()

            class Models:
                @staticmethod
                def build():
                    return build()

            def needs(width, depth):
                return nn.Linear(width, depth)

            def fails():
                raise ValueError("no weights at home")

            def nothing():
                return None

            def scores(x):
                return x * 2
            """
        )
    )
    return file


def test_a_factory_an_instance_and_a_function_in_a_file(code: Path) -> None:
    for attribute in ("build", "made", "Models.build"):
        target = hauberk.load_model(f"{code}:{attribute}")
        assert [part.training for part in target.module.modules()] == [False, False, False]
        assert target.access is Access.GRADIENT
        assert [one[:40] for one in target.notices] == ["no weights named: random initialisation "]
        assert target.files == (code.resolve(),) and target.name == f"shop.py:{attribute}"
    assert hauberk.load_model(f"{code}:scores").logits(torch.ones(2, 3)).tolist() == [[2.0] * 3] * 2


def test_a_package_name_from_the_current_folder(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.chdir(code.parent)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", str(code.parent))])
    before = list(sys.path)
    assert isinstance(hauberk.load_model("shop:build").module, nn.Sequential)
    assert sys.path == before
    for name in ("shop", "layers"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("biuld", "has no 'biuld'.*Did you mean 'build'"), ("fails", "was called and failed .ValueError: no weights at home"),
        ("nothing", "returned NoneType"), ("needs", "was called and failed .TypeError"), ("layers.WIDTH", "returned|was given"),
    ],
)
def test_a_name_that_makes_no_model_says_why(code: Path, attribute: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        hauberk.load_model(f"{code}:{attribute}")


def test_a_file_that_does_not_run_says_why(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import no_such_library_here\n")
    with pytest.raises(ModelError, match="ModuleNotFoundError: No module named 'no_such_library_here'"):
        hauberk.load_model(f"{file}:build")


# Weights


def test_weights_in_every_safe_form_give_the_same_model(code: Path, tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    x = torch.rand(4, 2)
    expected = x @ state["0.weight"].T + state["0.bias"]
    for name in ("w.safetensors", "w.pt", "checkpoint.pt", "old.pt"):
        target = hauberk.load_model(f"{code}:build", weights=tmp_path / name)
        assert torch.allclose(target.logits(x), expected)
        assert target.files == (code.resolve(), (tmp_path / name).resolve())


def test_weights_that_do_not_fit_say_where(code: Path, tmp_path: Path) -> None:
    save_file({"0.weight": torch.ones(4, 2), "0.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"'0.weight' has shape \(4, 2\), the model wants \(3, 2\)"):
        hauberk.load_model(f"{code}:build", weights=tmp_path / "w.safetensors")
    save_file({"0.weight": torch.ones(3, 2), "head": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 missing, such as '0.bias'; 1 unknown, such as 'head'"):
        hauberk.load_model(f"{code}:build", weights=tmp_path / "w.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds a list"):
        hauberk.load_model(f"{code}:build", weights=tmp_path / "list.pt")


def test_broken_weights_say_so(code: Path, tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        whole = (tmp_path / name).read_bytes()
        for cut in (len(whole) // 2, 10, 0):
            (tmp_path / name).write_bytes(whole[:cut])
            with pytest.raises(ModelError, match=r"broken|is empty"):
                hauberk.load_model(f"{code}:build", weights=tmp_path / name)
    with pytest.raises(ModelError, match="does not exist"):
        hauberk.load_model(f"{code}:build", weights=tmp_path / "none.pt")


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("new", [True, False])
def test_weights_that_run_code_are_not_opened(code: Path, tmp_path: Path, new: bool) -> None:
    mark = tmp_path / "ran"
    torch.save({"0.weight": Trap(mark)}, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(UnsafeFile, match=r"would run code when opened: it is a whole pickled object and asks for \w+"):
        hauberk.load_model(f"{code}:build", weights=tmp_path / "w.pt")
    assert not mark.exists()


def test_weights_for_what_has_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weights were given for a function"):
        hauberk.load_model(lambda x: x, weights=tmp_path / "w.pt")


# Estimators

IRIS, KIND = load_iris(return_X_y=True)
TWO, SICK = load_breast_cancer(return_X_y=True)


@pytest.mark.parametrize(
    ("estimator", "outputs", "access", "width"),
    [
        (LogisticRegression(max_iter=500), "probabilities", Access.SCORE, 3),
        (RandomForestClassifier(5, random_state=0), "probabilities", Access.SCORE, 3),
        (make_pipeline(StandardScaler(), LogisticRegression()), "probabilities", Access.SCORE, 3),
        (SVC(), "logits", Access.SCORE, 3),
        (SVC(decision_function_shape="ovo"), "labels", Access.LABEL, None),
        (RidgeClassifier(), "logits", Access.SCORE, 3),
        (KNeighborsClassifier(1), "probabilities", Access.SCORE, 3),
    ],
    ids=lambda one: type(one).__name__ if hasattr(one, "fit") else "",
)
def test_an_estimator_gives_the_best_it_has(estimator: object, outputs: str, access: Access, width: int | None) -> None:
    fitted = estimator.fit(IRIS, KIND)  # type: ignore[attr-defined]
    target = hauberk.load_model(fitted)
    x = torch.tensor(IRIS)
    assert (target.outputs, target.access) == (outputs, access) and target.name == type(estimator).__name__
    assert target.labels(x).tolist() == fitted.predict(IRIS).tolist() and target.notices == ()
    assert target.predictor.estimator is fitted  # type: ignore[attr-defined]
    if width is not None:
        assert target.probe(x[:4]) == width
    if outputs == "probabilities":
        assert np.allclose(target.scores(x).numpy(), fitted.predict_proba(IRIS), atol=1e-12)
    empty = target.labels(x[:0])
    assert empty.shape == (0,) and empty.dtype is torch.int64


def test_two_classes_by_probability_and_by_decision_value() -> None:
    x = torch.tensor(TWO)
    for estimator in (make_pipeline(StandardScaler(), LogisticRegression()), make_pipeline(StandardScaler(), SVC())):
        fitted = estimator.fit(TWO, SICK)
        target = hauberk.load_model(fitted)
        assert target.labels(x).tolist() == fitted.predict(TWO).tolist() and target.logits(x).shape == (569, 2)


def test_images_are_flattened_for_an_estimator(digits: Data) -> None:
    x, y = digits.train.tensors()  # type: ignore[union-attr]
    fitted = LogisticRegression(max_iter=2000).fit(x.flatten(1).numpy(), y.numpy())
    tested, labels = digits.test.tensors()
    share = float((hauberk.load_model(fitted).labels(tested) == labels).float().mean())
    assert share == pytest.approx(fitted.score(tested.flatten(1).double().numpy(), labels.numpy())) and share > 0.9


def test_classes_by_name_or_with_gaps_are_numbered_in_order_and_told() -> None:
    names = np.array(["setosa", "versicolor", "virginica"])[KIND]
    x = torch.tensor(IRIS)
    for labels in (names, KIND * 10 + 5):
        for estimator in (LogisticRegression(max_iter=500), SVC(decision_function_shape="ovo")):
            fitted = estimator.fit(IRIS, labels)
            target = hauberk.load_model(fitted)
            expected = [list(fitted.classes_).index(one) for one in fitted.predict(IRIS)]
            assert target.labels(x).tolist() == expected
            assert len(target.notices) == 1 and repr(fitted.classes_.tolist()[0]) in target.notices[0]


def test_what_is_no_classifier_is_told_apart() -> None:
    regressor = LinearRegression().fit(IRIS, IRIS[:, 0] * 2)
    target = hauberk.load_model(regressor)
    assert torch.allclose(target.logits(torch.tensor(IRIS))[:, 1], torch.tensor(IRIS[:, 0] * 2)) and target.access is Access.SCORE
    with pytest.raises(ModelError, match="gives"):
        hauberk.load_model(LogisticRegression(), outputs="logit")
    with pytest.raises(ModelError, match=r"refused a batch.*not fitted"):
        hauberk.load_model(LogisticRegression()).labels(torch.tensor(IRIS))
    with pytest.raises(ModelError, match=r"refused a batch of shape .150, 3"):
        hauberk.load_model(LogisticRegression(max_iter=500).fit(IRIS, KIND)).labels(torch.tensor(IRIS[:, :3]))
    outliers = hauberk.load_model(IsolationForest(random_state=0).fit(IRIS), outputs="labels")
    with pytest.raises(ModelError, match=r"predicts the label -1\. Expected labels 0, 1, 2"):
        outliers.labels(torch.tensor(IRIS))
    many = MultiOutputClassifier(LogisticRegression(max_iter=500)).fit(IRIS, np.stack([KIND, KIND], 1))
    with pytest.raises(ModelError, match="answers 2 questions at once"):
        hauberk.load_model(many)


def test_a_target_is_not_loaded_twice(net: nn.Module) -> None:
    with pytest.raises(HauberkError, match="a Target was given"):
        hauberk.load_model(hauberk.Target(net))  # type: ignore[arg-type]
