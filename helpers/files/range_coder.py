"""The range coder: adaptive and given tables (Martin 1979), through constriction."""

from collections import defaultdict
from typing import Any

import constriction
import numpy as np

from helpers.files.arrays import PackingError

SUM = 2**16  # of the whole numbers that stand for the probabilities of what may come next
SPARE_BITS, A_DECISION, A_VALUE = 2**14, 2**-5, 2**-10
BITS_OF = (-np.log2(np.arange(1, SUM + 1) / SUM)).tolist()  # of what has a probability of 1, 2, … over SUM
SPENT = "there are more values, or more that are easy to guess, than a file of this length may hold"
FEW = {0: 0, 1: 1, 2: 2, 3: 2, 4: 2}


class _Coder:
    """What is decided, in which order and context. Writing and reading run the same code: a writer passes each answer
    in, a reader passes None.
    """

    def __init__(self) -> None:
        self.units: dict[int, np.ndarray] = {}  # of the latest matrix with so many rows, which are alive
        self.lines: dict[int, np.ndarray] = {}  # of the latest single row of this length, which entries are not zero

    def one(self, probability: int, given: int | None) -> int:
        """Return the answer to one decision, 0 or 1; `probability` is that of 1, times SUM."""
        raise NotImplementedError

    def many(self, count: int, frequencies: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        """Return `count` symbols of these frequencies."""
        raise NotImplementedError

    def expect(self, decisions: int) -> None:
        """Prepare for at least so many decisions."""

    def decide(self, state: list[int], given: int | None) -> int:
        """Return the answer to one decision, and count it in the `state` of its context: [decisions, ones]."""
        decisions, ones = state
        answer = self.one(max((5 * ones + 2) * SUM // (5 * decisions + 4), 1), given)
        state[0], state[1] = decisions + 1, ones + answer
        return answer

    def alive(self, length: int, context: np.ndarray | None, given: np.ndarray | None) -> np.ndarray:
        """Return for each row or column whether anything in it is not zero."""
        self.expect(length)
        states = [0, 0], [0, 0]
        contexts = [0] * length if context is None else context.tolist()
        answers = [None] * length if given is None else given.tolist()
        return np.array([self.decide(states[c], a) for c, a in zip(contexts, answers, strict=True)], bool)

    def positions(self, shape: tuple[int, ...], given: np.ndarray | None = None) -> np.ndarray:
        """Return which places of a matrix are not zero."""
        rows, columns = shape
        read = self.units.get(max((rows for rows in self.units if columns % rows == 0), default=0))
        in_blocks = None if read is None else np.repeat(read, columns // len(read))
        filled = self.alive(columns, in_blocks, None if given is None else np.any(given, axis=0))
        if rows == 1:
            self.lines[columns] = filled
            return filled[None]
        active = self.alive(rows, self.lines.get(rows), None if given is None else np.any(given, axis=1))
        self.units[rows] = active
        return self._places(active, filled, given)

    def _places(self, rows: np.ndarray, columns: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        states: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
        found = np.zeros((len(rows), len(columns)), bool)
        places = np.flatnonzero(columns)
        self.expect(int(np.count_nonzero(rows)) * len(places))
        for row in np.flatnonzero(rows):
            answers = [None] * len(places) if given is None else given[row, places].tolist()
            ones = last = 0
            for before, answer in enumerate(answers):
                state = states[((before + 4) // (ones + 1)).bit_length(), FEW[last.bit_count()]]
                answers[before] = answer = self.decide(state, answer)
                ones, last = ones + answer, (2 * last + answer) & 15
            found[row, places] = answers
        return found

    def values(
        self, count: int, alphabet: int, frequencies: np.ndarray | None, given: np.ndarray | None = None
    ) -> np.ndarray:
        """Return `count` numbers from 0 to `alphabet` - 1."""
        if frequencies is not None:
            return self.many(count, frequencies, given)
        width = (alphabet - 1).bit_length()
        if width == 0:
            return np.zeros(count, np.int64)
        self.expect(count * width)
        states: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        numbers = []
        for number in [None] * count if given is None else given.tolist():
            node = 1
            for place in range(width - 1, -1, -1):
                node = 2 * node + self.decide(states[node], None if number is None else number >> place & 1)
            numbers.append(node - 2**width)
        return np.array(numbers, np.int64)


class Writer(_Coder):
    """Hands the answers to a range encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = constriction.stream.queue.RangeEncoder()
        self.answers: list[int] = []
        self.probabilities: list[int] = []
        self.bits = 0.0

    def one(self, probability: int, given: int | None) -> int:
        """Return `given`, after noting it and its probability to be encoded later."""
        assert given is not None
        self.answers.append(given)
        self.probabilities.append(probability)
        return given

    def many(self, count: int, frequencies: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        """Return `given`, after encoding these symbols by their frequencies, which add up to `SUM`."""
        assert given is not None
        self._flush()
        self.encoder.encode(given.astype(np.int32), _model(frequencies))
        self.bits -= float(np.log2(frequencies[given] / SUM).sum())
        return given

    def _flush(self) -> None:
        """Encode the decisions at once: one by one it would take longer."""
        answers, chances = np.array(self.answers, np.int32), np.array(self.probabilities) / SUM
        if answers.size:
            self.encoder.encode(answers, constriction.stream.model.Bernoulli(perfect=False), chances)
        self.bits -= float(np.log2(np.where(answers == 1, chances, 1 - chances)).sum())
        self.answers, self.probabilities = [], []

    def spent(self) -> float:
        """Return the bytes since the last call: the sum of -log2 p, over 8."""
        self._flush()
        spent, self.bits = self.bits / 8, 0.0
        return spent

    def words(self) -> bytes:
        """Return all that was encoded, as the bytes of little-endian 32-bit words."""
        self._flush()
        return self.encoder.get_compressed().astype("<u4").tobytes()


class Reader(_Coder):
    """Gets the answers from a range decoder, and pays for them: what is coded cannot decide more than it has bits."""

    def __init__(self, words: bytes) -> None:
        super().__init__()
        self.decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
        self.left = 2.0 * 8 * len(words) + SPARE_BITS

    def expect(self, decisions: int) -> None:
        """Raise PackingError if so many decisions would cost more bits than are left."""
        if decisions * A_DECISION > self.left:
            raise PackingError(SPENT)

    def one(self, probability: int, given: int | None) -> int:
        """Return the decoded answer, 0 or 1, and pay for it; PackingError if bits run out or are invalid."""
        answer = self._decoded(constriction.stream.model.Bernoulli(probability / SUM, perfect=False))
        self.left -= BITS_OF[(probability if answer else SUM - probability) - 1] + A_DECISION
        if self.left < 0:
            raise PackingError(SPENT)
        return answer

    def many(self, count: int, frequencies: np.ndarray, given: np.ndarray | None) -> np.ndarray:
        """Return `count` decoded symbols and pay for them; PackingError if bits run out or are invalid."""
        if count * A_VALUE > self.left:
            raise PackingError(SPENT)
        symbols = self._decoded(_model(frequencies), count)
        self.left -= A_VALUE * count - float(np.log2(frequencies[symbols] / SUM).sum())
        if self.left < 0:
            raise PackingError(SPENT)
        return symbols

    def _decoded(self, *what: Any) -> Any:
        try:
            return self.decoder.decode(*what)
        except AssertionError:
            raise PackingError("what is coded was not made by a range coder") from None


def _model(frequencies: np.ndarray) -> Any:
    return constriction.stream.model.Categorical(frequencies / SUM, perfect=False)
