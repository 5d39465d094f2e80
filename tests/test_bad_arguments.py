"""Every public function refuses what it cannot do by an error of its own (`bad_arguments.py` has the calls)."""

from collections import defaultdict

import pytest

from tests import bad_arguments

CASES = defaultdict(list)
for call, name, wrong in bad_arguments.cases():
    CASES[call.function.__module__].append((call, name, wrong))


@pytest.mark.parametrize("call", list(bad_arguments.calls()), ids=lambda call: call.function.__qualname__)
def test_the_calls_are_valid(call):
    call.function(**call.arguments)


@pytest.mark.parametrize("module", CASES)
def test_a_bad_argument_is_answered_or_refused(module, unchecked_shapes):
    raw = []
    for call, name, wrong in CASES[module]:
        kind, said = bad_arguments.outcome(call, name, wrong)
        if kind == "raw":
            raw.append(f"{call.function.__qualname__}({name}={bad_arguments.shown(wrong)}): {said[:150]}")
    assert not raw, "\n".join(raw)
