#!/usr/bin/env bash
# What can be said of a GPU: the tests that need one, a run of 256 pictures, and speeds side by side.
#
#   bash tools/gpu_check.sh [OUTPUT_FOLDER]     (in an environment with the package and its extra `test`)
#
# Writes summary.md to the folder (results/gpu-check): what README may then say of such a machine. DEVICE=cpu tries the
# script itself where there is no GPU, with less of everything.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD"
out=${1:-results/gpu-check}
device=${DEVICE:-cuda}
python=${PYTHON:-python}
pictures=256 quick=()
[ "$device" = cpu ] && pictures=4 quick=(--quick)
mkdir -p "$out"

seconds() { local start=$SECONDS; "$@" > "$out/log.txt" 2>&1 || { tail -n 20 "$out/log.txt" >&2; exit 1; }; echo $((SECONDS - start)); }

tests=$(VITHEADS_TEST_DEVICE=$device seconds "$python" -m pytest -q -m gpu -p no:cacheprovider tests/test_gpu.py)
passed=$(tail -n 1 "$out/log.txt")
bench=$(seconds "$python" -m analysis.bench --only machine,sweep,layers --device "$device" "${quick[@]}" --output-dir "$out/bench")
run=$(seconds "$python" -m analysis.compare --device "$device" --num-pictures "$pictures" --batch-size 64 \
    --output-dir "$out/run")

"$python" - "$out" "$device" "$pictures" "$tests" "$bench" "$run" "$passed" <<'PYTHON'
import json
import sys
from pathlib import Path

import pandas as pd

out, device, pictures, tests, bench, run, passed = Path(sys.argv[1]), *sys.argv[2:]
machine = json.loads((out / "bench" / "machine.json").read_text(encoding="utf-8"))["machine"]
sweep = pd.read_csv(out / "bench" / "sweep.csv")
lines = [
    f"# {machine['device']} ({device})",
    "",
    f"- tests that need it: {passed} ({tests} s)",
    f"- a default run of {pictures} pictures: {run} s",
    f"- speeds ({bench} s):",
    *(
        f"  - {row['contender']} against {row['baseline']}: {row['ratio_to_baseline']:.1f} times"
        for _, row in sweep[sweep["ratio_to_baseline"].notna()].iterrows()
    ),
    "",
    f"torch {machine['versions']['torch']}",
]
(out / "summary.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
print("\n".join(lines))
PYTHON
rm -f "$out/log.txt"
