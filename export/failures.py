"""Failures of torch and of a user's module as one sentence: the module, its line, and what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

LIMIT = 160
"""Maximum characters that are quoted of another library's message."""
PACKAGES = tuple(
    f"{part}/" for part in ("torch", "torchgen", "functorch", "onnx", "onnxscript", "onnx_ir", "onnxruntime")
)
EXPORT = str(Path(__file__).resolve().parent)
DATA_DEPENDENT = r"[Dd]ata.dependent|GuardOnDataDependent|guard on data|[Dd]ynamic control flow"
ADVICE = (
    (
        DATA_DEPENDENT,
        "it branches on the values of tensors, which a graph cannot; use torch.where or torch.cond",
    ),
    (
        r"No decompositions|No ONNX function|DispatchError|UnsupportedOperator|not supported|Unsupported: ONNX export",
        "torch has no ONNX translation of {op}; write it with other functions of torch",
    ),
    (
        r"mutat|in-place|inplace",
        "it changes a tensor that it keeps; take the tensor as an input and return the new one as an output",
    ),
    (
        r"\.numpy\(\)|numpy|tolist|\.item\(\)|unbacked|Eq\(u\d|u\d+",
        "it turns tensors into Python numbers, which a graph cannot follow; keep them tensors",
    ),
    (r"dropout", "it uses dropout, which is random; call eval(), or leave it out of forward"),
)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def one_line(text: str) -> str:
    """Return the first sentence of `text` without terminal codes or line breaks, at most LIMIT characters."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().partition("\n")[0]
    text = re.sub(r"[\x00-\x1f\x7f]", " ", text)
    return text if len(text) <= LIMIT else f"{text[: LIMIT - 3]}..."


def explain_export(module: nn.Module, error: BaseException) -> str:
    """Return why torch cannot export `module`, as one sentence."""
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in chain(error))
    op = next(iter(re.findall(r"(?:aten|prims|prim|torchvision|[a-z_]+)(?:::|\.)[a-z_0-9]+", _op_text(text))), "")
    for pattern, advice in ADVICE:
        if re.search(pattern, text) and ("{op}" not in advice or op):
            return f"torch cannot export {_where(module, error)}: {advice.format(op=op)}"
    cause = list(chain(error))[-1]
    return (
        f"torch cannot export {_where(module, error)}: its exporter fails there "
        f"({type(cause).__name__}: {one_line(str(cause))}); write this with simpler functions of torch"
    )


def explain_run(module: nn.Module, error: Exception, tensors: Sequence[Tensor], names: Sequence[str]) -> str:
    """Return why `module` itself does not run on the described inputs, as one sentence."""
    shapes = ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)
    return (
        f"{_where(module, error)} does not run in torch on the inputs {', '.join(names)} of {shapes}: "
        f"{type(error).__name__}: {one_line(str(error))}"
    )


def _op_text(text: str) -> str:
    """Return the part of a message that names an op without translation."""
    match = re.search(r"(?:function for|decompositions for|target=|operator '|operator |translate )(.{0,120})", text)
    return match.group(1) if match else ""


def _where(module: nn.Module, error: BaseException) -> str:
    """Return the module's name, the path of the innermost submodule in which `error` arose, and the user's line."""
    paths = {id(submodule): path for path, submodule in module.named_modules() if path}
    failing, line = "", ""
    for cause in reversed(list(chain(error))):  # the first cause is the innermost
        for frame, number in traceback.walk_tb(cause.__traceback__):
            name = paths.get(id(frame.f_locals.get("self")))
            failing = name if name and not line else failing
            if _is_users(frame.f_code.co_filename):
                last = f"{frame.f_code.co_filename}:{number}"
                inside = frame.f_locals.get("self")
                if isinstance(inside, nn.Module):
                    failing = paths.get(id(inside), failing)
                    line = last
        if line:
            break
    if not line:
        text = "\n".join(str(cause) for cause in chain(error))
        places = re.findall(r'File "?([^"\s,]+\.py)"?(?:, line |:)(\d+)', text)
        line = next((f"{file}:{n}" for file, n in reversed(places) if _is_users(file)), "")
    kind = type(module).__name__ if not isinstance(module, torch.jit.ScriptModule) else module.original_name
    location = f", in {failing} ({type(module.get_submodule(failing)).__name__})" if failing else ""
    return f"{kind}{location}{f', {line}' if line else ''}"


def _is_users(file: str) -> bool:
    if file.startswith("<") or str(Path(file).resolve()).startswith(EXPORT):
        return False
    return not any(f"/{package}" in file.partition("-packages")[2] for package in PACKAGES) and "/lib/python" not in (
        file.partition("site-packages")[0] if "site-packages" not in file else ""
    )
