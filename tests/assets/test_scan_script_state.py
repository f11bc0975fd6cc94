"""Code that runs while torch loads a TorchScript file: that of quantised convolutions passes, and no other."""

from __future__ import annotations

import io
import warnings
import zipfile

import pytest
import torch
from corpus.asm import BENIGN, zipped
from torch import nn

from hauberk.assets.scan import Level, ScanResult, scan_bytes
from hauberk.assets.scan.script_state import packing_states


def _quantised(net: nn.Module, x: torch.Tensor) -> nn.Module:
    from torch.ao import quantization

    net = nn.Sequential(quantization.QuantStub(), net, quantization.DeQuantStub()).eval()
    net.qconfig = quantization.default_qconfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves quantisation to another package
        ready = quantization.prepare(net)
        ready(x)
        return quantization.convert(ready)


NETS = {
    "conv1": (nn.Conv1d(2, 3, 3), (2, 2, 8)), "conv2": (nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), (2, 1, 8, 8)),
    "conv3": (nn.Conv3d(1, 2, 3), (1, 1, 4, 4, 4)), "transposed": (nn.ConvTranspose2d(2, 3, 3), (2, 2, 6, 6)),
    "linear": (nn.Linear(4, 3), (2, 4)),
}


@pytest.mark.parametrize("kind", NETS)
def test_quantised_models_pass_scripted_and_traced(kind: str) -> None:
    net, shape = NETS[kind]
    made = _quantised(net, torch.zeros(shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in (torch.jit.script(made), torch.jit.trace(made, torch.zeros(shape))):
            file = io.BytesIO()
            torch.jit.save(one, file)
            found = scan_bytes(file.getvalue())
            assert found.safe, found.issues
            with zipfile.ZipFile(file) as archive:
                code = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".py"))
            assert ("__setstate__" in code) == (kind != "linear")


CODE = '''class Conv2d(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  stride : Tuple[int, int]
  _packed_params : __torch__.torch.classes.quantized.Conv2dPackedParamsBase
  def __setstate__(self: __torch__.Conv2d,
    state: Tuple[Tuple[int, int], Tensor, Optional[Tensor], bool]) -> NoneType:
    self.stride = (state)[0]
    _1 = (self).set_weight_bias((state)[1], (state)[2], )
    self.training = (state)[3]
    return None
  def set_weight_bias(self: __torch__.Conv2d,
    w: Tensor,
    b: Optional[Tensor]) -> NoneType:
    stride = self.stride
    _2, _3, = stride
    _4 = [_2, _3]
    _5 = ops.quantized.conv2d_prepack(w, b, _4, [0, 0], [1, 1], 1)
    self._packed_params = _5
    return None
  def forward(self: __torch__.Conv2d,
    x: Tensor) -> Tensor:
    return x
'''


def _scan(code: str) -> ScanResult:
    return scan_bytes(zipped({
        "archive/data.pkl": BENIGN, "archive/version": b"3\n", "archive/constants.pkl": BENIGN,
        "archive/code/__torch__.py": code.encode("utf-8", "surrogatepass"),
    }))


def test_what_passes_is_found_where_it_stands() -> None:
    assert packing_states(CODE) == {CODE.index("__setstate__")} and _scan(CODE).safe
    twice = CODE + CODE.replace("Conv2d", "Conv9d")
    assert len(packing_states(twice)) == 2 and _scan(twice).safe


LAST = "    self.training = (state)[3]\n"
PACK = "    _5 = ops.quantized.conv2d_prepack(w, b, _4, [0, 0], [1, 1], 1)\n"
SETTER = CODE[CODE.index("  def set_weight_bias"):CODE.index("  def forward")]
HOSTILE = {
    "a loop": CODE.replace(LAST, LAST + "    while True:\n      pass\n"),
    "a call": CODE.replace(LAST, LAST + "    print((state)[1])\n"),
    "another method": CODE.replace("_1 = (self).set_weight_bias(", "_1 = (self).forward("),
    "a method of a part": CODE.replace("(self).set_weight_bias", "(self.part).set_weight_bias"),
    "an operator in the state": CODE.replace("(state)[3]", "torch.ones([1000000, 1000000])"),
    "an operator in the packing": CODE.replace(PACK, "    _5 = torch.ones([1000000, 1000000])\n"),
    "another operator of the library": CODE.replace("conv2d_prepack", "linear_prepack"),
    "an operator handed to it": CODE.replace("conv2d_prepack(w,", "conv2d_prepack(torch.ones([1]),"),
    "a loop in the packing": CODE.replace(PACK, "    while True:\n      pass\n" + PACK),
    "ops is an attribute": CODE.replace("    stride = self.stride\n", "    ops = self.stride\n", 1),
    "ops is unpacked": CODE.replace("    _2, _3, = stride\n", "    ops, _3, = stride\n"),
    "self is another": CODE.replace("    stride = self.stride\n", "    self = self.stride\n", 1),
    "two packings": CODE.replace("  def forward", SETTER.replace(PACK, "    while True:\n      pass\n" + PACK) + "  def forward"),
    "packing in another class": CODE.replace(SETTER, "") + "class Other(Module):\n" + SETTER,
    "no packing": CODE.replace(SETTER, ""),
    "packing after the class": CODE.replace(SETTER, "") + SETTER[2:].replace("\n  ", "\n"),
    "a blank line, then more": CODE.replace("  def forward", "\n    while True:\n      pass\n  def forward"),
    "a line between the methods": CODE.replace("  def forward", "   x = 1\n  def forward"),
    "spaces before its name": CODE.replace("  def forward", SETTER.replace("def set", "def  set") + "  def forward"),
    "a decorator": CODE.replace("  def set_weight", "  @stride.setter\n  def set_weight"),
    "a continuation": CODE.replace(LAST, "    self.training = \\\n(state)[3]\n"),
    "a comment": CODE.replace("  def set_weight", "  # 1\n  def set_weight"),
    "in a text over lines": f'x = """\n{CODE}"""\n' + CODE.replace(PACK, "    while True:\n      pass\n" + PACK),
    "a base of its own": CODE.replace("(Module)", "(Evil)"),
    "a state of a class": CODE.replace("Tuple[Tuple", "Tuple[__torch__.X, Tuple"),
    "an argument of a class": CODE.replace("    w: Tensor", "    w: __torch__.X"),
    "a character that looks like a letter": CODE.replace("stride", "strıde"),
    "its name in a text": CODE.replace("    return x\n", '    return getattr(x, "__setstate__")\n'),
    "a second one": CODE.replace(SETTER, CODE[CODE.index("  def __setst"):CODE.index("  def set_w")] + SETTER),
    "returns": CODE.replace("\n", "\r\n"), "tabs": CODE.replace("    self.training", "\tself.training"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_nothing_that_only_looks_like_it_passes(how: str) -> None:
    assert HOSTILE[how] != CODE
    found = _scan(HOSTILE[how])
    assert not found.safe
    if found.level is not Level.UNVERIFIABLE:
        assert any("__setstate__, which runs while the file is loaded (torch.jit.freeze" in one.what for one in found.issues)
