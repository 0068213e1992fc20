"""Interface between a task and everything that is the same for all tasks: export, verification, `edge_attn.load`.

A task turns user input into graph inputs and graph outputs into results. It also defines how its golden data is
recorded and which verification levels apply. It is defined here because export and the runtimes both need it, and
never import each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.parity.results import LevelResult
from edge_attn.parity.tolerances import Bounds
from edge_attn.spec import GraphSpec, Runtime

Compare: TypeAlias = Callable[[Bundle, Runtime, Any, Bounds], Sequence[LevelResult]]
"""Comparison of a bundle on a runtime with golden data, within bounds by name."""


class GoldenData(Protocol):
    """Results of the reference for some inputs, in the format of one task."""

    def __len__(self) -> int:
        """Return the number of inputs."""

    def files(self) -> dict[str, bytes]:
        """Return the files of a bundle that contain it, by name."""

    def contents(self) -> dict[str, int]:
        """Return the counts that the manifest records, so that golden data that was cut down is refused."""


class References(Protocol):
    """The reference model behind the Runtime interface, in the four forms that a recording needs."""

    @property
    def reference(self) -> Runtime:
        """Return the model's own equations in fp32."""

    @property
    def precise(self) -> Runtime:
        """Return the same in fp64, which measures the noise of fp32."""

    @property
    def deployed(self) -> Runtime:
        """Return the modules that are exported, in fp32."""

    @property
    def deployed_precise(self) -> Runtime:
        """Return the modules that are exported, in fp64."""


class Task(Protocol):
    """Everything about a bundle that depends on what its model is for."""

    @property
    def levels(self) -> Mapping[tuple[str, ...], Compare]:
        """Return the levels that apply, in the order in which they run; those of one key are computed together."""

    def check_graphs(self, graphs: Mapping[str, GraphSpec], where: str) -> None:
        """Check that the graphs have the inputs and outputs that the task needs.

        Raises:
            BundleError: a graph, or one of its inputs or outputs, is missing; the sentence begins with `where`.
        """

    def open(self, bundle: Bundle, runtime: str, options: RuntimeOptions) -> Any:
        """Return the model for users: an object with a method for the task, as `translate`."""

    def record(self, bundle: Bundle, references: References, inputs: Sequence[str]) -> GoldenData:
        """Run the reference on `inputs` and return its results. `bundle` need not be written yet."""

    def load_golden(self, bundle: Bundle) -> Any:
        """Return the golden data of a bundle.

        Raises:
            BundleError: it is damaged or incomplete, or not of this bundle's graphs.
        """

    def golden_inputs(self, golden: Any) -> Sequence[str]:
        """Return the inputs that golden data was recorded for."""

    def coverage(self, runtime: Runtime, golden: Any) -> Mapping[str, tuple[int, int]]:
        """Return how many entries of each vocabulary golden data uses, and how many there are; {} if it has none."""

    def check_golden(self, runtime: Runtime, golden: Any, origin: str) -> None:
        """Check that golden data was recorded from the model of this bundle.

        Raises:
            InputError: it was recorded from another model; `origin` names the golden data.
        """
