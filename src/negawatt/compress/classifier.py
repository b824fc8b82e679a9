"""`Classifier`: give an encoder a head, and train both on a workload's labels or on a teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.head import give_head
from negawatt.compress.labelled import Labelled, has_labels, labelled
from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work
from negawatt.compress.text_model import TextModel
from negawatt.compress.training import batches, is_done, losses, train
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch

TEXTS_A_STEP = 32
WINDOWS_A_STEP = 4
BATCH = Parameter("batch", 0, "texts, or windows of a decoder, a step; 0: 32 texts or 4 windows", low=0)
TRAINING = (
    Parameter("epochs", 4, "times every text is seen", low=1, search=(2, 4, 8)),
    BATCH,
    Parameter("rate", 1e-4, "highest learning rate", low=0.0, high=1.0, open=True, search=(5e-5, 1e-4, 2e-4)),
    Parameter("frozen", 0, "first blocks that stay as they are; what they give is computed once", low=0),
)
"""What every pass that trains an encoder on texts can be told."""


class Classifier(Pass):
    """Train an encoder to label texts, on labels that people gave."""

    name: ClassVar[str] = "classifier"
    summary: ClassVar[str] = "give an encoder a head, and train it on a workload's labels"
    parameters: ClassVar[tuple[Parameter, ...]] = TRAINING
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        check_encoder(source, self.name, self.values["frozen"])

    def apply(self, work: Work) -> None:
        require_labels(work, self.name)
        learnt, _ = labelled(work.text, work.seed)
        fit(work, learnt, self.values, _labels_alone)


def _labels_alone(logits: torch.Tensor, mean: Any, answers: torch.Tensor, chosen: Any) -> torch.Tensor:
    import torch

    return torch.nn.functional.cross_entropy(logits, answers)


def check_encoder(source: Source, name: str, frozen: int) -> None:
    """Refuse what is no encoder, and more frozen blocks than there are.

    Raises:
        UsageError: either.
    """
    network = Network(source)
    if network.is_decoder or network.model.config.is_encoder_decoder:
        kind = "a decoder" if network.is_decoder else "an encoder-decoder"
        raise UsageError(f"{name} gives encoders a head, and {source.name} is {kind}")
    if frozen > len(network.blocks):
        raise UsageError(
            f"{name}: {frozen} blocks cannot stay frozen, {source.name} has {len(network.blocks)}"
        )


def require_labels(work: Work, name: str) -> None:
    """Raises:
    UsageError: the text is no workload with labels.
    """
    if not has_labels(work.text):
        raise UsageError(
            f"{name} learns from labelled texts; name a workload with items of kind classify, with "
            "--calibration"
        )


Loss = Callable[["torch.Tensor", "torch.Tensor | None", "torch.Tensor", Sequence[int]], "torch.Tensor"]
"""Takes logits, mean hidden states, true labels, and which texts they are; gives what is to be lowered."""


def fit(
    work: Work,
    texts: Labelled,
    values: Mapping[str, Any],
    loss: Loss,
    *,
    with_hidden: bool = False,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Give the source a head if it has none, train it, and put the result into the draft.

    Args:
        work: of the pass.
        texts: to learn from.
        values: of the parameters `TRAINING`.
        loss: what is lowered.
        with_hidden: whether the loss needs hidden states.
        extra: values that are learnt along and are no part of the result.
    """
    draft = work.draft
    give_head(draft, work.source, texts.names, work.seed)
    model = TextModel(draft.as_source(work.source), half=True)
    rows = texts.encoded(work.source)
    steps = batches([len(r) for r in rows], values["batch"] or TEXTS_A_STEP, values["epochs"], work.seed)
    if not is_done(draft, len(steps)):
        _train(work, model, rows, texts, steps, values, loss, with_hidden, extra or {})
    draft.outcome |= {
        **losses(draft, len(steps)), "labels": list(texts.names), "texts": len(rows),
        "labels_sha256": texts.sha256,
    }  # fmt: skip
    if draft.kept("trained") is None:
        stored = model.network.source.as_stored
        trained = {n: v for n, v in draft.carried.items() if n != "count" and "|" not in n}
        draft.keep("trained", {name: stored(name, value) for name, value in trained.items()})


def _train(
    work: Work, model: TextModel, rows: list[list[int]], texts: Labelled, steps: list[list[int]],
    values: Mapping[str, Any], loss: Loss, with_hidden: bool, extra: Mapping[str, torch.Tensor],
) -> None:  # fmt: skip
    import torch

    frozen, answers = values["frozen"], torch.tensor(texts.answers)
    with model.network.whole(torch.float32) as module:
        work.progress(0, len(steps), "running the frozen blocks" if frozen else "training")
        given = model.given(module, rows, frozen) if frozen else []

        def step(number: int) -> float:
            chosen = steps[number]
            if frozen:
                give([given[i] for i in chosen])
            logits, mean = model.run(module, [rows[i] for i in chosen], with_hidden=with_hidden)
            found = loss(logits, mean, answers[chosen], chosen)
            found.backward()
            return float(found.detach())

        with model.beginning_at(frozen) as give:
            learnt = {**_reached(model, module, step), **extra}
            for value in learnt.values():
                value.grad = None
            train(work.draft, learnt, step, steps=len(steps), rate=values["rate"], progress=work.progress)


def _reached(model: TextModel, module: Any, step: Callable[[int], float]) -> dict[str, torch.Tensor]:
    """The parameters that gradients reach, by their names in the checkpoint."""
    names = model.network.checkpoint_names
    parameters = dict(module.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    step(0)
    found = {}
    for path, parameter in parameters.items():
        parameter.requires_grad_(parameter.grad is not None)
        if parameter.grad is not None:
            found[names[path]] = parameter
    return found
