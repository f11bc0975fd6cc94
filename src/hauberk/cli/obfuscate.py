"""hauberk obfuscate and unlock: model files that tell little, and nothing without a key."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import command, remark
from hauberk.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hauberk.core.data import Data


class Method(enum.StrEnum):
    """What is hidden."""

    RENAME = "rename"
    MIX = "mix"
    SPLIT = "split"
    LOCK = "lock"
    DECOYS = "decoys"


_FOR_FILES = {
    "weights": (Method.RENAME, Method.LOCK), "module": (Method.MIX, Method.SPLIT, Method.RENAME, Method.LOCK, Method.DECOYS),
    "onnx": (Method.RENAME, Method.MIX, Method.SPLIT, Method.LOCK, Method.DECOYS),
}


@command
def obfuscate(
    model: Annotated[str, typer.Argument(
        metavar="MODEL", help="Weights (.safetensors, .pt), an .onnx file, or code: package.module:attr, file.py:attr.")],
    *,
    method: Annotated[list[str] | None, typer.Option(
        help="rename: names gone (of weights: with --names). mix: other weights, same answers. split: another structure. lock: "
        "worthless without the key. decoys: false weights beside the true ones. Repeatable, or a comma list; lock and decoys "
        "come last. Left out: rename.")] = None,
    growth: Annotated[float, typer.Option(help="Decoys: how much larger the weights may become, as a share.", min=0.001)] = 0.1,
    output: Annotated[Path, typer.Option(
        help="The file to write: .onnx for ONNX, .pt2 for split of code, .safetensors for all else.")],
    weights: options.Weights = "", data: options.TestData = "", train: options.Train = "", label: options.Label = "",
    key: Annotated[Path | None, typer.Option("--key-file", help="64 hexadecimal digits, for lock and decoys.")] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key file; it is never written over.")] = False,
    names: Annotated[Path | None, typer.Option("--names", help="Where the map that undoes rename is written.")] = None,
    shapes: Annotated[bool, typer.Option("--strip-shapes", help="Rename: strip the shapes of weights too.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Where the attack report is written as JSON.")] = None,
    trust: options.Trust = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Hide what a model file tells, and say what adversaries make of it all the same.

    With code as MODEL and --data, the attack report is printed: what the weights are worth to somebody without the key.
    """
    from hauberk.io.code import named_in_code

    wanted = _methods(options.words(method) or [])
    kind = "module" if named_in_code(model) else "onnx" if model.lower().endswith(".onnx") else "weights"
    _refuse(wanted, kind, output, (names, report), force, data)
    secret = _key(wanted, key, new_key)
    try:
        if kind == "onnx":
            _onnx(Path(model), wanted, secret, output, growth)
        elif kind == "weights":
            _weights(Path(model), wanted, secret, output, names, shapes, trust)
        else:
            _module(
                model, weights, wanted, secret, output, names, shapes, trust, _samples(data, train, label), report, growth
            )
    except BaseException:
        if secret is not None and new_key and key is not None and not output.exists():
            key.unlink(missing_ok=True)  # it locked nothing, and would stand in the way of the next try
        raise
    typer.echo(f"{output} is written")


@command
def unlock(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A locked .safetensors or .onnx file, or renamed safetensors.")],
    *,
    output: Annotated[Path, typer.Option(help="The file to write.")],
    key: Annotated[Path | None, typer.Option("--key-file", help="The key that it was locked with.")] = None,
    names: Annotated[Path | None, typer.Option("--names", help="The map that undoes rename.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Undo lock, and decoys of code, with the key, and rename with its map."""
    if output.exists() and not force:
        raise UsageError(f"{output} exists already", want="a new file", fix="Use --force to write over it")
    if key is None and names is None:
        raise UsageError("neither --key-file nor --names is given", want="the key of a locked file, or the map of a renamed one")
    from hauberk.core.files import write_whole
    from hauberk.io.hostile import existing

    existing(file)
    if file.suffix.lower() == ".onnx":
        if key is None:
            raise UsageError("--names is given for an ONNX file", want="--key-file: its names are not kept")
        from hauberk.assets.obfuscate.files import read_key, unlock_onnx

        write_whole(output, unlock_onnx(_read_onnx(file), read_key(key)).SerializeToString())
    else:
        write_whole(output, _unlocked(file, key, names))
    typer.echo(f"{output} is written: the weights in it are no longer protected")


def _unlocked(file: Path, key: Path | None, names: Path | None) -> bytes:
    import safetensors.torch

    from hauberk.assets.obfuscate.decoys import SALT, without_decoys
    from hauberk.assets.obfuscate.files import load_locked, read_key, read_names
    from hauberk.assets.obfuscate.rename import restore

    table = read_names(names) if names is not None else None
    plain = key is None or file.suffix.lower() == ".safetensors"
    state = _read_weights(file, trust=False) if plain else {}
    decoys = key is not None and (SALT in state or SALT in {old for old, _ in (table or {}).values()})
    if key is not None and not decoys:
        state = load_locked(file, read_key(key))
    if table is not None:
        state = restore(state, table)
    if key is not None and decoys:
        state = without_decoys(state, read_key(key))
        remark("nothing in the file tells whether the key is the right one: see whether the model answers")
    return safetensors.torch.save({name: value.contiguous() for name, value in state.items()})


def _refuse(wanted: list[Method], kind: str, output: Path, others: tuple[Path | None, ...], force: bool, data: str) -> None:
    unfit = [one.value for one in wanted if one not in _FOR_FILES[kind]]
    if unfit:
        raise UsageError(
            f"--method {unfit[0]} does not apply to {'bare weights' if kind == 'weights' else kind}",
            want=" | ".join(one.value for one in _FOR_FILES[kind]),
            fix="Name the code as MODEL with --weights, or an .onnx file" if kind == "weights" else "",
        )
    ending = {"onnx": ".onnx", "weights": ".safetensors"}.get(kind, ".pt2" if Method.SPLIT in wanted else ".safetensors")
    if output.suffix.lower() != ending:
        raise UsageError(f"--output is {output}", want=f"a {ending} file for {', '.join(one.value for one in wanted)}")
    if kind == "module" and not data and {Method.MIX, Method.SPLIT} & set(wanted):
        raise UsageError("--data is missing", want="samples on which the answers are compared", fix="Add --data, e.g. test.npz")
    if Method.SPLIT in wanted and kind == "module" and wanted != [Method.SPLIT]:
        raise UsageError("split is asked for with other methods", want="split alone for code: it takes names away, too")
    if {Method.LOCK, Method.DECOYS} <= set(wanted):
        raise UsageError("lock and decoys are both asked for", want="one of them")
    twice = next((one for one in wanted if wanted.count(one) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice.value} is asked for twice", want="each method once")
    if Method.RENAME in wanted and kind != "onnx" and others[0] is None:
        raise UsageError("--names is missing", want="a file for the map: without it the names are gone for good")
    for one in wanted[:-1]:
        if one in (Method.LOCK, Method.DECOYS):
            raise UsageError(f"{one.value} is asked for before {wanted[-1].value}", want=f"{one.value} last",
                             fix="What comes after would change what the key undoes")
    if others[0] is not None and (Method.RENAME not in wanted or kind == "onnx"):
        raise UsageError("--names is given", want="rename of weights or code: there is no other map", fix="Leave --names out")
    if others[1] is not None and (kind != "module" or not data or not {Method.LOCK, Method.DECOYS} & set(wanted)):
        raise UsageError("--report is given", want="code as MODEL, --data, and lock or decoys: attacks are made on those",
                         fix="Leave --report out")
    for path in (output, *others):
        if path is not None and path.exists() and not force:
            raise UsageError(f"{path} exists already", want="a new file", fix="Use --force to write over it")


def _methods(names: list[str]) -> list[Method]:
    from hauberk.core.errors import nearest

    known = [one.value for one in Method]
    for name in names:
        if name not in known:
            raise UsageError(f"--method is '{name}'", want=" | ".join(known), fix=nearest(name, known))
    return [Method(name) for name in names] or [Method.RENAME]


def _key(wanted: list[Method], path: Path | None, new: bool) -> bytes | None:
    if not {Method.LOCK, Method.DECOYS} & set(wanted):
        return None
    if path is None:
        raise UsageError("--key-file is missing", want="a file with the key", fix="Make one: --key-file FILE --new-key")
    from hauberk.assets.obfuscate.files import read_key, write_key

    if new:
        write_key(path)
        remark(f"{path} holds the key: whoever has it has the weights, and without it they are gone")
    return read_key(path)


def _onnx(path: Path, wanted: list[Method], key: bytes | None, output: Path, growth: float) -> None:
    from hauberk.assets import obfuscate as ways
    from hauberk.assets.obfuscate.files import lock_onnx
    from hauberk.assets.obfuscate.similarity import graph_similarity, name_leakage, onnx_nodes
    from hauberk.core.files import write_whole

    before = made = _read_onnx(path)
    for one in wanted:
        if one is Method.RENAME:
            made = ways.strip_onnx(made)
        elif one is Method.MIX:
            made = ways.mix_onnx(made)[0]
        elif one is Method.SPLIT:
            made = ways.split_onnx(made)
        elif one is Method.LOCK:
            made = lock_onnx(made, key or b"")
        else:
            made = ways.add_onnx_decoys(made, key or b"", growth=growth)
    write_whole(output, made.SerializeToString())
    said = [[*(one.name for one in model.graph.node), *(one.name for one in model.graph.initializer)] for model in (before, made)]
    typer.echo(f"words of the names that still show: {name_leakage(*said):.0%}")
    typer.echo(f"graph similarity: {graph_similarity(onnx_nodes(before), onnx_nodes(made)):.3f} (1 is the same graph)")
    typer.echo(f"size: {made.ByteSize() / max(before.ByteSize(), 1):.3f} of what it was")


def _weights(
    path: Path, wanted: list[Method], key: bytes | None, output: Path, names: Path | None, shapes: bool, trust: bool
) -> None:
    _write(_read_weights(path, trust=trust), wanted, key, output, names, shapes)


def _write(
    state: dict[str, Tensor], wanted: list[Method], key: bytes | None, output: Path, names: Path | None, shapes: bool
) -> None:
    import safetensors.torch

    from hauberk.assets.obfuscate.files import save_locked, write_names
    from hauberk.assets.obfuscate.rename import rename
    from hauberk.core.files import write_whole

    if Method.RENAME in wanted:
        assert names is not None
        done = rename(state, shapes=shapes)
        state = done.state
        write_names(names, done.names)
    if Method.LOCK in wanted:
        save_locked(state, output, key or b"")
        return
    write_whole(output, safetensors.torch.save({name: value.detach().contiguous().clone() for name, value in state.items()}))


def _module(
    model: str, weights: str, wanted: list[Method], key: bytes | None, output: Path, names: Path | None, shapes: bool,
    trust: bool, data: Data | None, report: Path | None, growth: float,
) -> None:
    from hauberk.assets import obfuscate as ways
    from hauberk.core.access import Access
    from hauberk.core.errors import ModelError
    from hauberk.io.models import load_model

    target = load_model(model, weights=weights or None, trust=trust)
    if target.access < Access.GRADIENT:
        raise ModelError(f"{model} is no torch module", want="one, or an .onnx file")
    module = target.module
    example = data.test.tensors()[0][:64] if data is not None else None
    if wanted == [Method.SPLIT]:
        assert example is not None
        _export(ways.scatter(module, example), example, output)
        return
    made = module
    if Method.MIX in wanted:
        assert example is not None
        done = ways.mix(module, example)
        made = done.module
        typer.echo(f"{len(done.changed)} tensors changed, answers moved by {done.difference:.2g} of the largest")
    if Method.DECOYS in wanted:
        made = ways.add_decoys(made, key or b"", growth=growth)
    _write(dict(made.state_dict()), wanted, key, output, names, shapes)
    if data is not None and {Method.LOCK, Method.DECOYS} & set(wanted):
        _report(module, made, wanted, key, data, report)


def _report(module: nn.Module, made: nn.Module, wanted: list[Method], key: bytes | None, data: Data, report: Path | None) -> None:
    from hauberk.assets.obfuscate.keyed import lock_weights
    from hauberk.assets.obfuscate.report import attack_report, with_weights
    from hauberk.core.files import write_whole

    shipped = with_weights(module, lock_weights(made.state_dict(), key or b"").state) if Method.LOCK in wanted else made
    training = data.train if data.train is not None else data.test
    found = attack_report(module, shipped, training.tensors(), data.test.tensors())
    typer.echo("\n".join(found.lines()))
    if report is not None:
        write_whole(report, json.dumps(found.to_dict(), indent=1) + "\n")


def _export(module: nn.Module, example: Tensor, output: Path) -> None:
    import io

    import torch

    from hauberk.core.files import write_whole

    held = io.BytesIO()
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=({0: batch},)), held)
    write_whole(output, held.getvalue())


def _samples(data: str, train: str, label: str) -> Data | None:
    if not data:
        return None
    from hauberk.io.datasets import load_data

    return load_data(Path(data) if Path(data).exists() else data, train=train or None, label=label or None)


def _read_onnx(path: Path) -> Any:
    from hauberk.core.errors import ModelError, require
    from hauberk.io.hostile import existing, first_line
    from hauberk.io.onnx_models import external_files

    existing(path)
    onnx: Any = require("onnx", "onnx", "to read an ONNX file")
    external_files(path)  # refuses weights that lie elsewhere than beside the model
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf raises errors of many kinds
        raise ModelError(f"{path} cannot be read as ONNX ({first_line(error)})", want="an ONNX model") from error


def _read_weights(path: Path, *, trust: bool) -> dict[str, Tensor]:
    from hauberk.io.torch_files import read_state

    return read_state(path, trust=trust)
