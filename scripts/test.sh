#!/usr/bin/env bash
# Runs every test and ends with "N passed, N failed"; exits non-zero if a test failed or none ran.
# FEATURES (from make): cargo's flags if there is a Swift toolchain. Then the tests of Swift, of the seam, and of the whole
# system with `--hypervisor vz` run too. On macOS: every test that needs no Linux guest.
set -uo pipefail
log=${TEST_LOG:-target/test.log}
mkdir -p "$(dirname "$log")"
: > "$log"

status=0
run() {
    echo "==> $*"
    "$@" 2>&1 | tee -a "$log" || status=1
}

export SHOESVZ_TEST_TEMPLATE=${SHOESVZ_TEST_TEMPLATE:-$PWD/target/template}
# The same features as the debug build of `make`, so that nothing is built twice.
swift=${FEATURES:+yes}
# shellcheck disable=SC2206 # several words
build=(--workspace --no-fail-fast ${FEATURES:-})

# The test programs in which guests run. The others are searched for, so that a new one is not forgotten.
with_guests=(guest main_job faults bad_input commands pages chaos hot soak ${swift:+vz})
without=()
for path in bridge/tests/*.rs {rust,tools}/*/tests/*.rs {rust,tools}/*/tests/*/main.rs; do
    name=${path#*tests/} name=${name%/main.rs} name=${name%.rs}
    [[ " guest main_job faults bad_input commands pages chaos hot soak vz " == *" $name "* ]] || without+=(--test "$name")
done

# Process IDs of every QEMU and every guest of the stand-in; the tests must leave none behind.
guests() { pgrep -f '^[^ ]*qemu-system-|^unshare .*--kill-child=KILL .*/program inside' | sort; }
before=$(guests)

# First everything that needs no guest, then the VM process and the whole system on real guests, two at a time, because a
# guest occupies a core. There are no documentation tests.
run cargo test "${build[@]}" --lib --bins "${without[@]}"
if [[ $(uname -s) == Linux ]]; then
    run cargo test "${build[@]}" "${with_guests[@]/#/--test=}" -- --test-threads=2
else
    echo "==> not Linux: the tests that run Linux guests under QEMU were NOT run (docs/on-a-mac.md lists what a Mac can show)"
fi

# Three hundred simulated fleets, counted as one test. `make simulate` runs two thousand, or those of SEEDS=A..B.
run "${CARGO_TARGET_DIR:-target}/debug/shoes-vz-simulate" "${SEEDS:-0..300}"
simulated=$(grep -cE '^[0-9]+ seeds, [0-9]+ faults injected, 0 violations$' "$log")

swift_passed=0 swift_failed=0
if [[ -n $swift ]]; then
    run scripts/swift-test.sh
    read -r swift_passed swift_failed < <(awk '/^[0-9]+ passed, [0-9]+ failed$/ { p = $1; f = $3 } END { print p + 0, f + 0 }' "$log")
elif [[ $(uname -s) == Linux ]]; then
    echo "==> no Swift toolchain (\`make setup-swift\`): VZCore, its bridge and --hypervisor vz were NOT tested"
fi

read -r passed failed < <(awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i } }
    END { print p + 0, f + 0 }' "$log")
passed=$((passed + swift_passed + simulated)) failed=$((failed + swift_failed))
left=$(comm -13 <(echo "$before") <(guests))
if [[ -n $left ]]; then
    echo "error: the tests left guests behind: $(echo $left)" | tee -a "$log"
    status=1
fi
# A crate whose tests did not compile has no result line; it must be counted as failed.
if [[ $status != 0 && $failed == 0 ]]; then failed=1; fi
grep -E '^test .* FAILED$|^error|^✘ Test |^seed [0-9]+ failed|^  - ' "$log" | sort -u | head -50
# Tests that cargo counts as passed although they were skipped here: no Go, an old QEMU.
grep -oE 'SKIPPED[^:]*: .*' "$log" | sort -u
echo "$passed passed, $failed failed"
[[ $status == 0 && $failed == 0 && $passed -gt 0 ]]
