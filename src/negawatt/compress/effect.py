"""`Effect`: by how much a pass lowers what a decoding step needs, foretold from the model's dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from negawatt.artifact.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Situation:
    """What runs, as far as the effect of a pass depends on it.

    Attributes:
        shape: the model's dimensions.
        engine: name of the engine.
        weights: the weight format that it runs.
        layer_bits: bits that a weight of the blocks takes there now.
        layer_bytes, head_bytes: read by every step.
    """

    shape: ModelShape
    engine: str
    layer_bits: float
    layer_bytes: float
    head_bytes: float
    weights: str = "native"

    @property
    def head_share(self) -> float:
        """The head's share of the multiplications of a token."""
        shape = self.shape
        head = shape.vocab * shape.hidden
        tables = head if shape.tied_embeddings else 2 * head
        return head / max(1, shape.n_params - tables + head)

    def bytes_factor(self, layers: float = 1.0, head: float = 1.0) -> float:
        """The factor on all bytes when those of the layers and of the head change by these factors."""
        return (self.layer_bytes * layers + self.head_bytes * head) / (self.layer_bytes + self.head_bytes)

    def work_factor(self, layers: float = 1.0, head: float = 1.0) -> float:
        """The same for multiplications."""
        return (1 - self.head_share) * layers + self.head_share * head


@dataclass(frozen=True, slots=True)
class Effect:
    """Factors on what a step needs; 1 is no change.

    Attributes:
        read: bytes of weights read.
        unpack: work that comes with every weight, once a step.
        arithmetic: work that comes with every weight for every token.
        start: operations started.
        context: work for every token of context.
        why: a sentence: what the pass does here, or why it can save nothing.
        packs: the pass itself says in how many bits its result is stored.
    """

    read: float = 1.0
    unpack: float = 1.0
    arithmetic: float = 1.0
    start: float = 1.0
    context: float = 1.0
    why: str = ""
    packs: bool = False

    @property
    def saves(self) -> bool:
        """Whether anything gets less."""
        return min(self.read, self.unpack, self.arithmetic, self.start, self.context) < 1.0


NO_GAIN = "no engine here skips zeros: every weight is read and multiplied as before"
VALUES_ONLY = Effect(why="it changes values, not how many there are: no engine does less for it")

_GRIDS = {(4, True): 4.5, (4, False): 5.0, (8, True): 8.5}
"""(bits, symmetric) → bits a weight of GGUF's Q4_0, Q4_1 and Q8_0, which hold these grids exactly."""
FACTORED_ENGINES = ("transformers", "openvino")
"""Engines that run a matrix in two factors as two layers."""
PACKED_ENGINES = ("llamacpp", "openvino")
"""Engines that run a packed grid as it is."""


def in_bits(
    at: Situation, bits: int, symmetric: bool, embeddings: int, average: float | None = None
) -> Effect:
    """The effect of storing the blocks in `bits`, and embedding and head in `embeddings` (0: as they are).

    Args:
        at: what runs.
        bits, symmetric, embeddings: of the pass.
        average: bits of a weight where some layers get more than `bits`.
    """
    if at.engine not in PACKED_ENGINES:
        return Effect(why=f"{at.engine} runs the weights unpacked: it reads as many bytes as before")
    if at.weights != "native":
        return Effect(why=f"{at.engine} makes {at.weights} of whatever comes; native runs a pass's own grid")
    stored = _GRIDS.get((bits, symmetric), 16.0)
    if average is not None and stored < 16.0:
        stored += average - bits
    head = _GRIDS[embeddings, True] if embeddings in (4, 8) else None
    layers = stored / at.layer_bits
    head_bits = 8 * at.head_bytes / (at.shape.vocab * at.shape.hidden)
    read = at.bytes_factor(layers, head / head_bits if head else 1.0)
    if stored == 16.0:
        kind = f"{bits:g} bits" if symmetric else f"{bits:g} bits with offsets"
        why = f"{at.engine} has no grid of {kind} and runs it unpacked"
    else:
        why = f"{stored:g} instead of {at.layer_bits:.3g} bits a weight of the layers"
    return Effect(read=read, why=why, packs=True)


def narrowed(at: Situation, kept: float, why: str) -> Effect:
    """The effect of keeping a share of the weights of every layer, with as many operations."""
    factor = at.work_factor(kept)
    return Effect(at.bytes_factor(kept), factor, factor, why=why)


def split(at: Situation, ratio: float) -> Effect:
    """The effect of turning matrices into products of two that hold `ratio` fewer weights."""
    if at.engine not in FACTORED_ENGINES:
        return Effect(why=f"{at.engine} has no place for two factors and runs their product")
    why = f"{1 - ratio:.0%} of the layers' weights are left, in up to twice as many operations"
    return replace(narrowed(at, 1 - ratio, why), start=2.0)


def unpacked(at: Situation, effect: Effect) -> Effect:
    """The effect where the source was packed and the result is stored in the 32 bits its values stand for."""
    head_bits = 8 * at.head_bytes / (at.shape.vocab * at.shape.hidden)
    return replace(effect, read=effect.read * at.bytes_factor(32 / at.layer_bits, 32 / head_bits))
