"""The exercises of notebook 06."""

from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("06.1")
def _share_removed(share: Callable[[int, int, float], float]) -> str:
    for embedding, linear, fraction in ((900, 100, 0.5), (1_000_200, 20_400, 0.9), (0, 50, 0.2)):
        found = share(embedding, linear, fraction)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Your function returned {found!r}.", hint="Return one number, a fraction between 0 and 1.")
        expected = fraction * linear / (embedding + linear)
        if abs(found - expected) <= 1e-9:
            continue
        said = (
            f"{embedding:,} and {linear:,} weights, {fraction:.0%} of the linear ones: {expected:.4g}, not {found:.4g}."
        )
        if abs(found - fraction) <= 1e-9:
            raise Wrong(
                said, hint="That is the share of the linear weights. Count what goes, and divide by all weights."
            )
        if abs(found - fraction * linear) <= 1e-6:
            raise Wrong(said, hint="That is how many weights go. A share is that number divided by all weights.")
        raise Wrong(said, hint="Above the line the weights that go; below it embedding and linear weights together.")
    return "Nearly everything that a text classifier has is its words."


@exercise("06.2")
def _max_of_words(maximum: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    lengths, vectors = [6, 4, 1], -torch.rand(3, 6, 5) - 0.5  # below zero, all of them: zero would win
    vectors[1, 0], vectors[2, 0] = vectors[1, 0] + 3, vectors[2, 0] - 1
    tokens = torch.tensor([[2 + place for place in range(length)] + [1] * (6 - length) for length in lengths])
    vectors[tokens == 1] = 9.0  # so would padding
    given = vectors.clone()
    found = maximum(vectors, tokens)
    expected = torch.stack([given[row, :n].max(dim=0).values for row, n in enumerate(lengths)])
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise Wrong(
            f"Three texts of five dimensions should give (3, 5), and yours gave {shape}.",
            hint="amax(dim=1) goes over the words and returns values; max(dim=1) returns a pair, with indices.",
        )
    if not torch.equal(vectors, given):
        raise Wrong("The vectors were changed.", hint="masked_fill makes a new tensor, masked_fill_ does not.")
    if (found == 9).any():
        raise Wrong(
            "In a text with padding, the padding wins.",
            hint="Where a token is 1, put a number in its place that can never be the largest.",
        )
    if not torch.allclose(found[0], expected[0], atol=1e-6):
        raise Wrong("A text without padding has another maximum.", hint="The largest value over its words, no more.")
    if not torch.allclose(found, expected, atol=1e-6):
        raise Wrong(
            "In a text whose values are all below zero, the answer is larger than each of them.",
            hint="Zero is larger than they are. Minus infinity never is: masked_fill(…, -torch.inf).",
        )
    return "Padding can never win, whatever the values are."


@exercise("06.3")
def _hold_out_films(hold_out: Callable[[torch.Tensor, float, int], torch.Tensor]) -> str:
    sizes = torch.cat([torch.full((150,), 1), torch.full((30,), 30)])  # reviews of each film, very uneven
    film = torch.repeat_interleave(torch.arange(len(sizes)) + 7, sizes)
    splits = []
    for share, seed in ((0.2, 0), (0.2, 1), (0.1, 2), (0.5, 3), (0.2, 0)):
        held = hold_out(film.clone(), share, seed)
        if not isinstance(held, torch.Tensor) or held.shape != film.shape or held.dtype != torch.bool:
            raise Wrong(
                f"The answer should be a boolean tensor of {len(film)} reviews.",
                hint="torch.isin(film, chosen) says of each review whether its film was chosen.",
            )
        both = sum(bool(held[film == name].any()) and not bool(held[film == name].all()) for name in film.unique())
        if both:
            raise Wrong(
                f"{both} of {len(sizes)} films have reviews on both sides.",
                hint="Draw films, not reviews: list the films with unique(), and choose among them.",
            )
        found = float(held.float().mean())
        if not share - 1e-6 <= found <= share + 30 / len(film) + 1e-6:
            raise Wrong(
                f"With share={share}, {found:.1%} of the reviews are held out.",
                hint="Films have different numbers of reviews: add those up, and stop at the share of the reviews.",
            )
        splits.append(held)
    if torch.equal(splits[0], splits[1]):
        raise Wrong("Two seeds hold out the same films.", hint="Let a generator with that seed draw the films' order.")
    if not torch.equal(splits[0], splits[4]):
        raise Wrong(
            "The same seed held out other films the second time.",
            hint="torch.Generator().manual_seed(seed) makes a generator of its own; give it to randperm.",
        )
    return "No film is on both sides, and as many reviews are held out as were asked for."


@exercise("06.4")
def _share_of_tokens(guess: Callable[[], float], *, measured: float) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.15,
        unit="of the tokens",
        too_low="Text is very uneven: the hundred most frequent words and marks are already more than half of it.",
        too_high="The rest is long: names, plots and moods are rare words, and there are thousands of them.",
    )
