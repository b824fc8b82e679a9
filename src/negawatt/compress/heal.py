"""`Heal`: train a cut model back towards the one it was cut from.

With a teacher the student learns the teacher's distribution over the next token (Hinton et al. 2015),
without one the text itself. Low-rank additions leave the weights themselves frozen, so that memory and
checkpoints are small; full training changes all weights of the blocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from negawatt.compress.network import Network
from negawatt.compress.parameter import Parameter
from negawatt.compress.recovery import HIDDEN, TEMPERATURE, TOP_K, Lesson, learn_additions, learn_all
from negawatt.compress.source import Source
from negawatt.compress.teacher import teacher_of
from negawatt.compress.technique import Pass, Work
from negawatt.errors import UsageError


class Heal(Pass):
    """Train low-rank additions and merge them, or train all weights."""

    name: ClassVar[str] = "heal"
    summary: ClassVar[str] = "train a cut model back towards its teacher"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("teacher", "", "model to learn from, with the same tokens; none: learn the text itself"),
        Parameter("method", "lora", "low-rank additions, or all weights behind the embedding",
                  choices=("lora", "full")),
        Parameter("steps", 64, "training steps", low=1, search=(64, 256)),
        Parameter("batch", 4, "windows a step", low=1),
        Parameter("rank", 16, "rank of the additions", low=1, search=(8, 32)),
        Parameter("rate", 1e-3, "highest learning rate; full training wants a tenth of it", low=0.0, high=1.0,
                  open=True, search=(1e-4, 3e-4, 1e-3)),
        Parameter("precision", "bfloat16", "of the arithmetic while training",
                  choices=("bfloat16", "float32")),
        replace(TEMPERATURE, default=1.0),
        TOP_K,
        HIDDEN,
    )  # fmt: skip
    calibrated: ClassVar[bool] = True

    def check(self, source: Source) -> None:
        network = Network(source)
        network.refuse_encoder_decoder(self.name, "and it trains a model to predict the next token of a text")
        if not network.is_decoder:
            raise UsageError(
                f"heal trains a model to predict the next token, and {source.name} is an encoder"
            )
        if self.values["teacher"]:
            teacher_of(self.values["teacher"], source, self.name)

    def apply(self, work: Work) -> None:
        values = self.values
        teacher = teacher_of(values["teacher"], work.source, self.name) if values["teacher"] else None
        lesson = Lesson(
            teacher, values["temperature"], values["top_k"], values["hidden"], 0.0, values["steps"],
            values["batch"], values["rate"], values["precision"],
        )  # fmt: skip
        if values["method"] == "full":
            learn_all(work, lesson)
        else:
            learn_additions(work, lesson, values["rank"])
