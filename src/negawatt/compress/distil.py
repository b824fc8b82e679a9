"""`Distil`: let a small model learn from a larger one (Hinton et al. 2015).

A decoder learns the teacher's distribution over the next token, on the calibration windows. An encoder
becomes a classifier that learns the teacher's answers to labelled texts. The teacher is asked once; what
it said is kept with the work in progress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from negawatt.compress.classifier import TRAINING, WINDOWS_A_STEP, check_encoder, fit, require_labels
from negawatt.compress.labelled import UNKNOWN, Labelled, labelled
from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.recovery import BRIDGE, HIDDEN, TEMPERATURE, TOP_K, Lesson, learn_all
from negawatt.compress.source import Source
from negawatt.compress.teacher import (
    STEP,
    ask_about_texts,
    bridge,
    classifier_of,
    teacher_of,
    unlike,
)
from negawatt.compress.technique import Pass, Work
from negawatt.errors import UsageError

if TYPE_CHECKING:
    import torch


class Distil(Pass):
    """Teach a student what a teacher answers."""

    name: ClassVar[str] = "distil"
    summary: ClassVar[str] = "teach a small model, or a small classifier, what a larger one answers"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("teacher", "", "model to learn from: a decoder with the same tokens, or a classifier"),
        TEMPERATURE,
        Parameter("labels", 0.1, "weight of the true labels, or of the text itself; the teacher has the rest",
                  low=0.0, high=1.0, search=(0.0, 0.1, 0.5)),
        HIDDEN,
        TOP_K,
        Parameter("pieces", 0, "of every text so many runs of its words are learnt too, which only the "
                  "teacher labels", low=0, search=(0, 2)),
        *TRAINING,
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        if not self.values["teacher"]:
            raise UsageError("distil: name the model to learn from, with teacher=MODEL")
        if Network(source).is_decoder:
            teacher_of(self.values["teacher"], source, self.name)
            if self.values["frozen"]:
                raise UsageError("distil: frozen is for encoders; a decoder is trained whole")
        else:
            check_encoder(source, self.name, self.values["frozen"])
            classifier_of(self.values["teacher"], None, self.name)

    def apply(self, work: Work) -> None:
        if work.network().is_decoder:
            self._decoder(work)
        else:
            self._classifier(work)

    def _decoder(self, work: Work) -> None:
        assert work.tokens is not None
        values = self.values
        teacher = teacher_of(values["teacher"], work.source, self.name)
        batch = values["batch"] or WINDOWS_A_STEP
        steps = -(-values["epochs"] * len(work.tokens) // batch)
        lesson = Lesson(
            teacher, values["temperature"], values["top_k"], values["hidden"], values["labels"], steps, batch,
            values["rate"],
        )  # fmt: skip
        learn_all(work, lesson)

    def _classifier(self, work: Work) -> None:
        require_labels(work, self.name)
        learnt = labelled(work.text, work.seed)[0].with_pieces(self.values["pieces"], work.seed)
        teacher = classifier_of(self.values["teacher"], learnt.names, self.name)
        work.draft.outcome["teacher_sha256"] = teacher.identity
        ask_about_texts(work, teacher, learnt, self.values["hidden"] > 0)
        work.draft.outcome["teacher"] = work.draft.kept(STEP)
        self._fit(work, learnt)

    def _fit(self, work: Work, learnt: Labelled) -> None:
        import torch

        said = work.draft.aside(STEP)
        heat, weight, hidden = (self.values[key] for key in ("temperature", "labels", "hidden"))
        across = None
        if hidden:
            across = bridge(work.network().model.config.hidden_size, said["hidden"].shape[-1], work.seed)

        def loss(logits: Any, mean: Any, answers: Any, chosen: Any) -> torch.Tensor:
            wanted = (said["logits"][chosen] / heat).log_softmax(-1)
            found = (logits / heat).log_softmax(-1)
            kl = torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * heat**2
            known = answers != UNKNOWN
            truth = torch.nn.functional.cross_entropy(logits[known], answers[known], reduction="sum")
            total: torch.Tensor = (1 - weight) * kl + weight * truth / len(answers)
            if hidden:
                ours = mean if across is None else mean @ across.T
                total = total + hidden * unlike(ours, said["hidden"][chosen])
            return total

        extra = {} if across is None else {BRIDGE: across}
        fit(work, learnt, self.values, loss, with_hidden=hidden > 0, extra=extra)
