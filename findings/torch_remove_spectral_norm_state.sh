#!/usr/bin/env bash
# torch 2.14.1, torch.nn.utils.remove_spectral_norm.
#
# Expected: after the removal the layer is an ordinary one again, and takes back its own state_dict.
# Seen:     it saves "bias" and "weight" alone, which an ordinary layer loads; the layer itself refuses them, with
#           RuntimeError: the hook that spectral_norm put before load_state_dict stays on it and asks for weight_orig.
#           torch.nn.utils.parametrizations.spectral_norm, removed, leaves nothing behind.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
cd "$folder"
cat > show.py <<'PY'
from torch import nn
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm, spectral_norm


def outcome(layer, state):
    try:
        layer.load_state_dict(state)
    except RuntimeError:
        return "RuntimeError"
    return "loaded"


old = remove_spectral_norm(spectral_norm(nn.Linear(3, 2)))
new = parametrizations.spectral_norm(nn.Linear(3, 2))
parametrize.remove_parametrizations(new, "weight")
print("saved:", ", ".join(sorted(old.state_dict())))
print("by an ordinary layer:", outcome(nn.Linear(3, 2), old.state_dict()))
print("by the layer itself:", outcome(old, old.state_dict()))
print("by the layer itself, parametrizations:", outcome(new, new.state_dict()))
PY
"$folder/venv/bin/python" -W ignore show.py | tee seen.txt
cat > told.txt <<'TXT'
saved: bias, weight
by an ordinary layer: loaded
by the layer itself: RuntimeError
by the layer itself, parametrizations: loaded
TXT
diff told.txt seen.txt && echo "as described"
