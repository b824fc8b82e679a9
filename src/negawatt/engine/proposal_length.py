"""`ProposalLength`: how many tokens should be proposed, by what was accepted and what calls cost.

Of proposals that are each accepted with probability α, a call that verifies γ of them writes
(1 - α^(γ+1)) / (1 - α) tokens (Y. Leviathan, M. Kalman, Y. Matias, Fast Inference from Transformers via
Speculative Decoding, ICML 2023, equation 1). The paper takes verifying for free, which it is where
arithmetic units idle. On a processor it is not, so here every cost is measured, in CPU seconds: that of a
proposal (nothing where n-grams are looked up), that of a call of the model without any, what each proposal
adds to it, and what a draft model's own reading of a prompt takes. The length is the one that promises the
fewest CPU seconds a token, which may be none; then proposing rests, and trying it again now and then takes
next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = 8
"""Proposals for one call."""
TRIED = 4
"""Proposals of a call that is made to learn."""
FIRST = (0, TRIED, 0, TRIED, TRIED, TRIED)
"""Lengths of the first calls, before there is anything to decide by."""
PLAIN_EVERY = 32
"""While proposing pays, so seldom a call is made without, to see whether it still does."""
TRYING_SHARE = 0.01
"""While it does not, the draft is tried again as often as takes this share of the model's own CPU time."""
DECAY = 0.98
"""Weight of what was seen one call earlier: some fifty calls count."""
PRIOR = (1.0, 2.0)
"""Accepted, and examined proposals that are believed in before any was seen."""


@dataclass(slots=True)
class Mean:
    """A ratio of two sums, of which the latest observations count most."""

    amount: float = 0.0
    weight: float = 0.0

    def observe(self, amount: float, weight: float = 1.0) -> None:
        self.amount, self.weight = DECAY * self.amount + amount, DECAY * self.weight + weight

    @property
    def value(self) -> float:
        """0 before anything was observed."""
        return self.amount / self.weight if self.weight else 0.0


@dataclass(slots=True)
class ProposalLength:
    """Learns over all sequences that a model writes, and changes no answer."""

    acceptance: Mean = field(default_factory=lambda: Mean(*PRIOR))
    """Share of the proposals looked at that was accepted; those after a wrong one are not looked at."""
    proposal_s: Mean = field(default_factory=Mean)
    reading_s: Mean = field(default_factory=Mean)
    plain_s: Mean = field(default_factory=Mean)
    verifying_s: Mean = field(default_factory=Mean)
    calls: int = 0
    untried_s: float = 0.0
    """CPU seconds of the model for a sequence since proposing was tried."""

    def next(self, room: int, unread: int = 0) -> int:
        """How many to propose now, at most `room`.

        Args:
            room: tokens that may follow.
            unread: tokens of the sequence that the draft would have to read first.
        """
        self.calls += 1
        if self.calls <= len(FIRST):
            return min(room, FIRST[self.calls - 1])
        if best := self.best(room):
            plain = self.calls % PLAIN_EVERY == 0 or not self.pays(room, unread)
            return 0 if plain else best
        trying_s = unread * self._reading_s + TRIED * (self.proposal_s.value + self.verifying_s.value)
        if TRYING_SHARE * self.untried_s < trying_s:
            return 0
        self.untried_s = 0.0
        return min(room, TRIED)

    def pays(self, room: int, unread: int) -> bool:
        """Whether proposing is expected to save more over an answer of `room` tokens than reading takes.

        Before anything is known it is.
        """
        if self.calls < len(FIRST):
            return True
        best = self.best(room)
        saved_s = self.cpu_s_per_token(0) - self.cpu_s_per_token(best)
        return best > 0 and room * saved_s > unread * self._reading_s

    @property
    def _reading_s(self) -> float:
        """Of a token by the draft; before it read any, as long as proposing one."""
        return self.reading_s.value if self.reading_s.weight else self.proposal_s.value

    def best(self, room: int) -> int:
        """The length, at most `room`, that promises the fewest CPU seconds a token."""
        return min(range(min(room, MOST) + 1), key=self.cpu_s_per_token)

    def cpu_s_per_token(self, length: int) -> float:
        """What a token is expected to cost with so many proposals in each call."""
        written = sum(self.acceptance.value**n for n in range(length + 1))
        proposing_s = length * (self.proposal_s.value + self.verifying_s.value)
        return (self.plain_s.value + proposing_s) / written

    # -- learning --------------------------------------------------------------------------------

    def read(self, tokens: int, cpu_s: float) -> None:
        """Note what it took the draft to read a piece of a sequence."""
        self.reading_s.observe(cpu_s, tokens)

    def proposed(self, tokens: int, cpu_s: float) -> None:
        """Note what it took the draft to propose."""
        self.proposal_s.observe(cpu_s, tokens)

    def verified(self, proposed: int, accepted: int, fed: int, cpu_s: float) -> None:
        """Note a call that went on with one sequence, and what it said of proposals."""
        self.called(fed, cpu_s)
        self.judged(proposed, accepted)

    def called(self, fed: int, cpu_s: float, sequences: int = 1) -> None:
        """Note what a call of the model took that went on with so many sequences, always as many.

        Args:
            fed: tokens of the call.
            cpu_s: that it took.
        """
        self.untried_s += cpu_s / sequences
        if fed == sequences:
            self.plain_s.observe(cpu_s / sequences)
        elif self.plain_s.weight:
            self.verifying_s.observe(max(0.0, cpu_s - sequences * self.plain_s.value), fed - sequences)

    def judged(self, proposed: int, accepted: int) -> None:
        """Note that of `proposed` tokens of a sequence the first `accepted` were right."""
        if proposed:
            self.acceptance.observe(accepted, min(accepted + 1, proposed))
