"""What was tried on a model before it is trusted with a study, and what came of it.

Each cell of a report says one thing in a few words; a fault says what may not be built on it.

Not covered: how it is tried (studylib.checking.check_model), the page of all kinds
(studylib.checking.models_page).
"""

from __future__ import annotations

from pydantic import Field, computed_field

from studylib.schema.methods import ADAPTER, METHODS, QUANTIZED, WHOLE
from studylib.schema.settings import Frozen

# Column -> (its heading, what it says). In the order of the table.
COLUMNS: dict[str, tuple[str, str]] = {
    "loads": ("loads", "the checkpoint opens as a causal model of transformers"),
    "whole": (
        "whole",
        "every weight comes from the checkpoint: none is missing, none has another shape, and two "
        "loads give the same model",
    ),
    "attention": (
        "attention",
        "the kernels that the study uses: sdpa, or eager where the model has no other",
    ),
    "causal": ("causal", "a later token changes nothing of what is said before it"),
    "packing": (
        "packing",
        "a row of several examples, as the study's training lays it out, gives each one's logits "
        "as that example alone does: in one row (packed), or because the study reads the examples "
        "of a row one by one",
    ),
    "loss": (
        "loss",
        "loss and gradient norm of a real training step are those of a formula written by hand: "
        "float64, each example alone, the mean over answer tokens",
    ),
    "chunked": (
        "chunked",
        "the loss over slices of tokens (train.loss = chunked) gives the same loss and the same "
        "gradient of every weight as that formula, or is refused",
    ),
    "four_bit": (
        "in 4 bits",
        "share of the weights outside the embeddings that QLoRA holds in 4 bits",
    ),
    "four_bit_error": (
        "4-bit error",
        "how far a 4-bit layer's answer is from the original's, relative, over the layers: the "
        "median and the worst (NF4 itself costs 9 to 10 %)",
    ),
    "qlora_gradient": (
        "QLoRA gradient",
        "the adapter's gradient is that of the same adapter on a plain model of the same "
        "(dequantized) weights",
    ),
    "lora_merged": (
        "LoRA merged",
        "the merged model says what base and adapter say, in fp32, and so does the adapter saved "
        "and loaded again",
    ),
    "qlora_merged": (
        "QLoRA merged",
        "the adapter on the dequantized base says what it says on the 4-bit base, and the study's "
        "merged form is that model rounded to bf16; in brackets what the rounding moves at the "
        "median token, in standard deviations of the logits",
    ),
    "prefixes": (
        "scoring",
        "log-likelihoods are those of each prompt alone: by shared prefixes (shared), or by "
        "lm-eval's own path where they do not fit",
    ),
    "lora_reach": (
        "LoRA reaches",
        "share of the weights of linear layers and experts that get an adapter from all-linear; "
        "what it misses; ranks other than the one asked for",
    ),
    "forecast": (
        "forecast",
        "the traced peak of live tensors of a full training step against the counted one, as a "
        "difference in per cent; a card's alone: it can be traced in bf16 with a card's kernels, "
        "but not in fp32, so that nothing here counts what it says",
    ),
}
NEEDED = {
    METHODS[WHOLE].label: ("loads", "whole", "causal", "packing", "loss", "prefixes"),
    METHODS[ADAPTER].label: ("lora_reach", "lora_merged"),
    METHODS[QUANTIZED].label: ("four_bit", "four_bit_error", "qlora_gradient", "qlora_merged"),
}


class Cell(Frozen):
    """What one column found: a word or two, and in a note why.

    figures: the numbers behind the words. fault: what must not be built on, and why.
    """

    text: str
    note: str | None = None
    figures: dict[str, float | None] = Field(default_factory=dict)
    fault: str | None = None

    @property
    def words(self) -> str:
        return self.text if self.note is None else f"{self.text}: {self.note}"


class ModelReport(Frozen):
    """All cells of one model, and the versions of the libraries that they were seen with."""

    model: str
    model_type: str
    model_class: str
    parameters: int
    versions: dict[str, str]
    cells: dict[str, Cell]

    def reason(self, method: str) -> str | None:
        """Why a method of NEEDED must not be used on this model; None if it may.

        An adapter needs what full fine-tuning needs, and on 4 bits what it needs on 16.
        """
        order = list(NEEDED)
        for needs in order[: order.index(method) + 1]:
            for column in NEEDED[needs]:
                cell = self.cells.get(column)
                if cell is not None and cell.fault is not None:
                    return f"{COLUMNS[column][0]}: {cell.fault}"
        return None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def usable(self) -> dict[str, str | None]:
        """Method -> why it must not be used, None where it may."""
        return {method: self.reason(method) for method in NEEDED}

    @property
    def verdict(self) -> str:
        """One line: what the model may be used for, and why not for what it may not."""
        reasons = self.usable
        may = [method for method, reason in reasons.items() if reason is None]
        words = [f"usable for {', '.join(may)}"] if may else []
        for reason in dict.fromkeys(filter(None, reasons.values())):
            barred = [method for method, found in reasons.items() if found == reason]
            words.append(f"not usable for {', '.join(barred)} ({reason})")
        return "; ".join(words)


def format_report(report: ModelReport) -> str:
    """The report as lines for a terminal, the verdict last."""
    width = max(len(heading) for heading, _ in COLUMNS.values())
    lines = [f"{report.model}: {report.model_class}, {report.parameters:,} parameters"]
    for name, (heading, _) in COLUMNS.items():
        cell = report.cells.get(name)
        if cell is not None:
            mark = "" if cell.fault is None else "  <- fault"
            lines.append(f"  {heading:{width}}  {cell.words}{mark}")
    return "\n".join([*lines, report.verdict])
