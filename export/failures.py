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
UNTRANSLATED = r"No ONNX function|DispatchError|UnsupportedOperator|Unsupported: ONNX export"
ADVICE = (
    (
        DATA_DEPENDENT,
        "it branches on the values of tensors, which a graph cannot; use torch.where or torch.cond",
    ),
    (
        UNTRANSLATED,
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


def explain_export(
    module: nn.Module, errors: Sequence[BaseException], programs: Sequence[torch.export.ExportedProgram] = ()
) -> str:
    """Return why torch cannot export `module`, as one sentence.

    Args:
        module: the user's module.
        errors: error of each exporter, the better exporter first.
        programs: what torch.export captured, if it did.
    """
    error = errors[0]
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in chain(error))
    where, op = _where(module, error), ""
    if re.search(UNTRANSLATED, text):
        names = [
            name
            for pattern in (r"operator '\w+::(\w+)'", r"OpOverload\(op='\w+[.:]+(\w+)")
            for name in re.findall(pattern, "\n".join(str(cause) for e in reversed(errors) for cause in chain(e)))
        ]
        op = next(iter(names), "")
        where = _where(module, error, _line_of(op, programs))
    for pattern, advice in ADVICE:
        if re.search(pattern, text) and ("{op}" not in advice or op):
            return f"torch cannot export {where}: {advice.format(op=op)}"
    cause = list(chain(error))[-1]
    return (
        f"torch cannot export {where}: its exporter fails there ({type(cause).__name__}: {one_line(str(cause))}); "
        "write this with simpler functions of torch"
    )


def _line_of(op: str, programs: Sequence[torch.export.ExportedProgram]) -> str:
    """Return the user's line that calls `op`."""
    for program in programs:
        for node in program.graph.nodes:
            if op and op in str(node.target):
                places = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
                for file, line in reversed(places):
                    if _is_users(file):
                        return f"{file}:{line}"
    return ""


def explain_run(module: nn.Module, error: Exception, tensors: Sequence[Tensor], names: Sequence[str]) -> str:
    """Return why `module` itself does not run on the described inputs, as one sentence."""
    shapes = ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)
    return (
        f"{_where(module, error)} does not run in torch on the inputs {', '.join(names)} of {shapes}: "
        f"{type(error).__name__}: {one_line(str(error))}"
    )


def _where(module: nn.Module, error: BaseException, line: str = "") -> str:
    """Return the module's name, the path of the innermost submodule in which `error` arose, and the user's line."""
    paths = {id(submodule): path for path, submodule in module.named_modules() if path}
    failing = ""
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
