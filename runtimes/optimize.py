"""`edge-attn optimize`: the graphs that one target runs best, made from the portable ones, verified, then written.

They are verified with ONNX Runtime on the CPU, which computes fp16 in places as fp32 and rounds: it shows that a graph
says the same, not how fast it is, and not what an engine does. `--build` shows that, on the machine that has one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_attn import golden
from edge_attn.bundle import FORMAT, Bundle, FileEntry, Manifest, Target, write_bundle
from edge_attn.config import RuntimeOptions, read_toml
from edge_attn.errors import BundleError, InputError, NotTestedError, ParityError, UsageError
from edge_attn.golden import Golden
from edge_attn.registry import TARGETS, resolve
from edge_attn.spec import GraphSpec
from runtimes.base import open_runtime
from runtimes.ort import OrtCpu
from runtimes.plugins import plugins_for
from runtimes.report import Report
from runtimes.targets import requirements
from runtimes.targets.choose import Chosen, choose
from runtimes.targets.inline import without_bodies
from runtimes.targets.recipes import Recipe, inlined
from runtimes.targets.samples import Models, log_probs, view
from runtimes.trt_build import BuildConfig
from runtimes.verify import check

Say = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to make, and of what."""

    target: str
    precision: str
    min_version: str | None = None
    calibration: Path | None = None
    profiles: Path | None = None
    max_build_minutes: float | None = None
    plugins: tuple[str, ...] = ()
    """Those asked for; from the first check on, those that serve an op."""

    @property
    def name(self) -> str:
        return f"{self.target}-{self.precision}"


def optimize(
    bundle: Path,
    target: str,
    precision: str = "fp32",
    min_version: str | None = None,
    calibration: Path | None = None,
    profiles: Path | None = None,
    max_build_minutes: float | None = None,
    plugins: Sequence[str] = (),
    build: bool = False,
    force: bool = False,
    threads: int | None = None,
    cache_dir: Path | None = None,
    say: Say = print,
) -> int:
    """Makes `bundle`'s graphs for `target` and writes them into it; with `build`, builds and verifies them here too.

    With `build` and without `force`, graphs that the bundle holds already are built as they are.

    Gives the exit code: 0, or 1 where parity does not hold on the engine that was built.

    Raises:
        UsageError: no such target, precision or plugin, or an option that it has no use for.
        InputError: the bundle holds them already and neither `force` nor `build` is given; a graph that the target
            cannot read.
        ParityError: what was made does not say what the reference says; nothing is written.
        NotTestedError: with `build`, there is nothing here to build with; the graphs are written all the same.
    """
    wanted = Wanted(target, precision, min_version, calibration, profiles, max_build_minutes, tuple(plugins))
    recipe: Recipe = resolve("target", TARGETS, target)
    _refuse(wanted, recipe)
    if recipe.engines:
        wanted = dataclasses.replace(wanted, plugins=tuple(plugins_for(target, plugins)))
    oldest, config = _oldest(wanted, recipe), _config(wanted)
    place = bundle.resolve()  # before `.` is replaced, after which nothing leads there
    opened = Bundle.open(bundle)
    options = RuntimeOptions(threads=threads, precision=precision, cache_dir=cache_dir)
    said = golden.load(opened.read)
    if wanted.name in opened.manifest.targets and not force:
        if not build:
            raise InputError(f"{bundle} holds {wanted.name} already; give --force to make it again")
        say(f"{bundle} holds {wanted.name} already, which is built as it is; give --force to make it again")
        return _build(place, wanted, options, said, say)
    models = inlined(opened, oldest, frozenset(wanted.plugins))
    sentences = golden.read_sentences(calibration) if calibration else said.sentences
    chosen = _choose(opened, models, wanted, recipe, said, sentences, options, say)
    made, files = _target(opened, chosen, wanted, recipe, oldest, config, sentences)
    write_bundle(place, *_with(opened, made, files), force=True)
    say(
        f"{bundle}: {made.name}, {sum(map(len, files.values())) / 1e6:.1f} MB, "
        f"{', '.join(f'{level} {status}' for level, status in made.verification['levels'].items())} "
        f"on {made.verification['provider']}{'; the engine is not tested' if recipe.engines else ''}"
    )
    return _build(place, wanted, options, said, say) if build else 0


def _refuse(wanted: Wanted, recipe: Recipe) -> None:
    if wanted.precision not in recipe.precisions:
        raise UsageError(
            f"the target {wanted.target} has {', '.join(recipe.precisions)}, found precision {wanted.precision!r}"
        )
    if wanted.calibration and wanted.precision != "int8":
        raise UsageError(f"--calibration is for int8, found precision {wanted.precision!r}")
    if not recipe.engines:
        given = {
            "--min-version": wanted.min_version,
            "--profiles": wanted.profiles,
            "--max-build-minutes": wanted.max_build_minutes,
            "--plugin": wanted.plugins or None,
        }
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} is for engines, and the target {wanted.target} has none")


def _oldest(wanted: Wanted, recipe: Recipe) -> requirements.Version | None:
    """The oldest version that must read the graphs."""
    asked = None if wanted.min_version is None else requirements.version(wanted.min_version)
    if not wanted.plugins:
        return asked or recipe.oldest
    if asked and asked < requirements.WITH_PLUGINS:
        first = ".".join(map(str, requirements.WITH_PLUGINS))
        raise UsageError(
            f"the plugin {wanted.plugins[0]} needs TensorRT {first} or later, found --min-version {wanted.min_version}"
        )
    return asked or requirements.WITH_PLUGINS


def _config(wanted: Wanted) -> BuildConfig | None:
    """How engines are built, where that was asked for."""
    if wanted.profiles is None and wanted.max_build_minutes is None:
        return None
    config = read_toml(BuildConfig, wanted.profiles) if wanted.profiles else BuildConfig()
    if wanted.max_build_minutes is not None:
        config = dataclasses.replace(config, max_build_minutes=wanted.max_build_minutes)
    return config


def _choose(
    opened: Bundle,
    models: Models,
    wanted: Wanted,
    recipe: Recipe,
    said: Golden,
    sentences: Sequence[str],
    options: RuntimeOptions,
    say: Say,
) -> Chosen:
    def verified(made: Models) -> Report:
        seen = view(opened, made, wanted.precision)
        running = OrtCpu(seen, options)
        first = check(seen, running, said, ("L1", "L2"))
        return check(seen, running, said) if first.verdict == "holds" else first

    lowering = recipe.lowerings[wanted.precision](opened, models, sentences, options)
    chosen = choose(models, lowering, verified, lambda made: log_probs(opened, made, said, options), say)
    if chosen.report.verdict != "holds":
        raise ParityError(
            f"the {wanted.name} graphs of {opened.path} do not say what the reference says:\n{chosen.report}"
        )
    if wanted.precision != "fp32" and not any(chosen.lowered.values()):
        raise ParityError(f"{opened.path}: nothing of its graphs can be {wanted.precision} within the bounds; use fp32")
    return chosen


def _target(
    opened: Bundle,
    chosen: Chosen,
    wanted: Wanted,
    recipe: Recipe,
    oldest: requirements.Version | None,
    config: BuildConfig | None,
    sentences: Sequence[str],
) -> tuple[Target, dict[str, bytes]]:
    """What the bundle keeps: the target, and its files."""
    settings: dict[str, Any] = {"fp32_islands": chosen.pinned}
    if oldest:
        settings["min_version"] = ".".join(map(str, oldest))
    if wanted.plugins:
        settings["plugins"] = list(wanted.plugins)
    if wanted.precision == "int8":
        lines = "\n".join(sentences).encode()
        settings["quantized"] = chosen.lowered
        settings["calibration"] = {
            "sentences": len(sentences),
            "from": wanted.calibration.name if wanted.calibration else "golden data",
            "sha256": hashlib.sha256(lines).hexdigest(),
        }
    if config:
        settings["build"] = dataclasses.asdict(config)
    graphs, files = {}, {}
    for name, spec in opened.manifest.graphs.items():
        file = f"targets/{wanted.name}/{name}.onnx"
        graphs[name] = GraphSpec(file, spec.inputs, spec.outputs)
        files[file] = without_bodies(chosen.models[name]).SerializeToString(deterministic=True)
    findings = {
        f"{f.level} {f.name}": f.value for level in chosen.report.levels for f in level.findings if f.level != "L1"
    }
    verification = {**chosen.report.summary(), "found": findings}
    if recipe.engines:
        verification["engine"] = "not tested"
    return Target(wanted.target, wanted.precision, graphs, settings, verification), files


def _with(opened: Bundle, made: Target, files: Mapping[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the files of the bundle with the target in it; read again, for another may have been added."""
    now = Bundle.open(opened.path)
    if _portable(now.manifest) != _portable(opened.manifest):
        raise BundleError(f"{opened.path} was replaced while it was optimized; run the command again")
    before = now.manifest.targets.get(made.name)
    gone = {graph.file for graph in before.graphs.values()} if before else set()
    kept = {name: data for name, data in now.files().items() if name not in gone}
    targets = {**now.manifest.targets, made.name: made}
    return dataclasses.replace(now.manifest, format=FORMAT, targets=targets), {**kept, **files}


def _portable(manifest: Manifest) -> dict[str, FileEntry]:
    """The files that targets are made from."""
    return {name: entry for name, entry in manifest.files.items() if not name.startswith("targets/")}


def _build(bundle: Path, wanted: Wanted, options: RuntimeOptions, said: Golden, say: Say) -> int:
    """Opens the runtime, which builds what it lacks, and verifies on it; gives the report's exit code."""
    opened = Bundle.open(bundle)
    try:
        runtime = open_runtime(opened, wanted.target, options)
    except NotTestedError as error:
        raise NotTestedError(
            f"{bundle} holds {wanted.name}, but it was not built or run here: {error}; afterwards: "
            f"edge-attn verify {bundle} --runtime {wanted.target} --precision {wanted.precision}"
        ) from error
    try:
        report = check(opened, runtime, said)
    finally:
        runtime.close()
    say(str(report))
    return report.exit_code
