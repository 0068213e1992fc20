"""Translation as a Task: how an encoder-decoder bundle is opened, recorded and verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_attn.bundle.bundle import Bundle
from edge_attn.config.runtime import RuntimeOptions
from edge_attn.decoding import decoder
from edge_attn.errors import InputError
from edge_attn.parity import reader
from edge_attn.parity.golden import Golden
from edge_attn.parity.recorder import record_translation
from edge_attn.parity.task import Compare, References
from edge_attn.runtimes.tasks.decoder_levels import compare_graphs_and_steps, compare_reruns, compare_sentences
from edge_attn.runtimes.tasks.translation import Translator, checked_text
from edge_attn.spec import GraphSpec, Runtime


class TranslationTask:
    """Translation as a Task: encoder-decoder graphs, recorded and verified with greedy and beam search."""

    @property
    def levels(self) -> Mapping[tuple[str, ...], Compare]:
        """Return the comparisons of L1 and L2, of L3, and of L5."""
        return {
            ("L1", "L2"): lambda bundle, runtime, golden, bounds: compare_graphs_and_steps(
                runtime, golden, bundle.text(), bounds
            ),
            ("L3",): lambda bundle, runtime, golden, bounds: [
                compare_sentences(runtime, golden, bundle.text(), bundle.manifest.max_source, bounds)
            ],
            ("L5",): lambda bundle, runtime, golden, bounds: [compare_reruns(runtime, golden, bundle.text(), bounds)],
        }

    def check_graphs(self, graphs: Mapping[str, GraphSpec], where: str) -> None:
        """Check that the graphs have what decoding needs."""
        decoder.check_graphs(graphs, where)

    def open(self, bundle: Bundle, runtime: str, options: RuntimeOptions) -> Translator:
        """Return the Translator of a bundle."""
        return Translator.open(bundle, runtime, options)

    def record(self, bundle: Bundle, references: References, inputs: Sequence[str]) -> Golden:
        """Run greedy and beam search of the reference on sentences and return their results."""
        return record_translation(references, bundle.text(), inputs, bundle.manifest.max_source)

    def load_golden(self, bundle: Bundle) -> Golden:
        """Return the golden data of a bundle."""
        checked_text(bundle)
        return reader.load(bundle)

    def golden_inputs(self, golden: Golden) -> Sequence[str]:
        """Return the sentences that golden data was recorded for."""
        return golden.sentences

    def coverage(self, runtime: Runtime, golden: Golden) -> Mapping[str, tuple[int, int]]:
        """Return how many source entries the encoder reads and how many target entries a step is fed, of how many."""
        return golden.coverage(runtime.graphs)

    def check_golden(self, runtime: Runtime, golden: Golden, origin: str) -> None:
        """Check that golden data was recorded from the model of this bundle.

        Raises:
            InputError: other encoder outputs, or tokens that are not in the vocabularies.
        """
        encoder = runtime.graphs[decoder.ENCODER]
        names = {tensor.name for tensor in encoder.outputs}
        names |= {"alignment"} if decoder.has_alignment(runtime.graphs) else set()
        recorded = {name.removeprefix("encoder.") for name in golden.arrays if name.startswith("encoder.")}
        recorded |= {"alignment"} if "steps.alignment" in golden.arrays else set()
        source = next(tensor for tensor in encoder.inputs if tensor.name == "source")
        largest = max(map(max, golden.sources)), int(golden.arrays["steps.top_ids"].max())
        sizes = source.values[1] + 1, decoder.output_sizes(runtime.graphs)[1]
        if names != recorded or largest[0] >= sizes[0] or largest[1] >= sizes[1]:
            raise InputError(
                f"{origin} is of another model than this bundle: it has {', '.join(sorted(recorded))} and tokens up to "
                f"{largest[0]} -> {largest[1]}, the bundle has {', '.join(sorted(names))} and vocabularies of "
                f"{sizes[0]} -> {sizes[1]} entries"
            )


TASK = TranslationTask()
